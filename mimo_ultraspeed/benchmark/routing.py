"""Which experts the rows of a made-up step choose: drawn from a stated distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Routing", "distinct"]


@dataclass(frozen=True)
class Routing:
    """Each row chooses K distinct experts: each of those of the row before with probability `overlap`, the others evenly among the
    rest. With overlap 0 rows are independent and uniform. Layers are independent."""

    overlap: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Routing:
        """ "uniform" or "overlap=P", P from 0 to 1. Raises ValueError for others."""
        if text == "uniform":
            return cls()
        name, _, value = text.partition("=")
        try:
            overlap = float(value) if name == "overlap" else -1.0
        except ValueError:
            overlap = -1.0
        if not 0 <= overlap <= 1:
            raise ValueError(f"routing: expected 'uniform' or 'overlap=P' with P from 0 to 1, found {text!r}")
        return cls(overlap)

    def __str__(self) -> str:
        return f"overlap={self.overlap:g}" if self.overlap else "uniform"

    def draw(self, rng: np.random.Generator, steps: int, rows: int, experts: int, top_k: int) -> NDArray[np.uint16]:
        """[steps, rows, top_k] uint16, a step being one layer of one step; ascending in each row."""
        out = np.empty((steps, rows, top_k), np.uint16)
        for row in range(rows):
            keys = rng.random((steps, experts))
            if row:
                before = out[:, row - 1].astype(np.intp)
                is_kept = rng.random((steps, top_k)) < self.overlap
                fresh = np.take_along_axis(keys, before, axis=1)
                np.put_along_axis(keys, before, np.where(is_kept, -1.0, fresh), axis=1)  # the smallest keys are chosen
            chosen = np.argpartition(keys, top_k - 1, axis=1)[:, :top_k] if top_k < experts else np.argsort(keys, axis=1)
            out[:, row] = np.sort(chosen, axis=1)
        return out


def distinct(chosen: NDArray[np.uint16]) -> NDArray[np.int64]:
    """[...] distinct experts of each [..., rows, top_k]."""
    flat = np.sort(chosen.reshape(*chosen.shape[:-2], -1), axis=-1)
    return np.asarray(1 + (np.diff(flat, axis=-1) != 0).sum(axis=-1), np.int64)
