"""A rank's steps as timelines: multiprocessors by time, one colour an operation."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..display import figure_class
from .rank_result import RankResult, Trace

__all__ = ["plot"]

_COLOURS = {
    "qkv": "#31688e", "attention": "#35b779", "out_proj": "#443983", "route": "#b8b8b8", "expert_up": "#e07b39",
    "expert_down": "#c23b22", "dense_up": "#f2b134", "dense_down": "#8c6d31", "head": "#21918c", "embed": "#5a5a5a",
}  # fmt: skip
_OTHER = "#999999"
_WINDOW = 6  # layers that are shown beside the whole


def plot(result: RankResult, path: str | os.PathLike[str] | None = None) -> Any:
    """A row for each step that was traced: the whole of it on the left, a few layers of its middle on the right. Returns the
    matplotlib Figure."""
    if not result.traces:
        raise ValueError("a timeline needs a measurement on a GPU, and this is a plan")
    figure = figure_class(path)(figsize=(12, 2.6 * len(result.traces) + 0.6), layout="constrained")
    panels = figure.subplots(len(result.traces), 2, squeeze=False, width_ratios=(2, 3))
    for (name, trace), (whole, part) in zip(result.traces.items(), panels, strict=True):
        spans = _draw(whole, trace)
        _draw(part, trace)
        whole.set(title=name, xlabel="ms", ylabel="multiprocessor")
        part.set(title="some layers of its middle", xlabel="ms", xlim=_middle(trace, spans))
        for axes in (whole, part):
            axes.spines[["top", "right"]].set_visible(False)
    names = list(dict.fromkeys(name for trace in result.traces.values() for _, name, *_ in trace.launches))
    handles = [panels[0][0].plot([], [], color=_COLOURS.get(name, _OTHER), lw=5)[0] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=min(8, max(1, len(names))), frameon=False)
    settings = result.settings
    figure.suptitle(f"rank {settings.rank} of {settings.world} of {settings.shape}, {result.machine.get('gpu', '')}")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw(axes: Any, trace: Trace) -> list[tuple[int, float, float]]:
    """Lines from begin to end of every CTA; (layer, begin, end) of every launch in ms."""
    times, sm = trace.times() / 1e6, trace.stamps[:, 2]
    spans = []
    by_name: dict[str, list[np.ndarray[Any, Any]]] = {}
    for _, name, layer, ctas, first in trace.launches:
        rows = np.arange(first, first + ctas)
        by_name.setdefault(name, []).append(rows)
        spans.append((layer, float(times[rows, 0].min()), float(times[rows, 1].max())))
    for name, parts in by_name.items():
        rows = np.concatenate(parts)
        axes.hlines(sm[rows], times[rows, 0], times[rows, 1], colors=_COLOURS.get(name, _OTHER), lw=0.8, rasterized=True)
    return spans


def _middle(trace: Trace, spans: list[tuple[int, float, float]]) -> tuple[float, float]:
    layers = sorted({layer for layer, _, _ in spans if layer >= 0})
    first = max(0, (len(layers) - _WINDOW) // 2)
    shown = set(layers[first : first + _WINDOW])
    chosen = [(begin, end) for layer, begin, end in spans if layer in shown] or [(begin, end) for _, begin, end in spans]
    return min(begin for begin, _ in chosen), max(end for _, end in chosen)
