"""A rounding as a small file: how it differs from rounding every weight to the nearest value, and other tensors that were changed.

Who has the unrounded weights knows where each lies between two values of the grid. A rounding that minds more than the single
weight mostly takes one of these two, and the nearer one where the other is far. So weights are put in the order of how far they
are from the middle between the two, and what is told of each (stay, go to the other, go the other way) is packed five to a
byte and compressed: less than a bit per weight, where a code has four. Tensors beside experts that training has changed are kept
as they are, in front.
"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..safetensors_write import bf16_from_f32, f32_from_bf16
from ..weights import Weights, split_reader
from .calibrate import Experts
from .rounding import MX_BLOCK

__all__ = ["Delta", "write_delta"]

Array = NDArray[np.float32]
_MAGIC = b"mimo-ultraspeed rounding 1\n"
_GRID = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_BETWEEN = (_GRID[1:] + _GRID[:-1]) / 2
_LEVELS = 8
_TO_A_BYTE = 5
_POWERS = 3 ** np.arange(_TO_A_BYTE, dtype=np.uint8)
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]
_PARTS = ("gate", "up", "down")
_MOST_BYTES = 1 << 32  # of a file that is unpacked


def write_delta(unrounded: Path, rounded: Path, dest: Path) -> int:
    """Writes what makes of the checkpoint `unrounded` the checkpoint `rounded`, and returns the file's bytes.

    Raises CheckpointError when `rounded` is no rounding of `unrounded`, OSError.
    """
    first, second = Checkpoint.open(unrounded), Checkpoint.open(rounded)
    config = first.config
    if [t.name for t in first.tensors if ".experts." in t.name] != [
        t.name for t in second.tensors if ".experts." in t.name and not t.name.endswith("_scale")
    ]:
        raise CheckpointError(f"{rounded}: expected a rounding of {unrounded}, found another model")
    readers = split_reader(first), split_reader(second)
    packed = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=_FILTERS)
    pieces = [_MAGIC, packed.compress(_changed(first, second))]
    for layer in range(config.num_hidden_layers):
        if config.moe_layer_freq[layer]:
            before, after = (_read(read, layer, config.n_routed_experts) for read in readers)
            for part in _PARTS:
                pieces.append(packed.compress(_told(*(np.concatenate(getattr(one, part)) for one in (before, after)))))
    dest.write_bytes(b"".join([*pieces, packed.flush()]))
    return dest.stat().st_size


class Delta:
    """Gives experts the rounding that a file tells of, layer after layer: a `Rounder`."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for another file, OSError."""
        raw = path.read_bytes()
        if not raw.startswith(_MAGIC):
            raise CheckpointError(f"{path}: expected a stored rounding, found something else")
        self._path, self._at = path, 0
        try:
            unpacked = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            self._bytes = unpacked.decompress(raw[len(_MAGIC) :], _MOST_BYTES)
        except lzma.LZMAError as error:
            raise CheckpointError(f"{path}: expected a stored rounding, found damage: {error}") from None
        self.changed = self._read_changed()
        """Tensors that are no expert's and take these values, by whole name."""

    def dense(self, number: int, gate: Array, up: Array, down: Array) -> None:
        """Nothing is told of a layer without experts."""

    def layer(self, number: int, experts: Experts) -> Experts:
        """The layer's experts on the grid. CheckpointError for weights other than those the file was made of."""
        found: list[Sequence[Array]] = []
        for part in _PARTS:
            matrices = getattr(experts, part)
            found.append(np.split(self._apply(np.concatenate(matrices)), len(matrices)))
        return Experts(*found)

    def _read_changed(self) -> dict[str, Array]:
        (length,) = struct.unpack("<I", self._take(4))
        found: dict[str, Array] = {}
        try:
            for name, (dtype, *shape) in json.loads(self._take(length)).items():
                count = int(np.prod([int(size) for size in shape]))
                raw = self._take(count * {"F32": 4, "BF16": 2}[dtype])
                values = np.frombuffer(raw, np.float32) if dtype == "F32" else f32_from_bf16(np.frombuffer(raw, np.uint16))
                found[name] = values.reshape(shape)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self._path}: expected a stored rounding, found damage: {error!r}") from None
        return found

    def _apply(self, weights: Array) -> Array:
        crc, extra = struct.unpack("<II", self._take(8))
        scales = _scales(weights) + np.frombuffer(self._take(weights.size // MX_BLOCK), np.int8).reshape(len(weights), -1)
        spread, start, side, order = _places(weights, scales)
        if crc != zlib.crc32(order.data):
            raise CheckpointError(f"{self._path}: expected the weights it was made of, found others")
        packed = np.frombuffer(self._take(-(-weights.size // _TO_A_BYTE)), np.uint8)
        moved = np.empty(weights.size, np.int8)
        moved[order] = (packed[:, None] // _POWERS % 3).reshape(-1)[: weights.size].astype(np.int8) - 1
        where = np.frombuffer(self._take(4 * extra), np.uint32)
        moved[where] = np.frombuffer(self._take(extra), np.int8)
        values: Array = _GRID[np.clip(start + moved.reshape(weights.shape) * side, 0, len(_GRID) - 1)] * spread
        return values

    def _take(self, count: int) -> bytes:
        taken = self._bytes[self._at : self._at + count]
        if len(taken) < count:
            raise CheckpointError(f"{self._path}: expected a rounding of more weights, found its end")
        self._at += count
        return taken


def _changed(first: Checkpoint, second: Checkpoint) -> bytes:
    """Tensors beside experts with other values in `second` than those of `first`, stored as there."""
    before, after = (Weights(one.tensors, one.files) for one in (first, second))
    listed, raws = {}, []
    for tensor in second.tensors:
        name = tensor.name.removeprefix("model.")
        if ".experts." in name or tensor.dtype not in ("F32", "BF16"):
            continue
        raw = after.raw(name)
        wanted = before[name] if tensor.dtype == "F32" else bf16_from_f32(np.ascontiguousarray(before[name]))
        if raw.tobytes() != wanted.tobytes():
            listed[tensor.name] = [tensor.dtype, *tensor.shape]
            raws.append(raw.tobytes())
    head = json.dumps(listed).encode()
    return b"".join([struct.pack("<I", len(head)), head, *raws])


def _read(read: Callable[[str], Array], layer: int, count: int) -> Experts:
    prefix = f"model.layers.{layer}.mlp.experts."
    return Experts(*([read(f"{prefix}{e}.{part}_proj.weight") for e in range(count)] for part in _PARTS))


def _scales(weights: Array) -> NDArray[np.int16]:
    """[R, C/32] codes of the scales that plain rounding takes."""
    scales: NDArray[np.int16] = _core.mxfp4_encode(np.ascontiguousarray(weights))[1].astype(np.int16)
    return scales


def _places(weights: Array, scales: NDArray[Any]) -> tuple[Array, NDArray[np.int8], NDArray[np.int8], NDArray[np.int64]]:
    """Of [R, C]: scales, places of the nearest values in the grid, where the second nearest is (-1, 1), the order of telling."""
    spread = np.ldexp(np.float32(1), scales.astype(np.int32) - 127).repeat(MX_BLOCK, 1)  # exact everywhere, which exp2 need not be
    units = weights / spread
    start = np.searchsorted(_BETWEEN, units).astype(np.int8)
    off = units - _GRID[start]
    side = np.where(off < 0, np.int8(-1), np.int8(1))
    width = np.abs(_GRID[np.clip(start + side, 0, len(_GRID) - 1)] - _GRID[start])
    level = np.where(width > 0, np.minimum(np.abs(off) / np.where(width > 0, width, 1) * (2 * _LEVELS), _LEVELS - 1), 0)
    return spread, start, side, np.argsort(level.astype(np.uint8), axis=None, kind="stable")


def _told(weights: Array, rounded: Array) -> bytes:
    """What makes `rounded` [R, C] of `weights` [R, C]."""
    before, after = _scales(weights), _scales(rounded)
    spread, start, side, order = _places(weights, after)
    moved = ((np.searchsorted(_BETWEEN, rounded / spread) - start) * side).astype(np.int8).reshape(-1)
    where = np.flatnonzero(np.abs(moved) > 1).astype(np.uint32)
    told = np.where(np.abs(moved) > 1, 0, moved)[order].astype(np.uint8) + np.uint8(1)
    padded = np.concatenate([told, np.zeros(-len(told) % _TO_A_BYTE, np.uint8)]).reshape(-1, _TO_A_BYTE)
    packed = (padded * _POWERS).sum(1, dtype=np.uint8)
    head = struct.pack("<II", zlib.crc32(order.data), len(where))
    return b"".join([head, (after - before).astype(np.int8).tobytes(), packed.tobytes(), where.tobytes(), moved[where].tobytes()])
