"""Second-order rounding: what it never loses against plain rounding, and that MXFP4 holds its values exactly."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_ultraspeed._core import mxfp4_decode, mxfp4_encode
from mimo_ultraspeed.convert.rounding import nearest, output_error, round_matrix


def problem(seed: int, rows: int = 48, cols: int = 96, inputs: int = 400, spread: float = 1.0):
    """Weights [rows, cols], and inputs [inputs, cols] that go together and differ in size."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((cols // 3, cols)) * np.exp(spread * rng.standard_normal(cols))
    x = rng.standard_normal((inputs, cols // 3)) @ mix + 0.2 * rng.standard_normal((inputs, cols))
    weights = rng.standard_normal((rows, cols)) * np.exp(spread * rng.standard_normal((rows, 1)))
    return weights.astype(np.float32), x.astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_no_row_is_worse_than_with_plain_rounding_and_the_whole_much_better(seed: int) -> None:
    weights, x = problem(seed, spread=seed / 4)
    hessian = (x.T @ x).astype(np.float64)
    rounded = round_matrix(weights, hessian, damping=0.01)
    plain = output_error(weights, nearest(weights), hessian)
    found = output_error(weights, rounded, hessian)
    assert (found <= plain).all()
    assert found.sum() < 0.5 * plain.sum()
    assert np.allclose(found, np.square(x.astype(np.float64) @ (weights - rounded).T.astype(np.float64)).sum(0), rtol=1e-4)


@pytest.mark.parametrize("inputs", [1, 40, 0])
def test_too_few_inputs_are_no_harm(inputs: int) -> None:
    weights, x = problem(3, inputs=max(inputs, 1))
    hessian = (x.T @ x).astype(np.float64) * (inputs > 0)
    rounded = round_matrix(weights, hessian)
    assert np.isfinite(rounded).all()
    assert (output_error(weights, rounded, hessian) <= output_error(weights, nearest(weights), hessian)).all()
    assert inputs or np.array_equal(rounded, nearest(weights))


@pytest.mark.parametrize("seed", range(4))
def test_mxfp4_holds_the_values_exactly(seed: int) -> None:
    weights, x = problem(seed, spread=2.0)
    weights[0], weights[1, :32], weights[2] = 0, 0, weights[2] * np.float32(1e-30)
    rounded = round_matrix(weights, (x.T @ x).astype(np.float64))
    assert np.array_equal(mxfp4_decode(*mxfp4_encode(rounded)), rounded)
    assert not rounded[0].any()


def test_weights_on_the_grid_stay() -> None:
    weights, x = problem(0)
    weights = nearest(weights)
    assert np.array_equal(round_matrix(weights, (x.T @ x).astype(np.float64)), weights)


def test_without_correlation_it_is_plain_rounding() -> None:
    weights, _ = problem(1)
    assert np.array_equal(round_matrix(weights, np.eye(96)), nearest(weights))
