"""The training loop: random anchors of the target's answers, in a fixed order of computation.

A step is a handful of sequences. Each gives a gradient of its own, computed by one of a few threads, and the gradients are added in
the order of the sequences: neither the number of threads nor an interrupt changes a bit. New answers are taken up as they appear.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pickle
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..display import bar
from ..errors import CheckpointError
from .data import read_answers
from .drafter import Block, DrafterConfig, Parameters, Trained, context, hidden, markov_bias
from .features import Features
from .loss import Labels, losses
from .optimizer import Optimizer
from .start import default_config, frequent_tokens, starting_parameters, tap_rms
from .target import TargetWeights

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..model import Model

__all__ = ["CHECKPOINT", "LOG", "TrainOptions", "Trainer", "load_training"]

CHECKPOINT = "training.pt"
LOG = "log.csv"
_COLUMNS = (
    "step",
    "anchors",
    "tokens",
    "seconds",
    "lr",
    "loss",
    "accepted",
    "slot1",
    "slot2",
    "slot3",
    "norm",
    "anchors_per_second",
)
_SCALE_SEQUENCES = 24
_LOOK_FOR_DATA_EVERY = 20
_SHORTEST_ANSWER = 4
_SHORT_LENGTH = 3


@dataclass(frozen=True)
class TrainOptions:
    """How to train. Exactly one of steps and minutes is given; with minutes, the schedule follows the clock."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup: float = 0.02
    """Share of the run."""
    weight_decay: float = 0.0
    clip: float = 1.0
    sequences: int = 2
    """Per step."""
    anchors: int = 96
    """Most of a sequence in a step."""
    lengths: tuple[int, ...] = (3, 4, 4, 8)
    """Block lengths, one drawn for each sequence."""
    short: float = 0.35
    """Share of the run in which blocks are cut to three rows: later slots are worth nothing before the first are learnt."""
    mix: Mapping[str, float] = field(default_factory=lambda: {"ce": 0.5, "kl": 0.5})
    weights: str = "dpace"
    ema: float = 0.995
    workers: int = 2
    device: str = "cpu"
    bf16: bool = False
    """Whether the layers' matrix products read BF16 (torch.autocast); parameters, norms and logits stay float32."""
    checkpoint_seconds: float = 180.0
    log_every: int = 10

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"steps, minutes: expected exactly one of them, found {self.steps} and {self.minutes}")
        for name in ("steps", "minutes", "lr", "sequences", "anchors", "workers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected more than 0, found {value}")
        if min(self.lengths, default=0) < 2:
            raise ValueError(f"lengths: expected block lengths of 2 or more, found {self.lengths}")


@dataclass(frozen=True)
class _Sequence:
    """A sequence of a step: what is computed from it."""

    record: Mapping[str, Any]
    taps: NDArray[np.float16]
    anchors: list[int]
    length: int


@dataclass(frozen=True)
class _Part:
    """What came out of a sequence."""

    gradients: list[Tensor]
    loss: float
    anchors: int
    prefix: Tensor
    """[S]: anchors whose first k drafts were right."""
    tried: Tensor
    """[S]: anchors whose first k - 1 drafts were right, and that have a k-th."""


