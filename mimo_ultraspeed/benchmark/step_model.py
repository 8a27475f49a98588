"""A model of the step time of one of several GPUs, from the stages of its lowered queues: bytes, and what waits cost.

Nothing is measured; benchmarks/step_time.py says what is assumed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._core import Rank

__all__ = [
    "ACCEPTANCES",
    "GPUS",
    "SHARED_BYTES",
    "Assumptions",
    "Gpu",
    "Lowered",
    "Stage",
    "Step",
    "lowered",
    "pipeline",
    "step",
    "union",
]

ACCEPTANCES = (6.30, 5.56, 4.29)
"""Tokens a round, published or reported of V2.5-Pro: coding, reasoning, other."""
SHARED_BYTES = 232448
"""Of a CTA, sm_90 and sm_100."""
_CHUNK = 1 << 19  # bytes that the pipeline is followed in


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
    join: float = 1.5e-6
    all_reduce: float = 4.5e-6
    choose: float = 2e-6
    overlap: float = 0.0
    context: int = 8192


@dataclass(frozen=True)
class Stage:
    """All tasks of one kind of one operation on one rank, and what joins them. `experts` > 0: bytes are those of one of so many,
    which are chosen."""

    kind: str
    join: str
    """The kind of its joins (csrc/cuda/task.h), or nothing."""
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
class Lowered:
    """One rank of a lowered model: its stages in order, all bytes of its weights, and the shared memory of a CTA: bytes of the
    ring, which run ahead, and of activations."""

    stages: tuple[Stage, ...]
    weights: float
    ring_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Step:
    """Times in seconds, bytes of one GPU."""

    bytes: float
    floor: float
    time: float
    stages: int
    waits: float
    """Sum of hand-overs, joins and all-reduces, hidden or not."""


def union(experts: int, top_k: int, rows: int, overlap: float) -> float:
    """Expected distinct experts of `rows` rows; overlap: probability that a choice is one of the row before."""
    distinct = 0.0
    for row in range(rows):
        fresh = top_k if row == 0 else top_k * (1 - overlap)
        distinct += fresh * (1 - distinct / experts)
    return distinct


def lowered(rank: Rank, gpu: Gpu) -> Lowered:
    """The stages of a rank's round on a GPU."""
    table, ring_bytes, activation_bytes = rank.stages(gpu.sms, SHARED_BYTES, gpu.l2)
    stages, weights = [], 0.0
    for kind, join, op, layer, draft, bytes, busiest, tasks, tiles, dim in table:
        fields: dict[str, Any] = {}
        if kind in ("expert_up", "expert_down"):
            fields = {"bytes": float(bytes), "experts": dim[2], "top_k": dim[3]}
            if kind == "expert_up":
                fields["tiles"] = tiles
            else:  # each task reads its rows of all chosen experts
                fields["uneven"] = -(-tasks // gpu.sms) * gpu.sms / tasks
            weights += bytes * dim[2]
        elif kind == "attend":
            fields = {"kv_width": 2 * dim[1] * (dim[2] + dim[3]), "window": dim[4]}
        elif bytes:
            fields = {"bytes": float(bytes), "uneven": busiest * gpu.sms / bytes}
            # The drafter's head is rows of the target's.
            weights += bytes if not (draft and op == "head") else 0
        stages.append(Stage(kind, join, op, layer, bool(draft), **({"bytes": 0.0} | fields)))
    return Lowered(tuple(stages), weights, ring_bytes, activation_bytes)


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


def join_of(stage: Stage, assume: Assumptions) -> float:
    """From the last partial sum of the stage to what its joins make of them."""
    if stage.join == "reduce":
        return assume.all_reduce
    return (assume.join if stage.join else 0.0) + (assume.choose if stage.join == "choose" else 0.0)


def pipeline(loads: Sequence[tuple[float, float, float, bool]], rate: float, ring: float, l2: float) -> float:
    """Seconds of stages (bytes, wait before it, joins after it, is chosen) in order.

    Memory reads one stage after the other at `rate`, at most `ring` bytes ahead of their use. What a chosen stage reads is known
    when the stage before has ended; while memory waits for that, it reads up to `l2` bytes of the stages after it that are not
    chosen, up to the next ones that are.
    """
    memory = done = 0.0
    waiting: deque[tuple[float, float]] = deque()  # bytes in the ring and when they are used
    inside = 0.0
    ahead: dict[int, float] = {}  # bytes of a stage that are in L2 already
    for i, (size, wait, join, is_chosen) in enumerate(loads):
        ready = done + wait
        if is_chosen:
            spare = min(max(0.0, done - memory) * rate, l2 - sum(ahead.values()))
            after = i + 1
            while after < len(loads) and loads[after][3]:
                after += 1
            while after < len(loads) and not loads[after][3]:
                taken = min(spare, loads[after][0] - ahead.get(after, 0.0))
                ahead[after] = ahead.get(after, 0.0) + taken
                spare -= taken
                after += 1
            memory = max(memory, done)
        rest = size - ahead.pop(i, 0.0)
        done = ready
        while rest > 0:
            part = min(rest, _CHUNK)
            rest -= part
            while waiting and inside + part > ring:
                before, used = waiting.popleft()
                inside -= before
                memory = max(memory, used)
            memory += part / rate
            done = max(done, memory)
            waiting.append((part, done))
            inside += part
        done += join
    return done


def step(rank: Lowered, gpu: Gpu, rows: int, drafting: bool, assume: Assumptions) -> Step:
    """The modelled time of one step of `rows` rows, with the drafter's round or without."""
    chosen = [stage for stage in rank.stages if drafting or not stage.draft]
    sizes = [stage_bytes(stage, rows, assume) for stage in chosen]
    joins = [join_of(stage, assume) for stage in chosen]
    loads = [
        (size * uneven(stage, rows, gpu, assume), assume.hand_over, join, stage.experts > 0)
        for stage, size, join in zip(chosen, sizes, joins, strict=True)
    ]
    time = pipeline(loads, gpu.bandwidth * assume.fraction, float(rank.ring_bytes * gpu.sms), gpu.l2 / 2)
    return Step(sum(sizes), sum(sizes) / gpu.bandwidth, time, len(chosen), len(chosen) * assume.hand_over + sum(joins))
