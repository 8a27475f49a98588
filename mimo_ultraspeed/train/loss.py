"""What a drafter is trained on: its slots against the target's tokens and distributions, weighted by what a slot is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOSSES", "WEIGHTS", "Labels", "Losses", "losses", "parse_mix", "slot_weights"]

LOSSES = ("ce", "kl", "tv")
"""Cross-entropy against the token, Kullback-Leibler divergence and total variation against the target's distribution."""
WEIGHTS = ("dpace", "exp", "even")


@dataclass(frozen=True)
class Labels:
    """What A anchors' S slots should have said."""

    places: Tensor
    """[A, S] int64: the token's place in the drafter's head, -1 outside."""
    valid: Tensor
    """[A, S] bool: there is such a token; a prefix of each row."""
    target: Tensor | None = None
    """[A, S, V'] float32: the target's logits over the drafter's head; needed by "kl" and "tv"."""


@dataclass(frozen=True)
class Losses:
    """Of one batch."""

    loss: Tensor
    """Scalar, to be minimised."""
    matches: Tensor
    """[A, S] bool: the likeliest token is the label."""


def slot_weights(probabilities: Tensor, valid: Tensor, kind: str, *, alpha: float = 0.5, gamma: float = 4.0) -> Tensor:
    """[A, S]: what slot k is worth. probabilities: [A, S] of the label under the drafter.

    "dpace": the derivative of the expected accepted length by log p_k, with p smoothed to (1 - alpha) p + alpha.
    "exp": exp(-(k - 1) / gamma). "even": 1. Slots that are not valid get 0. ValueError for another kind.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"weights: expected {', '.join(WEIGHTS)}, found {kind!r}")
    if kind == "exp":
        slots = torch.arange(valid.shape[1], dtype=torch.float32, device=valid.device)
        return torch.exp(-slots / gamma) * valid
    if kind == "even":
        return valid.float()
    reach = torch.cumprod(((1 - alpha) * probabilities + alpha) * valid, 1)
    return reach.flip(1).cumsum(1).flip(1) * valid


def losses(logits: Tensor, labels: Labels, mix: Mapping[str, float], weights: str = "dpace", *, gamma: float = 4.0) -> Losses:
    """The mix of losses of logits [A, S, V'], e.g. {"ce": 0.5, "kl": 0.5}, averaged with the weights of the slots."""
    log_p = torch.log_softmax(logits, -1)
    inside = labels.valid & (labels.places >= 0)
    of_label = log_p.gather(-1, labels.places.clamp(min=0)[..., None])[..., 0]
    with torch.no_grad():
        weight = slot_weights(of_label.exp() * inside, labels.valid, weights, gamma=gamma)
        matches = (logits.argmax(-1) == labels.places) & inside
    per_slot = torch.zeros_like(of_label)
    if mix.get("ce"):
        per_slot = per_slot - mix["ce"] * of_label * inside
    if mix.get("kl") or mix.get("tv"):
        if labels.target is None:
            raise ValueError("labels.target: 'kl' and 'tv' need the target's logits, found None")
        log_t = torch.log_softmax(labels.target, -1)
        if mix.get("kl"):
            per_slot = per_slot + mix["kl"] * (log_t.exp() * (log_t - log_p)).sum(-1)
        if mix.get("tv"):
            per_slot = per_slot + mix["tv"] * 0.5 * (log_t.exp() - log_p.exp()).abs().sum(-1)
    return Losses((per_slot * weight).sum() / weight.sum().clamp(min=1e-6), matches)


def parse_mix(text: str) -> dict[str, float]:
    """ "ce=0.5,kl=0.5" as a mix; "kl" alone has weight 1. ValueError for an unknown loss, or a weight that is no number."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in LOSSES:
            raise ValueError(f"loss: expected {', '.join(LOSSES)}, found {name!r}")
        try:
            mix[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"loss: {name}: expected a number, found {weight!r}") from None
    return mix
