"""cpu/panel: every stored format into every layout, against the same layout written in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import CheckpointError

Segment = tuple[int, int, int, int, int, int]


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 values of BF16 codes, any shape."""
    return (values.astype(np.uint32) << 16).view(np.float32)


class Stored:
    """A random matrix as a checkpoint stores it, and what it means.

    pieces: logical order as (first stored row, rows); grid: rows after which the FP8 scale grid restarts.
    """

    def __init__(
        self,
        folder: Path,
        form: str,
        rows: int,
        cols: int,
        pieces: list[tuple[int, int]] | None = None,
        grid: int = 0,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.form, self.rows, self.cols = form, rows, cols
        grid = grid or rows
        tiles = -(-cols // 128)
        scale = np.zeros(0, np.uint8)
        scale_row = np.array([row // grid * -(-grid // 128) + row % grid // 128 for row in range(rows)])
        if form == "f32":
            self.raw = rng.normal(size=(rows, cols)).astype(np.float32)
        elif form == "bf16":
            self.raw = (rng.normal(size=(rows, cols)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        elif form == "fp8":
            self.raw = rng.integers(0, 127, (rows, cols)).astype(np.uint8) | (rng.integers(0, 2, (rows, cols)) * 128).astype(
                np.uint8
            )
            scale = rng.uniform(0.001, 0.1, (scale_row.max() + 1, tiles)).astype(np.float32)
        else:
            self.raw = rng.integers(0, 256, (rows, cols // 2)).astype(np.uint8)
            scale = rng.integers(100, 140, (rows, cols // 32)).astype(np.uint8)
        self.scale, self.paths = scale, [folder / "data", folder / "scale"]
        self.write()
        pieces = pieces or [(0, rows)]
        self.order = np.concatenate([np.arange(first, first + count) for first, count in pieces])
        self.logical = self.raw[self.order]
        self.row_scales = scale[scale_row[self.order]] if form == "fp8" else scale[self.order] if form == "mxfp4" else None
        self.segments: list[Segment] = []
        for first, count in pieces:
            while count:
                n = min(count, grid - first % grid) if form == "fp8" else count
                base = (
                    first // grid * -(-grid // 128) * tiles * 4 if form == "fp8" else first * (cols // 32) if form == "mxfp4" else 0
                )
                self.segments.append((n, 0, 13 + first * self.raw[0].nbytes, 1, 7 + base, first % grid if form == "fp8" else 0))
                first, count = first + n, count - n

    def write(self) -> None:
        """Odd offsets: nothing may rely on alignment within the file."""
        self.paths[0].write_bytes(b"x" * 13 + self.raw.tobytes() + b"y" * 5)
        self.paths[1].write_bytes(b"x" * 7 + self.scale.tobytes() + b"y" * 3)

    def pack(self, packing: str, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        paths = [str(path) for path in self.paths]
        data, scales = _probe.pack("w", self.form, packing, self.rows, self.cols, self.segments, paths, **more)
        return data, scales

    def values(self) -> np.ndarray:
        """float32 [rows, cols] in logical order."""
        if self.form == "f32":
            return self.logical
        if self.form == "bf16":
            return bf16(self.logical)
        scales = np.repeat(self.row_scales, 128, axis=1)[:, : self.cols]
        return _probe.fp8_decode(self.logical.ravel()).reshape(self.logical.shape) * scales


def interleave(rows: np.ndarray, fill: int = 0) -> np.ndarray:
    """[rows, n, ...] -> [octets, n, 8, ...]: lane r of an octet is its row r."""
    short = -len(rows) % 8
    rows = np.concatenate([rows, np.full((short, *rows.shape[1:]), fill, rows.dtype)])
    return np.moveaxis(rows.reshape(-1, 8, *rows.shape[1:]), 1, 2)


def expect_plain(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    scales = interleave(stored.row_scales) if stored.form == "fp8" else np.zeros(0, np.uint8)
    return interleave(stored.logical), scales


def expect_mxfp4(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    codes = np.stack([stored.logical & 15, stored.logical >> 4], axis=-1).reshape(
        stored.rows, -1, 4, 2, 4
    )  # [row, block, i, half, b]
    packed = (codes[..., 0, :] | codes[..., 1, :] << 4).reshape(stored.rows, -1, 4)  # [row, block*4+i, b]
    return interleave(packed), interleave(stored.row_scales, fill=127)


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q int8 [rows, cols], scale codes uint16 [rows, cols/32]."""
    blocks = values.reshape(len(values), -1, 32)
    bits = (np.abs(blocks).max(axis=2) / np.float32(127)).view(np.uint32)
    codes = ((bits + 0xFFFF) >> 16).astype(np.uint16)
    d = bf16(codes)
    q = np.rint(blocks / np.where(d > 0, d, np.float32(1))[:, :, None])
    assert np.abs(q).max() <= 127
    return q.astype(np.int8).reshape(values.shape), codes


def expect_q8(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    q, codes = quantise(stored.values())
    return interleave(q.reshape(stored.rows, -1, 4)), interleave(codes)


PAIRS = [("f32", "f32"), ("bf16", "bf16"), ("fp8", "fp8"), ("mxfp4", "mxfp4"), ("f32", "q8"), ("bf16", "q8"), ("fp8", "q8")]


def expect(stored: Stored, packing: str) -> tuple[np.ndarray, np.ndarray]:
    data, scales = {"mxfp4": expect_mxfp4, "q8": expect_q8}.get(packing, expect_plain)(stored)
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8), np.ascontiguousarray(scales).reshape(-1).view(np.uint8)


def check(stored: Stored, packing: str) -> None:
    data, scales = stored.pack(packing)
    expected_data, expected_scales = expect(stored, packing)
    assert np.array_equal(data, expected_data)
    assert np.array_equal(scales, expected_scales)


@pytest.mark.parametrize(("form", "packing"), PAIRS)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 130])
@pytest.mark.parametrize("cols", [32, 128, 160, 288])
def test_every_format_into_every_layout(tmp_path: Path, form: str, packing: str, rows: int, cols: int) -> None:
    check(Stored(tmp_path, form, rows, cols), packing)


@pytest.mark.parametrize("form", ["f32", "bf16", "fp8"])
@pytest.mark.parametrize("cols", [1, 30, 129])
def test_columns_of_any_number(tmp_path: Path, form: str, cols: int) -> None:
    check(Stored(tmp_path, form, 11, cols), form)


@pytest.mark.parametrize(("form", "packing"), PAIRS)
def test_fused_chunks_with_restarting_grid(tmp_path: Path, form: str, packing: str) -> None:
    """Two chunks of [192 | 24 | 16] rows: each has its own grid of two scale rows, crossed within Q and shared by K and V."""
    chunk, widths = 232, [(0, 192), (192, 24), (216, 16)]
    pieces = [(c * chunk + first, width) for first, width in widths for c in range(2)]
    check(Stored(tmp_path, form, 2 * chunk, 160, pieces, grid=chunk), packing)


@pytest.mark.parametrize("packing", ["fp8", "q8"])
def test_grid_restarting_per_head(tmp_path: Path, packing: str) -> None:
    check(Stored(tmp_path, "fp8", 4 * 196, 256, grid=196), packing)


@pytest.mark.parametrize(("form", "packing"), PAIRS)
def test_ranges_of_octets_equal_the_whole(tmp_path: Path, form: str, packing: str) -> None:
    chunk = 140
    stored = Stored(tmp_path, form, 2 * chunk, 64, [(0, 100), (chunk, 100), (100, 40), (chunk + 100, 40)], grid=chunk)
    data, scales = stored.pack(packing)
    octets = stored.rows // 8
    for first, count in ((0, 1), (3, 20), (12, 1), (octets - 2, 2), (5, 0)):
        part, part_scales = stored.pack(packing, octet=first, octets=count)
        for whole, some in ((data, part), (scales, part_scales)):
            unit = len(whole) // octets
            assert np.array_equal(some[first * unit : (first + count) * unit], whole[first * unit : (first + count) * unit])
            assert (some[: first * unit] == 0xAA).all() and (some[(first + count) * unit :] == 0xAA).all()


def test_q8_of_extreme_blocks(tmp_path: Path) -> None:
    """Zero blocks, subnormals, the largest floats, and every BF16 magnitude as the largest of a block."""
    stored = Stored(tmp_path, "bf16", 256, 4096)
    block = np.arange(256 * 128, dtype=np.uint16) % 0x7F80
    stored.raw[:] = 0
    stored.raw[:, ::32] = block.reshape(256, 128)
    stored.raw[:, 1::32] = (block // 2).reshape(256, 128) | 0x8000
    stored.logical = stored.raw
    stored.write()
    data, scales = stored.pack("q8")
    assert np.array_equal(data, expect(stored, "q8")[0])
    assert np.array_equal(scales, expect(stored, "q8")[1])
    q = data.view(np.int8).reshape(32, 128, 8, 8, 4)[:, :, 0, :, 0]
    normal = np.moveaxis((block > 0x0400).reshape(32, 8, 128), 1, 2)
    assert q[normal].min() >= 126  # rounding the scale up to BF16 costs at most one step in 127


BAD = "expected finite weights, found a NaN or an infinity"


@pytest.mark.parametrize(
    ("form", "packing", "value", "message"),
    [
        ("f32", "f32", np.nan, BAD),
        ("f32", "f32", -np.inf, BAD),
        ("f32", "q8", np.inf, BAD),
        ("bf16", "bf16", 0x7F80, BAD),
        ("bf16", "bf16", 0xFFC0, BAD),
        ("bf16", "q8", 0xFF80, BAD),
        ("bf16", "q8", 0x7FC0, BAD),
        ("fp8", "fp8", 0x7F, "found an FP8 NaN"),
        ("fp8", "q8", 0xFF, "found an FP8 NaN"),
    ],
)
def test_bad_weight_is_named_with_its_row(tmp_path: Path, form: str, packing: str, value: float, message: str) -> None:
    stored = Stored(tmp_path, form, 20, 96)
    stored.raw[13, 71] = value
    stored.write()
    with pytest.raises(CheckpointError, match=rf"w: row 13: .*{message}"):
        stored.pack(packing)


@pytest.mark.parametrize(
    ("form", "packing", "value", "message"),
    [
        ("fp8", "fp8", np.nan, "expected finite FP8 scales"),
        ("fp8", "q8", np.inf, "expected finite FP8 scales"),
        ("fp8", "q8", -1e38, "expected finite FP8 scales"),
        ("mxfp4", "mxfp4", 255, r"found a NaN \(code 255\)"),
        ("mxfp4", "mxfp4", 253, "expected MXFP4 scales up to code 252"),
    ],
)
def test_bad_scale_is_named_with_its_row(tmp_path: Path, form: str, packing: str, value: float, message: str) -> None:
    stored = Stored(tmp_path, form, 140, 160)
    row = 130 if form == "mxfp4" else 1
    stored.scale[row, 1] = value
    stored.write()
    with pytest.raises(CheckpointError, match=rf"w: row {130 if form == 'mxfp4' else 128}: .*{message}"):
        stored.pack(packing)


def test_truncated_while_open_is_an_error(tmp_path: Path) -> None:
    stored = Stored(tmp_path, "bf16", 16, 64)
    stored.paths[0].write_bytes(stored.paths[0].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"data: truncated"):
        stored.pack("bf16")


@pytest.mark.parametrize(
    ("form", "packing", "cols"),
    [("bf16", "mxfp4", 64), ("mxfp4", "q8", 64), ("bf16", "q8", 40), ("bf16", "q4", 40), ("f32", "q4", 64)],
)
def test_pairs_that_do_not_exist(tmp_path: Path, form: str, packing: str, cols: int) -> None:
    with pytest.raises(NotImplementedError, match=rf"w: {form} with {cols} columns cannot be packed as {packing}"):
        Stored(tmp_path, form, 8, cols).pack(packing)


def test_choice_of_packing() -> None:
    fast = {form: _probe.packing_choose(form, 64, True) for form in ("f32", "bf16", "fp8", "mxfp4")}
    assert fast == {"f32": "f32", "bf16": "q8", "fp8": "q8", "mxfp4": "mxfp4"}
    for form in fast:
        assert _probe.packing_choose(form, 64, False) == form
        assert _probe.packing_choose(form, 72, True) == form


def test_vectors(tmp_path: Path) -> None:
    path = tmp_path / "vector"
    values = np.random.default_rng(1).normal(size=37).astype(np.float32)
    codes = (values.view(np.uint32) >> 16).astype(np.uint16)
    path.write_bytes(b"abc" + values.tobytes() + codes.tobytes())
    assert np.array_equal(_probe.vector_read("v", True, 37, 3, [str(path)]), values)
    assert np.array_equal(_probe.vector_read("v", False, 37, 3 + 148, [str(path)]), bf16(codes))
    codes[5] = 0x7FC0
    path.write_bytes(codes.tobytes())
    with pytest.raises(CheckpointError, match=r"v: element 5: expected a finite value, found nan"):
        _probe.vector_read("v", False, 37, 0, [str(path)])


class Levels(Stored):
    """A BF16 matrix rounded from 16 levels a block: step * code + least, each with the codes 0 and 15."""

    def __init__(self, folder: Path, rows: int, cols: int, size: float = 0.1) -> None:
        super().__init__(folder, "bf16", rows, cols)
        rng = np.random.default_rng(5)
        self.codes = rng.integers(0, 16, (rows, cols // 32, 32))
        self.codes[..., 3], self.codes[..., 17] = 0, 15
        self.step = (rng.uniform(0.5, 2, (rows, cols // 32)) * size).astype(np.float16)
        self.least = (rng.uniform(-16, 1, self.step.shape) * self.step).astype(np.float16)
        exact = self.codes * self.step[..., None].astype(np.float64) + self.least[..., None]
        self.exact = exact.reshape(rows, cols)
        self.store(self.exact)

    def store(self, values: np.ndarray) -> None:
        self.raw = _probe.bf16_encode(values.astype(np.float32).ravel()).reshape(values.shape)
        self.logical = self.raw
        self.write()

    def has_levels(self, **more: int) -> bool:
        paths = [str(path) for path in self.paths]
        return bool(_probe.survey("w", self.rows, self.cols, self.segments, paths, **more))


def unpack_q4(stored: Stored, data: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, blocks, 32], and values [rows, cols] float64."""
    octets = -(-stored.rows // 8)
    pairs = np.moveaxis(data.reshape(octets, -1, 4, 8, 4), 3, 1).reshape(8 * octets, -1, 4, 4)  # [row, block, i, b]
    codes = np.stack([pairs & 15, pairs >> 4], axis=3).reshape(8 * octets, -1, 32)
    step, least = np.moveaxis(scales.view(np.float16).reshape(octets, -1, 2, 8), (2, 3), (0, 2)).reshape(2, 8 * octets, -1, 1)
    values = codes * step.astype(np.float64) + least
    return codes[: stored.rows], values.reshape(8 * octets, -1)[: stored.rows]


@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (7, 64), (16, 96), (130, 288)])
@pytest.mark.parametrize("size", [1e-3, 0.1, 100])
def test_q4_finds_the_levels_back(tmp_path: Path, rows: int, cols: int, size: float) -> None:
    stored = Levels(tmp_path, rows, cols, size)
    assert stored.has_levels()
    codes, values = unpack_q4(stored, *stored.pack("q4"))
    assert np.array_equal(codes, stored.codes)
    step = np.repeat(stored.step.astype(np.float64), 32, axis=1)
    assert np.sqrt(np.mean(((values - stored.exact) / step) ** 2)) < 0.012  # in Q8, about a step in 55
    q, scale = quantise(stored.values())
    q8 = q * np.repeat(bf16(scale), 32, axis=1).astype(np.float64)
    assert np.mean((values - stored.exact) ** 2) < 0.4 * np.mean((q8 - stored.exact) ** 2)


def test_q4_of_blocks_with_few_values(tmp_path: Path) -> None:
    """Zeros, one value, two values: as near as F16 allows."""
    stored = Levels(tmp_path, 8, 128)
    values = np.zeros((8, 128))
    values[1], values[2] = 0.75, np.where(np.arange(128) % 3, -0.375, 0.5)
    stored.store(values)
    assert stored.has_levels()
    found = unpack_q4(stored, *stored.pack("q4"))[1]
    assert np.array_equal(found[[0, 1]], values[[0, 1]]) and np.abs(found - values).max() < 1e-3


def test_q4_octets_equal_the_whole(tmp_path: Path) -> None:
    stored = Levels(tmp_path, 130, 64)
    whole = stored.pack("q4")
    for first, count in ((0, 1), (3, 7), (16, 1)):
        for all_of, some in zip(whole, stored.pack("q4", octet=first, octets=count), strict=True):
            unit = len(all_of) // 17
            assert np.array_equal(some[first * unit : (first + count) * unit], all_of[first * unit : (first + count) * unit])
            assert (some[: first * unit] == 0xAA).all() and (some[(first + count) * unit :] == 0xAA).all()


@pytest.mark.parametrize("value", [0.3, np.nan, -np.inf])
def test_one_value_between_levels_is_seen(tmp_path: Path, value: float) -> None:
    stored = Levels(tmp_path, 40, 96)
    stored.step[:], stored.least[:] = 0.25, -2
    stored.store(stored.codes.reshape(40, 96) * 0.25 - 2)
    assert stored.has_levels()
    stored.raw[29, 70] = _probe.bf16_encode(np.array([value], np.float32))[0]
    stored.write()
    assert not stored.has_levels()
    assert stored.has_levels(octet=0, octets=3) and not stored.has_levels(octet=3, octets=1)
    with pytest.raises(CheckpointError, match="w: row 29: expected blocks of 32 weights on 16 even levels, found other values"):
        stored.pack("q4")


@pytest.mark.parametrize("size", [1e-9, 1e-30, 1e5, 1e30])
def test_levels_that_f16_does_not_hold(tmp_path: Path, size: float) -> None:
    stored = Levels(tmp_path, 8, 32)
    stored.store(stored.exact * (size / 0.1))
    assert not stored.has_levels()


def test_ordinary_weights_have_no_levels(tmp_path: Path) -> None:
    stored = Levels(tmp_path, 8, 32)
    for seed in range(200):
        stored.store(np.random.default_rng(seed).normal(size=(8, 32)))
        assert not stored.has_levels()
