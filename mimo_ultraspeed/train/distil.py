"""How far one model is from another on the same tokens, and the gradient of that, without all logits in memory at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
        part: tuple[Tensor, Tensor] = checkpoint(
            _part, last[0][rows], heads[0], last[1][rows], heads[1], targets[rows], use_reentrant=False
        )
        kl, sums = kl + part[0], sums + part[1]
    nll, right_nll, same = sums.tolist()
    return Distance(targets.numel(), kl, _hidden(right[1], found[1]), int((targets >= 0).sum()), nll, right_nll, int(same))


def _part(right: Tensor, right_head: Tensor, found: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.log_softmax(right @ right_head.T, -1)
    q = torch.log_softmax(found @ head.T, -1)
    with torch.no_grad():
        told = targets >= 0
        at = targets.clamp(min=0)[:, None]
        nll, right_nll = (-(one.gather(1, at)[:, 0] * told).double().sum() for one in (q, p))
        same = (p.argmax(1) == q.argmax(1)).double().sum()
    return (p.exp() * (p - q)).sum(), torch.stack([nll, right_nll, same])


def _hidden(right: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    shares = [(b - a).square().sum(-1) / a.square().sum(-1).clamp(min=1e-20) for a, b in zip(right, found, strict=True)]
    return torch.stack([share.mean() for share in shares]).mean()
