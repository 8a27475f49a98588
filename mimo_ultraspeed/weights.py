"""Weights as float32 arrays, for what is computed in numpy or torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint, Tensor
from .errors import CheckpointError
from .safetensors_write import f32_from_bf16

__all__ = ["Weights", "split_reader"]

Array = NDArray[np.float32]
_TILE = 128
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "U8": "u1", "I64": "<i8"}


class Weights(Mapping[str, Array]):
    """Tensors by name, read when asked for: BF16, F16, F32, FP8 in tiles, MXFP4. A leading "model." of a name is left out."""

    def __init__(self, tensors: Sequence[Tensor], files: Sequence[Path]) -> None:
        self._tensors = {tensor.name.removeprefix("model."): tensor for tensor in tensors}
        self._files = files

    def __getitem__(self, name: str) -> Array:
        """KeyError without such a tensor, CheckpointError for a dtype that is not read here."""
        raw = self.raw(name)
        dtype = self._tensors[name].dtype
        if dtype == "BF16":
            return f32_from_bf16(raw)
        if dtype == "F8_E4M3":
            return self.restarted(name, 1)
        if dtype == "U8":
            from ._core import mxfp4_decode

            decoded: Array = mxfp4_decode(raw, self.raw(f"{name}_scale"))
            return decoded
        return raw.astype(np.float32)

    def restarted(self, name: str, parts: int) -> Array:
        """A matrix [rows, cols] whose FP8 scale grid, if it has one, begins anew in each of `parts` equal parts of its rows."""
        if self._tensors[name].dtype != "F8_E4M3":
            return self[name]
        codes, scales = self.raw(name), self[f"{name}_scale_inv"]
        halves = zip(np.split(codes, parts), np.split(scales, parts), strict=True)
        return np.concatenate([_e4m3()[part] * _spread(grid, part.shape) for part, grid in halves])

    def rows(self, name: str, ids: NDArray[np.int64]) -> Array:
        """[len(ids), H]: rows of a matrix that may be too large to decode whole."""
        if self._tensors[name].dtype not in ("BF16", "F16", "F32"):
            return self[name][ids]
        picked = np.asarray(self.raw(name, mapped=True)[ids])
        return f32_from_bf16(picked) if self._tensors[name].dtype == "BF16" else picked.astype(np.float32)

    def raw(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        """A tensor as it is stored: BF16 as uint16, FP8 and packed MXFP4 as uint8. mapped: without reading all of it."""
        tensor = self._tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{tensor.name}: expected one of {', '.join(_DTYPES)}, found {tensor.dtype}")
        dtype, path = np.dtype(_DTYPES[tensor.dtype]), self._files[tensor.file]
        if mapped:
            return np.memmap(path, dtype, "r", tensor.begin, tensor.shape)
        count = (tensor.end - tensor.begin) // dtype.itemsize
        return np.fromfile(path, dtype, count, offset=tensor.begin).reshape(tensor.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def split_reader(checkpoint: Checkpoint) -> Callable[[str], Array]:
    """Reads tensors by their whole names as float32, a fused qkv under the names of its parts."""
    weights = Weights(checkpoint.tensors, [Path(file) for file in checkpoint.files])
    config, chunks = checkpoint.config, checkpoint.qkv_chunks

    def read(name: str) -> Array:
        short = name.removeprefix("model.")
        match = re.fullmatch(r"(layers\.(\d+)\.self_attn\.)([qkv])_proj\.weight", short)
        if match is None:
            return weights[short]
        kind = (config.full, config.sliding)[config.hybrid_layer_pattern[int(match[2])]]
        if not chunks:
            restarts = match[3] == "k" and _restarts(weights, short, kind.num_kv_heads)
            return weights.restarted(short, kind.num_kv_heads if restarts else 1)
        fused = weights.restarted(f"{match[1]}qkv_proj.weight", chunks)
        q, k = kind.num_heads // chunks * kind.head_dim, kind.num_kv_heads // chunks * kind.head_dim
        return np.concatenate([np.split(chunk, [q, q + k])["qkv".index(match[3])] for chunk in np.split(fused, chunks)])

    return read


def _restarts(weights: Weights, name: str, heads: int) -> bool:
    """The FP8 scale grid has more rows than one over the whole matrix: it begins anew in every head."""
    scales, rows = f"{name}_scale_inv", len(weights.raw(name, mapped=True))
    return scales in weights and len(weights[scales]) == heads * -(-rows // heads // 128) > -(-rows // 128)


def _e4m3() -> Array:
    """[256]: what each code of FP8 E4M3 stands for."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    size[codes & 127 == 127] = np.nan
    return np.where(codes < 128, size, -size).astype(np.float32)


def _spread(scales: Array, shape: tuple[int, ...]) -> Array:
    """A scale per tile, repeated over its elements."""
    return scales.repeat(_TILE, 0)[: shape[0]].repeat(_TILE, 1)[:, : shape[1]]
