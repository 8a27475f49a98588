"""Quantisation-aware training: a model's experts in four bits learn to say what the unrounded model says.

The forward pass uses the values that MXFP4 will hold, the backward pass moves the float32 weights behind them. The loss is the
Kullback-Leibler divergence from the unrounded model on texts and on the model's own answers. What a step sees depends on the seed
and its number alone, so that a run goes on from its checkpoint as if it had not been stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint import Checkpoint
from ..display import bar
from ..errors import CheckpointError
from ..prompts import check_ids
from ..texts import read_windows
from ..tokenizer import Tokenizer
from .data import read_answers
from .distil import Distance, distance
from .network import Network
from .optimizer import Optimizer
from .qat_weights import PARTS, QatWeights

__all__ = ["CHECKPOINT", "LOG", "QatOptions", "QatTrainer"]

Ids = NDArray[np.int64]
CHECKPOINT = "training.pt"
LOG = "log.csv"
MODEL = "model"
_COLUMNS = ("step", "tokens", "seconds", "lr", "loss", "norm", "perplexity", "ratio", "kl", "top1")


@dataclass(frozen=True)
class QatOptions:
    """How to train. Exactly one of steps and minutes is given; with minutes, the schedule follows the clock."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    optimizer: str = "muon"
    """Of matrices; everything else is AdamW's."""
    lr: float = 7e-4
    """In units of a matrix's own size, see `QatWeights`."""
    warmup: float = 0.05
    """Share of the run."""
    clip: float = 1.0
    window: int = 512
    sequences: int = 2
    """Windows of a step."""
    hidden: float = 0.0
    """Weight of the relative squared distance of residual streams."""
    learn_scale: bool = False
    """Learn the scales of blocks; by default the best scale for the weights of the moment is taken, as `convert` does."""
    train: tuple[str, ...] = ()
    """What is trained beside experts: of `PARTS`."""
    device: str = "cpu"
    bf16: bool = False
    """Whether products of the layers, of both models, and Muon's read BF16, which holds MXFP4's values exactly; parameters, router,
    norms, residual streams and logits stay float32."""
    checkpoint_seconds: float = 600.0
    log_every: int = 5
    measure_seconds: float = 300.0
    """Between measurements on held-out text."""
    held_out_tokens: int = 4096

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"steps, minutes: expected exactly one of them, found {self.steps} and {self.minutes}")
        if unknown := set(self.train) - set(PARTS):
            raise ValueError(f"train: expected of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
        if self.window < 2 or self.sequences < 1:
            raise ValueError(f"window, sequences: expected at least 2 and 1, found {self.window} and {self.sequences}")


class QatTrainer:
    """A run in a folder. Begins anew, or goes on where the folder's checkpoint is."""

    def __init__(
        self,
        source: str | Path,
        data: Sequence[str | Path],
        out: str | Path,
        options: QatOptions,
        *,
        start: str | Path | None = None,
        held_out: Sequence[str | Path] = (),
    ) -> None:
        """source: a checkpoint whose experts are BF16, F32 or FP8. start: one with MXFP4 experts to begin from, such as a
        calibrated rounding; by default the source's own weights. data, held_out: files as in `read_windows`, or folders of answers.

        Raises CheckpointError for a source without unrounded experts, ValueError for texts that cannot be read, OSError.
        """
        self.options, self.out = options, Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = Checkpoint.open(source)
        self._device = torch.device(options.device)
        self._network = Network(checkpoint.config)
        self.weights = QatWeights(
            checkpoint,
            None if start is None else Checkpoint.open(start),
            self._device,
            train=options.train,
            learn_scale=options.learn_scale,
        )
        self._optimizer = Optimizer(options.optimizer, self.weights.parameters, self.weights.matrices(), bf16=options.bf16)
        folder = checkpoint.folder
        tokenizer = Tokenizer.from_folder(folder) if (folder / "tokenizer.json").exists() else None
        vocab = checkpoint.config.vocab_size
        self._data = [_packed(one, tokenizer, vocab, options.window) for one in data]
        if not self._data:
            raise ValueError("data: expected texts to train on, found none")
        share = max(2, options.held_out_tokens // max(len(held_out), 1))
        self._held_out = [_spread(_packed(one, tokenizer, vocab, options.window), share) for one in held_out]
        self.step = self.tokens = 0
        self.seconds = 0.0
        if (self.out / CHECKPOINT).exists():
            self._go_on(torch.load(self.out / CHECKPOINT, map_location="cpu", weights_only=True))

    # ---- the run ----

    def run(self, *, progress: bool = True) -> Path:
        """Trains to the end of the schedule and writes the checkpoint that the engine runs; an interrupt writes it too."""
        started, before = time.monotonic(), self.seconds
        saved = measured = time.monotonic()
        if not self.step:
            self._log({"step": 0, "tokens": 0, "seconds": "0.0", **self._measured()})
        with bar(progress, total=self.options.steps, initial=self.step, unit="step") as shown:
            try:
                while self.progress() < 1:
                    row = self._one_step()
                    self.seconds = before + time.monotonic() - started
                    shown.update()
                    due = time.monotonic() - measured > self.options.measure_seconds or self.progress() >= 1
                    if due:
                        row |= self._measured()
                        measured = time.monotonic()
                    if due or self.step % self.options.log_every == 0:
                        shown.set_postfix(loss=row["loss"])
                        self._log(row)
                    if time.monotonic() - saved > self.options.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
            finally:
                self.save()
                self.weights.write(self.out / MODEL)
        return self.out / MODEL

    def progress(self) -> float:
        """0 at the start of the schedule, 1 at its end."""
        if self.options.steps is not None:
            return self.step / self.options.steps if self.options.steps else 1.0
        assert self.options.minutes is not None
        return self.seconds / (60 * self.options.minutes)

    def lr(self) -> float:
        """Of the next step: linear warm-up, then a straight line to a hundredth."""
        done, warmup = self.progress(), self.options.warmup
        if done < warmup:
            return self.options.lr * max(done / warmup, 0.01)
        return self.options.lr * (0.01 + 0.99 * max(0.0, (1 - done) / (1 - warmup)))

    def logits(self, ids: Sequence[int]) -> Tensor:
        """[T, V]: what the rounded model says now."""
        with torch.no_grad():
            rest, experts = self.weights.student()
            return self._network.logits(rest, experts, torch.tensor([list(ids)], device=self._device))[0]

    def save(self) -> None:
        """Writes the checkpoint: all that the next step depends on."""
        state = {
            "options": dataclasses.asdict(self.options),
            "parameters": {name: value.detach().cpu() for name, value in self.weights.parameters.items()},
            "optimizer": self._optimizer.state_dict(),
            **{name: getattr(self, name) for name in ("step", "tokens", "seconds")},
        }
        partial = self.out / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        partial.replace(self.out / CHECKPOINT)

    def _go_on(self, saved: Mapping[str, Any]) -> None:
        if saved["parameters"].keys() != self.weights.parameters.keys():
            raise CheckpointError(f"{self.out / CHECKPOINT}: expected a run of this model that trains the same, found another")
        self.weights.load(saved["parameters"])
        self._optimizer.load_state_dict(saved["optimizer"])
        for name in ("step", "tokens", "seconds"):
            setattr(self, name, saved[name])

    # ---- a step ----

    def _one_step(self) -> dict[str, Any]:
        options, parameters = self.options, self.weights.parameters
        rest, experts = self.weights.student()
        found = self._distance(self._draw(), rest, experts)
        loss = found.kl / found.tokens + options.hidden * found.hidden
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        lr = self.lr()
        with torch.no_grad():
            norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
            if options.clip and norm > options.clip:
                torch._foreach_mul_(list(gradients.values()), options.clip / norm)
        self._optimizer.step(gradients, lr)
        self.step += 1
        self.tokens += found.tokens
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": f"{self.seconds:.1f}",
            "lr": f"{lr:.3e}",
            "loss": f"{loss.item():.5f}",
            "norm": f"{norm:.3f}",
        }

    def _draw(self) -> Tensor:
        """[B, T]: windows of the files, each file as likely as another."""
        draw = random.Random(f"qat {self.options.seed} {self.step}")
        picked = []
        for _ in range(self.options.sequences):
            windows = draw.choice(self._data)
            picked.append(windows[draw.randrange(len(windows))])
        return torch.from_numpy(np.stack(picked))

    def _distance(self, ids: Tensor, rest: Mapping[str, Tensor], experts: Any) -> Distance:
        ids = ids.to(self._device)
        network, teacher = self._network, self.weights
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.options.bf16):
            with torch.no_grad():
                right = network.streams(teacher.rest, teacher.experts, ids)
            found = network.streams(rest, experts, ids)
        return distance(network, (teacher.rest, right), (rest, found), ids)

    @torch.no_grad()
    def _measured(self) -> dict[str, str]:
        """Of held-out texts; nothing without any."""
        if not self._held_out:
            return {}
        rest, experts = self.weights.student()
        parts = [self._distance(torch.from_numpy(one[None]), rest, experts) for text in self._held_out for one in text]
        tokens, told = sum(part.tokens for part in parts), sum(part.told for part in parts)
        mine, other = (sum(getattr(part, name) for part in parts) / told for name in ("nll", "right_nll"))
        return {
            "perplexity": f"{math.exp(mine):.4f}",
            "ratio": f"{math.exp(mine - other):.5f}",
            "kl": f"{sum(float(part.kl) for part in parts) / tokens:.5f}",
            "top1": f"{sum(part.same for part in parts) / tokens:.4f}",
        }

    def _log(self, row: Mapping[str, Any]) -> None:
        path = self.out / LOG
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def _packed(path: str | Path, tokenizer: Tokenizer | None, vocab: int, window: int) -> Ids:
    """[N, window] ids: a file's documents, or those of a folder's answers, behind one another."""
    source = Path(path).expanduser()
    if source.is_dir():
        documents = [np.array(check_ids([*row["prompt"], *row["answer"]], vocab, str(source))) for row in read_answers(source)]
    else:
        documents = read_windows(source, tokenizer, vocab=vocab, length=1 << 40)
    joined = np.concatenate([np.zeros(0, np.int64), *documents])
    count = len(joined) // window
    if not count:
        raise ValueError(f"{source}: expected at least {window} tokens, found {len(joined)}")
    return joined[: count * window].reshape(count, window)


def _spread(windows: Ids, tokens: int) -> Ids:
    """About as many tokens, from windows spread evenly."""
    count = min(len(windows), max(1, round(tokens / windows.shape[1])))
    picked: Ids = windows[np.linspace(0, len(windows) - 1, count).astype(int)]
    return picked