class Trainer:
    """A run in a folder. Begins anew, or goes on where the folder's checkpoint is."""

    def __init__(
        self,
        model: Model,
        data: str | Path,
        out: str | Path,
        options: TrainOptions,
        *,
        config: DrafterConfig | None = None,
        start: Trained | None = None,
        cache: str | Path | None = None,
    ) -> None:
        """data: folder of answers. start: the drafter a new run begins with instead of one of `config`. cache: folder for taps;
        default: beside the answers.

        Raises CheckpointError when `start` is of a drafter for another shape of model, ValueError for a folder without answers.
        """
        self.options, self.out, self._data = options, Path(out), Path(data)
        if not any(self._data.glob("answers-*.jsonl")):
            raise ValueError(f"{self._data}: expected answers to train on, found none")
        self.out.mkdir(parents=True, exist_ok=True)
        saved = load_training(self.out / CHECKPOINT) if (self.out / CHECKPOINT).exists() else None
        if saved is not None:
            config = DrafterConfig(**saved["config"])
            _check_target(config, model.config, str(self.out / CHECKPOINT))
        elif start is not None:
            config = start.config
            _check_target(config, model.config, "start")
        self.config = default_config(model.config) if config is None else config
        self._device = torch.device(options.device)
        self._features = Features(model, self.config.taps, self._data / "taps" if cache is None else cache)
        self._records: list[dict[str, Any]] = []
        self._queue: list[int] = []
        self._seen_bytes = -1
        self._rng = random.Random(f"train {options.seed}")
        self.step = self.anchors = self.tokens = 0
        self.seconds = 0.0
        weights = TargetWeights(model.checkpoint)
        if saved is None:
            self._begin(weights, start)
        else:
            self._go_on(saved)
        embedding, head = torch.from_numpy(weights.embedding()), torch.from_numpy(weights.head())
        self._embedding = embedding.to(self._device)
        self._head = head[torch.from_numpy(self.head_ids)].contiguous().to(self._device)
        self._final_norm = torch.from_numpy(weights.final_norm().copy()).to(self._device)
        places = np.full(self.config.vocab_size, -1, np.int64)
        places[self.head_ids] = np.arange(len(self.head_ids))
        self._places = torch.from_numpy(places)

    # ---- the run ----

    def run(self, *, progress: bool = True) -> None:
        """Trains to the end of the schedule. An interrupt writes a checkpoint first."""
        torch.set_num_threads(1)
        started, before = time.monotonic(), self.seconds
        saved_at, window = time.monotonic(), _Window()
        with (
            ThreadPoolExecutor(self.options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            bar(progress, total=self.options.steps, initial=self.step, unit="step") as shown,
        ):
            try:
                while self.progress() < 1:
                    window.add(self._one_step(pool))
                    self.seconds = before + time.monotonic() - started
                    shown.update()
                    if self.step % self.options.log_every == 0:
                        row = window.row(self)
                        shown.set_postfix(loss=row["loss"], accepted=row["accepted"])
                        self._log(row)
                        window = _Window()
                    if time.monotonic() - saved_at > self.options.checkpoint_seconds:
                        self.save()
                        saved_at = time.monotonic()
            finally:
                self.save()

    def progress(self) -> float:
        """0 at the start of the schedule, 1 at its end."""
        if self.options.steps is not None:
            return self.step / max(self.options.steps, 1)
        assert self.options.minutes is not None
        return self.seconds / (60 * self.options.minutes)

    def lr(self) -> float:
        """Of the next step: linear warm-up, then a cosine to a hundredth."""
        done, warmup = self.progress(), self.options.warmup
        if done < warmup:
            return self.options.lr * max(done / warmup, 0.01)
        left = min((done - warmup) / (1 - warmup), 1.0)
        return self.options.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * left)))

    def save(self) -> None:
        """Writes the checkpoint: all that the next step depends on."""
        state = {
            "config": dataclasses.asdict(self.config),
            "options": dataclasses.asdict(self.options),
            "parameters": {name: value.detach().cpu() for name, value in self.parameters.items()},
            "ema": self.ema,
            "optimizer": self._optimizer.state_dict(),
            "tap_rms": torch.from_numpy(self.rms),
            "head_ids": torch.from_numpy(self.head_ids),
            "records": len(self._records),
            "queue": self._queue,
            "rng": self._rng.getstate(),
            **{name: getattr(self, name) for name in ("step", "anchors", "tokens", "seconds")},
        }
        partial = self.out / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        partial.replace(self.out / CHECKPOINT)

    # ---- beginnings ----

    def _begin(self, weights: TargetWeights, start: Trained | None) -> None:
        self._look_for_data()
        if not self._records:
            raise ValueError(f"{self._data}: expected answers to train on, found none")
        chosen = random.Random(self.options.seed).sample(self._records, min(_SCALE_SEQUENCES, len(self._records)))
        self.rms = tap_rms(self._taps(record) for record in chosen)
        if start is not None:
            self.head_ids = start.head_ids
            own = {name: value.clone() for name, value in start.parameters.items()}  # which are trained in place
            self._take({**own, "fc.weight": own["fc.weight"] * torch.from_numpy(self.rms)})
        else:
            pairs = ((record["prompt"], record["answer"]) for record in self._records)
            self.head_ids = frequent_tokens(pairs, self.config.head_size, self.config.vocab_size)
            self._take(starting_parameters(self.config, weights, self.rms, self.options.seed))
        self.ema = {name: value.detach().clone() for name, value in self.parameters.items()}

    def _go_on(self, saved: Mapping[str, Any]) -> None:
        self.head_ids, self.rms = saved["head_ids"].numpy(), saved["tap_rms"].numpy()
        self._take(saved["parameters"])
        self.ema = {name: value.to(self._device) for name, value in saved["ema"].items()}
        self._optimizer.load_state_dict(saved["optimizer"])
        for name in ("step", "anchors", "tokens", "seconds"):
            setattr(self, name, saved[name])
        self._records = self._read()[: saved["records"]]
        self._queue = list(saved["queue"])
        version, state, gauss = saved["rng"]
        self._rng.setstate((version, tuple(state), gauss))

    def _take(self, parameters: Parameters) -> None:
        self.parameters: Parameters = {name: value.to(self._device).requires_grad_() for name, value in parameters.items()}
        matrices = list(self.config.matrices())
        self._optimizer = Optimizer(
            self.options.optimizer, self.parameters, matrices, weight_decay=self.options.weight_decay, bf16=self.options.bf16
        )

    # ---- data ----

    def _read(self) -> list[dict[str, Any]]:
        return [record for record in read_answers(self._data) if len(record["answer"]) >= _SHORTEST_ANSWER]

    def _look_for_data(self) -> None:
        size = sum(path.stat().st_size for path in self._data.glob("answers-*.jsonl"))
        if size == self._seen_bytes:
            return
        self._seen_bytes = size
        records = self._read()
        if len(records) == len(self._records):
            return  # also the first look of a run that goes on, whose order stands
        self._queue += range(len(self._records), len(records))
        self._rng.shuffle(self._queue)
        self._records = records

    def _taps(self, record: Mapping[str, Any]) -> NDArray[np.float16]:
        return self._features.of(record["id"], [*record["prompt"], *record["answer"]][:-1])

    def _draw(self) -> _Sequence:
        if not self._queue:
            self._queue = list(range(len(self._records)))
            self._rng.shuffle(self._queue)
        record = self._records[self._queue.pop()]
        first, last = len(record["prompt"]), len(record["prompt"]) + len(record["answer"]) - 2
        anchors = self._rng.sample(range(first, last + 1), min(self.options.anchors, last - first + 1))
        length = self._rng.choice(self.options.lengths)
        if self.progress() < self.options.short:
            length = min(length, _SHORT_LENGTH)
        return _Sequence(record, self._taps(record), sorted(anchors), length)

    # ---- a step ----

    def _one_step(self, pool: ThreadPoolExecutor) -> dict[str, Any]:
        if self.step % _LOOK_FOR_DATA_EVERY == 0:
            self._look_for_data()
        batch = [self._draw() for _ in range(self.options.sequences)]
        read = self._read_parameters()
        parts = list(pool.map(lambda one: self._part(one, read), batch))
        total = sum(part.anchors for part in parts)
        gradients: dict[str, Tensor] = {}
        with torch.no_grad():
            for at, name in enumerate(self.parameters):
                gradients[name] = parts[0].gradients[at].float() * (parts[0].anchors / total)
                for part in parts[1:]:
                    gradients[name].add_(part.gradients[at], alpha=part.anchors / total)
            norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
            if self.options.clip and norm > self.options.clip:
                torch._foreach_mul_(list(gradients.values()), self.options.clip / norm)
        lr = self.lr()
        self._optimizer.step(gradients, lr)
        self._average()
        self.step += 1
        self.anchors += total
        self.tokens += sum(len(one.record["answer"]) for one in batch)
        return {"parts": parts, "norm": norm, "lr": lr, "total": total}

    def _average(self) -> None:
        keep = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - keep)

    def _read_parameters(self) -> Parameters:
        """What a step's products read: the parameters; in BF16, rounded once for all sequences, those of the layers' matrices."""
        if not self.options.bf16:
            return self.parameters
        rounded = {name for name in self.config.matrices() if not name.startswith("markov")}
        return {
            name: value.detach().to(torch.bfloat16).requires_grad_() if name in rounded else value
            for name, value in self.parameters.items()
        }

    def _part(self, one: _Sequence, parameters: Parameters) -> _Part:
        tokens = torch.tensor([*one.record["prompt"], *one.record["answer"]])
        anchors = torch.tensor(one.anchors)
        raw = torch.from_numpy(np.array(one.taps[: one.anchors[-1] + one.length])).to(self._device, torch.float32)
        block = Block(self._embedding[tokens[anchors]], anchors.to(self._device), one.length)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.options.bf16):
            known = context(parameters, self.config, (raw / torch.from_numpy(self.rms).to(self._device))[: one.anchors[-1]])
            predicted = hidden(parameters, self.config, known, block)
        logits = predicted @ self._head.T
        labels, previous = self._labels(tokens, anchors, one.length, raw)
        bias = markov_bias(parameters, previous)
        result = losses(logits if bias is None else logits + bias, labels, self.options.mix, self.options.weights)
        gradients = torch.autograd.grad(result.loss, list(parameters.values()))
        prefix = result.matches.cumprod(1)
        before = torch.cat((torch.ones_like(prefix[:, :1]), prefix[:, :-1]), 1) * labels.valid
        return _Part(list(gradients), float(result.loss.detach()), len(anchors), prefix.sum(0).cpu(), before.sum(0).cpu())

    def _labels(self, tokens: Tensor, anchors: Tensor, length: int, raw: Tensor) -> tuple[Labels, Tensor]:
        """What slots should say, and [A, S] places in the head of the tokens before them."""
        at = anchors[:, None] + torch.arange(1, length)
        valid = at < len(tokens)
        places = self._places[tokens[at.clamp(max=len(tokens) - 1)]]
        previous = self._places[tokens[(at - 1).clamp(max=len(tokens) - 1)]]
        target = None
        if self.options.mix.get("kl") or self.options.mix.get("tv"):
            if self.config.taps[-1] != self.config.num_target_layers - 1:
                raise ValueError(f"mix: 'kl' and 'tv' need the target's last layer among the taps, found {self.config.taps}")
            with torch.no_grad():
                first = int(anchors[0])
                normed = torch.nn.functional.rms_norm(
                    raw[first:, -self.config.hidden_size :], (self.config.hidden_size,), self._final_norm, self.config.rms_norm_eps
                )
                rows = (at - 1 - first).clamp(max=len(normed) - 1).to(self._device)
                target = (normed @ self._head.T)[rows]
        return Labels(places.to(self._device), valid.to(self._device), target), previous.to(self._device)

    def _log(self, row: Mapping[str, Any]) -> None:
        path = self.out / LOG
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)


