"""Runs a model and takes the times."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import numpy as np

from .._core import int8_peak, read_bandwidth
from ..display import bar
from ..draft import Draft
from ..errors import ContextOverflowError
from ..model import Model, open_checkpoint
from .figures import rate_together
from .made import made_folder
from .result import BenchResult, Run, load_average
from .settings import DEFAULT_WIDTHS, Settings

__all__ = ["bench"]

_PROBE_BYTES, _PROBE_SECONDS = 1 << 29, 0.2
_STEP_REPEATS, _PROFILED_STEPS = 3, 8
_PAUSE_SECONDS = 0.02  # until idle threads sleep, before the machine is measured


def bench(
    model: str | os.PathLike[str] | None = None,
    *,
    shape: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    draft: str | os.PathLike[str] | Draft | bool | None = "auto",
    prompt_tokens: int | Iterable[int] = (32, 512),
    new_tokens: int = 128,
    widths: int | Iterable[int] = DEFAULT_WIDTHS,
    threads: int | Iterable[int] | None = None,
    precision: str = "fast",
    batch: int = 16,
    rounds: int = 5,
    seconds: float | None = None,
    progress: bool = True,
) -> BenchResult:
    """Measures how fast a model runs here: decoding, prompts, steps of several rows, blocks of its drafter, several prompts at
    once; and where the time of a step goes, against this machine's own read bandwidth and int8 peak, taken in the same rounds.

    model: as in `Model.from_pretrained`; None is the embedded default. shape: instead of a model, a made one ("tiny", "medium",
      "flash", ...: see `make`), kept in a temporary folder; overrides: fields of its config.json that differ.
    draft: the drafter, as in `Model.from_pretrained`; None leaves it out. Nothing but its own blocks is measured with it.
    prompt_tokens: lengths of prompts to time; the first is also the context of decoding and of steps. new_tokens: of each answer.
    widths: rows of engine steps to time, 1 to 128. threads: one count or several, each a run of its own; None is one per core.
    batch: prompts answered at once, up to 32; 0 leaves that out. precision: "fast" or "exact".
    rounds: how often each kind of work is measured, in turn with all others. seconds: no round of a run begins after so many.

    An interrupt (Ctrl-C, the notebook's stop button) returns what was measured so far, with `interrupted` set.
    Raises what `Model.from_pretrained` and `make` raise, ValueError and TypeError for wrong arguments.
    """
    settings = Settings.of(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        widths=widths,
        threads=threads,
        precision=precision,
        batch=batch,
        rounds=rounds,
        seconds=seconds,
    )
    if model is not None and shape is not None:
        raise ValueError("expected a model or a shape, found both")
    if overrides and shape is None:
        raise ValueError("overrides: they change a shape, and there is none")
    source = made_folder(shape, overrides, progress=progress) if shape is not None else model or "smollm2-135m"
    checkpoint = open_checkpoint(source, progress=progress)
    if (most := checkpoint.config.max_position_embeddings) < settings.positions:
        raise ContextOverflowError(f"these prompts, answers and widths need {settings.positions} positions, the model has {most}")
    name = checkpoint.folder.name if shape is not None or isinstance(source, os.PathLike) else str(source)
    result = BenchResult.start(checkpoint, name, settings)
    try:
        for count in settings.threads:
            with Model.from_pretrained(source, draft=draft, precision=precision, threads=count, progress=progress) as opened:
                _Session(opened, settings, result).run(progress)
    except KeyboardInterrupt:
        if not any(run.samples for run in result.runs):
            raise
        result.interrupted = True
    result.machine["load_average"][1] = load_average()
    return result


class _Session:
    """One model with one number of threads."""

    def __init__(self, model: Model, settings: Settings, result: BenchResult) -> None:
        self.model, self.settings = model, settings
        memory = model.memory()
        packed = memory["weights"] + memory["embedding"]
        self.out = Run(model.threads, model.backend, {"seconds": model.load_seconds, "bytes": packed}, memory)
        self.first = not result.runs
        result.runs.append(self.out)
        self.prompts = 0

    def run(self, progress: bool) -> None:
        """All rounds."""
        settings = self.settings
        works: list[tuple[str, Callable[[], None]]] = [("machine", self._read_bandwidth), ("decode", self._decode)]
        works += [(f"prompt of {length}", lambda n=length: self._prefill(n)) for length in settings.prompt_tokens]  # type: ignore[misc]
        works.append(("machine", self._int8_peak))
        if settings.widths:
            works.append(("steps", self._steps))
        if self.model.draft is not None:
            works.append(("drafts", self._drafts))
        if settings.batch:
            works.append((f"{settings.batch} at once", self._batch))
        works.append(("profile", self._profiles))
        with bar(progress, total=len(works) * settings.rounds + 1, unit="measurement") as shown:
            shown.set_description("warming up")
            self._warm_up()
            shown.update()
            began = time.perf_counter()
            for number in range(settings.rounds):
                if number and settings.seconds is not None and time.perf_counter() - began > settings.seconds:
                    break
                for name, work in works:
                    shown.set_description(name)
                    work()
                    shown.update()

    # ---- kinds of work: each adds its samples when it is done ----

    def _warm_up(self) -> None:
        for length in self.settings.prompt_tokens:
            self._answer(self._prompt(length), min(self.settings.new_tokens, 16) if length == self.settings.prompt_tokens[0] else 1)
        if self.first:  # the probes below allocate memory of their own
            self.out.memory["process_peak"] = _peak_bytes()

    def _read_bandwidth(self) -> None:
        time.sleep(_PAUSE_SECONDS)
        self.out.add("read_bandwidth", read_bandwidth(_PROBE_BYTES, self.out.threads, _PROBE_SECONDS))

    def _int8_peak(self) -> None:
        time.sleep(_PAUSE_SECONDS)
        try:
            self.out.add("int8_peak", int8_peak(self.out.threads, _PROBE_SECONDS / 2))
        except NotImplementedError:
            return

    def _decode(self) -> None:
        first, last, steps = self._answer(self._prompt(self.settings.prompt_tokens[0]), self.settings.new_tokens)
        self.out.add("decode", (last - first) / steps)

    def _prefill(self, length: int) -> None:
        ids = self._prompt(length)
        began = time.perf_counter()
        first, _, _ = self._answer(ids, 1)
        self.out.add(f"prefill {length}", first - began)

    def _steps(self) -> None:
        settings = self.settings
        times = self.model._engine.step_times(settings.widths, context=settings.prompt_tokens[0], repeats=_STEP_REPEATS)
        for width, column in zip(settings.widths, times.T, strict=True):
            self.out.add(f"step {width}", *(1e-9 * column).tolist())

    def _drafts(self) -> None:
        """Blocks in the course of an answer; the first, which takes in the prompt, and the short ones at its end do not count."""
        drafter, settings, engine = self.model.draft, self.settings, self.model._engine
        assert drafter is not None
        engine.profile(True)
        options = _answer_options(settings.new_tokens) | {"speculative": True, "width": drafter.block_size, "lookup": False}
        result = self.model.generate(self._prompt(settings.prompt_tokens[0]), progress=False, **options)
        profile, rounds = engine.profile(False)["draft"], result.stats.rounds
        whole = [s for s, n in zip(rounds["draft_seconds"], rounds["drafted"], strict=True) if n == drafter.block_size - 1]
        if len(whole) > 1:
            self.out.add(f"draft {drafter.block_size}", statistics.median(whole[1:]))
            self._add_profile(f"draft {drafter.block_size}", profile)

    def _batch(self) -> None:
        settings = self.settings
        prompts = [self._prompt(settings.prompt_tokens[0]) for _ in range(settings.batch)]
        began = time.perf_counter()
        submitted: list[float] = []
        times: list[list[float]] = [[] for _ in prompts]
        with ExitStack() as stack:
            streams = []
            for ids in prompts:
                submitted.append(time.perf_counter())
                streams.append(stack.enter_context(self.model.stream(ids, **_answer_options(settings.new_tokens))))
            for pieces in zip_longest(*streams):  # in turn: an answer that nobody reads waits when its queue is full
                for begun, answer, piece in zip(submitted, times, pieces, strict=True):
                    if piece is not None and piece.token_ids:
                        answer.append(begun + piece.t)
        self.out.add("batch seconds", time.perf_counter() - began)
        self.out.add("batch", rate_together(times))

    def _profiles(self) -> None:
        settings, engine = self.settings, self.model._engine
        context = settings.prompt_tokens[0]
        ids = self._prompt(context)
        self._answer(ids, 1)  # its keys and values are kept: all steps of the next answer are of one row
        engine.profile(True)
        first, last, steps = self._answer(ids, settings.new_tokens)
        profile = engine.profile(False)
        profile["wall_ns"] = round((last - first) / steps * profile["steps"] * 1e9)
        self._add_profile("decode", profile)
        if (width := settings.profiled_width) is not None:
            self._add_profile(f"step {width}", engine.step_profile(width, context=context, repeats=_PROFILED_STEPS))
        longest = max(settings.prompt_tokens)
        ids = self._prompt(longest)
        engine.profile(True)
        self._answer(ids, 1)
        self._add_profile(f"prefill {longest}", engine.profile(False))

    def _add_profile(self, name: str, profile: dict[str, Any]) -> None:
        profile["read_bandwidth"] = self.out.samples["read_bandwidth"][-1]
        self.out.profiles.setdefault(name, []).append(profile)

    # ---- answers ----

    def _prompt(self, length: int) -> list[int]:
        """Another beginning every time, so that no answer finds the keys and values of an earlier one."""
        self.prompts += 1
        vocab = self.model.config.vocab_size
        ids: list[int] = np.random.default_rng(self.prompts).integers(vocab // 8, vocab, length).tolist()
        return ids

    def _answer(self, ids: list[int], count: int) -> tuple[float, float, int]:
        """When its first and its last token came, and the number of steps between them."""
        times: list[float] = []
        with self.model.stream(ids, **_answer_options(count)) as pieces:
            for piece in pieces:
                if piece.token_ids:
                    times.append(time.perf_counter())
        return times[0], times[-1], len(times) - 1


def _answer_options(count: int) -> Any:
    return {"max_new_tokens": count, "temperature": 0.0, "ignore_eos": True, "speculative": False}


def _peak_bytes() -> int:
    """The largest resident size this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
