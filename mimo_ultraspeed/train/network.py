"""A MiMo-V2 model in torch, whole sequences at once: what experts are trained in.

In float32; under torch.autocast products are of its type, but the router's, and norms and the residual stream stay float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..config import AttentionConfig, ModelConfig

__all__ = ["Experts", "Network", "rest_of"]


@dataclass(frozen=True)
class Experts:
    """The matrices of all experts of a layer: gate and up [E, F, H], down [E, H, F]."""

    gate: Tensor
    up: Tensor
    down: Tensor


def rest_of(config: ModelConfig, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Every tensor that is no expert's, under its whole name, q, k and v split."""
    names = ["model.embed_tokens.weight", "model.norm.weight", *([] if config.tie_word_embeddings else ["lm_head.weight"])]
    for number, sparse in enumerate(config.moe_layer_freq):
        prefix = f"model.layers.{number}."
        sinks = (config.full, config.sliding)[config.hybrid_layer_pattern[number]].sinks
        names += [f"{prefix}{part}.weight" for part in ("input_layernorm", "post_attention_layernorm")]
        names += [f"{prefix}self_attn.{part}_proj.weight" for part in "qkvo"]
        names += [f"{prefix}self_attn.attention_sink_bias"] if sinks else []
        if sparse:
            names += [f"{prefix}mlp.gate.weight", f"{prefix}mlp.gate.e_score_correction_bias"]
        else:
            names += [f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    return {name: read(name) for name in names}


class Network:
    """The equations of the model over tensors that the caller holds."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def streams(self, rest: Mapping[str, Tensor], experts: Mapping[int, Experts], ids: Tensor) -> list[Tensor]:
        """ids [B, T] -> residual streams [B, T, H] after each layer. experts: by layer, of sparse layers."""
        config = self.config
        x = functional.embedding(ids, rest["model.embed_tokens.weight"])
        found = []
        for number in range(config.num_hidden_layers):
            prefix = f"model.layers.{number}."
            x = x + self._attention(rest, number, _norm(x, rest[f"{prefix}input_layernorm.weight"], config))
            normed = _norm(x, rest[f"{prefix}post_attention_layernorm.weight"], config)
            if number in experts:
                x = x + self._mixture(rest, prefix, experts[number], normed.flatten(0, 1)).view_as(x)
            else:
                gate, up, down = (rest[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
                x = x + _hidden_units(normed, gate, up) @ down.T
            found.append(x)
        return found

    def last(self, rest: Mapping[str, Tensor], stream: Tensor) -> Tensor:
        """What the head is multiplied with."""
        return _norm(stream, rest["model.norm.weight"], self.config)

    def head(self, rest: Mapping[str, Tensor]) -> Tensor:
        """[V, H]."""
        return rest["model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"]

    def logits(self, rest: Mapping[str, Tensor], experts: Mapping[int, Experts], ids: Tensor) -> Tensor:
        """ids [B, T] -> [B, T, V]."""
        return self.last(rest, self.streams(rest, experts, ids)[-1]) @ self.head(rest).T

    def _attention(self, rest: Mapping[str, Tensor], number: int, x: Tensor) -> Tensor:
        """x [B, T, H], normed."""
        config, prefix = self.config, f"model.layers.{number}.self_attn."
        a = (config.full, config.sliding)[config.hybrid_layer_pattern[number]]
        batch, rows, _ = x.shape
        q = (x @ rest[f"{prefix}q_proj.weight"].T).view(batch, rows, a.num_heads, -1).transpose(1, 2)
        k, v = ((x @ rest[f"{prefix}{p}_proj.weight"].T).view(batch, rows, a.num_kv_heads, -1).transpose(1, 2) for p in "kv")
        q, k, v = _rotated(q, a), _rotated(k, a), v * config.attention_value_scale
        k, v = (one.repeat_interleave(a.num_heads // a.num_kv_heads, 1) for one in (k, v))
        sinks = rest.get(f"{prefix}attention_sink_bias") if a.sinks else None
        mixed = _mixed(q, k, v, a.window, sinks)
        return mixed.transpose(1, 2).reshape(batch, rows, -1) @ rest[f"{prefix}o_proj.weight"].T

    def _mixture(self, rest: Mapping[str, Tensor], prefix: str, experts: Experts, x: Tensor) -> Tensor:
        """x [M, H], normed -> [M, H]."""
        config = self.config
        with torch.autocast(x.device.type, enabled=False):  # small differences choose
            scores = torch.sigmoid(x @ rest[f"{prefix}mlp.gate.weight"].T)
        order = torch.argsort(scores + rest[f"{prefix}mlp.gate.e_score_correction_bias"], dim=1, descending=True, stable=True)
        chosen = order[:, : config.num_experts_per_tok]
        shares = scores.gather(1, chosen)
        if config.norm_topk_prob:
            shares = shares / (shares.sum(1, keepdim=True) + 1e-20)
        weights = torch.zeros_like(scores).scatter(1, chosen, shares * config.routed_scaling_factor)
        if config.num_experts_per_tok == config.n_routed_experts:
            units = _hidden_units(x, experts.gate.flatten(0, 1), experts.up.flatten(0, 1))
            shared = units.view(len(x), config.n_routed_experts, -1) * weights[:, :, None]
            return shared.flatten(1) @ experts.down.transpose(1, 2).flatten(0, 1)
        picked = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)
        out = torch.zeros_like(x)
        for expert in range(config.n_routed_experts):
            rows = picked[:, expert].nonzero()[:, 0]
            units = _hidden_units(x[rows], experts.gate[expert], experts.up[expert])
            out = out.index_add(0, rows, units @ experts.down[expert].T * weights[rows, expert, None])
        return out


def _norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, config.layernorm_epsilon)


def _hidden_units(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(x @ gate.T) * (x @ up.T)


def _rotated(x: Tensor, attention: AttentionConfig) -> Tensor:
    """x [B, heads, T, D], its first rotary_dim dims turned, half against half."""
    half = attention.rotary_dim // 2
    if not half:
        return x
    places = torch.arange(half, dtype=torch.float64, device=x.device)
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * attention.rope_theta ** (-places / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _mixed(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: Tensor | None) -> Tensor:
    """q, k [B, N, T, D], v [B, N, T, Dv], sinks [N] -> [B, N, T, Dv]."""
    if sinks is None and not window:
        mixed: Tensor = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed
    rows = q.shape[2]
    distance = torch.arange(rows, device=q.device)[:, None] - torch.arange(rows, device=q.device)
    hidden = (distance < 0) | (distance >= (window or rows))
    scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], -1)
    weights = torch.softmax(scores, -1)[..., :rows]
    return weights @ v
