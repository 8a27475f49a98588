"""Pictures of a run: how long, where drafts die, how rounds are spread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display import figure_class

if TYPE_CHECKING:
    from .report import Evaluation

__all__ = ["draw"]


def draw(result: Evaluation, path: str | os.PathLike[str] | None = None) -> Any:
    """Three panels as a matplotlib Figure, saved to `path` in the format its ending names. ValueError for a run without rounds."""
    create = figure_class(path)
    rows = [(scenario, name, one) for scenario, by_name in result.figures.items() for name, one in by_name.items()]
    if not rows:
        raise ValueError("plot: expected at least one answer with rounds, found none")
    figure = create(figsize=(15, 4.5), layout="constrained")
    lengths, rates, histogram = figure.subplots(1, 3, width_ratios=[1.4, 1, 1])
    _lengths(lengths, rows)
    for number, (scenario, name, one) in enumerate(rows):
        label, color = f"{scenario}, {name}", f"C{number % 10}"
        positions = [at for at, rate in enumerate(one["conditional_rate"], 1) if rate is not None]
        rates.plot(positions, [one["conditional_rate"][at - 1] for at in positions], marker="o", color=color, label=label)
        share = [count / max(one["rounds"], 1) for count in one["histogram"]]
        histogram.plot(range(1, len(share) + 1), share, drawstyle="steps-mid", color=color)
    rates.set(title="where drafts die", xlabel="position in the block", ylabel="accepted, given all before it", ylim=(0, 1.02))
    if len(rows) <= 10:
        rates.legend(fontsize="x-small")
    histogram.set(title="tokens of a round", xlabel="tokens", ylabel="share of rounds", ylim=(0, None))
    figure.suptitle(result.description().splitlines()[0], fontsize="small")
    if path is not None:
        figure.savefig(Path(path).expanduser(), dpi=140)
    return figure


def _lengths(axes: Any, rows: list[tuple[str, str, dict[str, Any]]]) -> None:
    names = list(dict.fromkeys(name for _, name, _ in rows))
    scenarios = list(dict.fromkeys(scenario for scenario, _, _ in rows))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        mine = [(scenarios.index(scenario), one) for scenario, found, one in rows if found == name]
        places = [at - 0.4 + (number + 0.5) * width for at, _ in mine]
        heights = [one["acceptance_length"] for _, one in mine]
        spread = [
            [height - one["acceptance_length_ci95"][0] for height, (_, one) in zip(heights, mine, strict=True)],
            [one["acceptance_length_ci95"][1] - height for height, (_, one) in zip(heights, mine, strict=True)],
        ]
        axes.bar(places, heights, width, yerr=[[max(v, 0) for v in side] for side in spread], capsize=2, label=name)
        for place, (_, one) in zip(places, mine, strict=True):
            if one["break_even"] is not None:
                axes.plot([place - width / 2, place + width / 2], [one["break_even"]] * 2, color="black", linewidth=1)
    axes.set_xticks(range(len(scenarios)), scenarios)
    axes.set(title="tokens per round (line: break-even)", ylim=(0, None))
    axes.legend(fontsize="x-small")
