"""Weights in registers: every code of every format, and what tensor cores are fed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_ultraspeed import _probe

WHY = "not run: no C++ compiler when the package was built, or no fused multiply-add"
pytestmark = pytest.mark.skipif(not hasattr(_probe, "cuda_open"), reason=WHY)

Array = NDArray[Any]
F32, BF16, FP8, MXFP4, E4M3 = range(5)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
NO_SCALES, NO_ROWS = np.zeros(0, np.uint8), np.zeros(0, np.uint32)


def e4m3(code: Array) -> Array:
    """float64 values of E4M3 codes, none NaN."""
    sign, exponent, mantissa = np.where(code & 128, -1.0, 1.0), (code >> 3 & 15).astype(int), (code & 7).astype(float)
    return np.asarray(sign * np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)))


def columns(format: int, data: Array, cols: int, scales: Array, scale_row: Array = NO_ROWS) -> Array:
    """W [rows, cols], exactly: products with unit vectors, eight at a time."""
    stride = -(-cols // 8) * 8
    unit = np.eye(stride, dtype=np.float32)[:cols]
    parts = [_probe.cuda_gemv(format, cols, data, scales, scale_row, unit[i : i + 8]) for i in range(0, cols, 8)]
    return np.concatenate(parts).T


def test_every_byte_at_every_scale_of_mxfp4() -> None:
    """Codes 0 to 252: a loader takes no larger one, whose products leave float."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (253, 1))
    scales = np.repeat(np.arange(253, dtype=np.uint8), 16)
    elements = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(253, 512)
    want = elements * 2.0 ** (np.arange(253.0)[:, None] - 127)
    found = columns(MXFP4, codes, 512, scales)
    np.testing.assert_array_equal(found, want.astype(np.float32))


def test_every_byte_of_fp8_is_rounded_once() -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    scales = np.array([1.0, 2.0**-20, 0.0123456789, 3.7e5], np.float32)
    data = np.tile(np.pad(codes, (0, 2)), (4, 1))
    found = columns(FP8, data, 254, np.repeat(scales, 2), np.arange(4, dtype=np.uint32))
    np.testing.assert_array_equal(found, (e4m3(codes)[None, :] * scales[:, None].astype(np.float64)).astype(np.float32))


def test_every_bf16() -> None:
    codes = np.arange(65536, dtype=np.uint32).reshape(128, 512)
    codes[(codes & 0x7F80) == 0x7F80] = 0
    found = columns(BF16, codes.astype(np.uint16).view(np.uint8), 512, NO_SCALES)
    np.testing.assert_array_equal(found, (codes << 16).view(np.float32))


def test_every_byte_at_every_scale_of_mxfp4_from_pages() -> None:
    """As tensor cores are fed: BF16 of a weight times 2^-40, which below 2^-92 has no bits left for all of it."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (169, 1))  # 16 blocks of 32, each at a row's scale
    scales = np.repeat(np.arange(169, dtype=np.uint8), 16)
    elements = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(169, 512)
    want = elements * 2.0 ** (np.arange(169.0)[:, None] - 127)
    found = _probe.cuda_paged(MXFP4, 512, codes, scales, NO_ROWS)
    np.testing.assert_array_equal(found[:169], want.astype(np.float32))
    assert not found[169:].any()
    for code in (169, 254):
        with pytest.raises(NotImplementedError, match=rf"expected E8M0 scales up to 168 \(2\^41\), found {code}"):
            _probe.cuda_paged(MXFP4, 512, codes[:1], np.full(16, code, np.uint8), NO_ROWS)


def test_every_byte_at_every_scale_of_mxfp4_for_e4m3() -> None:
    """Rows whose largest scale is any, beside it every one below: as it is down to 2^-11 of that, zeros from there on."""
    codes = np.tile(np.arange(256, dtype=np.uint8), (253, 1))
    largest = np.arange(253)
    below = np.array([0, *range(1, 12), 12, 13, 60, 252])  # of a row's 16 blocks
    scales = np.maximum(largest[:, None] - below, 0).astype(np.uint8)
    elements = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], -1).reshape(253, 512)
    kept = np.where(largest[:, None] - scales < 12, 2.0 ** (scales - 127.0), 0.0)
    kept[largest <= 6] = 0.0  # rows of less than 2^-120, of which a float has no exponent
    for turn in range(16):  # each scale with every byte
        rolled = np.roll(scales, turn, axis=1)
        found = _probe.cuda_paged(E4M3, 512, codes, rolled.reshape(-1), NO_ROWS)
        want = elements * np.repeat(np.roll(kept, turn, axis=1), 32, axis=1)
        np.testing.assert_array_equal(found[:253], want.astype(np.float32))


def test_rounding_to_e4m3() -> None:
    """Against the format's own encoder, at and beside every value and every middle of two, and beyond the largest."""
    values = e4m3(np.arange(127))
    middles = (values[1:] + values[:-1]) / 2
    at = np.concatenate([values, middles, [449.0, 464.0, 480.0, 1e4, 3e38], np.geomspace(1e-6, 500, 999)]).astype(np.float32)
    x = np.concatenate([at, np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(np.inf))])
    x = np.concatenate([x, -x])
    want = e4m3(_probe.fp8_encode(x))
    np.testing.assert_array_equal(_probe.cuda_round_e4m3(x), want.astype(np.float32))


