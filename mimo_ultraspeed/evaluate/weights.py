"""Weights as float32 arrays, for the checks that are computed in numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..safetensors_read import HeaderTensor, read_header
from ..safetensors_write import f32_from_bf16

__all__ = ["Weights"]

Array = NDArray[np.float32]
_TILE = 128
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "U8": "u1", "I64": "<i8", "I32": "<i4"}


class Weights(Mapping[str, Array]):
    """The tensors of some safetensors files by name, read when asked for: BF16, F16, F32, FP8 in tiles, MXFP4. A leading
    "model." of a name is left out."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Reads headers only. Raises OSError, and CheckpointError for damage or a tensor that is there twice."""
        self._tensors: dict[str, tuple[Path, HeaderTensor]] = {}
        for path in files:
            for tensor in read_header(path, path.name):
                name = tensor.name.removeprefix("model.")
                if name in self._tensors:
                    raise CheckpointError(f"{path.name}: {name}: expected in one file, found in two")
                self._tensors[name] = (path, tensor)

    def __getitem__(self, name: str) -> Array:
        raw = self.raw(name)
        dtype = self._tensors[name][1].dtype
        if dtype == "BF16":
            return f32_from_bf16(raw)
        if dtype == "F8_E4M3":
            scaled: Array = _e4m3()[raw] * _spread(self[f"{name}_scale_inv"], raw.shape)
            return scaled
        if dtype == "U8":
            from .._core import mxfp4_decode

            decoded: Array = mxfp4_decode(raw, self.raw(f"{name}_scale"))
            return decoded
        return raw.astype(np.float32)

    def raw(self, name: str) -> NDArray[Any]:
        """The stored elements; BF16 as the upper halves of float32, in uint16. CheckpointError for other dtypes."""
        if name not in self._tensors:
            raise CheckpointError(f"{name}: expected a tensor, found none of that name")
        path, tensor = self._tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{path.name}: {tensor.name}: expected one of {', '.join(_DTYPES)}, found {tensor.dtype}")
        dtype = np.dtype(_DTYPES[tensor.dtype])
        values = np.fromfile(path, dtype, (tensor.end - tensor.begin) // dtype.itemsize, offset=tensor.begin)
        return values.reshape(tensor.shape)

    def rows(self, name: str, ids: NDArray[np.int64]) -> Array:
        """[len(ids), H]: rows of a matrix that is not to be decoded whole. Of BF16, F16 and F32 only these are read."""
        path, tensor = self._tensors[name]
        if tensor.dtype not in ("BF16", "F16", "F32"):
            return self[name][ids]
        mapped = np.memmap(path, np.dtype(_DTYPES[tensor.dtype]), "r", tensor.begin, tensor.shape)
        picked = np.asarray(mapped[ids])
        return f32_from_bf16(picked) if tensor.dtype == "BF16" else picked.astype(np.float32)

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
