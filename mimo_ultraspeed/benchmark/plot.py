"""A result as a figure."""

from __future__ import annotations

import os
from statistics import quantiles
from typing import Any

from ..display import figure_class
from .figures import breakdown, middle_profile, widths
from .result import BenchResult, Run

__all__ = ["plot"]

_BLUE, _ORANGE, _GREY = "#31688e", "#e07b39", "#b8b8b8"


def plot(result: BenchResult, path: str | os.PathLike[str] | None = None) -> Any:
    """Left: the time of a step by its rows, one line for each number of threads, with quartiles. Right: where the time of one
    decoded token goes, in the last run. A part that was not measured is left empty. Returns the matplotlib Figure."""
    figure = figure_class(path)(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for at, run in enumerate(result.runs):
        _draw_steps(left, run, at / max(1, len(result.runs) - 1))
    left.set(title="time of a step", xlabel="rows", ylabel="ms", ylim=(0, None), xlim=(0, None))
    if left.get_legend_handles_labels()[0]:
        left.locator_params(axis="x", integer=True)
        left.legend(frameon=False)
    if result.runs:
        _draw_parts(right, result.runs[-1])
    right.set(title="one decoded token", xlabel="µs")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result.model['name']}, {result.machine['processor'].split(':')[0]}")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_steps(axes: Any, run: Run, shade: float) -> None:
    """Medians, and bars from the first to the third quartile."""
    at = widths(run)
    if not at:
        return
    samples = [[1e3 * s for s in run.samples[f"step {width}"]] for width in at]
    quarters = [quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values for values in samples]
    spread = ([q[1] - q[0] for q in quarters], [q[2] - q[1] for q in quarters])
    label = f"{run.threads} {'thread' if run.threads == 1 else 'threads'}"
    look = {"marker": "o", "ms": 3, "lw": 1.5, "elinewidth": 0.7, "color": _BLUE, "alpha": 1 - 0.6 * shade}
    axes.errorbar(at, [q[1] for q in quarters], spread, label=label, **look)


def _draw_parts(axes: Any, run: Run) -> None:
    if not run.profiles.get("decode"):
        return
    parts = breakdown(middle_profile(run.profiles["decode"]), run.threads)
    rows = [(op.name, 1e6 * op.seconds * (1 - op.waiting), 1e6 * op.seconds * op.waiting) for op in parts.ops]
    rows = sorted([*rows, ("between steps", 0.0, 1e6 * parts.between * parts.seconds)], key=lambda row: -row[1] - row[2])
    names, at_work, waiting = zip(*rows, strict=True)
    axes.barh(names, at_work, color=_BLUE, label="at work")
    axes.barh(names, waiting, left=at_work, color=_ORANGE, label="waiting, bookkeeping")
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="lower right")
    axes.grid(axis="x", color=_GREY, lw=0.4)
    axes.set_axisbelow(True)
