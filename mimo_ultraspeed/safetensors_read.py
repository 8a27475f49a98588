"""Reads JSON and safetensors headers of files that are not trusted, by the strict rules of their formats.

Nothing but headers is read. A header that this module accepts has: a length within its limits, UTF-8 JSON without duplicate
keys, string metadata, known dtypes, sizes that multiply out to the stated bytes, and tensors that fill the rest of the file
exactly, without holes, overlaps or trailing bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .errors import CheckpointError

__all__ = ["DTYPE_BITS", "HeaderTensor", "parse_json", "read_header", "show"]

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits per element of every safetensors dtype."""

_MAX_HEADER = 100_000_000
_MAX_SIZE = 2**64 - 1
_MAX_RANK = 8
_KEYS = {"dtype", "shape", "data_offsets"}


class HeaderTensor(NamedTuple):
    """One tensor of a header; begin and end are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def show(value: object) -> str:
    """A value as a message shows it: short, and without raw control characters."""
    if isinstance(value, dict | list) and len(value) > 20:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} values"
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


def parse_json(raw: bytes, source: str) -> Any:
    """The value of a JSON text. Stricter than json.loads: UTF-8, no duplicate keys, no NaN, no lone surrogates, no `-0`.

    source: the file's name, for messages. Raises CheckpointError.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_integer)
        if b"\\u" in raw:
            _check_surrogates(raw)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: expected UTF-8 text, found byte {error.start} that is not") from None
    except RecursionError:
        raise CheckpointError(f"{source}: expected JSON of a few levels, found nesting too deep to read") from None
    except ValueError as error:
        raise CheckpointError(f"{source}: expected JSON, found {show(str(error))}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {show(key)} twice in one object")
            seen.add(key)
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word}, which is not JSON")


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("the number -0")
    return int(digits)


def _check_surrogates(raw: bytes) -> None:
    # Python lets an unpaired \ud800 through, and such a string cannot be handed to anything that wants UTF-8.
    def check(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            key.encode()
            if isinstance(value, str):
                value.encode()

    try:
        json.loads(raw, object_pairs_hook=check)
    except UnicodeEncodeError:
        raise ValueError("an unpaired surrogate in a string") from None


def read_header(path: Path, source: str) -> list[HeaderTensor]:
    """The tensors of a safetensors file in the order of their offsets.

    source: the file's name, for messages. Raises CheckpointError, or OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        first = file.read(8)
        if len(first) < 8:
            raise CheckpointError(f"{source}: header: expected 8 bytes of length, found a file of {size} bytes")
        length = int.from_bytes(first, "little")
        if length > _MAX_HEADER:
            raise CheckpointError(f"{source}: header length: expected at most {_MAX_HEADER}, found {length}")
        if 8 + length > size:
            raise CheckpointError(f"{source}: header length: expected at most the file's {size} bytes, found 8 + {length}")
        raw = file.read(length)
    if len(raw) != length:
        raise CheckpointError(f"{source}: header: expected {length} bytes, found {len(raw)}")
    header = parse_json(raw, f"{source}: header")
    if not isinstance(header, dict):
        raise CheckpointError(f"{source}: header: expected an object, found {show(header)}")
    _check_metadata(header.pop("__metadata__", None), source)
    tensors = [_tensor(name, entry, 8 + length, source) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_spans(tensors, 8 + length, size, source)
    return tensors


def _check_metadata(metadata: object, source: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{source}: __metadata__: expected an object of strings, found {show(metadata)}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise CheckpointError(f"{source}: __metadata__: {show(key)}: expected a string, found {show(value)}")


def _tensor(name: str, entry: object, start: int, source: str) -> HeaderTensor:
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        found = show(sorted(entry)) if isinstance(entry, dict) else show(entry)
        raise CheckpointError(f"{source}: {show(name)}: expected an object of dtype, shape, data_offsets, found {found}")
    if "\0" in name:
        raise CheckpointError(f"{source}: {show(name)}: expected a name without NUL characters")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise CheckpointError(f"{source}: {show(name)}: dtype: expected a safetensors dtype, found {show(dtype)}")
    if not _are_sizes(shape):
        raise CheckpointError(f"{source}: {show(name)}: shape: expected a list of sizes, found {show(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{source}: {show(name)}: data_offsets: expected [begin, end], found {show(offsets)}")
    if len(shape) > _MAX_RANK:
        raise CheckpointError(f"{source}: {show(name)}: shape: expected at most {_MAX_RANK} dimensions, found {len(shape)}")
    total = bits
    for size in shape:
        total *= size
        if total > _MAX_SIZE:
            raise CheckpointError(f"{source}: {show(name)}: shape: expected a size below 2^64 bits, found {show(shape)}")
    if total != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{source}: {show(name)}: data_offsets: expected {total / 8:.16g} bytes for {dtype} {show(shape)}, "
            f"found {offsets[1] - offsets[0]}"
        )
    return HeaderTensor(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)


def _check_spans(tensors: list[HeaderTensor], start: int, size: int, source: str) -> None:
    position = start
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlap" if tensor.begin < position else "hole"
            raise CheckpointError(
                f"{source}: {show(tensor.name)}: data_offsets: expected to begin at byte {position - start}, where the tensor "
                f"before it ends, found {tensor.begin - start}: {what} of {abs(tensor.begin - position)} bytes"
            )
        position = tensor.end
    if position != size:
        gap = f"{size - position} trailing bytes" if size > position else f"{position - size} bytes are missing"
        raise CheckpointError(f"{source}: file length: expected {position} bytes, found {size}: {gap}")
