"""A MiMo-V2 layer over whole texts in numpy and float32: what calibration computes its inputs with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import AttentionConfig, ModelConfig

__all__ = ["Layer", "Read", "attend", "hidden_units", "normed", "route"]

Array = NDArray[np.float32]
Read = Callable[[str], Array]
"""A tensor by its whole name, float32 with the values that the engine will use."""


@dataclass(frozen=True)
class Layer:
    """All of a layer but its MLP's matrices."""

    attention: AttentionConfig
    value_scale: float
    eps: float
    input_norm: Array
    q: Array
    k: Array
    v: Array
    o: Array
    sinks: Array | None
    """[N]."""
    mlp_norm: Array
    router: Array | None
    """[E, H]; None in a dense layer."""
    router_bias: Array | None

    @classmethod
    def read(cls, config: ModelConfig, number: int, read: Read) -> Layer:
        """Layer `number`, q, k and v split."""
        prefix = f"model.layers.{number}."
        attention = (config.full, config.sliding)[config.hybrid_layer_pattern[number]]
        sparse = bool(config.moe_layer_freq[number])
        q, k, v, o = (read(f"{prefix}self_attn.{part}_proj.weight") for part in "qkvo")
        return cls(
            attention,
            config.attention_value_scale,
            config.layernorm_epsilon,
            read(f"{prefix}input_layernorm.weight"),
            q,
            k,
            v,
            o,
            read(f"{prefix}self_attn.attention_sink_bias") if attention.sinks else None,
            read(f"{prefix}post_attention_layernorm.weight"),
            read(f"{prefix}mlp.gate.weight") if sparse else None,
            read(f"{prefix}mlp.gate.e_score_correction_bias") if sparse else None,
        )


def normed(x: Array, weight: Array, eps: float) -> Array:
    """RMSNorm of x [..., H]."""
    scaled: Array = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight
    return scaled


def attend(layer: Layer, stream: Array, ends: NDArray[np.intp]) -> Array:
    """The residual stream [M, H] after attention, of texts behind one another that end at `ends` and see themselves only."""
    parts = (text + _attention(layer, normed(text, layer.input_norm, layer.eps)) for text in np.split(stream, ends))
    return np.concatenate(list(parts))


def _attention(layer: Layer, x: Array) -> Array:
    a, rows = layer.attention, len(x)
    group = a.num_heads // a.num_kv_heads
    q = _rotated((x @ layer.q.T).reshape(rows, a.num_heads, -1).swapaxes(0, 1), a)
    k = _rotated((x @ layer.k.T).reshape(rows, a.num_kv_heads, -1).swapaxes(0, 1), a)
    v = (x @ layer.v.T).reshape(rows, a.num_kv_heads, -1).swapaxes(0, 1) * np.float32(layer.value_scale)
    distance = np.arange(rows)[:, None] - np.arange(rows)
    hidden = (distance < 0) | (distance >= (a.window or rows))
    out = np.empty((rows, a.num_heads, a.v_head_dim), np.float32)
    for head in range(a.num_heads):
        scores = q[head] @ k[head // group].T / np.float32(np.sqrt(a.head_dim))
        scores[hidden] = -np.inf
        sink = -np.inf if layer.sinks is None else layer.sinks[head]
        top = np.maximum(scores.max(1, keepdims=True), sink)
        weights = np.exp(scores - top)
        total = weights.sum(1, keepdims=True) + np.exp(sink - top)
        out[:, head] = weights / total @ v[head // group]
    mixed: Array = out.reshape(rows, -1) @ layer.o.T
    return mixed


def _rotated(x: Array, attention: AttentionConfig) -> Array:
    """x [heads, T, D], its first rotary_dim dims turned, half against half."""
    half = attention.rotary_dim // 2
    if not half:
        return x
    angles = np.arange(x.shape[1])[:, None] * attention.rope_theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], -1)


def route(layer: Layer, config: ModelConfig, x: Array) -> Array:
    """[M, E]: weight of every expert for rows [M, H]; 0 where it is not chosen."""
    assert layer.router is not None and layer.router_bias is not None
    scores = 1 / (1 + np.exp(-(x @ layer.router.T)))
    chosen = np.argsort(-(scores + layer.router_bias), axis=1, kind="stable")[:, : config.num_experts_per_tok]
    picked = np.take_along_axis(scores, chosen, 1)
    if config.norm_topk_prob:
        picked = picked / np.maximum(picked.sum(1, keepdims=True), np.float32(1e-20))
    weights: Array = np.zeros_like(scores)
    np.put_along_axis(weights, chosen, picked * np.float32(config.routed_scaling_factor), 1)
    return weights


def hidden_units(gate: Array, up: Array, x: Array) -> Array:
    """[M, F]: SwiGLU's hidden units for rows [M, H]."""
    g: Array = x @ gate.T
    units: Array = g / (1 + np.exp(-np.maximum(g, np.float32(-80)))) * (x @ up.T)
    return units
