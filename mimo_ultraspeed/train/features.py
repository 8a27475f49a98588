"""Taps of training sequences, computed by the engine once and kept as float16 files.

Computing them takes about as long as training on a third of a sequence's positions does, and every sequence is visited more than
once: they are cached.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["Features"]

_LARGEST = np.finfo(np.float16).max


class Features:
    """Taps by sequence: [T, m * H] float16, the residual stream after each tapped layer, side by side."""

    def __init__(self, model: Model, taps: Sequence[int], folder: str | Path) -> None:
        """folder: where they are kept; files of other taps or models lie beside them.

        Weights are told apart by the sizes and times of their files: a model that was made again is another model.
        """
        self._model, self._taps = model, list(taps)
        found = [(path.resolve(), path.stat()) for path in model.checkpoint.files]
        source = [model.precision, *(f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in found)]
        name = hashlib.sha256("\n".join(source).encode()).hexdigest()[:8] + "-" + "-".join(map(str, taps))
        self._folder = Path(folder) / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def of(self, name: str, token_ids: Sequence[int]) -> NDArray[np.float16]:
        """Those of the sequence `name`; computed when they are not there."""
        path = self._folder / f"{name}.npy"
        if path.exists():
            kept: NDArray[np.float16] = np.load(path, mmap_mode="r")
            if len(kept) == len(token_ids):
                return kept
        made = self.compute(token_ids)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.save(file, made)
        partial.replace(path)
        return made

    def compute(self, token_ids: Sequence[int]) -> NDArray[np.float16]:
        """Those of any sequence, not kept."""
        states = self._model.hidden_states(token_ids, self._taps)  # [m, T, H]
        side_by_side = states.transpose(1, 0, 2).reshape(len(token_ids), -1)
        return np.clip(side_by_side, -_LARGEST, _LARGEST).astype(np.float16)
