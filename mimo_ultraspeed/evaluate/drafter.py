"""A DFlash drafter in numpy: slow, small, every disputed detail a switch. The self-check compares settings with it.

c_t = rms(hidden_norm, fc [taps of t]) is the context row of position t. In every layer its key is rope(k_norm(W_k c_t)) and its
value s W_v c_t. A block at anchor a has the rows [embedding of the anchor, mask, ..., mask] at positions a .. a + B - 1, which see
the context before a within the window, and each other; row k predicts the token at a + k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NumpyDrafter", "Shape", "Wiring"]

Array = NDArray[np.float32]
Ids = NDArray[np.int64]
_SCORES = 1 << 23  # attention scores held at a time


@dataclass(frozen=True)
class Shape:
    """What the weights fix."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    block: int
    """B, the anchor included."""
    eps: float
    sliding: tuple[bool, ...]
    """Per layer: it has the window."""


@dataclass(frozen=True)
class Wiring:
    """What sources disagree about."""

    taps: tuple[int, ...]
    """Layers of the target, counted from 0."""
    rope_theta: float
    rotary_dim: int
    """First dims of a head that are rotated, half against half."""
    value_scale: float = 1.0
    sinks: bool = False
    window: int = 0
    """Positions a row sees, its own included; 0: all."""
    window_rule: str = "query"
    """ "query": the row at p sees context from p - window + 1; "anchor": every row from a - window."""
    causal: tuple[bool, bool] = (False, False)
    """A row sees no later row of its block, in layers without and with a window."""
    mask_embedding: bool = True
    """False: the target's embedding of the mask token instead."""
    context_rope_theta: float | None = None
    """Of context keys alone; None: rope_theta."""


