"""Figures from samples: nothing here measures, so all of it can be tested on made-up samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .result import Run

__all__ = ["Breakdown", "Figure", "OpLine", "breakdown", "figures", "middle_profile", "rate_together", "widths"]


@dataclass(frozen=True)
class Figure:
    """A median and its spread."""

    unit: str
    median: float
    low: float
    high: float
    count: int
    of_read: float | None = None
    """Median share of the read bandwidth measured in the same round."""
    of_int8: float | None = None
    """Share of the measured int8 peak."""
    ratio: float | None = None
    """Median of the ratios, round by round: of a step, to the time of one row; of a batch, to the rate of one sequence. Of a draft:
    its time and that of the step which verifies it, in times of one row, which is how many tokens a round must give to pay."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}


def figures(run: Run) -> dict[str, Figure]:
    """Every figure of a run by the name of its samples: tokens/s of "decode", "prefill N" and "batch", ms of "step W" and
    "draft B", GB/s of "read_bandwidth", GMAC/s of "int8_peak"."""
    samples = run.samples
    out: dict[str, Figure] = {}
    for name, values in samples.items():
        if not values:
            continue
        kind, _, number = name.partition(" ")
        if name == "decode":
            share = _pairs(values, samples.get("read_bandwidth"), lambda s, rate: run.memory["read_per_token"] / s / rate)
            out[name] = _figure("tokens/s", (1 / s for s in values), of_read=_median(share))
        elif kind == "prefill":
            out[name] = _figure("tokens/s", (int(number) / s for s in values), of_int8=_of_int8(run, name, values))
        elif kind == "step":
            ones = _pairs(values, samples.get("step 1"), lambda s, one: s / one)
            out[name] = _figure("ms", (1e3 * s for s in values), ratio=_median(ones), of_read=_of_read(run, name, values))
        elif kind == "draft":
            out[name] = _figure("ms", (1e3 * s for s in values), ratio=_round_cost(samples, f"step {number}", values))
        elif name == "batch":
            times = _pairs(values, samples.get("decode"), lambda rate, one: rate * one)
            out[name] = _figure("tokens/s", values, ratio=_median(times))
        elif name == "read_bandwidth":
            out[name] = _figure("GB/s", (rate / 1e9 for rate in values))
        elif name == "int8_peak":
            out[name] = _figure("GMAC/s", (rate / 1e9 for rate in values))
    return out


def rate_together(times: Sequence[Sequence[float]]) -> float:
    """Tokens per second of answers that are decoded together: from when the last has its first token to when one is complete.
    So prompts do not count, as they do not for one answer alone. Of answers that never were all under way, it is of all the time.

    times: of each answer's tokens, by one clock, in seconds.
    """
    begin, end = max(one[0] for one in times), min(one[-1] for one in times)
    if begin >= end:
        begin, end = min(one[0] for one in times), max(one[-1] for one in times)
    return sum(begin < at <= end for one in times for at in one) / (end - begin)


def widths(run: Run) -> list[int]:
    """Step widths that have samples, ascending."""
    return sorted(int(name[5:]) for name, values in run.samples.items() if name.startswith("step ") and values)


# ---- where the time goes ----


@dataclass(frozen=True)
class OpLine:
    """One operation, summed over its layers: per step."""

    name: str
    seconds: float
    share: float
    """Of the step."""
    waiting: float
    """Share of its time that threads waited at the barrier after it."""
    read_rate: float
    """Bytes per second."""
    mac_rate: float
    """Multiply-adds per second."""


@dataclass(frozen=True)
class Breakdown:
    """A step in parts; shares are of `seconds`, and kernels + waiting + between = 1."""

    seconds: float
    """Of a step, as whoever waits for it sees it; where nobody does, inside the engine alone."""
    kernels: float
    waiting: float
    """Threads at barriers: for bookkeeping that one of them does, for a slower one, or to be woken."""
    between: float
    """Between steps: sampling, handing tokens over, Python. Nothing where only the engine's own time was taken."""
    ops: list[OpLine]
    """Longest first."""
    read_bandwidth: float | None

    @property
    def outside(self) -> float:
        """Time outside kernels."""
        return self.waiting + self.between


def breakdown(profile: Mapping[str, Any], threads: int) -> Breakdown:
    """The parts of the steps that `profile` (see `BenchResult`) summed up.

    The time of an operation is the mean over its threads, at work and at the barrier after it: a single thread that loses its
    core for a while would see its share of several operations pass during one of them.
    """
    steps, ops = profile["steps"], profile["ops"]
    times = {name: (op["busy_ns"] + op["wait_ns"]) / threads for name, op in ops.items()}
    inside = sum(times.values())
    wall = max(profile.get("wall_ns", 0), inside, 1)
    lines = [
        OpLine(
            name,
            times[name] / steps / 1e9,
            times[name] / wall,
            op["wait_ns"] / threads / max(times[name], 1),
            1e9 * op["bytes"] / max(times[name], 1),
            1e9 * op["macs"] / max(times[name], 1),
        )
        for name, op in ops.items()
    ]
    lines.sort(key=lambda line: -line.seconds)
    kernels = sum(op["busy_ns"] for op in ops.values()) / threads / wall
    waiting = sum(op["wait_ns"] for op in ops.values()) / threads / wall
    return Breakdown(wall / steps / 1e9, kernels, waiting, 1 - inside / wall, lines, profile.get("read_bandwidth"))


def middle_profile(profiles: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The profile of the round whose steps took the median time (the lower of two): its parts belong together."""
    ordered = sorted(profiles, key=lambda p: (p.get("wall_ns") or p["total_ns"]) / p["steps"])
    return ordered[(len(ordered) - 1) // 2]


# ---- arithmetic ----


def _figure(unit: str, values: Iterable[float], **shares: float | None) -> Figure:
    kept = list(values)
    return Figure(unit, statistics.median(kept), min(kept), max(kept), len(kept), **shares)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _round_cost(samples: Mapping[str, Sequence[float]], step: str, drafts: Sequence[float]) -> float | None:
    """Steps have several samples a round: medians, not pairs."""
    wide, one = samples.get(step), samples.get("step 1")
    return (statistics.median(drafts) + statistics.median(wide)) / statistics.median(one) if wide and one else None


def _pairs(values: Sequence[float], others: Sequence[float] | None, combine: Callable[[float, float], float]) -> list[float]:
    """combine(a, b) of samples of the same round; an interrupted round may lack one of them."""
    return [combine(a, b) for a, b in zip(values, others or (), strict=False)]


def _counted(run: Run, name: str, what: str, *, per_step: bool = True) -> float | None:
    """Bytes or macs of that work, by the engine's own counters."""
    profiles = run.profiles.get(name)
    if not profiles:
        return None
    totals = [float(sum(op[what] for op in p["ops"].values())) / (p["steps"] if per_step else 1) for p in profiles]
    return statistics.median(totals)


def _of_read(run: Run, name: str, seconds: Sequence[float]) -> float | None:
    touched, rates = _counted(run, name, "bytes"), run.samples.get("read_bandwidth")
    return touched / statistics.median(seconds) / statistics.median(rates) if touched is not None and rates else None


def _of_int8(run: Run, name: str, seconds: Sequence[float]) -> float | None:
    macs, rates = _counted(run, name, "macs", per_step=False), run.samples.get("int8_peak")
    return macs / statistics.median(seconds) / statistics.median(rates) if macs is not None and rates else None
