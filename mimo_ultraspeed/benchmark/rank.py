"""One rank of several GPUs that share a model: planned anywhere, timed where there is a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core as core
from ..checkpoint import Checkpoint
from ..cuda import PATHS, cuda_device, cuda_image, why_cuda_is_off
from ..display import bar
from ..drafter import open_drafter
from ..errors import EngineError
from ..make import make
from ..provenance import software
from .rank_result import Operation, Profile, RankResult, RankSettings, Shape, Trace
from .routing import Routing, distinct
from .step_model import GPUS, Assumptions, lowered, step

__all__ = ["bench_rank", "shape_engine"]

_ROWS = 8  # that a drawn step has at most
_RUNS, _DRAFT_RUNS = 16, 8  # one after the other, as many as the core takes
_COPIED = 256 << 20
_CONTEXT = 8192


def shape_engine(folder: Path, shape: str, overrides: Mapping[str, Any] | None = None) -> core.Engine:
    """An engine that holds no weights, of a checkpoint of the shape without contents made in the new folder: FP4 experts, the rest
    as published, with a drafter."""
    path = make(folder, shape=shape, weights="mxfp4", draft=True, overrides=overrides, headers_only=True, progress=False)
    checkpoint = Checkpoint.open(path)
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    config, tensors, files = checkpoint.core_arguments()
    files += [str(path) for path in drafter.files]
    return core.Engine(config, tensors, files, threads=1, draft=drafter.to_core())


def bench_rank(
    shape: str = "pro",
    *,
    overrides: Mapping[str, Any] | None = None,
    world: int = 8,
    rank: int = 0,
    widths: Iterable[int] = (1, 8),
    routing: Routing | str = "uniform",
    context: int | None = None,
    rounds: int = 5,
    device: str = "cuda",
    paths: Iterable[str] | None = None,
    plan_only: bool = False,
    gpu: str = "H200",
    assume: Assumptions | None = None,
    copied: int = _COPIED,
    seed: int = 0,
    progress: bool = True,
) -> RankResult:
    """The share that one of `world` GPUs has of a made model with its drafter: what lies where, the bytes of a step, a model of its
    time and the projected speed of the node; and, but for `plan_only`, all of it timed on a GPU with random weights made there.

    shape, overrides: as of `make`, experts in MXFP4. rank: its number; all shares are of one size.
    widths: rows of steps, 1 to 8. routing: "uniform" or "overlap=P", or a `Routing`: how experts are drawn, anew in every round.
    context: positions before each step (None: 8192, or what the model has).
    rounds: times that copies, steps of each width and drafts take their turn.
    paths: of the backend, "plain" (an operation a kernel, a step a graph), "resident" (one kernel that stays) and "resident-e4m3"
      (with experts' gate and up in E4M3; sm_90a), one after the other; None is the first two, if they were built.
    gpu: the one that plans and models are made for, "H100", "H200" or "B200". assume: of the step-time model and of projections.
    copied: bytes of a copy that measures bandwidth, several times the L2 cache.

    Raises NotImplementedError where no GPU can be used, MemoryError with the table where the share does not fit, ValueError for
    wrong arguments. An interrupt returns what was measured so far.
    """
    wanted = Routing.parse(routing) if isinstance(routing, str) else routing
    rows = tuple(dict.fromkeys(int(width) for width in widths))
    settings = RankSettings(shape, dict(overrides or {}), world, rank, rows, str(wanted), context or 0, rounds, seed, copied)
    _check(settings, gpu)
    number = None if plan_only else _device(device)
    wanted_paths = () if number is None else _paths(paths)
    with tempfile.TemporaryDirectory() as folder:
        engine = shape_engine(Path(folder) / "model", shape, overrides)
        if context is None:
            settings = replace(settings, context=min(_CONTEXT, engine.max_context - 2 * _ROWS))
        assumed = replace(assume or Assumptions(), overlap=wanted.overlap, context=settings.context)
        if world == 1:  # sums are whole where they are made
            assumed = replace(assumed, all_reduce=assumed.join)
        share = core.Rank(engine, world=world, context=settings.context, copied=copied)
        result = _planned(share, engine, settings, gpu, assumed, plan_only)
        _run(share, result, wanted, number or 0, wanted_paths, progress)
    return result


def _run(share: core.Rank, result: RankResult, routing: Routing, device: int, paths: Iterable[str], progress: bool) -> None:
    try:
        for path in paths:
            try:
                _Session(share, result, routing, device, path).run(progress)
            finally:
                share.close()
    except KeyboardInterrupt:
        if not result.samples:
            raise
        result.interrupted = True


def _device(device: str) -> int:
    if not device.startswith("cuda"):
        raise ValueError(f"device: expected 'cuda' or 'cuda:N', found {device!r}; a plan alone (plan_only, --plan-only) needs none")
    off = why_cuda_is_off()
    if off is not None:
        raise NotImplementedError(f"a rank is timed on a GPU, and CUDA is off: {off}. A plan (plan_only, --plan-only) needs none")
    number = cuda_device(device)
    assert number is not None
    return number


def _paths(paths: Iterable[str] | None) -> tuple[str, ...]:
    if paths is None:
        return tuple(path for path in PATHS[:2] if cuda_image(path).exists())
    chosen = tuple(dict.fromkeys(paths))
    for path in chosen:
        if path not in PATHS:
            raise ValueError(f"path: expected {' or '.join(map(repr, PATHS))}, found {path!r}")
        if not cuda_image(path).exists():
            raise NotImplementedError(f"path {path!r}: {cuda_image(path).name} was not built")
    if not chosen:
        raise ValueError("paths: expected at least one")
    return chosen


def _check(settings: RankSettings, gpu: str) -> None:
    if not 1 <= settings.world <= 8:
        raise ValueError(f"world: expected 1 to 8, found {settings.world}")
    if not 0 <= settings.rank < settings.world:
        raise ValueError(f"rank: expected 0 to {settings.world - 1}, found {settings.rank}")
    if not settings.widths or not all(1 <= width <= _ROWS for width in settings.widths):
        raise ValueError(f"widths: expected numbers from 1 to {_ROWS}, found {list(settings.widths)}")
    if settings.rounds < 1:
        raise ValueError(f"rounds: expected 1 or more, found {settings.rounds}")
    if gpu not in GPUS:
        raise ValueError(f"gpu: expected {', '.join(GPUS)}, found {gpu!r}")


def _planned(
    share: core.Rank, engine: core.Engine, settings: RankSettings, gpu: str, assume: Assumptions, plan_only: bool
) -> RankResult:
    operations = tuple(Operation(*row) for row in share.operations())
    sparse = [op.layer for op in operations if op.expert and op.name == "expert_up"]
    layers = 1 + max(op.layer for op in operations if not op.draft)
    stages = lowered(share, GPUS[gpu])
    experts = max((stage.experts for stage in stages.stages), default=0)
    top_k = max((stage.top_k for stage in stages.stages), default=0)
    memory = {"plain": tuple(share.memory(int(GPUS[gpu].memory)))} if plan_only else {}
    modelled = {width: step(stages, GPUS[gpu], width, False, assume) for width in settings.widths}
    rounds = {width: step(stages, GPUS[gpu], width, True, assume) for width in settings.widths if width > 1}
    return RankResult(
        Shape(settings.shape, layers, tuple(sparse), experts, top_k, engine.block),
        settings,
        gpu,
        assume,
        memory,
        operations,
        (stages.ring_bytes, stages.activation_bytes),
        modelled,
        rounds,
        **software(),
    )


class _Session:
    """One share on one path of one GPU."""

    def __init__(self, share: core.Rank, result: RankResult, routing: Routing, device: int, path: str) -> None:
        self.share, self.result, self.routing, self.path = share, result, routing, path
        self.rng = np.random.default_rng(result.settings.seed)
        result.machine["gpu"] = share.open(device, path, str(cuda_image(path)), result.settings.seed)
        result.memory[path] = tuple(share.memory(0))
        self.experts: NDArray[np.uint16] = np.empty(0, np.uint16)

    def run(self, progress: bool) -> None:
        """Warms up, then all rounds, then one step of each kind with stamps."""
        result = self.result
        works = 1 + result.settings.rounds * (2 + len(result.settings.widths)) + 1
        with bar(progress, total=works, unit="measurement", desc=self.path) as shown:
            self._draw()
            for width in result.settings.widths:
                self._check(width)
            self.share.time_drafts(_ROWS, 1)
            shown.update()
            for _ in range(result.settings.rounds):
                self._round(shown)
            self._traces()
            shown.update()

    def _draw(self) -> None:
        shape = self.result.shape
        if not shape.experts:
            return
        chosen = self.routing.draw(self.rng, _RUNS * shape.layers, _ROWS, shape.experts, shape.top_k)
        self.experts = chosen.reshape(_RUNS, shape.layers, _ROWS, shape.top_k)
        self.share.draw(self.experts)

    def _check(self, width: int) -> None:
        """That a step chooses what was drawn, and says numbers."""
        self.share.time_steps(width, 1)
        chosen, logits = self.share.read(width)
        if self.experts.size and not np.array_equal(chosen, self.experts[0, self.result.shape.sparse[-1], :width]):
            raise EngineError(f"a step of {width} rows chose other experts than were drawn")
        if not np.isfinite(logits).all():
            raise EngineError(f"a step of {width} rows of made-up weights gave logits that are no numbers")

    def _round(self, shown: Any) -> None:
        result = self.result
        result.add(self.path, "copy", 2 * result.settings.copied / self.share.time_copies(_RUNS))
        shown.update()
        self._draw()
        for width in result.settings.widths:
            result.add(self.path, f"step {width}", self.share.time_steps(width, _RUNS))
            result.add(self.path, f"bytes {width}", [result.step_bytes(width, row) for row in self._distinct(width)])
            shown.update()
        result.add(self.path, "draft", self.share.time_drafts(_ROWS, _DRAFT_RUNS))
        shown.update()

    def _distinct(self, width: int) -> Sequence[float]:
        """Distinct experts of all sparse layers together, of each drawn step."""
        if not self.experts.size:
            return [0.0] * _RUNS
        chosen = self.experts[:, list(self.result.shape.sparse), :width]
        return [float(count) for count in distinct(chosen).sum(axis=1)]

    def _traces(self) -> None:
        for width in self.result.settings.widths:
            self._trace(f"step {width}", width, False)
        self._trace("draft", _ROWS, True)

    def _trace(self, name: str, width: int, draft: bool) -> None:
        launches, stamps = self.share.trace(width, draft)
        trace = Trace(launches, stamps)
        counts = distinct(self.experts[:1, :, :width])[0] if self.experts.size else np.zeros(self.result.shape.layers, np.int64)
        name = f"{name}, {self.path}"
        self.result.traces[name] = trace
        self.result.profiles[name] = Profile.of(trace, self.result.operation_bytes(width, draft, counts))
