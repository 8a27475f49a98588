"""A target's own weights as float32: its embedding and head, and the layers a drafter starts from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..weights import Weights

__all__ = ["TargetWeights"]

Array = NDArray[np.float32]


class TargetWeights:
    """Reads tensors of a checkpoint by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._weights = Weights(checkpoint.tensors, checkpoint.files)
        # The tiles of some FP8 matrices begin anew at a head, which their shape does not tell.
        self._unread = {tensor.name.removeprefix("model.") for tensor in checkpoint.tensors if tensor.dtype == "F8_E4M3"}

    def read(self, name: str) -> Array:
        """A tensor with the shape of its values. CheckpointError when it is missing or stored in a format not read here."""
        if name not in self._weights:
            raise CheckpointError(f"{name}: the checkpoint has no such tensor")
        if name in self._unread:
            raise CheckpointError(f"{name}: expected BF16, F16, F32 or MXFP4, found F8_E4M3")
        return self._weights[name]

    def embedding(self) -> Array:
        """[V, H]."""
        return self.read("embed_tokens.weight")

    def head(self) -> Array:
        """[V, H]."""
        return self.embedding() if self.config.tie_word_embeddings else self.read("lm_head.weight")

    def final_norm(self) -> Array:
        """[H]."""
        return self.read("norm.weight")

    def layer(self, layer: int) -> dict[str, Array]:
        """The matrices and norms of a decoder layer under a drafter's names.

        Experts that are all active with equal weight are joined to the dense MLP they are a split of. A fused qkv, or experts
        that a router chooses from, have no such counterpart and are left out.
        """
        prefix = f"layers.{layer}."
        names = ["input_layernorm", "post_attention_layernorm", "self_attn.o_proj"]
        names += [f"self_attn.{part}_proj" for part in "qkv"] if not self.config.fused_qkv else []
        found = {f"{name}.weight": self.read(f"{prefix}{name}.weight") for name in names}
        return found | self._mlp(layer, prefix)

    def _mlp(self, layer: int, prefix: str) -> dict[str, Array]:
        parts = ("gate_proj", "up_proj", "down_proj")
        config = self.config
        if not config.moe_layer_freq[layer]:
            return {f"mlp.{part}.weight": self.read(f"{prefix}mlp.{part}.weight") for part in parts}
        count = config.n_routed_experts
        if config.num_experts_per_tok != count or np.any(self.read(f"{prefix}mlp.gate.weight")):
            return {}
        experts = {part: [self.read(f"{prefix}mlp.experts.{expert}.{part}.weight") for expert in range(count)] for part in parts}
        share = config.routed_scaling_factor / (count if config.norm_topk_prob else 2.0)
        return {
            "mlp.gate_proj.weight": np.concatenate(experts["gate_proj"]),
            "mlp.up_proj.weight": np.concatenate(experts["up_proj"]),
            "mlp.down_proj.weight": np.concatenate(experts["down_proj"], axis=1) * np.float32(share),
        }
