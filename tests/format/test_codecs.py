"""bf16, fp8 and the scalars of mxfp4: every code, and rounding against a search over all codes."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_ultraspeed import _probe

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def fp8_table() -> np.ndarray:
    """E4M3 by its definition: sign, 4 exponent bits with bias 7, 3 mantissa bits; S.1111.111 is NaN."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    value = np.where(code & 0x7F == 0x7F, np.nan, value)
    return np.where(code & 128, -value, value).astype(np.float32)


def nearest_code(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Nearest entry of an ascending table, ties to the even index: by search, so unlike the codecs in every way."""
    distance = np.abs(np.abs(values.astype(np.float64))[:, None] - table.astype(np.float64))
    least = distance.min(axis=1, keepdims=True)
    candidates = distance == least
    even = candidates & (np.arange(len(table)) % 2 == 0)
    return np.where(even.any(axis=1), even.argmax(axis=1), candidates.argmax(axis=1)).astype(np.uint8)


def test_bf16_decodes_every_code() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    expected = (codes.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(_probe.bf16_decode(codes).view(np.uint32), expected.view(np.uint32))


def test_bf16_encodes_every_code_back() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    nan = (codes & 0x7FFF) > 0x7F80
    back = _probe.bf16_encode(_probe.bf16_decode(codes))
    assert np.array_equal(back[~nan], codes[~nan])
    assert np.array_equal(back[nan], codes[nan] | 0x40)


def test_bf16_rounds_to_nearest_even() -> None:
    low = np.arange(0x7F7F, dtype=np.uint32) << 16
    for offset, up in ((0x7FFF, 0), (0x8000, None), (0x8001, 1)):
        values = (low + np.uint32(offset)).view(np.float32)
        base = low >> 16
        expected = base + (base & 1 if up is None else up)
        assert np.array_equal(_probe.bf16_encode(values), expected.astype(np.uint16))
        assert np.array_equal(_probe.bf16_encode(-values), (expected | 0x8000).astype(np.uint16))
    largest = np.array([np.finfo(np.float32).max, np.inf], np.float32)
    assert _probe.bf16_encode(largest).tolist() == [0x7F80, 0x7F80]


def test_f16_decodes_and_encodes_every_finite_code() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    codes = codes[(codes & 0x7C00) != 0x7C00]
    values = _probe.f16_decode(codes)
    assert np.array_equal(values.view(np.uint32), codes.view(np.float16).astype(np.float32).view(np.uint32))
    assert np.array_equal(_probe.f16_encode(values), codes)


def test_f16_rounds_to_nearest_even() -> None:
    codes = np.arange(0x7BFF, dtype=np.uint16)
    low, high = (_probe.f16_decode(part).astype(np.float64) for part in (codes, codes + np.uint16(1)))
    middle = ((low + high) / 2).astype(np.float32)  # exact
    assert np.array_equal(_probe.f16_encode(middle), codes + (codes & 1))
    assert np.array_equal(_probe.f16_encode(np.nextafter(middle, np.float32(0))), codes)
    assert np.array_equal(_probe.f16_encode(-np.nextafter(middle, np.float32(1e9))), codes + np.uint16(1) | np.uint16(0x8000))
    limit = np.array([65519.99, 65520, 1e30, np.inf, 1e-9, 2.0**-25, -0.0], np.float32)
    assert _probe.f16_encode(limit).tolist() == [0x7BFF, 0x7C00, 0x7C00, 0x7C00, 0, 0, 0x8000]


def test_fp8_decodes_every_code() -> None:
    got, expected = _probe.fp8_decode(np.arange(256, dtype=np.uint8)), fp8_table()
    assert np.array_equal(got, expected, equal_nan=True)
    assert np.array_equal(np.signbit(got), np.arange(256) >= 128)


def test_fp8_encodes_every_code_back() -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(_probe.fp8_encode(_probe.fp8_decode(codes)), codes)


def test_fp8_rounds_to_nearest_even_and_saturates() -> None:
    table = fp8_table()[:127]
    middle = ((table[1:] + table[:-1]) / 2).astype(np.float32)
    near = [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))]
    values = np.concatenate([*near, np.random.default_rng(1).normal(0, 100, 4000).astype(np.float32)])
    values = np.concatenate([values, values * np.float32(2**-9), -values])
    expected = nearest_code(values, table) | np.where(values < 0, 128, 0).astype(np.uint8)
    assert np.array_equal(_probe.fp8_encode(values), expected)
    extremes = np.array([448, 464, 465, 600, 1e30, np.inf, -np.inf, np.nan, -0.0, 1e-45], np.float32)
    assert _probe.fp8_encode(extremes).tolist() == [0x7E, 0x7E, 0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0x7F, 0x80, 0]


def test_fp8_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="not run: torch is not installed")
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(_probe.fp8_decode(codes.numpy()), expected, equal_nan=True)
    values = np.random.default_rng(2).normal(0, 60, 20000).astype(np.float32)
    assert np.array_equal(_probe.fp8_encode(values), torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy())


def test_e2m1_decodes_every_code() -> None:
    codes = np.arange(16, dtype=np.uint8)
    expected = np.concatenate([E2M1, -E2M1])
    assert np.array_equal(_probe.e2m1_decode(codes), expected)
    assert np.array_equal(np.signbit(_probe.e2m1_decode(codes)), codes >= 8)
    assert np.array_equal(_probe.e2m1_doubled(codes), (2 * expected).astype(np.int8))


def test_e2m1_rounds_to_nearest_even_and_saturates() -> None:
    middle = (E2M1[1:] + E2M1[:-1]) / 2
    near = [E2M1, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(9))]
    values = np.concatenate([*near, np.linspace(0, 9, 4001, dtype=np.float32)]).astype(np.float32)
    expected = nearest_code(values, E2M1)
    assert np.array_equal(_probe.e2m1_encode(values), expected)
    assert np.array_equal(_probe.e2m1_encode(-values), expected | 8)


def test_e8m0_decodes_every_code() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan)).astype(np.float32)
    assert np.array_equal(_probe.e8m0_decode(codes), expected, equal_nan=True)
