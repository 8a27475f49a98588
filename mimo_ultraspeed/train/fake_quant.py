"""MXFP4 in the forward pass of a training: the values that the engine will use, the gradient of the weights behind them.

A block of 32 elements of a row is rounded to E2M1 at a power-of-two scale. The scale is chosen as `mxfp4_encode` chooses it, or
learnt: then its exponent is a parameter, rounded to an integer on the way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._core import mxfp4_decode, mxfp4_encode

__all__ = ["MX_BLOCK", "best_exponents", "quantised", "quantised_at"]

MX_BLOCK = 32
_LARGEST = 6.0  # of E2M1
_LOWEST, _HIGHEST = -127, 125  # exponents that the encoder uses
_ROWS = 1 << 15  # blocks whose scales are chosen at a time


def quantised(weights: Tensor) -> Tensor:
    """[R, C]: what the engine makes of float32 weights [R, C], C a multiple of 32; the gradient passes as if it were they."""
    fixed = weights.detach()
    if fixed.device.type == "cpu":
        values = torch.from_numpy(mxfp4_decode(*mxfp4_encode(np.ascontiguousarray(fixed.numpy()))))
    else:
        values = _at(fixed, best_exponents(fixed))[0]
    return values + (weights - fixed)  # the difference is 0 and changes no bit


def quantised_at(weights: Tensor, exponents: Tensor) -> Tensor:
    """[R, C]: weights [R, C] on the grid at scales 2^round(exponents), exponents [R, C/32].

    Gradients: of weights within the grid's range as if it were they, of exponents that of the values with respect to their scale.
    """
    with torch.no_grad():
        values, units, rounded, scale = _at(weights, exponents)
        inside = units.abs() <= _LARGEST
        slope = torch.where(inside, rounded - units, rounded) * (scale * math.log(2))
    moved = inside * (weights - weights.detach()).reshape(units.shape) + slope * (exponents - exponents.detach()).reshape(-1, 1)
    return values + moved.reshape(weights.shape)


def best_exponents(weights: Tensor) -> Tensor:
    """[R, C/32]: exponents of the scales that `mxfp4_encode` chooses for [R, C], on the weights' device."""
    blocks = weights.detach().reshape(-1, MX_BLOCK)
    found = torch.cat([_best(part) for part in torch.split(blocks, _ROWS)])
    return found.reshape(weights.shape[0], -1)


def _at(weights: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values [R, C]; by block: weights in units of the scale, the same on the grid [B, 32], and scales [B, 1]."""
    scale = torch.exp2(exponents.round().clamp(_LOWEST, _HIGHEST)).reshape(-1, 1)
    units = weights.reshape(-1, MX_BLOCK) / scale
    rounded = _on_grid(units)
    return (rounded * scale).reshape(weights.shape), units, rounded, scale


def _on_grid(units: Tensor) -> Tensor:
    """The nearest values of E2M1, ties to the even code."""
    size = units.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(((size / step).round() * step).clamp(max=_LARGEST), units)


def _best(blocks: Tensor) -> Tensor:
    """[B]: of 2^floor(log2 largest) / 4, its half and its double, the scale with the least squared error for [B, 32]."""
    largest = blocks.abs().amax(1)
    middle = (torch.frexp(largest).exponent - 3).clamp(min=_LOWEST)
    low, high = (middle - 1).clamp(min=_LOWEST), (middle + 1).clamp(max=_HIGHEST)
    here, below, above = (_error(blocks, exponent) for exponent in (middle, low, high))
    best = torch.where(below <= here, low, middle)
    best = torch.where((torch.ldexp(largest, -middle) > 7) & (above < torch.minimum(here, below)), high, best)
    return torch.where(largest > 0, best, 0).float()


def _error(blocks: Tensor, exponent: Tensor) -> Tensor:
    """[B] float64, summed in the encoder's order."""
    scale = torch.exp2(exponent.float())[:, None]
    units = blocks / scale
    squares = ((units - _on_grid(units)) * scale).double().square().reshape(-1, MX_BLOCK // 4, 4)
    lane = squares[:, 0]
    for at in range(1, squares.shape[1]):
        lane = lane + squares[:, at]
    return (lane[:, 0] + lane[:, 2]) + (lane[:, 1] + lane[:, 3])