class NumpyDrafter:
    """A drafter's weights, and the target's embedding and head."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        shape: Shape,
        *,
        head: Array,
        mask: Array | None,
        mask_row: Array | None,
        target_ids: Ids | None = None,
    ) -> None:
        """weights: by the published names. head [V', H]: the target's, of the ids it may draft. mask, mask_row [H]: the trained
        mask embedding, and the target's own for the mask token. target_ids [V']: what each row of the head stands for."""
        # Kept transposed: x @ w.
        self.weights = {
            name: np.ascontiguousarray(weights[name].T if weights[name].ndim == 2 else weights[name]) for name in weights
        }
        self.shape, self.head, self.mask, self.mask_row = shape, np.ascontiguousarray(head.T), mask, mask_row
        self.target_ids = target_ids
        self.place = None if target_ids is None else {int(token): at for at, token in enumerate(target_ids)}

    def context(self, taps: Array) -> Array:
        """[T, H] from the taps side by side, [T, m H]."""
        return self._rms("hidden_norm.weight", taps @ self.weights["fc.weight"])

    def draft(self, wiring: Wiring, context: Array, anchors: Ids, embedded: Array, anchor_ids: Ids) -> Ids:
        """[A, B - 1]: the most likely token of each slot. context [T, H], anchors [A], their embeddings [A, H] and ids [A]."""
        logits = self.logits(wiring, context, anchors, embedded)
        drafts = np.zeros((len(anchors), self.shape.block - 1), np.int64)
        before = anchor_ids
        for slot in range(drafts.shape[1]):
            row = logits[:, slot] + self._markov(before) if "markov.w1.weight" in self.weights else logits[:, slot]
            drafts[:, slot] = before = self._token(row.argmax(1))
        return drafts

    def logits(self, wiring: Wiring, context: Array, anchors: Ids, embedded: Array) -> Array:
        """[A, B - 1, V'] before a Markov head."""
        many = max(1, _SCORES // (self.shape.block * self.shape.heads * (len(context) + self.shape.block)))
        keys = [self._keys(layer, wiring, context) for layer in range(self.shape.layers)]
        parts = [
            self._block(wiring, keys, anchors[at : at + many], embedded[at : at + many]) for at in range(0, len(anchors), many)
        ]
        return np.concatenate(parts) @ self.head

    def _block(self, wiring: Wiring, keys: list[tuple[Array, Array]], anchors: Ids, embedded: Array) -> Array:
        mask = self.mask if wiring.mask_embedding and self.mask is not None else self.mask_row
        if mask is None:
            raise ValueError("mask_embedding: this drafter has no trained one, and its config names no mask token")
        x = np.repeat(mask[None, None], len(anchors), 0).repeat(self.shape.block, 1)
        x[:, 0] = embedded
        for layer, (key, value) in enumerate(keys):
            x = x + self._attention(layer, wiring, x, anchors, key, value)
            u = self._rms(f"layers.{layer}.post_attention_layernorm.weight", x)
            gate, up = (u @ self.weights[f"layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"layers.{layer}.mlp.down_proj.weight"]
        return self._rms("norm.weight", x[:, 1:])

    def _attention(self, layer: int, wiring: Wiring, x: Array, anchors: Ids, key: Array, value: Array) -> Array:
        s, prefix = self.shape, f"layers.{layer}.self_attn."
        many, group = len(anchors), s.heads // s.kv_heads
        u = self._rms(f"layers.{layer}.input_layernorm.weight", x)
        places = anchors[:, None] + np.arange(s.block)  # [A, B]
        q = self._heads(f"{prefix}q", u, s.heads, places, wiring.rope_theta, wiring.rotary_dim) / np.float32(np.sqrt(s.head_dim))
        q = (
            q.reshape(many, s.block, s.kv_heads, group, s.head_dim)
            .transpose(2, 0, 1, 3, 4)
            .reshape(s.kv_heads, many, -1, s.head_dim)
        )
        own_key = self._heads(f"{prefix}k", u, s.kv_heads, places, wiring.rope_theta, wiring.rotary_dim)
        own_value = (u @ self.weights[f"{prefix}v_proj.weight"]).reshape(many, s.block, s.kv_heads, -1)
        own_value = own_value.transpose(2, 0, 1, 3) * np.float32(wiring.value_scale)
        # Scores [G, A, B group, T + B].
        seen = np.concatenate([q @ key.transpose(1, 2, 0)[:, None], q @ own_key.transpose(2, 0, 3, 1)], -1)
        visible = self._visible(layer, wiring, anchors, places, len(key)).repeat(group, 1)
        seen = np.where(visible, seen, np.float32(-np.inf))
        top, sink = seen.max(-1, keepdims=True), None
        if wiring.sinks:
            sink = self.weights[f"{prefix}attention_sink_bias"].reshape(s.kv_heads, 1, 1, group)
            sink = np.broadcast_to(sink, (s.kv_heads, 1, s.block, group)).reshape(s.kv_heads, 1, -1, 1)
            top = np.maximum(top, sink)
        p = np.exp(seen - top)
        total = p.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink - top))
        p = p / total
        out = p[..., : len(key)] @ value.transpose(1, 0, 2)[:, None] + p[..., len(key) :] @ own_value
        out = out.reshape(s.kv_heads, many, s.block, group, -1).transpose(1, 2, 0, 3, 4).reshape(many, s.block, -1)
        added: Array = out @ self.weights[f"{prefix}o_proj.weight"]
        return added

    def _visible(self, layer: int, wiring: Wiring, anchors: Ids, places: Ids, context: int) -> NDArray[np.bool_]:
        """[A, B, T + B]"""
        sliding = self.shape.sliding[layer]
        t = np.arange(context)
        before = np.broadcast_to(t < anchors[:, None, None], (*places.shape, context))
        if sliding and wiring.window:
            since = (
                places - wiring.window + 1
                if wiring.window_rule == "query"
                else np.broadcast_to(anchors[:, None] - wiring.window, places.shape)
            )
            before = before & (t >= since[:, :, None])
        rows = np.arange(self.shape.block)
        block = rows <= rows[:, None] if wiring.causal[sliding] else np.ones((len(rows), len(rows)), bool)
        return np.concatenate([before, np.broadcast_to(block, (*places.shape, len(rows)))], -1)

    def _keys(self, layer: int, wiring: Wiring, context: Array) -> tuple[Array, Array]:
        """Keys [T, G, D] and values [T, G, Dv] of the context."""
        prefix = f"layers.{layer}.self_attn."
        theta = wiring.rope_theta if wiring.context_rope_theta is None else wiring.context_rope_theta
        key = self._heads(f"{prefix}k", context, self.shape.kv_heads, np.arange(len(context)), theta, wiring.rotary_dim)
        value = (context @ self.weights[f"{prefix}v_proj.weight"]).reshape(len(context), self.shape.kv_heads, -1)
        return key, value * np.float32(wiring.value_scale)

    def _heads(self, name: str, x: Array, heads: int, places: Ids, theta: float, rotary: int) -> Array:
        """[..., heads, D]: projected, normalised per head, rotated."""
        y = (x @ self.weights[f"{name}_proj.weight"]).reshape(*x.shape[:-1], heads, -1)
        if f"{name}_norm.weight" in self.weights:  # some drafters have none
            y = self._rms(f"{name}_norm.weight", y)
        half = rotary // 2
        angle = places[..., None, None] * theta ** (-np.arange(half) / half) if half else np.zeros((1,))
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        low, high = y[..., :half], y[..., half:rotary]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin, y[..., rotary:]], -1)

    def _rms(self, name: str, x: Array) -> Array:
        y: Array = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + np.float32(self.shape.eps)) * self.weights[name]
        return y

    def _markov(self, before: Ids) -> Array:
        """[A, V']: what the token before a slot adds to its logits; nothing for one that cannot be drafted."""
        rows = np.array([int(t) if self.place is None else self.place.get(int(t), -1) for t in before])
        first = self.weights["markov.w1.weight"].T[np.maximum(rows, 0)] * (rows >= 0)[:, None]
        added: Array = first @ self.weights["markov.w2.weight"]
        return added

    def _token(self, rows: Ids) -> Ids:
        return rows if self.target_ids is None else self.target_ids[rows]