@pytest.mark.parametrize("format", range(4))
def test_pages_hold_the_matrix(format: int) -> None:
    for rows, cols in ((16, 128), (37, 288), (48, 96)):
        data, scales, scale_row, value = random_matrix(format, rows, cols, 7)
        scale_row = scale_row // 8 * 8 if len(scale_row) == 0 else np.repeat(scale_row[::8], 8)[:rows]  # eight rows share one
        if format == FP8:
            grid = scales.reshape(5, -1)
            value = e4m3(data[:, :cols]) * grid[scale_row][:, np.arange(cols) // 128]
        found = _probe.cuda_paged(format, cols, data, scales, scale_row)
        np.testing.assert_array_equal(found[:rows, :cols], value.astype(np.float32))
        assert not found[rows:].any() and not found[:, cols:].any()


def test_every_byte_of_fp8_in_every_place_of_a_page() -> None:
    for turn in range(8):
        codes = np.roll(np.array([code for code in range(256) if code & 127 != 127] + [0, 0], np.uint8), turn)
        found = _probe.cuda_paged(FP8, 256, np.tile(codes, (16, 1)), np.ones(2, np.float32), np.zeros(16, np.uint32))
        np.testing.assert_array_equal(found, np.tile(e4m3(codes), (16, 1)))


# ---- products ----


def random_matrix(format: int, rows: int, cols: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """data [rows, row_bytes], scales, scale_row, values [rows, cols] float64; rows of bytes end in zeros, on 16-byte borders."""
    rng = np.random.default_rng([seed, format, rows, cols])
    scales, scale_row = NO_SCALES, NO_ROWS
    if format == F32:
        value = rng.standard_normal((rows, cols)).astype(np.float32)
        data = value.view(np.uint8)
    elif format == BF16:
        codes = (rng.standard_normal((rows, cols)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        data, value = codes.view(np.uint8), (codes.astype(np.uint32) << 16).view(np.float32)
    elif format == FP8:
        data = rng.integers(0, 127, (rows, cols)).astype(np.uint8) | (rng.integers(0, 2, (rows, cols)) << 7).astype(np.uint8)
        grid = rng.uniform(0.5, 2.0, (5, -(-cols // 128))).astype(np.float32)
        scale_row = rng.integers(0, 5, rows).astype(np.uint32)
        scales = grid.reshape(-1)
        value = (e4m3(data) * grid[scale_row][:, np.arange(cols) // 128]).astype(np.float32)
    else:
        data = rng.integers(0, 256, (rows, cols // 2)).astype(np.uint8)
        grid8 = rng.integers(120, 130, (rows, cols // 32)).astype(np.uint8)
        elements = np.stack([E2M1[data & 15], E2M1[data >> 4]], -1).reshape(rows, cols)
        scales, value = grid8.reshape(-1), elements * np.repeat(2.0 ** (grid8 - 127.0), 32, axis=1)
    unit = 32 if format == F32 else 16
    padded = np.zeros((rows, -(-data.shape[1] // unit) * unit), np.uint8)
    padded[:, : data.shape[1]] = data
    return padded, scales, scale_row, value.astype(np.float64)


SHAPES = [(1, 32), (3, 64), (17, 160), (8, 576), (5, 2048), (2, 6144)]
ODD = [(7, 200), (9, 129), (4, 5)]  # no whole blocks


@pytest.mark.parametrize(
    ("format", "rows", "cols"),
    [(f, *shape) for f in (F32, BF16, FP8, MXFP4) for shape in (SHAPES if f == MXFP4 else SHAPES + ODD)],
)
def test_products_at_every_width(format: int, rows: int, cols: int) -> None:
    """Against float64 within what adding K float products in 32 lanes can lose; and each row the same bits at all widths."""
    data, scales, scale_row, value = random_matrix(format, rows, cols, 2)
    x = np.zeros((8, -(-cols // 8) * 8), np.float32)
    x[:, :cols] = np.random.default_rng(3).standard_normal((8, cols))
    x[2] = 0.0
    wide = _probe.cuda_gemv(format, cols, data, scales, scale_row, x)
    want = x[:, :cols].astype(np.float64) @ value.T
    size = np.abs(x[:, :cols]).astype(np.float64) @ np.abs(value).T
    assert (np.abs(wide - want) <= 1e-6 * (1 + cols / 256) * size).all()
    for width in range(1, 9):
        for first in range(9 - width):
            narrow = _probe.cuda_gemv(format, cols, data, scales, scale_row, x[first : first + width])
            np.testing.assert_array_equal(narrow.view(np.uint32), wide[first : first + width].view(np.uint32))
