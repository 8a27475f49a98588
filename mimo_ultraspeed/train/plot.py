"""The log of a run as a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ..display import figure_class

__all__ = ["plot_log"]

_SMOOTHED = 0.9
_COLOURS = ("#31688e", "#e07b39", "#5d9c59")


def plot_log(log: str | Path, path: str | Path | None = None) -> Any:
    """Loss, tokens per round and conditional rates of a run's log.csv against the anchors seen, as a matplotlib Figure.

    Thin lines are the log's own values, thick ones their moving average. Saved to `path` in the format that its ending names.
    ImportError without matplotlib, ValueError for a log without a line.
    """
    create = figure_class(path)
    with Path(log).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{log}: expected at least one line of a run, found none")
    figure = create(figsize=(12, 3.6), layout="constrained")
    loss, accepted, rates = figure.subplots(1, 3)
    _curve(loss, rows, "loss", 0)
    _curve(accepted, rows, "accepted", 0)
    for slot in range(3):
        _curve(rates, rows, f"slot{slot + 1}", slot)
    loss.set(title="loss", ylim=(0, None))
    accepted.set(title="tokens per round, on training blocks", ylim=(1, None))
    rates.set(title="accepted, given all before it", ylim=(0, None))
    rates.legend(frameon=False)
    for axes in (loss, accepted, rates):
        axes.set_xlabel("anchors")
        axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(Path(path), dpi=140)
    return figure


def _curve(axes: Any, rows: list[dict[str, str]], name: str, number: int) -> None:
    points = [(int(row["anchors"]), float(row[name])) for row in rows if row[name]]
    if not points:
        return
    smooth, weight, averaged = 0.0, 0.0, []
    for _, value in points:
        smooth = _SMOOTHED * smooth + (1 - _SMOOTHED) * value
        weight = _SMOOTHED * weight + (1 - _SMOOTHED)
        averaged.append(smooth / weight)
    places = [anchors for anchors, _ in points]
    axes.plot(places, [value for _, value in points], color=_COLOURS[number], alpha=0.25, linewidth=0.8)
    axes.plot(places, averaged, color=_COLOURS[number], label=name)
