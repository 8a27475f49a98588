"""How far one model is from another on the same tokens, and the gradient of that, without all logits in memory at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .network import Network

__all__ = ["Distance", "distance"]

_ROWS = 512  # whose logits are in memory at a time


@dataclass(frozen=True)
class Distance:
    """Sums over windows of tokens."""

    tokens: int
    kl: Tensor
    """Scalar: sum over tokens of KL(right || found), in nats."""
    hidden: Tensor
    """Scalar: mean over layers and tokens of |found - right|^2 / |right|^2 of the residual stream."""
    told: int
    """Tokens with a successor; the next three are about them."""
    nll: float
    right_nll: float
    same: int
    """Of all tokens: where both hold the same token for the likeliest."""


def distance(
    network: Network,
    right: tuple[Mapping[str, Tensor], Sequence[Tensor]],
    found: tuple[Mapping[str, Tensor], Sequence[Tensor]],
    ids: Tensor,
) -> Distance:
    """right, found: tensors that are no expert's, and the residual streams [B, T, H] that `Network.streams` gave for ids [B, T]."""
    last = [network.last(rest, streams[-1]).flatten(0, 1) for rest, streams in (right, found)]
    heads = [network.head(rest) for rest, _ in (right, found)]
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], 1).flatten()
    kl: Tensor = torch.zeros((), device=ids.device)
    sums = torch.zeros(3, dtype=torch.float64, device=ids.device)
    for at in range(0, len(targets), _ROWS):
        rows = slice(at, at + _ROWS)
        part: tuple[Tensor, Tensor] = _Part.apply(last[0][rows], heads[0], last[1][rows], heads[1], targets[rows])
        kl, sums = kl + part[0], sums + part[1]
    nll, right_nll, same = sums.tolist()
    return Distance(targets.numel(), kl, _hidden(right[1], found[1]), int((targets >= 0).sum()), nll, right_nll, int(same))


class _Part(torch.autograd.Function):
    """KL and counts of some rows; the gradient of KL is found with it, while the probabilities are there."""

    @staticmethod
    def forward(ctx: Any, right: Tensor, right_head: Tensor, found: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.log_softmax(right @ right_head.T, -1)
        q = torch.log_softmax(found @ head.T, -1)
        told = targets >= 0
        at = targets.clamp(min=0)[:, None]
        nll, right_nll = (-(one.gather(1, at)[:, 0] * told).double().sum() for one in (q, p))
        sums = torch.stack([nll, right_nll, (p.argmax(1) == q.argmax(1)).double().sum()])
        ctx.mark_non_differentiable(sums)
        share = p.exp()
        kl = torch.linalg.vecdot(share, p.sub_(q)).sum()
        if any(ctx.needs_input_grad):
            slope = q.exp_().sub_(share)  # of KL by the logits
            ctx.save_for_backward(slope @ head, slope.T @ found if ctx.needs_input_grad[3] else None)
        return kl, sums

    @staticmethod
    def backward(ctx: Any, kl: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_found, by_head = ctx.saved_tensors
        return None, None, kl * by_found, None if by_head is None else kl * by_head, None


def _hidden(right: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    shares = [(b - a).square().sum(-1) / a.square().sum(-1).clamp(min=1e-20) for a, b in zip(right, found, strict=True)]
    return torch.stack([share.mean() for share in shares]).mean()
