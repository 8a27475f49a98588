"""Weights as float32 arrays, for what is computed in numpy or torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Tensor
from .errors import CheckpointError
from .safetensors_write import f32_from_bf16

__all__ = ["Weights"]

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
            scaled: Array = _e4m3()[raw] * _spread(self[f"{name}_scale_inv"], raw.shape)
            return scaled
        if dtype == "U8":
            from ._core import mxfp4_decode

            decoded: Array = mxfp4_decode(raw, self.raw(f"{name}_scale"))
            return decoded
        return raw.astype(np.float32)

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
