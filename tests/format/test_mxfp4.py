"""mxfp4 blocks: every code at every scale, and encoding against a search over all scales."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_ultraspeed import _probe

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
MIDDLES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def errors_by_scale(block: np.ndarray, scales: range) -> np.ndarray:
    """[len(scales)] squared error of the nearest values, in float64."""
    step = 2.0 ** (np.array(scales) - 127)
    magnitude = np.abs(block.astype(np.float64))[None, :] / step[:, None]
    nearest = E2M1[np.searchsorted(MIDDLES, magnitude)]
    return (((magnitude - nearest) * step[:, None]) ** 2).sum(axis=1)


def nibbles(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(codes.shape[0], -1)


def test_decodes_every_code_at_every_scale() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 2))
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    scales = np.arange(256, dtype=np.uint8)[:, None]
    got = _probe.mxfp4_decode(packed, scales)
    with np.errstate(over="ignore"):
        expected = (E2M1[codes[:255]] * 2.0 ** (scales[:255].astype(float) - 127)).astype(np.float32)
    assert np.array_equal(got[:255].view(np.uint32), expected.view(np.uint32))
    assert np.isnan(got[255]).all()


def sample_blocks() -> np.ndarray:
    """Blocks that make every candidate scale the best one somewhere: normal, heavy-tailed, one outlier, all sizes."""
    rng = np.random.default_rng(3)
    normal = rng.normal(size=(400, 32))
    heavy = rng.standard_t(2, size=(400, 32))
    outlier = np.where(np.arange(32) == 5, rng.uniform(3.5, 8, (400, 1)), 0.25 * rng.integers(-3, 4, (400, 32)))
    near = rng.choice([7.1, 7.5, 7.9, 7.99], (100, 32)) * rng.choice([1, -1], (100, 32))
    blocks = np.concatenate([normal, heavy, outlier, near])
    return (blocks * 2.0 ** rng.integers(-20, 20, (len(blocks), 1))).astype(np.float32)


def test_encoding_is_optimal_over_all_scales() -> None:
    blocks = sample_blocks()
    _, scales = _probe.mxfp4_encode(blocks)
    distance_from_middle = set()
    for block, scale in zip(blocks, scales[:, 0], strict=True):
        errors = errors_by_scale(block, range(253))
        assert errors[scale] <= errors.min() * (1 + 1e-12)
        distance_from_middle.add(int(scale) - (int(np.floor(np.log2(np.abs(block).max()))) - 2 + 127))
    assert distance_from_middle == {-1, 0, 1}


def test_codes_are_nearest_at_the_chosen_scale() -> None:
    blocks = sample_blocks()
    codes, scales = _probe.mxfp4_encode(blocks)
    scaled = (blocks.astype(np.float64) / 2.0 ** (scales.astype(float) - 127)).astype(np.float32)
    expected = _probe.e2m1_encode(scaled.ravel()).reshape(scaled.shape)
    assert np.array_equal(nibbles(codes), expected)


def test_smaller_scale_on_a_tie() -> None:
    blocks = np.zeros((3, 32), np.float32)
    blocks[0, 0] = 4.0  # exact at scales 1 and 2 (as 4 and 2), also at 4 and 8
    blocks[1, 0] = 6.0  # exact at 1, 2 and 4
    blocks[2, 0] = 3.0  # exact at 1/2, as 6
    assert (_probe.mxfp4_encode(blocks)[1][:, 0].astype(int) - 127).tolist() == [0, 0, -1]


def test_what_was_encoded_exactly_comes_back() -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (64, 128)).astype(np.uint8)
    codes[:, ::32] = 7  # a 6 in every block, so that no smaller scale holds it
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    scales = rng.integers(1, 253, (64, 4)).astype(np.uint8)
    got_codes, got_scales = _probe.mxfp4_encode(_probe.mxfp4_decode(packed, scales))
    assert np.array_equal(got_scales, scales)
    assert np.array_equal(got_codes, packed)


def test_zero_block_has_scale_one() -> None:
    values = np.zeros((2, 64), np.float32)
    values[1] = -0.0
    codes, scales = _probe.mxfp4_encode(values)
    assert not codes.any()
    assert (scales == 127).all()


@pytest.mark.parametrize("value", [1e-45, 2e-39, 1.2e-38, 3.4e38, np.finfo(np.float32).max])
def test_extreme_values_stay_finite_and_optimal(value: float) -> None:
    block = np.zeros((1, 32), np.float32)
    block[0, :3] = [value, -value / 2, value / 3]
    codes, scales = _probe.mxfp4_encode(block)
    errors = errors_by_scale(block[0], range(253))
    assert errors[scales[0, 0]] <= errors.min() * (1 + 1e-12)
    assert np.isfinite(_probe.mxfp4_decode(codes, scales)).all()


def test_ragged_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        _probe.mxfp4_encode(np.zeros((1, 40), np.float32))
