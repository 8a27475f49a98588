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
F32, BF16, FP8, MXFP4 = range(4)
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


def test_tensor_core_forms_at_every_scale() -> None:
    """Every byte in every place. BF16: code times 2^126 times the scale; E4M3: the scale folded into the table."""
    rng = np.random.default_rng(1)
    for byte in range(256):
        place = byte % 4
        codes = int(rng.integers(0, 2**32)) & ~(255 << 8 * place) | byte << 8 * place
        value = E2M1[[codes >> 4 * i & 15 for i in range(8)]]
        for fold in range(1, 13):
            words = _probe.cuda_e2m1(codes, fold)
            np.testing.assert_array_equal(e4m3(words["e4m3"]), value * 2.0 ** (fold - 6))
        as_bf16 = (words["bf16"].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        scales = np.arange(1, 129)  # the factors that a BF16 holds
        factor = ((scales.astype(np.uint32) + 126) << 23).view(np.float32).astype(np.float64)
        found = (as_bf16[None, :] * factor[:, None]).astype(np.float32)
        np.testing.assert_array_equal(found, (value[None, :] * 2.0 ** (scales[:, None] - 127.0)).astype(np.float32))
        assert (np.signbit(as_bf16) == np.signbit(value)).all()


def test_every_byte_of_fp8_as_bf16_in_every_place() -> None:
    for byte in range(256):
        codes = np.roll(np.array([byte, 0, 0x81, 0x7E, 0xFE, 8, 1, 0x39], np.uint8), byte % 8)
        found = (_probe.cuda_e4m3(codes.tobytes()).astype(np.uint32) << 16).view(np.float32).astype(np.float64) * 2.0**120
        kept = (codes & 127) != 127
        np.testing.assert_array_equal(found[kept], e4m3(codes)[kept])


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
