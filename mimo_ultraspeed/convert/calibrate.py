"""Calibrated rounding of a model's experts, layer after layer, on texts.

Two residual streams run through the layers: the exact model's and that of the model rounded so far. Every matrix is rounded for
the inputs it will really have, and towards the outputs it should have had, so that later layers make up for earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..texts import read_windows
from ..tokenizer import Tokenizer
from .forward import Layer, Read, attend, hidden_units, normed, route
from .rounding import retarget, round_matrix

__all__ = ["DEFAULT_TOKENS", "WINDOW", "Calibration", "Experts", "calibration"]

Array = NDArray[np.float32]
Ids = NDArray[np.int64]

DEFAULT_TOKENS = 8192
WINDOW = 512
"""Tokens of a text that see each other."""
_ROWS_PER_COLUMN = 4  # of an expert's matrices, below which it borrows rows


@dataclass(frozen=True)
class Experts:
    """The three matrices of every expert of a layer: gate and up [F, H], down [H, F]."""

    gate: Sequence[Array]
    up: Sequence[Array]
    down: Sequence[Array]


class Calibration:
    """The streams [M, H] between two layers, the texts behind one another."""

    def __init__(
        self,
        texts: Sequence[Ids],
        config: ModelConfig,
        read: Read,
        embed: Callable[[Ids], Array],
        *,
        damping: float = 0.01,
        ridge: float = 0.1,
    ) -> None:
        """texts: token ids. read: every tensor but the MLPs' matrices. embed: rows of the embedding for token ids.

        damping: of `round_matrix`. ridge: of `retarget`.
        """
        self._config, self._read, self._damping, self._ridge = config, read, damping, ridge
        self._ends = np.cumsum([len(ids) for ids in texts])[:-1]
        self._exact: Array = embed(np.concatenate(texts))
        self._rounded = self._exact

    def dense(self, number: int, gate: Array, up: Array, down: Array) -> None:
        """Takes the streams through a layer whose MLP stays as it is."""
        layer = Layer.read(self._config, number, self._read)
        self._exact, self._rounded = (
            stream + hidden_units(gate, up, normed(stream, layer.mlp_norm, layer.eps)) @ down.T for stream in self._attended(layer)
        )

    def layer(self, number: int, experts: Experts) -> Experts:
        """Takes the streams through a layer, and returns its experts rounded to values that MXFP4 holds exactly."""
        layer = Layer.read(self._config, number, self._read)
        together = self._config.num_experts_per_tok == self._config.n_routed_experts
        return (self._together if together else self._apart)(layer, experts)

    def _attended(self, layer: Layer) -> tuple[Array, Array]:
        exact = attend(layer, self._exact, self._ends)
        return exact, exact if self._rounded is self._exact else attend(layer, self._rounded, self._ends)

    def _together(self, layer: Layer, experts: Experts) -> Experts:
        """All experts are always chosen: their `down` is one matrix, whose parts make up for each other's losses."""
        count, width = len(experts.gate), len(experts.gate[0])
        exact, rounded = self._attended(layer)
        right, here = (normed(x, layer.mlp_norm, layer.eps) for x in (exact, rounded))
        gate: Array = np.concatenate(experts.gate)
        up: Array = np.concatenate(experts.up)
        down: Array = np.concatenate(experts.down, 1)
        meant: Array = hidden_units(gate, up, right) * route(layer, self._config, right).repeat(width, 1)
        self._exact = exact + meant @ down.T
        trust = _trust(self._exact)
        both: Array = self._round(np.concatenate([gate, up]), right * trust, here * trust)
        gate, up = both[: len(gate)], both[len(gate) :]
        today: Array = hidden_units(gate, up, here) * route(layer, self._config, here).repeat(width, 1)
        down = self._round(down, meant * trust, today * trust)
        self._rounded = rounded + today @ down.T
        return Experts(np.split(gate, count), np.split(up, count), np.split(down, count, axis=1))

    def _apart(self, layer: Layer, experts: Experts) -> Experts:
        """Each expert is rounded for the rows that are routed to it, with their weights."""
        exact, rounded = self._attended(layer)
        right, here = (normed(x, layer.mlp_norm, layer.eps) for x in (exact, rounded))
        shares = route(layer, self._config, right)
        self._exact = exact.copy()
        for number, (gate, up, down) in enumerate(zip(experts.gate, experts.up, experts.down, strict=True)):
            rows = np.flatnonzero(shares[:, number])
            self._exact[rows] += shares[rows, number, None] * (hidden_units(gate, up, right[rows]) @ down.T)
        trust, shares = _trust(self._exact), route(layer, self._config, here)
        self._rounded = rounded.copy()
        found: list[list[Array]] = [[], [], []]
        for number, (gate, up, down) in enumerate(zip(experts.gate, experts.up, experts.down, strict=True)):
            rows, share = _rows(shares[:, number], _ROWS_PER_COLUMN * max(down.shape))
            weight = share * trust[rows]
            x, meant = here[rows], hidden_units(gate, up, right[rows])
            both: Array = self._round(np.concatenate([gate, up]), right[rows] * weight, x * weight)
            gate, up = both[: len(gate)], both[len(gate) :]
            today = hidden_units(gate, up, x)
            down = self._round(down, meant * weight, today * weight)
            chosen = shares[rows, number, None]
            self._rounded[rows] += chosen * (today @ down.T)
            for kept, matrix in zip(found, (gate, up, down), strict=True):
                kept.append(matrix)
        return Experts(*found)

    def _round(self, weights: Array, right: Array, here: Array) -> Array:
        """right, here [M, C]: inputs of the matrix in the exact model, and those it will have."""
        hessian = (here.T @ here).astype(np.float64)
        target = retarget(weights, (right.T @ here).astype(np.float64), hessian, self._ridge)
        return round_matrix(target, hessian, damping=self._damping)


def calibration(text: Path, window: int, tokens: int, folder: Path, config: ModelConfig, read: Read) -> Calibration:
    """On about `tokens` of a text, as ids of the tokenizer in `folder`. ValueError for a text that cannot be read."""
    tokenizer = Tokenizer.from_folder(folder) if (folder / "tokenizer.json").exists() else None
    length = min(window, config.max_position_embeddings)
    texts = read_windows(text, tokenizer, vocab=config.vocab_size, length=length, tokens=tokens)
    return Calibration(texts, config, read, lambda ids: read("model.embed_tokens.weight")[ids])


def _trust(stream: Array) -> Array:
    """[M, 1]: one over the size of every row of the stream, which the next norm divides an error by; mean square 1."""
    size = np.sqrt(np.square(stream).mean(1, keepdims=True) + np.float32(1e-20))
    trust: Array = 1 / size
    trust /= np.sqrt(np.square(trust).mean())
    return trust


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
