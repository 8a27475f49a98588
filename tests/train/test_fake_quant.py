"""Fake quantisation beside the engine's encoder: the same scales, the same values, gradients as said."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed._core import mxfp4_decode, mxfp4_encode  # noqa: E402
from mimo_ultraspeed.train.fake_quant import _at, best_exponents, quantised, quantised_at  # noqa: E402


def matrices() -> list[np.ndarray]:
    """Normal, of all sizes, on a coarse grid (many ties), zeros, subnormals beside large numbers."""
    draw = np.random.default_rng(0)
    normal = draw.standard_normal((200, 128)).astype(np.float32)
    sizes = normal * np.exp2(draw.integers(-140, 120, (200, 1))).astype(np.float32)
    coarse = (draw.integers(-32, 33, (400, 64)) / 4).astype(np.float32)
    sparse = normal * (draw.random((200, 128)) < 0.05)
    ragged = normal * np.exp2(draw.integers(-30, 30, (200, 128))).astype(np.float32)
    return [normal, sizes, coarse, sparse.astype(np.float32), np.zeros((2, 32), np.float32), ragged]


@pytest.mark.parametrize("number", range(6))
def test_scales_and_values_are_the_engines(number: int) -> None:
    weights = matrices()[number]
    codes, scales = mxfp4_encode(weights)
    exponents = best_exponents(torch.from_numpy(weights))
    assert np.array_equal(exponents.numpy().astype(int) + 127, scales)
    values = mxfp4_decode(codes, scales)
    assert np.array_equal(_at(torch.from_numpy(weights), exponents)[0].numpy(), values)
    assert np.array_equal(quantised(torch.from_numpy(weights)).numpy(), values)
    assert np.array_equal(mxfp4_decode(*mxfp4_encode(values)), values)


def test_the_gradient_passes_straight() -> None:
    weights = torch.from_numpy(matrices()[0]).requires_grad_()
    slope = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    (quantised(weights) * slope).sum().backward()
    assert torch.equal(weights.grad, slope)


def test_learnt_scales_have_the_slope_of_the_values() -> None:
    weights = torch.from_numpy(matrices()[0]).requires_grad_()
    exponents = best_exponents(weights) + 0.3
    exponents[0] -= 3  # most of the row is beyond the grid
    exponents.requires_grad_()
    values = quantised_at(weights, exponents)
    assert torch.equal(values, _at(weights, exponents.round())[0])
    assert np.array_equal(mxfp4_decode(*mxfp4_encode(values.detach().numpy())), values.detach().numpy())
    values[1:].sum().backward()
    scale = torch.exp2(exponents.detach().round()).repeat_interleave(32, 1)
    units = weights.detach() / scale
    inside = units.abs() <= 6
    assert torch.equal(weights.grad[1:], inside[1:].float()) and not weights.grad[0].any()
    rounded = values.detach() / scale
    slope = torch.where(inside, rounded - units, rounded) * scale * np.log(2)
    wanted = slope.unflatten(1, (-1, 32)).sum(2)[1:]
    assert torch.allclose(exponents.grad[1:], wanted, rtol=1e-4, atol=1e-5) and not exponents.grad[0].any()
