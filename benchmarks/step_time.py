"""A model of the step time of eight GPUs: python benchmarks/step_time.py [--shapes flash,v2.5,pro] [--nodes H100,H200,B200]

No GPU is used and nothing is measured: every figure is a projection from the assumptions below. What is real are the bytes and the
stages: each shape is made (headers only), its tape is lowered to the queues of one of eight ranks as the CUDA engine would run them
(csrc/cuda/lower.h), and the pages of weights of every stage are counted, with their padding and with the SM that has most of them.

Assumptions (each an option):
- Bandwidth, memory and L2 as NVIDIA publishes them (8 GPUs of one node), of which kernels reach --fraction.
- A stage waits for all of the stage before, which costs --hand-over us; adding partial sums over the ranks costs --all-reduce us
  instead; choosing experts costs --choose us more. Arithmetic hides behind memory.
  --fused says what if some kinds of stages were part of the next one.
- Weights are asked for ahead as far as the ring in shared memory is long; experts only when they are chosen, and until then up to
  half of L2 is filled with what comes after them. Nothing else is overlapped.
- Experts of the rows of a step: each row chooses K of E. A choice is one of the row before with probability --overlap, else
  uniform: with 0 the rows are independent. Expected numbers of distinct experts are used, no spread.
- Every full layer reads --context positions of keys and values in BF16, every sliding layer its window.
- Width 8 is a round with a drafter: block of 8 verified, context and block of the drafter. Width 1 has none. Acceptance is given,
  not modelled: 6.30, 5.56 and 4.29 tokens a round (published or reported of V2.5-Pro; for other shapes an illustration).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

RANKS = 8
ACCEPTANCES = (6.30, 5.56, 4.29)
SHARED_BYTES = 232448  # of a CTA, sm_90 and sm_100
CHUNK = 1 << 19  # bytes that the pipeline is followed in
NO_COUNTER = 0xFFFF


@dataclass(frozen=True)
class Gpu:
    """One GPU as published: bytes per second, bytes, SMs."""

    name: str
    bandwidth: float
    memory: float
    l2: int
    sms: int


GPUS = {
    "H100": Gpu("H100", 3.35e12, 80e9, 50 << 20, 132),
    "H200": Gpu("H200", 4.8e12, 141e9, 50 << 20, 132),
    "B200": Gpu("B200", 8.0e12, 180e9, 126 << 20, 148),
}


@dataclass(frozen=True)
class Assumptions:
    """What the model does not derive; times in seconds."""

    fraction: float = 0.85
    hand_over: float = 2e-6
    all_reduce: float = 4.5e-6
    choose: float = 2e-6
    overlap: float = 0.0
    context: int = 8192
    fused: frozenset[str] = frozenset()
    """Kinds of stages that are done where they are read, and cost no hand-over."""


@dataclass(frozen=True)
class Stage:
    """All tasks of one kind of one operation on one rank. `experts` > 0: bytes are those of one of so many, which are chosen."""

    kind: str
    op: str
    layer: int
    draft: bool
    bytes: float
    uneven: float = 1.0
    """What the busiest SM reads, relative to the mean."""
    experts: int = 0
    top_k: int = 0
    tiles: int = 0
    """Tiles of an expert in expert_up, where units of all experts are dealt out."""
    kv_width: int = 0
    """Bytes of keys and values of a position."""
    window: int = 0


@dataclass(frozen=True)
class Rank:
    """One rank of a lowered model: its stages in order, the bytes of ring that run ahead, and all bytes of its weights."""

    stages: tuple[Stage, ...]
    ring: float
    weights: float


@dataclass(frozen=True)
class Step:
    """Times in seconds, bytes of one GPU."""

    bytes: float
    floor: float
    time: float
    stages: int
    waits: float
    """Sum of hand-overs and all-reduces, hidden or not."""


def union(experts: int, top_k: int, rows: int, overlap: float) -> float:
    """Expected distinct experts of `rows` rows; overlap: probability that a choice is one of the row before."""
    distinct = 0.0
    for row in range(rows):
        fresh = top_k if row == 0 else top_k * (1 - overlap)
        distinct += fresh * (1 - distinct / experts)
    return distinct


def lowered(engine: Any, gpu: Gpu, ranks: int = RANKS) -> Rank:
    """The stages of one rank of an open engine's model and drafter."""
    tables = _probe.queue_tables(_probe.lower(engine, gpu.sms, SHARED_BYTES, gpu.l2, ranks))
    tasks = tables["tasks"].reshape(-1, 64)
    kind, tape = tasks[:, 0], tasks[:, 1]
    op = tasks[:, 4:6].copy().view(np.uint16)[:, 0]
    words = tasks.copy().view(np.uint32)
    bytes_of = words[:, 9].astype(float) * words[:, 10]  # pages, page_bytes
    signal = tasks.copy().view(np.uint16)[:, 26]
    owner = np.searchsorted(tables["begin"], np.arange(len(tasks)), side="right") - 1
    stages, weights = [], 0.0
    for number in range(tables["counters"]):
        mine = np.flatnonzero(signal == number)
        shapes = tables["draft_shapes" if tape[mine[0]] else "shapes"]
        name, layer, dim, _, tiles, _, _, _, tile_pages, page_bytes = shapes[op[mine[0]]]
        stage = Stage(tables["kinds"][kind[mine[0]]], name, layer, bool(tape[mine[0]]), 0.0)
        if stage.kind in ("expert_up", "expert_down"):
            stage = replace(stage, bytes=float(tiles * tile_pages * page_bytes), experts=dim[2], top_k=dim[3])
            if stage.kind == "expert_up":
                stage = replace(stage, tiles=tiles)
            else:  # each task reads its rows of all chosen experts
                stage = replace(stage, uneven=-(-len(mine) // gpu.sms) * gpu.sms / len(mine))
            weights += stage.bytes * stage.experts
        elif stage.kind == "attend":
            stage = replace(stage, kv_width=2 * dim[1] * (dim[2] + dim[3]), window=dim[4])
        elif bytes_of[mine].any():
            per_sm = np.bincount(owner[mine], bytes_of[mine], gpu.sms)
            stage = replace(stage, bytes=float(per_sm.sum()), uneven=float(per_sm.max() / per_sm.mean()))
            # The drafter's head is rows of the target's.
            weights += stage.bytes if not (stage.draft and name == "head") else 0.0
        stages.append(stage)
    return Rank(tuple(stages), tables["ring_pages"] * 17408.0 * gpu.sms, weights)


def stage_bytes(stage: Stage, rows: int, assume: Assumptions) -> float:
    """What a stage reads in a step of `rows` rows."""
    if stage.experts:
        return stage.bytes * union(stage.experts, stage.top_k, rows, assume.overlap)
    if stage.kv_width:
        return stage.kv_width * float(min(stage.window + rows - 1, assume.context) if stage.window else assume.context)
    return stage.bytes


def uneven(stage: Stage, rows: int, gpu: Gpu, assume: Assumptions) -> float:
    """What the busiest SM reads in a step of `rows` rows, relative to the mean."""
    if not stage.tiles:
        return stage.uneven
    units = union(stage.experts, stage.top_k, rows, assume.overlap) * stage.tiles
    return math.ceil(units / gpu.sms) * gpu.sms / units


def wait_of(stage: Stage, assume: Assumptions) -> float:
    """From the last write of the stage before to the first use of what it wrote."""
    if stage.kind in assume.fused:
        return assume.choose if stage.kind == "choose" else 0.0
    if stage.kind == "reduce":
        return assume.all_reduce
    return assume.hand_over + (assume.choose if stage.kind == "choose" else 0.0)


def pipeline(loads: Sequence[tuple[float, float, bool]], rate: float, ring: float, l2: float) -> float:
    """Seconds of stages (bytes, wait before it, is chosen) in order.

    Memory reads one stage after the other at `rate`, at most `ring` bytes ahead of their use. What a chosen stage reads is known
    when the stage before has ended; while memory waits for that, it reads up to `l2` bytes of the stages after it that are not
    chosen, up to the next ones that are.
    """
    memory = done = 0.0
    waiting: deque[tuple[float, float]] = deque()  # bytes in the ring and when they are used
    inside = 0.0
    ahead: dict[int, float] = {}  # bytes of a stage that are in L2 already
    for i, (size, wait, is_chosen) in enumerate(loads):
        ready = done + wait
        if is_chosen:
            spare = min(max(0.0, done - memory) * rate, l2 - sum(ahead.values()))
            after = i + 1
            while after < len(loads) and loads[after][2]:
                after += 1
            while after < len(loads) and not loads[after][2]:
                taken = min(spare, loads[after][0] - ahead.get(after, 0.0))
                ahead[after] = ahead.get(after, 0.0) + taken
                spare -= taken
                after += 1
            memory = max(memory, done)
        rest = size - ahead.pop(i, 0.0)
        done = ready
        while rest > 0:
            part = min(rest, CHUNK)
            rest -= part
            while waiting and inside + part > ring:
                before, used = waiting.popleft()
                inside -= before
                memory = max(memory, used)
            memory += part / rate
            done = max(done, memory)
            waiting.append((part, done))
            inside += part
    return done


def step(rank: Rank, gpu: Gpu, rows: int, drafting: bool, assume: Assumptions) -> Step:
    """The modelled time of one step of `rows` rows, with the drafter's round or without."""
    chosen = [stage for stage in rank.stages if drafting or not (stage.draft or stage.kind == "propose")]
    sizes = [stage_bytes(stage, rows, assume) for stage in chosen]
    waits = [wait_of(stage, assume) for stage in chosen]
    loads = [(size * stage.uneven, wait, stage.experts > 0) for stage, size, wait in zip(chosen, sizes, waits, strict=True)]
    time = pipeline(loads, gpu.bandwidth * assume.fraction, rank.ring, gpu.l2 / 2)
    return Step(sum(sizes), sum(sizes) / gpu.bandwidth, time, len(chosen), sum(waits))


def open_shape(folder: Path, shape: str) -> Any:
    """An engine over a headers-only checkpoint of the shape: FP4 experts, the rest as published, with a drafter."""
    checkpoint = Checkpoint.open(make(folder, shape=shape, weights="mxfp4", draft=True, headers_only=True, progress=False))
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    config, tensors, files = checkpoint.core_arguments()
    files += [str(path) for path in drafter.files]
    return _probe.Engine(config, tensors, files, threads=1, draft=drafter.to_core())


def rows_of_table(shape: str, rank: Rank, gpu: Gpu, overlaps: Iterable[float], assume: Assumptions) -> Iterable[str]:
    """Markdown rows: width 1, then width 8 at each overlap."""
    plain = step(rank, gpu, 1, False, assume)
    fits = f"{rank.weights / 1e9:.1f} GB" + ("" if rank.weights < 0.92 * gpu.memory else " (does not fit)")
    yield (
        f"| {shape} | 8x {gpu.name} | {fits} | 1 | | {plain.bytes / 1e9:.2f} | {plain.floor * 1e3:.2f} | {plain.time * 1e3:.2f} "
        f"| {plain.floor / plain.time:.0%} | {plain.stages} | {1 / plain.time:.0f} | | |"
    )
    for overlap in overlaps:
        s = step(rank, gpu, 8, True, replace(assume, overlap=overlap))
        speeds = " | ".join(f"{acceptance / s.time:.0f}" for acceptance in ACCEPTANCES)
        yield (
            f"| {shape} | 8x {gpu.name} | {fits} | 8 | {overlap:.2f} | {s.bytes / 1e9:.2f} | {s.floor * 1e3:.2f} "
            f"| {s.time * 1e3:.2f} | {s.floor / s.time:.0%} | {s.stages} | {speeds} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Assumptions()
    parser.add_argument("--shapes", default="flash,v2.5,pro")
    parser.add_argument("--nodes", default="H100,H200,B200")
    parser.add_argument(
        "--overlap", default="0,0.5", help="of a row's experts with the row before's, one or more (default %(default)s)"
    )
    parser.add_argument("--fraction", type=float, default=default.fraction, help="of the published bandwidth (default %(default)s)")
    parser.add_argument("--hand-over", type=float, default=default.hand_over * 1e6, help="us (default %(default)s)")
    parser.add_argument("--all-reduce", type=float, default=default.all_reduce * 1e6, help="us (default %(default)s)")
    parser.add_argument("--choose", type=float, default=default.choose * 1e6, help="us (default %(default)s)")
    parser.add_argument("--context", type=int, default=default.context, help="positions (default %(default)s)")
    parser.add_argument("--fused", default="", help="kinds of stages to count as part of the next, e.g. heads,merge,choose")
    args = parser.parse_args()
    fused = frozenset(filter(None, args.fused.split(",")))
    assume = Assumptions(args.fraction, args.hand_over / 1e6, args.all_reduce / 1e6, args.choose / 1e6, 0.0, args.context, fused)
    overlaps = [float(text) for text in args.overlap.split(",")]
    print(
        f"Projections, not measurements: {assume.fraction:.0%} of the published bandwidth, {args.hand_over:g} us a hand-over, ",
        end="",
    )
    print(f"{args.all_reduce:g} us an all-reduce, {args.choose:g} us a choice of experts, {assume.context} positions of context.\n")
    print("| shape | node | weights a GPU | width | overlap | GB read a GPU | floor ms | model ms | of floor | stages ", end="")
    print("| tokens/s at " + " | at ".join(f"{acceptance:.2f}" for acceptance in ACCEPTANCES) + " |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|" + "---:|" * len(ACCEPTANCES))
    for shape in args.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            engine = open_shape(Path(folder) / "model", shape)
            for name in args.nodes.split(","):
                gpu = GPUS[name]
                for row in rows_of_table(shape, lowered(engine, gpu), gpu, overlaps, assume):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
