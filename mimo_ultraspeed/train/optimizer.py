"""Muon for matrices, AdamW for the rest; or AdamW for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "Muon", "Optimizer", "orthogonalise"]

OPTIMIZERS = ("adamw", "muon")
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


def orthogonalise(update: Tensor) -> Tensor:
    """The matrix, or each of a stack [..., R, C], with singular values near 1: five Newton-Schulz steps in its own precision."""
    wide = update if update.shape[-2] <= update.shape[-1] else update.mT
    x: Tensor = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return x if update.shape[-2] <= update.shape[-1] else x.mT


class Muon:
    """Momentum whose updates are orthogonalised, with the size of AdamW's: as torch.optim.Muon, in BF16 as there or in float32."""

    def __init__(
        self, matrices: Sequence[Tensor], momentum: float = 0.95, weight_decay: float = 0.0, *, bf16: bool = False
    ) -> None:
        self._matrices, self._momentum, self._decay = list(matrices), momentum, weight_decay
        self._precision = torch.bfloat16 if bf16 else torch.float32
        self._moving = [torch.zeros_like(matrix) for matrix in self._matrices]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """One update. gradients: one per matrix."""
        for matrix, gradient, moving in zip(self._matrices, gradients, self._moving, strict=True):
            moving.lerp_(gradient, 1 - self._momentum)
            update = orthogonalise(gradient.lerp(moving, self._momentum).to(self._precision))
            matrix.mul_(1 - lr * self._decay)
            matrix.sub_(update, alpha=lr * 0.2 * max(matrix.shape[-2:]) ** 0.5)

    def state_dict(self) -> list[Tensor]:
        """What `load_state_dict` goes on from."""
        return self._moving

    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        """Goes on from there."""
        for moving, saved in zip(self._moving, state, strict=True):
            moving.copy_(saved)


class Optimizer:
    """Updates named parameters."""

    def __init__(
        self,
        kind: str,
        parameters: Mapping[str, Tensor],
        matrices: Sequence[str],
        *,
        weight_decay: float = 0.0,
        bf16: bool = False,
    ) -> None:
        """matrices: names that Muon may take; with "adamw" it takes none. bf16: of Muon's own products."""
        if kind not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected {' or '.join(OPTIMIZERS)}, found {kind!r}")
        self._muon_names = list(matrices) if kind == "muon" else []
        self._other_names = [name for name in parameters if name not in self._muon_names]
        self._muon = Muon([parameters[name] for name in self._muon_names], weight_decay=weight_decay, bf16=bf16)
        self._others = [parameters[name] for name in self._other_names]
        betas = (0.9, 0.95)
        self._adamw = torch.optim.AdamW(self._others, lr=0.0, betas=betas, weight_decay=weight_decay) if self._others else None

    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """One update."""
        if self._adamw is not None:
            for name, parameter in zip(self._other_names, self._others, strict=True):
                parameter.grad = gradients[name]
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
            self._adamw.zero_grad(set_to_none=True)
        self._muon.step([gradients[name] for name in self._muon_names], lr)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""
        return {"adamw": self._adamw.state_dict() if self._adamw is not None else None, "muon": self._muon.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        if self._adamw is not None:
            self._adamw.load_state_dict(state["adamw"])
        self._muon.load_state_dict(state["muon"])