class _Window:
    """Means over the steps between two lines of the log."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._started = time.monotonic()

    def add(self, step: dict[str, Any]) -> None:
        self._steps.append(step)

    def row(self, trainer: Trainer) -> dict[str, Any]:
        parts: Sequence[_Part] = [part for step in self._steps for part in step["parts"]]
        anchors = sum(part.anchors for part in parts)
        accepted = sum(int(part.prefix.sum()) for part in parts) / anchors
        row = {
            "step": trainer.step,
            "anchors": trainer.anchors,
            "tokens": trainer.tokens,
            "seconds": f"{trainer.seconds:.1f}",
            "lr": f"{self._steps[-1]['lr']:.3e}",
            "loss": f"{sum(part.loss * part.anchors for part in parts) / anchors:.4f}",
            "accepted": f"{1 + accepted:.4f}",
            "norm": f"{sum(step['norm'] for step in self._steps) / len(self._steps):.3f}",
            "anchors_per_second": f"{anchors / (time.monotonic() - self._started):.1f}",
        }
        for slot in range(3):
            right = sum(int(part.prefix[slot]) for part in parts if len(part.prefix) > slot)
            tried = sum(int(part.tried[slot]) for part in parts if len(part.tried) > slot)
            row[f"slot{slot + 1}"] = f"{right / tried:.4f}" if tried else ""
        return row


def _check_target(config: DrafterConfig, target: ModelConfig, where: str) -> None:
    wanted = {"hidden_size": target.hidden_size, "vocab_size": target.vocab_size, "num_target_layers": target.num_hidden_layers}
    for name, value in wanted.items():
        if (found := getattr(config, name)) != value:
            raise CheckpointError(f"{where}: expected a drafter for {name} {value}, found one for {found}")


def load_training(path: str | Path) -> dict[str, Any]:
    """A checkpoint of a run. Nothing in it is executed. Raises OSError, and CheckpointError for a file of another kind."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        state = None
    if not isinstance(state, dict) or not {"config", "parameters", "ema", "step"} <= state.keys():
        raise CheckpointError(f"{path}: expected the checkpoint of a run of `train drafter`, found something else")
    return state
