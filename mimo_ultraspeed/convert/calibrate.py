"""Calibrated rounding of a model's experts, layer after layer, on texts.

Two residual streams run through the layers: the unrounded model's, and that of the layers as they are rounded by then. Every
matrix is moved and rounded so that from the inputs it will have it gives what it gave for those it had, and the last one of a layer
also what its stream has lost before (as asymmetric calibration does; GPTAQ, Li et al. 2025).
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
    """The residual streams [M, H] between two layers, of the unrounded model and as rounded so far, texts behind one another."""

    def __init__(
        self,
        texts: Sequence[Ids],
        config: ModelConfig,
        read: Read,
        embed: Callable[[Ids], Array],
        *,
        damping: float = 0.05,
        pull: float = 0.6,
    ) -> None:
        """texts: token ids. read: every tensor but the MLPs' matrices. embed: rows of the embedding for token ids.

        damping: of `round_matrix`. pull: towards a matrix's own values when it is moved, of the mean energy of its inputs.
        """
        self._config, self._read, self._damping, self._pull = config, read, damping, pull
        self._ends = np.cumsum([len(ids) for ids in texts])[:-1]
        self._stream: Array = embed(np.concatenate(texts))
        self._rounded = self._stream.copy()

    def dense(self, number: int, gate: Array, up: Array, down: Array) -> None:
        """Takes the streams through a layer whose MLP stays as it is."""
        _, x, seen = self._attended(number)
        self._stream += hidden_units(gate, up, x) @ down.T
        self._rounded += hidden_units(gate, up, seen) @ down.T

    def layer(self, number: int, experts: Experts) -> Experts:
        """Takes the streams through a layer, and returns its experts rounded to values that MXFP4 holds exactly."""
        layer, x, seen = self._attended(number)
        rows = _Inputs(x, route(layer, self._config, x), seen, route(layer, self._config, seen))
        together = self._config.num_experts_per_tok == self._config.n_routed_experts
        return (self._together if together else self._apart)(rows, experts)

    def _attended(self, number: int) -> tuple[Layer, Array, Array]:
        """Takes the streams through attention; the layer, and what its MLP sees in each."""
        layer = Layer.read(self._config, number, self._read)
        self._stream = attend(layer, self._stream, self._ends)
        self._rounded = attend(layer, self._rounded, self._ends)
        x, seen = (normed(stream, layer.mlp_norm, layer.eps) for stream in (self._stream, self._rounded))
        return layer, x, seen

    def _together(self, rows: _Inputs, experts: Experts) -> Experts:
        """All experts are always chosen: their `down` is one matrix, whose parts make up for each other's losses."""
        count, width = len(experts.gate), len(experts.gate[0])
        gate: Array = np.concatenate(experts.gate)
        up: Array = np.concatenate(experts.up)
        down: Array = np.concatenate(experts.down, 1)
        wanted = (hidden_units(gate, up, rows.x) * rows.shares.repeat(width, 1)) @ down.T
        gate, up = self._round_pair(gate, up, rows.x, rows.seen)
        units: Array = hidden_units(gate, up, rows.seen) * rows.seen_shares.repeat(width, 1)
        down = self._round(down, units, wanted + (self._stream - self._rounded))
        self._stream += wanted
        self._rounded += units @ down.T
        return Experts(np.split(gate, count), np.split(up, count), np.split(down, count, axis=1))

    def _apart(self, rows: _Inputs, experts: Experts) -> Experts:
        """Each expert is rounded for the rows that are routed to it in the rounded model, with their weights."""
        found: list[list[Array]] = [[], [], []]
        behind = (self._stream - self._rounded) / np.maximum(rows.seen_shares.sum(1, keepdims=True), np.float32(1e-6))
        change, rounded_change = np.zeros_like(rows.x), np.zeros_like(rows.x)
        for number, (gate, up, down) in enumerate(zip(experts.gate, experts.up, experts.down, strict=True)):
            own = np.flatnonzero(rows.shares[:, number])
            change[own] += rows.shares[own, number, None] * (hidden_units(gate, up, rows.x[own]) @ down.T)
            at, weight = _rows(rows.seen_shares[:, number], _ROWS_PER_COLUMN * max(down.shape))
            wanted = hidden_units(gate, up, rows.x[at]) @ down.T + behind[at]
            gate, up = self._round_pair(gate, up, rows.x[at], rows.seen[at], weight)
            units = hidden_units(gate, up, rows.seen[at])
            down = self._round(down, units, wanted, weight)
            rounded_change[at] += rows.seen_shares[at, number, None] * (units @ down.T)
            for kept, matrix in zip(found, (gate, up, down), strict=True):
                kept.append(matrix)
        self._stream += change
        self._rounded += rounded_change
        return Experts(*found)

    def _round_pair(self, gate: Array, up: Array, x: Array, seen: Array, weight: Array | float = 1.0) -> tuple[Array, Array]:
        """Both matrices [F, H] that read the layer's input, for what they gave for x."""
        both = np.concatenate([gate, up])
        gate, up = np.split(self._round(both, seen, x @ both.T, weight), 2)
        return gate, up

    def _round(self, weights: Array, inputs: Array, wanted: Array, weight: Array | float = 1.0) -> Array:
        """[R, C] near `weights` that bring inputs [M, C] near to what is wanted [M, R]. weight: of rows, [M, 1].

        Moved first, by ridge regression: without rounding it would be the best for these rows. Then rounded.
        """
        scale = weight * _cap(inputs * weight)
        rows = inputs * scale
        hessian = (rows.T @ rows).astype(np.float64)
        ridge = self._pull * float(np.diag(hessian).mean())
        if ridge > 0:
            lost = (rows.T @ ((wanted - inputs @ weights.T) * scale)).astype(np.float64)
            weights = (weights + np.linalg.solve(hessian + ridge * np.eye(len(hessian)), lost).T).astype(np.float32)
        return round_matrix(weights, hessian, damping=self._damping)


@dataclass(frozen=True)
class _Inputs:
    """What the MLP of a layer sees: inputs [M, H] and weights of experts [M, E], of the unrounded model and of the rounded one."""

    x: Array
    shares: Array
    seen: Array
    seen_shares: Array


def calibration(texts: Sequence[Path], window: int, tokens: int, folder: Path, config: ModelConfig, read: Read) -> Calibration:
    """On about `tokens` of texts, evenly, as ids of the tokenizer in `folder`. ValueError for a text that cannot be read."""
    tokenizer = Tokenizer.from_folder(folder) if (folder / "tokenizer.json").exists() else None
    length, share = min(window, config.max_position_embeddings), max(2, tokens // len(texts))
    found = [read_windows(text, tokenizer, vocab=config.vocab_size, length=length, tokens=share) for text in texts]
    return Calibration([ids for one in found for ids in one], config, read, lambda ids: read("model.embed_tokens.weight")[ids])


def _cap(inputs: Array) -> Array:
    """[M, 1]: factors after which no row [M, C] has more than 16 times the median energy.

    The first token of a text has hidden units hundreds of times as large as others in some layers. Left as it is, it alone would
    decide how a matrix is rounded, at the cost of all others.
    """
    energy = np.square(inputs).sum(1, keepdims=True)
    most = np.float32(_MOST_ENERGY) * np.median(energy)
    factors: Array = np.sqrt(most / np.maximum(energy, most)) if most > 0 else np.ones_like(energy)
    return factors


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
