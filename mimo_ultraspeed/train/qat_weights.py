"""The weights of a quantisation-aware training: the unrounded model's, and those behind the rounded model's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint import Checkpoint
from ..convert.calibrate import Experts as Matrices
from ..convert.experts import round_experts
from ..errors import CheckpointError
from ..weights import split_reader
from .fake_quant import MX_BLOCK, best_exponents, quantised, quantised_at
from .network import Experts, rest_of

__all__ = ["PARTS", "QatWeights"]

Array = NDArray[np.float32]
PARTS = {
    "router": (".mlp.gate.weight",),
    "norms": ("layernorm.weight", "model.norm.weight"),
    "attention": ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "attention_sink_bias"),
    "embedding": ("embed_tokens.weight", "lm_head.weight"),
}
"""What may be trained beside experts, by the ends of names."""
_EXPERT = ("gate", "up", "down")
_EXPONENTS = ".exponents"


class QatWeights:
    """Both models share every tensor that is not trained.

    A parameter is a tensor (of experts, all of a layer's) divided by a power of two near the size of its elements, so that one
    learning rate suits all and the values are not touched. Tensors beside experts are rounded as they are stored, to BF16, with a
    gradient that passes.
    """

    def __init__(
        self, source: Checkpoint, start: Checkpoint | None, device: torch.device, *, train: tuple[str, ...], learn_scale: bool
    ) -> None:
        """The first forward pass uses `start`'s experts, or the source's rounded ones.

        Raises CheckpointError for a source without unrounded experts, another model in `start`, or FP8 that is to be trained."""
        self.source, self.config, self._device = source, source.config, device
        self._stored = {tensor.name: tensor for tensor in source.tensors}
        self._layers = [number for number, sparse in enumerate(self.config.moe_layer_freq) if sparse]
        self._check(start)
        read = self._reader(source)
        self.rest = rest_of(self.config, read)
        self.experts = {number: self._read_experts(read, number) for number in self._layers}
        begin = self._reader(source if start is None else start)
        self.parameters: dict[str, Tensor] = {}
        self._sizes: dict[str, float] = {}
        for number in self._layers:
            for part in _EXPERT:
                stack = getattr(self.experts[number], part)
                if start is not None:
                    stack = _between(getattr(self._read_experts(begin, number), part), stack)
                self._add_experts(f"layers.{number}.{part}", stack, learn_scale)
        for name in self._trained(train):
            self._add(name, self.rest[name])

    def matrices(self) -> list[str]:
        """Parameters that Muon takes."""
        apart = (_EXPONENTS, *PARTS["embedding"])
        return [name for name, value in self.parameters.items() if value.ndim > 1 and not name.endswith(apart)]

    def student(self) -> tuple[dict[str, Tensor], dict[int, Experts]]:
        """What the rounded model computes with, as functions of the parameters."""
        rest = dict(self.rest)
        for name in rest.keys() & self.parameters.keys():
            rest[name] = self._as_stored(name, self.parameters[name] * self._sizes[name])
        found = {}
        for number in self._layers:
            found[number] = Experts(*(self._rounded(f"layers.{number}.{part}") for part in _EXPERT))
        return rest, found

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Takes the values of another run's parameters."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(parameters[name])

    @torch.no_grad()
    def write(self, dest: Path) -> Path:
        """Writes a checkpoint with the very values that `student` gives now, in place of one that is there."""
        rest, experts = self.student()
        fresh = dest.with_name(dest.name + ".partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        replaced = {name: rest[name].cpu().numpy() for name in rest.keys() & self.parameters.keys()}
        given = _Given(experts)
        round_experts(
            self.source.folder, fresh, calibrate=lambda *_: given, max_shard_bytes=5 << 30, progress=False, replaced=replaced
        )
        shutil.rmtree(dest, ignore_errors=True)
        return fresh.replace(dest)

    # ---- beginnings ----

    def _check(self, start: Checkpoint | None) -> None:
        if not self._layers:
            raise CheckpointError(f"{self.source.folder}: expected experts to train, found none")
        name = f"model.layers.{self._layers[0]}.mlp.experts.0.gate_proj.weight"
        if self._stored[name].dtype == "U8":
            raise CheckpointError(f"{name}: expected BF16, F32 or FP8 in the model to learn from, found MXFP4")
        columns = {"H": self.config.hidden_size, "expert width": self.config.moe_intermediate_size}
        for what, count in columns.items():
            if count % MX_BLOCK:
                raise CheckpointError(f"{self.source.folder}: expected a multiple of {MX_BLOCK} as {what}, found {count}")
        if start is not None:
            wanted = {tensor.name for tensor in self.source.tensors if ".experts." not in tensor.name}
            if wanted != {tensor.name for tensor in start.tensors if ".experts." not in tensor.name}:
                raise CheckpointError(f"{start.folder}: expected a rounding of {self.source.folder}, found another model")

    def _reader(self, checkpoint: Checkpoint) -> Callable[[str], Tensor]:
        read = split_reader(checkpoint)
        return lambda name: torch.from_numpy(np.ascontiguousarray(read(name))).to(self._device)

    def _read_experts(self, read: Callable[[str], Tensor], number: int) -> Experts:
        prefix, count = f"model.layers.{number}.mlp.experts.", self.config.n_routed_experts
        stacks = (torch.stack([read(f"{prefix}{e}.{part}_proj.weight") for e in range(count)]) for part in _EXPERT)
        return Experts(*stacks)

    def _add_experts(self, name: str, stack: Tensor, learn_scale: bool) -> None:
        self._add(name, stack)
        if learn_scale:
            self.parameters[name + _EXPONENTS] = best_exponents(stack.flatten(0, 1)).requires_grad_()

    def _add(self, name: str, value: Tensor) -> None:
        size = float(value.square().mean().sqrt())
        self._sizes[name] = 2.0 ** round(float(np.log2(size))) if size > 0 else 1.0
        self.parameters[name] = (value / self._sizes[name]).requires_grad_()

    def _trained(self, train: tuple[str, ...]) -> list[str]:
        ends = tuple(end for part in train for end in PARTS[part])
        names = [name for name in self.rest if ends and name.endswith(ends)]
        for name in names:
            stored = self._stored.get(name)
            if stored is None or stored.dtype not in ("BF16", "F32"):
                found = "a part of a fused tensor" if stored is None else stored.dtype
                raise CheckpointError(f"{name}: expected BF16 or F32 to train it, found {found}")
        return names

    # ---- values ----

    def _rounded(self, name: str) -> Tensor:
        """[E, R, C]."""
        weights = self.parameters[name] * self._sizes[name]
        exponents, rows = self.parameters.get(name + _EXPONENTS), weights.flatten(0, 1)
        values = quantised(rows) if exponents is None else quantised_at(rows, exponents)
        return values.view_as(weights)

    def _as_stored(self, name: str, value: Tensor) -> Tensor:
        if self._stored[name].dtype == "F32":
            return value
        return value.detach().bfloat16().float() + (value - value.detach())


def _between(rounded: Tensor, source: Tensor) -> Tensor:
    """Half-way from values on the grid to the source's, where that is rounded to the same values: training has less far to go."""
    rounded, shape = rounded.flatten(0, 1), rounded.shape
    middle = (rounded + source.flatten(0, 1)) / 2
    middle = torch.where(quantised_at(middle, best_exponents(rounded)) == rounded, middle, rounded)
    same = (quantised(middle) == rounded).reshape(len(rounded), -1, MX_BLOCK).all(2)
    return torch.where(same.repeat_interleave(MX_BLOCK, 1), middle, rounded).view(shape)


class _Given:
    """Experts that are on the grid already, for `round_experts`."""

    def __init__(self, experts: Mapping[int, Experts]) -> None:
        self._experts = experts

    def dense(self, number: int, gate: Array, up: Array, down: Array) -> None:
        """Nothing to do."""

    def layer(self, number: int, experts: Matrices) -> Matrices:
        """The layer's own, whatever the source's are."""
        found = self._experts[number]
        return Matrices(*(list(getattr(found, part).cpu().numpy()) for part in _EXPERT))
