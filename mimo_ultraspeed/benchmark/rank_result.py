"""What was planned and measured of one rank, and what follows from it."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .step_model import ACCEPTANCES, Assumptions, Step, union

__all__ = ["Operation", "Phase", "Profile", "Projection", "RankResult", "RankSettings", "Shape", "Trace"]

SCHEMA = 1
_EXCHANGES = {"embed": 1, "draft_embed": 1, "out_proj": 1, "expert_down": 1, "dense_down": 1, "draft_fuse": 1, "head": 1}
"""Exchanges between ranks after an operation: sums of partial results, rows of the divided embedding, best tokens of the head."""


@dataclass(frozen=True)
class RankSettings:
    """What was asked for: see `bench_rank`."""

    shape: str
    overrides: dict[str, Any]
    world: int
    rank: int
    widths: tuple[int, ...]
    routing: str
    context: int
    rounds: int
    seed: int
    copied: int


@dataclass(frozen=True)
class Shape:
    """The model: its layers, which of them have experts, and its drafter's block."""

    name: str
    layers: int
    sparse: tuple[int, ...]
    experts: int
    top_k: int
    block: int


@dataclass(frozen=True)
class Operation:
    """One operation of the tape, and the bytes that it reads: always, of each chosen expert, of each visible position."""

    draft: int
    name: str
    layer: int
    fixed: int
    expert: int
    position: int
    window: int

    def bytes(self, rows: int, context: int, experts: float) -> float:
        """In a step of `rows` rows after `context` positions that chooses `experts` distinct experts in this layer."""
        seen = min(self.window - 1, context) + rows if self.window else context + rows
        return self.fixed + self.expert * experts + self.position * seen


@dataclass(frozen=True)
class Trace:
    """One step: launches (kernel, operation, layer or -1, CTAs, first stamp) and stamps [n, 3]: begin, end (ns), multiprocessor. On
    the resident path a stage stands for a launch, and its tasks and joins for CTAs."""

    launches: Sequence[tuple[str, str, int, int, int]]
    stamps: NDArray[np.uint64]

    def times(self) -> NDArray[np.int64]:
        """[n, 2] ns since the first CTA began."""
        times = self.stamps[:, :2].astype(np.int64)
        return times - times.min() if len(times) else times


@dataclass(frozen=True)
class Phase:
    """One operation, summed over its layers."""

    name: str
    launches: int
    seconds: float
    """From the first CTA of a launch to its last, summed over launches."""
    gap: float
    """From the end of the launch before to the first CTA, summed."""
    bytes: float
    busy: float
    """Share of that time, over all multiprocessors, in which a CTA of the launch ran there."""


@dataclass(frozen=True)
class Profile:
    """Where the time of one step went."""

    seconds: float
    phases: tuple[Phase, ...]
    sm_busy: tuple[float, ...]
    """Of each multiprocessor: the share of the step in which some CTA ran on it."""
    tick: int
    """ns: the least step of the clock that was seen."""

    @classmethod
    def of(cls, trace: Trace, bytes_of: Mapping[tuple[str, int], float]) -> Profile:
        """bytes_of: (operation, layer) -> bytes that it reads."""
        times, sm = trace.times(), trace.stamps[:, 2].astype(np.int64)
        sms = int(sm.max()) + 1 if len(sm) else 0
        total = int(times[:, 1].max()) if len(times) else 0
        rows: dict[str, list[float]] = {}
        end_before = 0
        counted: set[tuple[str, int]] = set()
        for _, name, layer, ctas, first in trace.launches:
            part = times[first : first + ctas]
            begin, end = int(part[:, 0].min()), int(part[:, 1].max())
            row = rows.setdefault(name, [0, 0, 0, 0, 0])
            row[0] += 1
            row[1] += end - begin
            row[2] += max(0, begin - end_before)
            if (name, layer) not in counted:  # an operation may be several launches
                counted.add((name, layer))
                row[3] += bytes_of.get((name, layer), 0.0)
            row[4] += float(_covered(part, sm[first : first + ctas], sms).sum())
            end_before = max(end_before, end)
        phases = tuple(
            Phase(name, int(n), 1e-9 * time, 1e-9 * gap, size, busy / max(1.0, sms * time))
            for name, (n, time, gap, size, busy) in rows.items()
        )
        distances = np.diff(np.unique(times)) if len(times) else np.zeros(0, np.int64)
        share = _covered(times, sm, sms) / max(1, total)
        return cls(1e-9 * total, phases, tuple(share.tolist()), int(distances.min()) if len(distances) else 0)


