"""Rounding of a matrix to MXFP4 that minds what the matrix is multiplied with: second-order rounding (GPTQ; Frantar et al. 2022).

For inputs X [M, C] the outputs of the rounded matrix are off by tr (W - Q) H (W - Q)^T with H = X^T X. Columns are rounded one
after the other, and what each loses is made up for by those not rounded yet, as H says how far they can stand in for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core

__all__ = ["MX_BLOCK", "nearest", "output_error", "round_matrix"]

Array = NDArray[np.float32]
Double = NDArray[np.float64]

MX_BLOCK = 32
"""Elements of a row that share one MXFP4 scale."""
_LARGEST = 6.0  # of E2M1
_EXPONENTS = (-127, 125)  # scales that the encoder uses


def nearest(weights: Array) -> Array:
    """[R, C]: every element rounded by itself, as `mxfp4_encode` does."""
    rounded: Array = _core.mxfp4_decode(*_core.mxfp4_encode(np.ascontiguousarray(weights)))
    return rounded


def output_error(weights: Array, rounded: Array, hessian: Double) -> Double:
    """[R]: squared error of each output over the inputs behind `hessian` [C, C]."""
    lost = weights.astype(np.float64) - rounded
    error: Double = np.einsum("rc,rc->r", lost @ hessian, lost)
    return error


def round_matrix(weights: Array, hessian: Double, *, damping: float = 0.05) -> Array:
    """[R, C] values that MXFP4 holds exactly, for weights [R, C] and hessian [C, C], C a multiple of 32.

    damping: added to the diagonal, of its mean. Blocks of 32 columns are taken in the order of their weight in H, and columns
    in the same order inside; a block's scale is chosen per row when the block is reached. Rows that plain rounding serves better
    get plain rounding, so that no output is worse than with it.
    """
    cols = weights.shape[1]
    diagonal = np.diag(hessian)
    mean = float(diagonal.mean())
    plain = nearest(weights)
    if not mean > 0:
        return plain
    blocks = diagonal.reshape(-1, MX_BLOCK)
    inside = np.argsort(-blocks, axis=1, kind="stable") + np.arange(0, cols, MX_BLOCK)[:, None]
    order = inside[np.argsort(-blocks.mean(1), kind="stable")].reshape(-1)
    damped = hessian[np.ix_(order, order)] + damping * mean * np.eye(cols)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # upper, H^-1 = U^T U
    left, rounded = weights[:, order], np.empty_like(weights)
    for begin in range(0, cols, MX_BLOCK):
        end = begin + MX_BLOCK
        values, lost = _round_block(left[:, begin:end], factor[begin:end, begin:end])
        rounded[:, order[begin:end]] = values
        left[:, end:] -= lost @ factor[begin:end, end:]
    better = output_error(weights, rounded, hessian) <= output_error(weights, plain, hessian)
    return np.where(better[:, None], rounded, plain)


def _round_block(block: Array, factor: Array) -> tuple[Array, Array]:
    """Values and weighted losses [R, 32] of a block [R, 32]; each row at the scale that loses least of three."""
    rows = len(block)
    largest = np.abs(block).max(1)
    middle = np.frexp(largest)[1] - 3
    scale = np.ldexp(np.float32(1), np.clip(middle + np.array([[0], [-1], [1]]), *_EXPONENTS)).reshape(-1)
    left = np.asfortranarray(np.tile(block, (3, 1)))
    values, lost = np.empty_like(left), np.empty_like(left)
    for col in range(MX_BLOCK):
        values[:, col] = _on_grid(left[:, col] / scale) * scale
        lost[:, col] = (left[:, col] - values[:, col]) / factor[col, col]
        left[:, col + 1 :] -= lost[:, col, None] * factor[col, col + 1 :]
    best = np.square(lost).sum(1).reshape(3, rows).argmin(0) * rows + np.arange(rows)
    return values[best], lost[best]


def _on_grid(values: Array) -> Array:
    """The nearest values of E2M1, ties to the even code."""
    size = np.abs(values)
    step = np.where(size < 2, np.float32(0.5), np.where(size < 4, np.float32(1), np.float32(2)))
    rounded: Array = np.copysign(np.minimum(np.rint(size / step) * step, np.float32(_LARGEST)), values)
    return rounded
