"""Calibrated rounding of a model's experts, layer after layer, on texts.

The unrounded model's residual stream runs through the layers; every matrix is rounded so that its outputs for the inputs it has
there change least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..texts import read_windows
from ..tokenizer import Tokenizer
from .forward import Layer, Read, attend, hidden_units, normed, route
from .rounding import round_matrix

__all__ = ["DEFAULT_TOKENS", "WINDOW", "Calibration", "Experts", "Rounder", "calibration"]

Array = NDArray[np.float32]
Ids = NDArray[np.int64]

DEFAULT_TOKENS = 24576
WINDOW = 512
"""Tokens of a text that see each other."""
_MOST_ENERGY = 16  # of a row of inputs, in medians
_ROWS_PER_COLUMN = 4  # of an expert's matrices, below which it borrows rows


@dataclass(frozen=True)
class Experts:
    """The three matrices of every expert of a layer: gate and up [F, H], down [H, F]."""

    gate: Sequence[Array]
    up: Sequence[Array]
    down: Sequence[Array]


class Rounder(Protocol):
    """What decides the values of experts, layer after layer."""

    def dense(self, number: int, gate: Array, up: Array, down: Array) -> None:
        """Passes a layer that has no experts."""

    def layer(self, number: int, experts: Experts) -> Experts:
        """The experts with values that MXFP4 holds exactly."""


class Calibration:
    """The residual stream [M, H] of the unrounded model between two layers, the texts behind one another."""

    def __init__(
        self, texts: Sequence[Ids], config: ModelConfig, read: Read, embed: Callable[[Ids], Array], *, damping: float = 0.05
    ) -> None:
        """texts: token ids. read: every tensor but the MLPs' matrices. embed: rows of the embedding for token ids.

        damping: of `round_matrix`.
        """
        self._config, self._read, self._damping = config, read, damping
        self._ends = np.cumsum([len(ids) for ids in texts])[:-1]
        self._stream: Array = embed(np.concatenate(texts))

    def dense(self, number: int, gate: Array, up: Array, down: Array) -> None:
        """Takes the stream through a layer whose MLP stays as it is."""
        _, x = self._attended(number)
        self._stream += hidden_units(gate, up, x) @ down.T

    def layer(self, number: int, experts: Experts) -> Experts:
        """Takes the stream through a layer, and returns its experts rounded to values that MXFP4 holds exactly."""
        layer, x = self._attended(number)
        shares = route(layer, self._config, x)
        together = self._config.num_experts_per_tok == self._config.n_routed_experts
        return (self._together if together else self._apart)(x, shares, experts)

    def _attended(self, number: int) -> tuple[Layer, Array]:
        """Takes the stream through attention; the layer, and what its MLP sees."""
        layer = Layer.read(self._config, number, self._read)
        self._stream = attend(layer, self._stream, self._ends)
        return layer, normed(self._stream, layer.mlp_norm, layer.eps)

    def _together(self, x: Array, shares: Array, experts: Experts) -> Experts:
        """All experts are always chosen: their `down` is one matrix, whose parts make up for each other's losses."""
        count, width = len(experts.gate), len(experts.gate[0])
        gate: Array = np.concatenate(experts.gate)
        up: Array = np.concatenate(experts.up)
        down: Array = np.concatenate(experts.down, 1)
        units: Array = hidden_units(gate, up, x) * shares.repeat(width, 1)
        self._stream += units @ down.T
        gate, up = np.split(self._round(np.concatenate([gate, up]), x), 2)
        return Experts(np.split(gate, count), np.split(up, count), np.split(self._round(down, units), count, axis=1))

    def _apart(self, x: Array, shares: Array, experts: Experts) -> Experts:
        """Each expert is rounded for the rows that are routed to it, with their weights."""
        found: list[list[Array]] = [[], [], []]
        change = np.zeros_like(x)
        for number, (gate, up, down) in enumerate(zip(experts.gate, experts.up, experts.down, strict=True)):
            rows, weight = _rows(shares[:, number], _ROWS_PER_COLUMN * max(down.shape))
            units = hidden_units(gate, up, x[rows])
            change[rows] += shares[rows, number, None] * (units @ down.T)
            both = self._round(np.concatenate([gate, up]), x[rows] * weight)
            for kept, matrix in zip(found, (*np.split(both, 2), self._round(down, units * weight)), strict=True):
                kept.append(matrix)
        self._stream += change
        return Experts(*found)

    def _round(self, weights: Array, inputs: Array) -> Array:
        """inputs [M, C]: what the matrix is multiplied with."""
        rows = _capped(inputs)
        return round_matrix(weights, (rows.T @ rows).astype(np.float64), damping=self._damping)


def calibration(texts: Sequence[Path], window: int, tokens: int, folder: Path, config: ModelConfig, read: Read) -> Calibration:
    """On about `tokens` of texts, evenly, as ids of the tokenizer in `folder`. ValueError for a text that cannot be read."""
    tokenizer = Tokenizer.from_folder(folder) if (folder / "tokenizer.json").exists() else None
    length, share = min(window, config.max_position_embeddings), max(2, tokens // len(texts))
    found = [read_windows(text, tokenizer, vocab=config.vocab_size, length=length, tokens=share) for text in texts]
    return Calibration([ids for one in found for ids in one], config, read, lambda ids: read("model.embed_tokens.weight")[ids])


def _capped(inputs: Array) -> Array:
    """Rows [M, C], none with more than 16 times the median energy.

    The first token of a text has hidden units hundreds of times as large as others in some layers. Left as it is, it alone would
    decide how a matrix is rounded, at the cost of all others.
    """
    energy = np.square(inputs).sum(1, keepdims=True)
    most = np.float32(_MOST_ENERGY) * np.median(energy)
    capped: Array = inputs * np.sqrt(most / np.maximum(energy, most)) if most > 0 else inputs
    return capped


def _rows(shares: Array, wanted: int) -> tuple[NDArray[np.intp], Array]:
    """Rows that are routed to an expert and their weights [n, 1]; fewer than `wanted` are joined by others, at a tenth of it.

    An expert that no text reaches would else be rounded for nothing, and one with few rows for these alone.
    """
    rows = np.flatnonzero(shares)
    weights = shares[rows]
    if len(rows) < wanted and len(rows) < len(shares):
        others = np.flatnonzero(shares == 0)
        others = others[np.linspace(0, len(others) - 1, min(len(others), wanted - len(rows))).astype(np.intp)]
        mean = weights.mean() if len(rows) else np.float32(1)
        rows = np.concatenate([rows, others])
        weights = np.concatenate([weights, np.full(len(others), mean * np.float32(0.1), np.float32)])
    return rows, weights[:, None]
