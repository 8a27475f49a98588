"""The drafter as torch computes it: a function of named tensors, so that several threads can share the parameters.

Parameters carry the names of a draft checkpoint, but for `fc.weight`, which here acts on scaled taps (see `export`).

Shapes: T positions of a sequence, m taps, H hidden, A anchors, B rows of a block, V' rows of the drafter's head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import rms_norm, silu

__all__ = ["Block", "Context", "DrafterConfig", "Parameters", "Trained", "context", "draft_greedily", "hidden", "markov_bias"]

Parameters: TypeAlias = dict[str, Tensor]
Context: TypeAlias = list[tuple[Tensor, Tensor]]
"""For each layer, keys [G, T, D] (rotated) and values [G, T, Dv] (scaled) of the committed positions."""


@dataclass(frozen=True)
class DrafterConfig:
    """Dimensions of a drafter."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    vocab_size: int
    num_target_layers: int
    max_position_embeddings: int
    taps: tuple[int, ...]
    """Target layers whose residual stream, after them, is the context."""
    block_size: int = 8
    short_block_size: int = 4
    """A length of training blocks that the engine may draft instead, where little is expected; 0: none."""
    window: int = 512
    """A row sees context positions less than this far before its own."""
    value_scale: float = 1.0
    sinks: bool = False
    head_size: int = 4096
    """Tokens the drafter chooses from."""
    markov_rank: int = 64
    """0: no Markov head."""
    mask_token_id: int = 0

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of the matrices a token passes through."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        values = self.num_key_value_heads * self.v_head_dim
        shapes = {"fc.weight": (self.hidden_size, len(self.taps) * self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes |= {
                f"layers.{layer}.self_attn.q_proj.weight": (queries, self.hidden_size),
                f"layers.{layer}.self_attn.k_proj.weight": (keys, self.hidden_size),
                f"layers.{layer}.self_attn.v_proj.weight": (values, self.hidden_size),
                f"layers.{layer}.self_attn.o_proj.weight": (self.hidden_size, self.num_attention_heads * self.v_head_dim),
                f"layers.{layer}.mlp.gate_proj.weight": (self.intermediate_size, self.hidden_size),
                f"layers.{layer}.mlp.up_proj.weight": (self.intermediate_size, self.hidden_size),
                f"layers.{layer}.mlp.down_proj.weight": (self.hidden_size, self.intermediate_size),
            }
        return shapes

    def vectors(self) -> dict[str, tuple[int]]:
        """Names and shapes of the norms, the mask embedding and the sinks."""
        hidden = (self.hidden_size,)
        shapes: dict[str, tuple[int]] = {"hidden_norm.weight": hidden, "norm.weight": hidden, "mask_embedding": hidden}
        for layer in range(self.num_hidden_layers):
            shapes |= {
                f"layers.{layer}.input_layernorm.weight": hidden,
                f"layers.{layer}.post_attention_layernorm.weight": hidden,
                f"layers.{layer}.self_attn.q_norm.weight": (self.head_dim,),
                f"layers.{layer}.self_attn.k_norm.weight": (self.head_dim,),
            }
            if self.sinks:
                shapes[f"layers.{layer}.self_attn.attention_sink_bias"] = (self.num_attention_heads,)
        return shapes

    def tables(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of the Markov head's tables."""
        if not self.markov_rank:
            return {}
        shape = (self.head_size, self.markov_rank)
        return {"markov.w1.weight": shape, "markov.w2.weight": shape}


@dataclass(frozen=True)
class Trained:
    """A drafter ready to be run, written or trained further; `fc.weight` acts on the taps as they are."""

    config: DrafterConfig
    parameters: Parameters
    head_ids: NDArray[np.int64]
    """[V']: token of each row of the drafter's head, ascending."""


@dataclass(frozen=True)
class Block:
    """Rows to be computed: for every anchor its token and `length` - 1 masks after it."""

    embeddings: Tensor
    """[A, H]: the anchors' tokens."""
    anchors: Tensor
    """[A] int64: the anchors' positions; ascending."""
    length: int


def context(parameters: Parameters, config: DrafterConfig, taps: Tensor) -> Context:
    """Keys and values of committed positions 0 to T - 1 in every layer. taps: [T, m * H], scaled."""
    fused = _norm(taps @ parameters["fc.weight"].T, parameters["hidden_norm.weight"], config)
    rotation = _rotation(config, torch.arange(len(taps), device=taps.device))
    kept = []
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}.self_attn."
        weight = torch.cat((parameters[prefix + "k_proj.weight"], parameters[prefix + "v_proj.weight"]))
        keys, values = _keys_values(fused @ weight.T, parameters, prefix, config, rotation)
        kept.append((keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()))
    return kept


def hidden(parameters: Parameters, config: DrafterConfig, known: Context, block: Block) -> Tensor:
    """[A, length - 1, H]: for each anchor and slot 1, 2, ... what the head is to be applied to; slot k predicts position a + k.

    known: of all positions before the last anchor; each block sees those before its own anchor and within the window.
    """
    count, length = len(block.anchors), block.length
    masks = parameters["mask_embedding"].expand(count, length - 1, -1)
    rows = torch.cat((block.embeddings[:, None], masks), 1).reshape(count * length, -1)
    offsets = torch.arange(length, device=rows.device)
    positions = (block.anchors[:, None] + offsets).reshape(-1)
    rotation = _rotation(config, positions)
    first = max(int(block.anchors[0]) - config.window + 1, 0)
    last = max(int(block.anchors[-1]), first)
    hidden_from = _invisible(config, block, first, last)
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        keys, values = (part[:, first:last] for part in known[layer])
        normed = _norm(rows, parameters[prefix + "input_layernorm.weight"], config)
        mixed = _attention(parameters, prefix + "self_attn.", config, normed, rotation, keys, values, hidden_from, length)
        rows = rows + mixed @ parameters[prefix + "self_attn.o_proj.weight"].T
        normed = _norm(rows, parameters[prefix + "post_attention_layernorm.weight"], config)
        gate = silu(normed @ parameters[prefix + "mlp.gate_proj.weight"].T)
        rows = (
            rows + (gate * (normed @ parameters[prefix + "mlp.up_proj.weight"].T)) @ parameters[prefix + "mlp.down_proj.weight"].T
        )
    predicted = rows.view(count, length, -1)[:, 1:]
    return _norm(predicted, parameters["norm.weight"], config)


def markov_bias(parameters: Parameters, previous: Tensor) -> Tensor | None:
    """[..., V']: what the previous token adds to a slot's logits. previous: [...] its place in the head, -1 outside (adds 0)."""
    if "markov.w1.weight" not in parameters:
        return None
    left = parameters["markov.w1.weight"][previous.clamp(min=0)] * (previous >= 0)[..., None]
    return left @ parameters["markov.w2.weight"].T


def draft_greedily(parameters: Parameters, predicted: Tensor, head: Tensor, anchor_place: Tensor) -> Tensor:
    """[A, S] int64: places in the head of the drafts, each the likeliest after the one before it.

    predicted: [A, S, H] from `hidden`. head: [V', H]. anchor_place: [A], -1 outside the head.
    """
    logits = predicted @ head.T
    drafts = []
    previous = anchor_place
    for slot in range(predicted.shape[1]):
        bias = markov_bias(parameters, previous)
        previous = (logits[:, slot] if bias is None else logits[:, slot] + bias).argmax(-1)
        drafts.append(previous)
    return torch.stack(drafts, 1)


def _norm(values: Tensor, weight: Tensor, config: DrafterConfig) -> Tensor:
    return rms_norm(values.to(weight.dtype), (values.shape[-1],), weight, config.rms_norm_eps)


def _rotation(config: DrafterConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, 1, rotary_dim / 2]."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64, device=positions.device) / config.rotary_dim
    angles = positions[:, None].double() / config.rope_theta**exponents
    return angles.cos().float()[:, None], angles.sin().float()[:, None]


def _rotate(values: Tensor, rotation: tuple[Tensor, Tensor], rotary_dim: int) -> Tensor:
    """values: [rows, heads, D]; the first rotary_dim dims turn in pairs (i, i + rotary_dim / 2)."""
    cos, sin = rotation
    half = rotary_dim // 2
    left, right = values[..., :half], values[..., half:rotary_dim]
    return torch.cat((left * cos - right * sin, right * cos + left * sin, values[..., rotary_dim:]), -1)


def _keys_values(
    projected: Tensor, parameters: Parameters, prefix: str, config: DrafterConfig, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """[rows, G, D] and [rows, G, Dv] of the joined projection [rows, G * (D + Dv)]."""
    heads, width = config.num_key_value_heads, config.num_key_value_heads * config.head_dim
    keys = _norm(projected[:, :width].reshape(-1, heads, config.head_dim), parameters[prefix + "k_norm.weight"], config)
    values = projected[:, width:].reshape(-1, heads, config.v_head_dim)
    return _rotate(keys, rotation, config.rotary_dim), values * config.value_scale


def _invisible(config: DrafterConfig, block: Block, first: int, last: int) -> Tensor:
    """[A * B, last - first] bool: context positions a row must not see."""
    keys = torch.arange(first, last, device=block.anchors.device)
    oldest = block.anchors[:, None] + torch.arange(block.length, device=keys.device) - config.window  # [A, B]
    hidden_from = (keys >= block.anchors[:, None, None]) | (keys <= oldest[..., None])
    return hidden_from.reshape(-1, last - first)


def _attention(
    parameters: Parameters,
    prefix: str,
    config: DrafterConfig,
    normed: Tensor,
    rotation: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    hidden_from: Tensor,
    length: int,
) -> Tensor:
    """[A * B, N * Dv]: rows attend to the visible context and to their own block. normed: [A * B, H]."""
    groups, depth = config.num_key_value_heads, config.head_dim
    per_group = config.num_attention_heads // groups
    total = len(normed)
    count = total // length
    weight = torch.cat([parameters[f"{prefix}{part}_proj.weight"] for part in "qkv"])
    projected = normed @ weight.T
    split = config.num_attention_heads * depth
    queries = projected[:, :split].reshape(total, config.num_attention_heads, depth)
    queries = _rotate(_norm(queries, parameters[prefix + "q_norm.weight"], config), rotation, config.rotary_dim) / math.sqrt(depth)
    own_keys, own_values = _keys_values(projected[:, split:], parameters, prefix, config, rotation)
    grouped = queries.view(total, groups, per_group, depth).permute(1, 2, 0, 3).reshape(groups, per_group * total, depth)
    to_context = (grouped @ keys.transpose(1, 2)).view(groups, per_group, total, -1)
    to_context = to_context.masked_fill(hidden_from, float("-inf"))
    own_keys = own_keys.view(count, length, groups, depth).permute(2, 0, 3, 1)[:, None]  # [G, 1, A, D, B]
    own_values = own_values.view(count, length, groups, -1).permute(2, 0, 1, 3)[:, None]  # [G, 1, A, B, Dv]
    blocks = grouped.view(groups, per_group, count, length, depth)
    to_own = (blocks @ own_keys).view(groups, per_group, total, length)
    scores = [to_context, to_own]
    if config.sinks:
        sinks = parameters[prefix + "attention_sink_bias"].view(groups, per_group, 1, 1)
        scores.append(sinks.expand(-1, -1, total, 1))
    shares = torch.softmax(torch.cat(scores, -1), -1)
    seen = keys.shape[1]
    mixed = shares[..., :seen].reshape(groups, per_group * total, seen) @ values
    own = shares[..., seen : seen + length].reshape(groups, per_group, count, length, length) @ own_values
    mixed = mixed.view(groups, per_group, total, -1) + own.reshape(groups, per_group, total, -1)
    return mixed.permute(2, 0, 1, 3).reshape(total, -1)
