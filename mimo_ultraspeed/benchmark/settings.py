"""What to measure."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..batch import IN_FLIGHT

__all__ = ["DEFAULT_WIDTHS", "Settings"]

DEFAULT_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
_MOST_THREADS, _MOST_WIDTH = 1024, 128  # the core's own limits


@dataclass(frozen=True)
class Settings:
    """Checked by `Settings.of`."""

    prompt_tokens: tuple[int, ...]
    """Prompts to time; the first is also the context of decoding and of steps."""
    new_tokens: int
    """Of every answer."""
    widths: tuple[int, ...]
    """Rows of a step; may be empty."""
    threads: tuple[int | None, ...]
    """Thread counts, each a run of its own; None is one per available core."""
    precision: str
    batch: int
    """Prompts answered at once; 0 leaves that out."""
    rounds: int
    seconds: float | None
    """No further round begins after so many seconds of a run."""

    @classmethod
    def of(
        cls,
        *,
        prompt_tokens: Any,
        new_tokens: Any,
        widths: Any,
        threads: Any,
        precision: Any,
        batch: Any,
        rounds: Any,
        seconds: Any,
    ) -> Settings:
        """The settings, checked. Raises TypeError and ValueError that name the argument."""
        if precision not in ("fast", "exact"):
            raise ValueError(f"precision: expected 'fast' or 'exact', found {precision!r}")
        if seconds is not None and not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds: expected more than 0, or None, found {seconds!r}")
        return cls(
            prompt_tokens=_several("prompt_tokens", prompt_tokens, 1, None),
            new_tokens=_integer("new_tokens", new_tokens, 2, None),
            widths=_several("widths", widths, 1, _MOST_WIDTH, empty=True),
            threads=(None,) if threads is None else _several("threads", threads, 1, _MOST_THREADS),
            precision=precision,
            batch=_integer("batch", batch, 0, IN_FLIGHT),
            rounds=_integer("rounds", rounds, 1, None),
            seconds=seconds,
        )

    @property
    def positions(self) -> int:
        """Positions that the longest of the sequences needs."""
        steps = self.prompt_tokens[0] + max(self.widths, default=0)
        return max(max(self.prompt_tokens) + 1, self.prompt_tokens[0] + self.new_tokens, steps)

    @property
    def profiled_width(self) -> int | None:
        """The width whose steps are profiled: 8, a drafted block, or else the widest."""
        wide = [width for width in self.widths if width > 1]
        return None if not wide else 8 if 8 in wide else max(wide)


def _integer(name: str, value: Any, least: int, most: int | None) -> int:
    expected = f"{name}: expected an integer " + (f"of {least} or more" if most is None else f"from {least} to {most}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{expected}, found {value!r}") from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise ValueError(f"{expected}, found {value!r}")
    return number


def _several(name: str, value: Any, least: int, most: int | None, *, empty: bool = False) -> tuple[int, ...]:
    """Distinct integers in the order given; one alone stands for itself."""
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    numbers = tuple(dict.fromkeys(_integer(name, item, least, most) for item in items))
    if not numbers and not empty:
        raise ValueError(f"{name}: expected at least one number")
    return numbers
