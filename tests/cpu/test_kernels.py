"""Every CPU kernel of every variant: against NumPy, bit for bit against the plain C variant, and bit for bit across step widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_ultraspeed import _probe

Array = NDArray[Any]
VARIANTS = [name for name, why in _probe.kernel_variants().items() if why is None]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64)
INTEGER = ("mxfp4", "q8", "q4")
FLOAT = ("f32", "bf16", "fp8", "mxfp4")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Each variant that this CPU runs."""
    return str(request.param)


@pytest.mark.parametrize("name", list(_probe.kernel_variants()))
def test_every_variant_is_tested(name: str) -> None:
    """Says which variants the tests of this file could not run, and why."""
    why = _probe.kernel_variants()[name]
    if why is not None:
        pytest.skip(f"not run: {name}: {why}")
    assert name in VARIANTS


def bits(array: Array) -> Array:
    """The array's bytes, so that NaN equals NaN and -0 differs from 0."""
    return np.ascontiguousarray(array).view(np.uint8)


def same(a: Array, b: Array) -> bool:
    """Equal bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(bits(a), bits(b)))


def bf16_bits(x: Array) -> Array:
    """float32 -> the uint16 of the nearest BF16 (toward zero is near enough for a test's inputs)."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bf16_value(code: Array) -> Array:
    return (code.astype(np.uint32) << 16).view(np.float32)


def e4m3_value(code: Array) -> Array:
    """E4M3 bytes (none NaN) as float64."""
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent, mantissa = ((code >> 3) & 15).astype(np.int32), (code & 7).astype(np.float64)
    return sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


class Panel:
    """A matrix [rows, cols] packed as csrc/cpu/panel.h says: `data` and `scales` bytes, and `value` [rows, cols] float64.

    size [rows, cols]: the sum of the magnitudes of what a value is made of.
    """

    def __init__(self, packing: str, rows: int, cols: int, seed: int = 0, scale: int | None = None) -> None:
        self.packing, self.rows, self.cols = packing, rows, cols
        self.octets = -(-rows // 8)
        self.rng = np.random.default_rng([seed, rows, cols])
        self.scales: Array = np.zeros(0, np.uint8)
        getattr(self, f"make_{packing}")(scale)
        self.size: Array = getattr(self, "size", np.abs(self.value))

    def interleave(self, matrix: Array, group: int) -> Array:
        """[rows, n * group] -> [octets, n, 8, group], missing rows zero."""
        padded = np.zeros((self.octets * 8, matrix.shape[1]), matrix.dtype)
        padded[: self.rows] = matrix
        return np.ascontiguousarray(padded.reshape(self.octets, 8, -1, group).transpose(0, 2, 1, 3))

    def store(self, data: Array, scales: Array | None = None) -> None:
        self.data = data.reshape(-1).view(np.uint8)
        if scales is not None:
            self.scales = scales.reshape(-1).view(np.uint8)

    def make_f32(self, scale: int | None) -> None:
        w = self.rng.standard_normal((self.rows, self.cols)).astype(np.float32)
        self.value = w.astype(np.float64)
        self.store(self.interleave(w, 1))

    def make_bf16(self, scale: int | None) -> None:
        w = bf16_bits(self.rng.standard_normal((self.rows, self.cols)))
        self.value = bf16_value(w).astype(np.float64)
        self.store(self.interleave(w, 1))

    def make_fp8(self, scale: int | None) -> None:
        w = self.rng.integers(0, 256, (self.rows, self.cols), dtype=np.uint8)
        w[(w & 0x7F) == 0x7F] = 0
        s = (self.rng.uniform(0.5, 2, (self.rows, -(-self.cols // 128))) * 2.0**-8).astype(np.float32)
        wide = np.repeat(s, 128, axis=1)[:, : self.cols]
        self.value = (e4m3_value(w).astype(np.float32) * wide).astype(np.float64)
        self.store(self.interleave(w, 1), self.interleave(s, 1))

    def make_mxfp4(self, scale: int | None) -> None:
        codes = self.rng.integers(0, 16, (self.rows, self.cols), dtype=np.uint8)
        e = self.rng.integers(118, 126, (self.rows, self.cols // 32), dtype=np.uint8)
        if scale is not None:
            e[:] = scale
        if scale == 254:
            codes &= 0b1011  # at most 1.5, so that the value stays finite
        self.codes, self.exponents = codes, e
        self.value = E2M1[codes].astype(np.float64) * np.repeat(2.0 ** (e.astype(np.float64) - 127), 32, axis=1)
        grouped = self.interleave(codes, 8)  # [octets, K/8, 8, 8]: four low nibbles, four high ones
        self.store(grouped[..., :4] | grouped[..., 4:] << 4, self.interleave(e, 1))

    def make_q8(self, scale: int | None) -> None:
        self.integers = self.rng.integers(-127, 128, (self.rows, self.cols), dtype=np.int8)
        self.scale_codes = bf16_bits(self.rng.uniform(0.5, 2, (self.rows, self.cols // 32)) * 2.0**-8)
        wide = np.repeat(bf16_value(self.scale_codes), 32, axis=1)
        self.value = self.integers.astype(np.float64) * wide
        self.store(self.interleave(self.integers, 4), self.interleave(self.scale_codes, 1))

    def make_q4(self, scale: int | None) -> None:
        codes = self.rng.integers(0, 16, (self.rows, self.cols), dtype=np.uint8)
        step = self.rng.uniform(0.5, 2, (self.rows, self.cols // 32)).astype(np.float16) / np.float16(256)
        least = (step * self.rng.uniform(-16, 1, step.shape)).astype(np.float16)
        level, base = (np.repeat(part.astype(np.float64), 32, axis=1) for part in (step, least))
        self.value, self.size = level * codes + base, level * codes + np.abs(base)
        grouped = self.interleave(codes, 8)
        scales = [self.interleave(part.view(np.uint16), 1)[..., 0] for part in (step, least)]  # each [octets, K/32, 8]
        self.store(grouped[..., :4] | grouped[..., 4:] << 4, np.stack(scales, axis=2))


Quantized = tuple[Array, Array, Array]


def pack_sums(q: Array) -> Array:
    """[T, K] int8 -> [T, K/32] int32: per block, the sum over k % 4 in (0, 1) in the low half, over (2, 3) in the high half."""
    parts = q.astype(np.int32).reshape(q.shape[0], -1, 8, 2, 2).sum(axis=(2, 4))
    return (parts[..., 0] & 0xFFFF | parts[..., 1] << 16).astype(np.int32)


def quantized(x: Array) -> Quantized:
    """Rows [T, K] as the integer kernels take them, by the plain C kernel (which has a test of its own)."""
    parts = [_probe.quantize("ref", row) for row in x]
    q, d, s = (np.stack(part) for part in zip(*parts, strict=True))
    return q, d, s


def gemm(
    variant: str,
    panel: Panel,
    x: Any,
    T: int,
    index: Array | None = None,
    octet: int = 0,
    octets: int | None = None,
    slack: int = 0,
) -> Array:
    """y [T, 8 * octets + slack]; what the kernel does not write is NaN."""
    octets = panel.octets - octet if octets is None else octets
    y = _probe.gemm(
        variant, panel.packing, panel.data, panel.scales, panel.rows, panel.cols, x, index, T, octet, octets, 8 * octets + slack, 1
    )
    return np.asarray(y)


def rows_of(seed: int, T: int, K: int) -> Array:
    return np.random.default_rng([seed, T, K]).standard_normal((T, K)).astype(np.float32)


def inputs(kind: str, x: Array) -> Any:
    """x as the kernels of `kind` take it."""
    return x if kind == "f32" else quantized(x)


def exact_product(panel: Panel, kind: str, x: Any) -> tuple[Array, Array]:
    """y [T, rows] in float64 and sum |w x| of each, by which errors are measured."""
    values = x.astype(np.float64) if kind == "f32" else x[0].astype(np.float64) * np.repeat(x[1].astype(np.float64), 32, axis=1)
    return values @ panel.value.T, np.abs(values) @ panel.size.T


KINDS = [("q8", packing) for packing in INTEGER] + [("f32", packing) for packing in FLOAT]
ROWS = (1, 7, 8, 9, 65)
COLS = (32, 64, 192, 576, 1536)


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "packing"), KINDS)
def test_gemm(variant: str, kind: str, packing: str, rows: int, cols: int) -> None:
    panel = Panel(packing, rows, cols)
    x = inputs(kind, rows_of(1, 5, cols))
    y = gemm(variant, panel, x, 5, slack=3)
    want, size = exact_product(panel, kind, x)
    assert (np.abs(y[:, :rows] - want) <= 1e-6 * size + 1e-30).all()
    assert (y[:, rows : 8 * panel.octets] == 0).all()
    assert np.isnan(y[:, 8 * panel.octets :]).all()
    assert same(y, gemm("ref", panel, x, 5, slack=3))


@pytest.mark.parametrize("cols", (1, 7, 100, 129, 300))
@pytest.mark.parametrize("packing", ("f32", "bf16", "fp8"))
def test_gemm_of_any_width(variant: str, packing: str, cols: int) -> None:
    panel = Panel(packing, 41, cols)
    x = rows_of(2, 6, cols)
    y = gemm(variant, panel, x, 6)
    want, size = exact_product(panel, "f32", x)
    assert (np.abs(y[:, :41] - want) <= 1e-6 * size + 1e-30).all()
    assert same(y, gemm("ref", panel, x, 6))


@pytest.mark.parametrize("rows", (8, 24, 40, 65))
@pytest.mark.parametrize(("kind", "packing"), KINDS)
def test_gemm_does_not_depend_on_the_step(variant: str, kind: str, packing: str, rows: int) -> None:
    panel = Panel(packing, rows, 192)
    x = inputs(kind, rows_of(3, max(WIDTHS), 192))
    widest = gemm(variant, panel, x, max(WIDTHS))
    for T in WIDTHS:
        assert same(gemm(variant, panel, x, T), widest[:T]), T


@pytest.mark.parametrize(("kind", "packing"), KINDS)
def test_gemm_does_not_depend_on_the_octets(variant: str, kind: str, packing: str) -> None:
    panel = Panel(packing, 77, 64)
    x = inputs(kind, rows_of(4, 3, 64))
    whole = gemm(variant, panel, x, 3)
    for octet in range(panel.octets):
        for octets in range(panel.octets - octet + 1):
            part = gemm(variant, panel, x, 3, octet=octet, octets=octets)
            assert same(part, np.ascontiguousarray(whole[:, 8 * octet : 8 * (octet + octets)])), (octet, octets)


@pytest.mark.parametrize(("kind", "packing"), KINDS)
def test_gemm_gathers_rows(variant: str, kind: str, packing: str) -> None:
    panel = Panel(packing, 24, 96)
    x = inputs(kind, rows_of(5, 300, 96))
    whole = gemm(variant, panel, x, 300)
    for T in WIDTHS:
        index = np.random.default_rng(T).integers(0, 300, T).astype(np.uint16)
        assert same(gemm(variant, panel, x, T, index), np.ascontiguousarray(whole[index])), T


def extremes(cols: int) -> Quantized:
    """Rows whose integers reach every limit: all 127, all -127, alternating, zero, and the two halves of a sum opposed."""
    q = np.zeros((7, cols), np.int8)
    q[0], q[1] = 127, -127
    q[2] = np.where(np.arange(cols) % 2, 127, -127)
    q[4] = np.where(np.arange(cols) % 4 < 2, 127, -127)
    q[5] = np.where(np.arange(cols) % 4 < 2, -127, 127)
    q[6, ::2] = 127
    d = np.full((7, cols // 32), 0.25, np.float32)
    d[3] = 0
    return q, d, pack_sums(q)


@pytest.mark.parametrize("code", (0, 1, 7, 8, 15))
def test_mxfp4_sums_do_not_overflow(variant: str, code: int) -> None:
    """Every weight the same code, against every extreme of the activations: sums of 16 bits are at their limits."""
    panel = Panel("mxfp4", 24, 64, scale=120)
    panel.data[:] = code * 0x11
    panel.value[:] = E2M1[code] * 2.0**-7
    x = extremes(64)
    for T in (1, 2, 3, 4, 7):
        assert np.array_equal(gemm(variant, panel, tuple(part[:T] for part in x), T), exact_product(panel, "q8", x)[0][:T]), T


@pytest.mark.parametrize("weight", (-127, -1, 0, 1, 127))
def test_q8_sums_do_not_overflow(variant: str, weight: int) -> None:
    panel = Panel("q8", 24, 64)
    panel.data.view(np.int8)[:] = weight
    panel.scales.view(np.uint16)[:] = 0x3E80  # 0.25
    panel.value[:] = weight * 0.25
    x = extremes(64)
    for T in (1, 2, 3, 4, 7):
        assert np.array_equal(gemm(variant, panel, tuple(part[:T] for part in x), T), exact_product(panel, "q8", x)[0][:T]), T


@pytest.mark.parametrize("code", (0, 1, 15))
def test_q4_sums_do_not_overflow(variant: str, code: int) -> None:
    panel = Panel("q4", 24, 64)
    panel.data[:] = code * 0x11
    panel.scales.view(np.float16).reshape(-1, 2, 8)[:] = np.float16([[0.25], [-2]])
    panel.value[:] = code * 0.25 - 2
    x = extremes(64)
    for T in (1, 2, 3, 4, 7):
        assert np.array_equal(gemm(variant, panel, tuple(part[:T] for part in x), T), exact_product(panel, "q8", x)[0][:T]), T


@pytest.mark.parametrize("packing", INTEGER)
def test_extreme_weights_meet_extreme_activations(variant: str, packing: str) -> None:
    panel = Panel(packing, 40, 192)
    if packing == "q8":
        panel.data.view(np.int8)[:] = np.where(panel.rng.integers(0, 2, panel.data.size), 127, -127)
    else:
        panel.data[:] = np.where(panel.rng.integers(0, 2, panel.data.size), 0x77 if packing == "mxfp4" else 0, 0xFF)
    x = extremes(192)
    assert same(gemm(variant, panel, x, 7), gemm("ref", panel, x, 7))


@pytest.mark.parametrize("scale", (0, 1, 2, 127, 254))
@pytest.mark.parametrize("kind", ("f32", "q8"))
def test_mxfp4_scale_codes(variant: str, kind: str, scale: int) -> None:
    panel = Panel("mxfp4", 24, 64, scale=scale)
    x = rows_of(6, 5, 64) * np.float32(2.0 ** max(-100, min(60, 120 - scale)))
    x = inputs(kind, x)
    y = gemm(variant, panel, x, 5)
    want, size = exact_product(panel, kind, x)
    assert size.min() > 0
    assert (np.abs(y - want) <= 1e-6 * size).all()
    assert same(y, gemm("ref", panel, x, 5))


def test_fp8_every_code(variant: str) -> None:
    """A one-hot activation reads each of the 254 codes back."""
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    panel = Panel("fp8", 8, codes.size)
    panel.data[:] = np.repeat(codes, 8)
    panel.scales.view(np.float32)[:] = 0.3
    y = gemm(variant, panel, np.eye(codes.size, dtype=np.float32), codes.size)
    want = (e4m3_value(codes).astype(np.float32) * np.float32(0.3))[:, None]
    assert np.array_equal(y, np.repeat(want, 8, axis=1))


def test_mxfp4_every_code(variant: str) -> None:
    panel = Panel("mxfp4", 16, 64)
    y = gemm(variant, panel, np.eye(64, dtype=np.float32), 64)
    assert np.array_equal(y, panel.value.T)


@pytest.mark.parametrize("packing", FLOAT)
def test_huge_activations(variant: str, packing: str) -> None:
    """Overflow to infinity and NaN, the same in every variant."""
    panel = Panel(packing, 17, 64)
    x = rows_of(7, 5, 64) * np.float32(5e37)
    assert same(np.isnan(gemm(variant, panel, x, 5)), np.isnan(gemm("ref", panel, x, 5)))
    finite = np.where(np.isnan(gemm(variant, panel, x, 5)), 0, gemm(variant, panel, x, 5))
    assert same(finite, np.where(np.isnan(gemm("ref", panel, x, 5)), 0, gemm("ref", panel, x, 5)))


@pytest.mark.parametrize("H", (1, 7, 8, 9, 63, 64, 576, 2050))
@pytest.mark.parametrize("in_place", (False, True))
def test_rms_norm(variant: str, H: int, in_place: bool) -> None:
    x, w = rows_of(8, 1, H)[0] * 30, rows_of(9, 1, H)[0]
    y = _probe.rms_norm(variant, x, w, 1e-5, in_place)
    want = x.astype(np.float64) / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5) * w
    np.testing.assert_allclose(y, want, rtol=1e-6)
    assert same(y, _probe.rms_norm("ref", x, w, 1e-5, False))


def test_rms_norm_of_zeros(variant: str) -> None:
    assert (_probe.rms_norm(variant, np.zeros(19, np.float32), np.ones(19, np.float32), 1e-6, False) == 0).all()


def test_quantize(variant: str) -> None:
    K = 4096
    x = rows_of(10, 1, K)[0] * np.exp2(np.random.default_rng(0).integers(-100, 100, K // 32)).astype(np.float32).repeat(32)
    q, d, s = _probe.quantize(variant, x)
    amax = np.abs(x).reshape(-1, 32).max(axis=1)
    assert np.array_equal(d, amax / np.float32(127))
    inverse = np.float32(127) / amax
    assert np.array_equal(q, np.rint(x * inverse.repeat(32)).astype(np.int8))
    assert np.array_equal(s, pack_sums(q[None])[0])
    assert all(same(a, b) for a, b in zip((q, d, s), _probe.quantize("ref", x), strict=True))


def test_quantize_rounds_to_even(variant: str) -> None:
    x = np.zeros(32, np.float32)
    x[0], x[1:7] = 127, (0.5, 1.5, 2.5, -0.5, -1.5, -2.5)
    assert _probe.quantize(variant, x)[0][:7].tolist() == [127, 0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("value", (0.0, -0.0, 1e-45, -1e-40, 2.0**-122))
def test_quantize_stores_tiny_blocks_as_zeros(variant: str, value: float) -> None:
    x = np.full(64, value, np.float32)
    x[32:] = 1
    q, d, s = _probe.quantize(variant, x)
    assert (q[:32] == 0).all() and d[0] == 0 and s[0] == 0
    assert (q[32:] == 127).all() and s[1] == 16 * 127 * 0x10001


@pytest.mark.parametrize("value", (2.0**-120, 1e-30, 1e30, 3.4e38))
def test_quantize_keeps_what_it_can(variant: str, value: float) -> None:
    x = np.linspace(-1, 1, 32).astype(np.float32) * np.float32(value)
    q, d, s = _probe.quantize(variant, x)
    assert q[0] == -127 and q[31] == 127
    np.testing.assert_allclose(q * d.astype(np.float64), x, atol=value / 250)
    assert all(same(a, b) for a, b in zip((q, d, s), _probe.quantize("ref", x), strict=True))


@pytest.mark.parametrize("n", (1, 7, 8, 9, 192, 1003))
@pytest.mark.parametrize("in_place", (False, True))
def test_swiglu(variant: str, n: int, in_place: bool) -> None:
    gate, up = rows_of(11, 1, n)[0] * 10, rows_of(12, 1, n)[0]
    h = _probe.swiglu(variant, gate, up, in_place)
    wide = gate.astype(np.float64)
    np.testing.assert_allclose(h, wide / (1 + np.exp(-wide)) * up, rtol=2e-6)
    assert same(h, _probe.swiglu("ref", gate, up, False))


def test_swiglu_everywhere(variant: str) -> None:
    """exp over its whole range, and beyond both ends of it (where exp(-gate) stays at 2.4e38)."""
    edges = np.array([-3e38, -1e4, -88.5, -88.37, -87.34, -87.33, -87.32, -1e-30, -0.0, 0.0, 1e-30, 87.33, 87.34, 88.4, 1e4, 3e38])
    gate = np.concatenate([edges, np.linspace(-90, 90, 100_003)]).astype(np.float32)
    up = np.ones_like(gate)
    h = _probe.swiglu(variant, gate, up, False)
    wide = gate.astype(np.float64)
    want = wide / (1 + np.exp(np.minimum(-wide, np.float32(88.37))))
    assert (np.abs(h - want) <= 2e-6 * np.abs(want) + 1e-45).all()
    assert same(h, _probe.swiglu("ref", gate, up, False))


@pytest.mark.parametrize("R", (2, 6, 16, 18, 64, 192))
def test_rope(variant: str, R: int) -> None:
    x = rows_of(13, 1, R)[0]
    angle = np.random.default_rng(R).uniform(-100, 100, R // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[: R // 2], x[R // 2 :]
    y = _probe.rope(variant, x, cos, sin)
    assert np.array_equal(y, np.concatenate([a * cos - b * sin, b * cos + a * sin]))


def grouped(k: Array) -> Array:
    """Keys [8 * groups, D] -> [groups, D, 8]."""
    return np.ascontiguousarray(k.reshape(-1, 8, k.shape[1]).transpose(0, 2, 1))


def attention_inputs(heads: int, D: int, Dv: int, bf16: bool, keys: int = 256) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng([heads, D, Dv])
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((heads, D), (keys, D), (keys, Dv)))
    return (q, bf16_bits(k), bf16_bits(v)) if bf16 else (q, k, v)


RANGES = [(0, 256), (0, 1), (255, 256), (3, 5), (0, 8), (8, 16), (7, 9), (5, 131), (16, 255), (1, 24)]


@pytest.mark.parametrize("bf16", (False, True), ids=("f32", "bf16"))
@pytest.mark.parametrize(
    ("heads", "D", "Dv"),
    [(1, 64, 64), (3, 64, 64), (16, 192, 128), (5, 20, 13), (2, 1, 1), (4, 8, 24), (7, 33, 40), (6, 20, 29), (12, 8, 8)],
)
def test_attend(variant: str, heads: int, D: int, Dv: int, bf16: bool) -> None:
    q, k, v = attention_inputs(heads, D, Dv, bf16)
    scale = D**-0.5
    wide_k, wide_v = ((bf16_value(a) if bf16 else a).astype(np.float64) for a in (k, v))
    for begin, end in RANGES:
        m, total, acc = _probe.attend(variant, q, grouped(k), v, begin, end, scale, 1)
        scores = q.astype(np.float64) @ wide_k[begin:end].T * scale
        np.testing.assert_allclose(m, scores.max(axis=1), rtol=1e-5, atol=1e-5)
        p = np.exp(scores - m[:, None].astype(np.float64))
        np.testing.assert_allclose(total, p.sum(axis=1), rtol=1e-4)
        np.testing.assert_allclose(acc, p @ wide_v[begin:end], rtol=1e-4, atol=1e-4 * (end - begin) ** 0.5)
        reference = _probe.attend("ref", q, grouped(k), v, begin, end, scale, 1)
        assert all(same(a, b) for a, b in zip((m, total, acc), reference, strict=True)), (begin, end)


@pytest.mark.parametrize("bf16", (False, True), ids=("f32", "bf16"))
def test_attend_never_looks_outside(variant: str, bf16: bool) -> None:
    """NaN in keys (and values) before `begin` and from `end` on changes nothing."""
    q, k, v = attention_inputs(3, 16, 24, bf16)
    for begin, end in RANGES:
        clean = _probe.attend(variant, q, grouped(k), v, begin, end, 0.25, 1)
        k2, v2 = k.copy(), v.copy()
        for array in (k2, v2):
            array[:begin] = array[end:] = 0x7FC0 if bf16 else np.nan
        assert all(same(a, b) for a, b in zip(clean, _probe.attend(variant, q, grouped(k2), v2, begin, end, 0.25, 1), strict=True))


@pytest.mark.parametrize("bf16", (False, True), ids=("f32", "bf16"))
def test_attend_head_by_head(variant: str, bf16: bool) -> None:
    """Heads computed together are the heads computed alone."""
    q, k, v = attention_inputs(9, 24, 32, bf16)
    together = _probe.attend(variant, q, grouped(k), v, 5, 201, 0.3, 1)
    for h in range(9):
        alone = _probe.attend(variant, q[h : h + 1], grouped(k), v, 5, 201, 0.3, 1)
        assert all(same(a, b[h : h + 1]) for a, b in zip(alone, together, strict=True)), h


def test_attend_extreme_scores(variant: str) -> None:
    """One key far above the others takes all; equal keys share."""
    q, k, v = np.ones((1, 4), np.float32), np.zeros((16, 4), np.float32), np.arange(32, dtype=np.float32).reshape(16, 2)
    m, total, acc = _probe.attend(variant, q, grouped(k), v, 0, 16, 1.0, 1)
    assert (m[0], total[0]) == (0, 16) and np.array_equal(acc[0], v.sum(axis=0))
    assert not np.signbit(m[0])
    k[11] = 1000
    m, total, acc = _probe.attend(variant, q, grouped(k), v, 0, 16, 1.0, 1)
    assert (m[0], total[0]) == (4000, 1) and np.array_equal(acc[0], v[11])


def test_variants_are_listed_and_chosen() -> None:
    variants = _probe.kernel_variants()
    assert set(variants) == {"ref", "avx2", "avxvnni", "avx512", "neon"}
    assert variants["ref"] is None
    runs = [name for name, why in variants.items() if why is None]
    assert _probe.kernel_choose(None) in runs and _probe.kernel_choose("") in runs
    assert _probe.kernel_choose(None) != "ref" or runs == ["ref"]
    for name, why in variants.items():
        if why is None:
            assert _probe.kernel_choose(name) == name
        else:
            with pytest.raises(NotImplementedError, match=f'"{name}".*(lacks|not compiled in)'):
                _probe.kernel_choose(name)
    with pytest.raises(ValueError, match=r'"sse9".*known are ref, avx2, avxvnni, avx512, neon'):
        _probe.kernel_choose("sse9")
