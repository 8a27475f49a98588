"""What every source of a conversion is reduced to: a plain Llama, its tensors under their Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIECE_ELEMENTS", "LlamaConfig", "Source", "pieces"]

PIECE_ELEMENTS = 1 << 22
"""Elements of a matrix that are float32 in memory at a time."""


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama without biases, norms of q and k, rotary scaling or sliding windows. Letters as in the C core's glossary."""

    hidden: int
    """H."""
    layers: int
    """L."""
    vocab: int
    """V, rows of the embedding."""
    max_positions: int
    mlp_width: int
    """F."""
    heads: int
    """N."""
    kv_heads: int
    """G."""
    head_dim: int
    """D, all of it rotated."""
    rope_theta: float
    norm_eps: float
    tied_head: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one decoder layer's tensors."""
        prefix = f"model.layers.{layer}."
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            prefix + "input_layernorm.weight": (self.hidden,),
            prefix + "self_attn.q_proj.weight": (queries, self.hidden),
            prefix + "self_attn.k_proj.weight": (keys, self.hidden),
            prefix + "self_attn.v_proj.weight": (keys, self.hidden),
            prefix + "self_attn.o_proj.weight": (self.hidden, queries),
            prefix + "post_attention_layernorm.weight": (self.hidden,),
            prefix + "mlp.gate_proj.weight": (self.mlp_width, self.hidden),
            prefix + "mlp.up_proj.weight": (self.mlp_width, self.hidden),
            prefix + "mlp.down_proj.weight": (self.hidden, self.mlp_width),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors, in the order they are written."""
        named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            named |= self.layer_tensors(layer)
        named["model.norm.weight"] = (self.hidden,)
        if not self.tied_head:
            named["lm_head.weight"] = (self.vocab, self.hidden)
        return named


class Source(Protocol):
    """A model to convert, its tensors already checked against `config`."""

    @property
    def config(self) -> LlamaConfig: ...

    def rows(self, name: str, begin: int, end: int) -> NDArray[np.float32]:
        """Rows begin..end of a matrix [rows, cols] (or elements of a vector), q and k with half-split rotary pairs."""

    def companions(self) -> Mapping[str, bytes]:
        """The other files of the checkpoint (tokenizer.json, generation_config.json, ...) by name."""


def pieces(source: Source, name: str, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """A tensor in row order, about PIECE_ELEMENTS at a time; ValueError when one is not finite."""
    step = max(1, PIECE_ELEMENTS // (shape[1] if len(shape) > 1 else 1))
    for begin in range(0, shape[0], step):
        piece = source.rows(name, begin, min(begin + step, shape[0]))
        if not np.isfinite(piece).all():
            raise ValueError(f"{name}: expected finite weights, found NaN or infinity")
        yield piece
