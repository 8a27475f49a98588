"""Writes a checkpoint's tensors as safetensors shards, piece by piece, in any order, with memory for one piece.

Every tensor is reserved first (name, dtype, shape); the first write fixes the layout, so headers are written once and a
checkpoint far larger than memory needs no second pass:

    with ShardWriter(folder, max_shard_bytes=5 << 30) as writer:
        writer.reserve("model.norm.weight", "F32", (64,))
        writer.reserve("lm_head.weight", "BF16", (128, 64))
        writer.write("lm_head.weight", (bf16_from_f32(rows) for rows in chunks))
        writer.write("model.norm.weight", norm)

One shard is `model.safetensors`; several are `model-00001-of-00004.safetensors` and so on, with `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPE_BYTES", "ShardWriter", "bf16_from_f32", "f32_from_bf16", "sync_file"]

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I32": 4, "I64": 8}
"""Bytes per element of the dtypes this writer knows, by their safetensors names."""

_NUMPY = {"F32": "<f4", "BF16": "<u2", "F16": "<f2", "F8_E4M3": "u1", "U8": "u1", "I32": "<i4", "I64": "<i8"}


def bf16_from_f32(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """BF16 bit patterns (uint16, same shape) of float32 values, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def f32_from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values (same shape) of BF16 bit patterns."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@dataclass
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    shard: int = 0
    begin: int = 0
    written: bool = False


class ShardWriter:
    """A context manager that writes reserved tensors into safetensors shards under `dest` (made when missing).

    Shards hold tensors in reservation order; a shard ends before the tensor that would take it past `max_shard_bytes`, so only
    a single tensor can make a larger one. `index_metadata` goes into the index's `metadata` beside `total_size` and forces an
    index even for one shard. With `holes=True` tensors never written stay zero, as sparse file space where the file system has it;
    otherwise closing with an unwritten tensor is a ValueError. Files that exist are not overwritten (FileExistsError).
    Leaving the block by an exception removes the files; leaving it normally writes the index and syncs everything to disk.
    """

    def __init__(
        self,
        dest: str | os.PathLike[str],
        *,
        max_shard_bytes: int = 5 << 30,
        stem: str = "model",
        index_metadata: Mapping[str, Any] | None = None,
        holes: bool = False,
    ) -> None:
        if max_shard_bytes <= 0:
            raise ValueError(f"max_shard_bytes must be positive, found {max_shard_bytes}")
        self.dest = Path(dest)
        self._max = max_shard_bytes
        self._stem = stem
        self._index_metadata = index_metadata
        self._holes = holes
        self._tensors: dict[str, _Tensor] = {}
        self._files: list[Path] = []
        self._made: list[Path] = []
        self._closed = False

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self.close()
        except BaseException:
            self._discard()
            raise

    @property
    def total_bytes(self) -> int:
        """Bytes of all reserved tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def files(self) -> list[Path]:
        """The shards, in order; empty before the first write."""
        return list(self._files)

    def reserve(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """Announces one tensor. All tensors are reserved before the first write."""
        if self._files or self._closed:
            raise RuntimeError(f"{name}: tensors must be reserved before the first write")
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"{name}: dtype must be one of {', '.join(DTYPE_BYTES)}, found {dtype!r}")
        if name in self._tensors or name == "__metadata__":
            raise ValueError(f"{name}: reserved twice" if name in self._tensors else f"{name}: not a tensor name")
        dims = tuple(int(n) for n in shape)
        if any(n < 0 for n in dims):
            raise ValueError(f"{name}: shape must not be negative, found {dims}")
        self._tensors[name] = _Tensor(dtype, dims, math.prod(dims) * DTYPE_BYTES[dtype])

    def write(self, name: str, data: NDArray[Any] | Iterable[NDArray[Any]]) -> None:
        """Fills a reserved tensor: one array of its shape, or an iterable of arrays that follow each other in row-major order.

        Arrays have the tensor's element type: float32, float16, uint8, int32, int64; BF16 and F8_E4M3 as bit patterns in uint16
        and uint8.
        """
        if name not in self._tensors:
            raise KeyError(f"{name}: not reserved")
        tensor = self._tensors[name]
        if tensor.written:
            raise ValueError(f"{name}: written twice")
        if isinstance(data, np.ndarray):
            if data.shape != tensor.shape:
                raise ValueError(f"{name}: expected shape {tensor.shape}, found {data.shape}")
            data = [data]
        if not self._files:
            self._lay_out()
        done = 0
        with self._files[tensor.shard].open("r+b", buffering=0) as file:
            for piece in data:
                raw = _raw(name, tensor.dtype, piece)
                if done + len(raw) > tensor.nbytes:
                    raise ValueError(f"{name}: expected {tensor.nbytes} bytes in all, found more")
                _write_at(file.fileno(), raw, tensor.begin + done)
                done += len(raw)
        if done != tensor.nbytes:
            raise ValueError(f"{name}: expected {tensor.nbytes} bytes in all, found {done}")
        tensor.written = True

    def close(self) -> None:
        """Checks that every tensor was written, writes the index and syncs files and folder. Idempotent."""
        if self._closed:
            return
        if not self._files:
            self._lay_out()
        missing = [name for name, tensor in self._tensors.items() if not tensor.written and tensor.nbytes]
        if missing and not self._holes:
            raise ValueError(f"{len(missing)} reserved tensors were never written, the first is {missing[0]}")
        if len(self._files) > 1 or self._index_metadata is not None:
            self._write_index()
        for path in self._made:
            sync_file(path)
        sync_file(self.dest)
        self._closed = True

    def _lay_out(self) -> None:
        shards: list[list[str]] = [[]]
        used = 0
        for name, tensor in self._tensors.items():
            if shards[-1] and used + tensor.nbytes > self._max:
                shards.append([])
                used = 0
            shards[-1].append(name)
            used += tensor.nbytes
        self.dest.mkdir(parents=True, exist_ok=True)
        for i, names in enumerate(shards):
            suffix = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            self._files.append(self._start_shard(self.dest / f"{self._stem}{suffix}.safetensors", i, names))

    def _start_shard(self, path: Path, shard: int, names: Sequence[str]) -> Path:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            tensor = self._tensors[name]
            header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
            tensor.shard, tensor.begin = shard, offset
            offset += tensor.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        for name in names:
            self._tensors[name].begin += start
        with path.open("xb") as file:
            self._made.append(path)
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(start + offset)
        return path

    def _write_index(self) -> None:
        weight_map = {name: self._files[tensor.shard].name for name, tensor in self._tensors.items()}
        metadata = {**(self._index_metadata or {}), "total_size": self.total_bytes}
        path = self.dest / f"{self._stem}.safetensors.index.json"
        with path.open("x", encoding="utf-8") as file:
            self._made.append(path)
            json.dump({"metadata": metadata, "weight_map": weight_map}, file, indent=1)

    def _discard(self) -> None:
        self._closed = True
        for path in self._made:
            path.unlink(missing_ok=True)


def _raw(name: str, dtype: str, piece: NDArray[Any]) -> memoryview:
    want = np.dtype(_NUMPY[dtype])
    if piece.dtype != want:
        raise TypeError(f"{name}: expected {want.name} elements for {dtype}, found {piece.dtype.name}")
    return np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data


def _write_at(descriptor: int, raw: memoryview, offset: int) -> None:
    while raw:
        done = os.pwrite(descriptor, raw, offset)
        raw, offset = raw[done:], offset + done


def sync_file(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