def _covered(times: NDArray[np.int64], sm: NDArray[np.int64], sms: int) -> NDArray[np.float64]:
    """[sms] ns in which at least one of the intervals [n, 2] of a multiprocessor was under way."""
    out = np.zeros(sms)
    order = np.lexsort((times[:, 0], sm))
    begin, end, owner = times[order, 0], times[order, 1], sm[order]
    for number in np.unique(owner):
        mine = owner == number
        reached = np.maximum.accumulate(end[mine])
        before = np.concatenate([[begin[mine][0]], reached[:-1]])
        out[number] = np.maximum(0, end[mine] - np.maximum(begin[mine], before)).sum()
    return out


@dataclass(frozen=True)
class Projection:
    """Tokens per second of the node if nothing but the stated communication is added: acceptance / (time + communication)."""

    width: int
    path: str | None
    """Whose time was measured; None: it is the step-time model's, which has communication in it already."""
    seconds: float
    communication: float
    exchanges: int
    speeds: tuple[tuple[float, float], ...]
    """(tokens a round, tokens per second)."""


@dataclass
class RankResult:
    """The outcome of `bench_rank`. `str(result)` is the report, `plot` a timeline, `to_dict` and `write_json` all but the stamps.

    The JSON object (schema 1): settings; shape; planned_for (the GPU of the plan) and assumptions; machine (gpu: the measured one);
    version, commit, started, interrupted; memory (path -> name -> bytes); shared_memory of a CTA; bytes (of "step W" and "draft",
    with the expected experts); modelled (seconds of "step W" and of "round W" by the step-time model); samples (path -> "copy":
    bytes read and written per second; "step W" and "draft": seconds; "bytes W": bytes read by the same step, with the experts it
    chose); profiles ("step W, plain", ...: seconds, phases, sm_busy, tick in ns); figures by path; ratios (plain /
    resident); projections.
    """

    shape: Shape
    settings: RankSettings
    planned_for: str
    assume: Assumptions
    memory: dict[str, tuple[tuple[str, int], ...]]
    """By path."""
    operations: tuple[Operation, ...]
    shared_memory: tuple[int, int]
    """Of a CTA of the resident kernel: bytes of the ring and of activations."""
    modelled: dict[int, Step]
    modelled_rounds: dict[int, Step]
    version: str
    commit: str | None
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By path."""
    profiles: dict[str, Profile] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    interrupted: bool = False

    def add(self, path: str, name: str, values: Iterable[float]) -> None:
        """More samples of one kind."""
        self.samples.setdefault(path, {}).setdefault(name, []).extend(float(value) for value in values)

    # ---- bytes ----

    def expected_experts(self, rows: int) -> float:
        """Distinct experts of a layer that `rows` rows are expected to choose."""
        return union(self.shape.experts, self.shape.top_k, rows, self.assume.overlap) if self.shape.experts else 0.0

    def step_bytes(self, rows: int, experts: float | None = None) -> float:
        """Bytes that a step reads; experts: distinct ones, summed over layers (None: as expected)."""
        each = self.expected_experts(rows) if experts is None else experts / max(1, len(self.shape.sparse))
        return sum(op.bytes(rows, self.settings.context, each) for op in self.operations if not op.draft)

    def draft_bytes(self) -> float:
        """Bytes that the drafter's context and block read."""
        return sum(op.bytes(self.shape.block, self.settings.context, 0.0) for op in self.operations if op.draft)

    def operation_bytes(self, rows: int, draft: bool, experts: Sequence[int] | NDArray[np.int64]) -> dict[tuple[str, int], float]:
        """(operation, layer) -> bytes; experts: distinct ones of each layer."""
        rows = self.shape.block if draft else rows
        return {
            (op.name, op.layer): op.bytes(rows, self.settings.context, float(experts[op.layer]) if op.expert else 0.0)
            for op in self.operations
            if bool(op.draft) == draft
        }

    # ---- figures ----

    def median(self, path: str, name: str) -> float | None:
        """Of the samples of one kind."""
        values = self.samples.get(path, {}).get(name)
        return statistics.median(values) if values else None

    def rate(self, path: str, name: str) -> float | None:
        """Bytes per second of "step W" or "draft": the median over its runs."""
        seconds = self.samples.get(path, {}).get(name)
        if not seconds:
            return None
        if name == "draft":
            return self.draft_bytes() / statistics.median(seconds)
        sizes = self.samples[path][f"bytes {name.removeprefix('step ')}"]
        return statistics.median(size / time for size, time in zip(sizes, seconds, strict=True))

    def fraction(self, path: str, name: str) -> float | None:
        """Of the copy bandwidth that was measured in turn with it."""
        rate, copy = self.rate(path, name), self.median(path, "copy")
        return rate / copy if rate is not None and copy else None

    def ratio(self, name: str, path: str = "resident") -> float | None:
        """Time of the plain path / time of another one."""
        plain, other = self.median("plain", name), self.median(path, name)
        return plain / other if plain is not None and other else None

    def exchanges(self, draft: bool) -> int:
        """Exchanges between ranks in a step, or in the drafter's context and block; none where one rank has all."""
        if self.settings.world == 1:
            return 0
        return sum(_EXCHANGES.get(op.name, 0) for op in self.operations if bool(op.draft) == draft)

    def projections(self) -> list[Projection]:
        """Of each width that has one: 1 is decoding without drafts, the drafter's block a round with it."""
        out = []
        for width in self.settings.widths:
            drafts = width > 1 and width == self.shape.block
            if width > 1 and not drafts:
                continue
            accepted = ACCEPTANCES if drafts else (1.0,)
            model = (self.modelled_rounds if drafts else self.modelled)[width]
            out.append(_projection(width, None, model.time, 0, 0.0, accepted))
            count = self.exchanges(False) + (self.exchanges(True) if drafts else 0)
            for path in self.samples:
                seconds, more = self.median(path, f"step {width}"), self.median(path, "draft") if drafts else 0.0
                if seconds is not None and more is not None:
                    out.append(_projection(width, path, seconds + more, count, count * self.assume.all_reduce, accepted))
        return out

    # ---- out ----

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that the class describes."""
        names = [f"step {width}" for width in self.settings.widths] + ["draft"]
        bytes_read = {f"step {width}": self.step_bytes(width) for width in self.settings.widths} | {"draft": self.draft_bytes()}
        modelled = {f"step {width}": value.time for width, value in self.modelled.items()}
        modelled |= {f"round {width}": value.time for width, value in self.modelled_rounds.items()}
        return {
            "schema": SCHEMA,
            "settings": dataclasses.asdict(self.settings),
            "shape": dataclasses.asdict(self.shape),
            "planned_for": self.planned_for,
            "assumptions": dataclasses.asdict(self.assume),
            "machine": self.machine,
            "version": self.version,
            "commit": self.commit,
            "started": self.started,
            "interrupted": self.interrupted,
            "memory": {path: dict(items) for path, items in self.memory.items()},
            "shared_memory": dict(zip(("ring_bytes", "activation_bytes"), self.shared_memory, strict=True)),
            "bytes": bytes_read,
            "modelled": modelled,
            "samples": self.samples,
            "profiles": {name: dataclasses.asdict(profile) for name, profile in self.profiles.items()},
            "figures": {path: {name: self._figure(path, name) for name in names} for path in self.samples},
            "ratios": {name: ratio for name in names if (ratio := self.ratio(name)) is not None},
            "projections": [dataclasses.asdict(projection) for projection in self.projections()],
        }

    def _figure(self, path: str, name: str) -> dict[str, float | None]:
        return {"seconds": self.median(path, name), "rate": self.rate(path, name), "of_copy": self.fraction(path, name)}

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict()` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The timeline as a matplotlib Figure, also written to `path` (.png, .svg or .pdf). ImportError without matplotlib,
        ValueError if nothing was measured."""
        from .rank_plot import plot

        return plot(self, path)

    def __str__(self) -> str:
        from .rank_report import report

        return report(self)


def _projection(
    width: int, path: str | None, seconds: float, exchanges: int, communication: float, accepted: Iterable[float]
) -> Projection:
    whole = seconds + communication
    return Projection(width, path, seconds, communication, exchanges, tuple((tokens, tokens / whole) for tokens in accepted))
