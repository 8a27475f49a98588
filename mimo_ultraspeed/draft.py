"""Which drafter to use and how, and a drafter's config.json in all its spellings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .config import Fields, read_list, read_rope
from .errors import CheckpointError
from .safetensors_read import show

__all__ = ["Draft", "DraftConfig"]

MAX_BLOCK = 16
MAX_TAPS = 16

# Known, and without effect on what a drafter computes here; backbone_rotary_base is the target's.
_WORDS = """
add_full_attention_sink_bias architectures attention_dropout auto_map backbone_rotary_base bos_token_id dtype eos_token_id
initializer_range loss_decay_gamma mask_token max_position_embeddings max_window_layers model_type num_anchors pad_token_id
tie_word_embeddings torch_dtype transformers_version use_aux_hidden_state use_cache
"""
_WITHOUT_EFFECT = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Draft:
    """A drafter and the switches in which published descriptions of it disagree; None is what its config says.

    Accepted wherever `draft=` is. They change how much of what is drafted comes true, never what the model says.
    """

    path: str | os.PathLike[str] = "auto"
    """The folder of a drafter, or "auto": `dflash/` beside the checkpoint, or the one shipped for an embedded model."""
    rope_theta: float | None = None
    """Base of the rotary frequencies."""
    rotary_dim: int | None = None
    """First dims of a query or key head that are rotated; even."""
    value_scale: float | None = None
    """Values of context and block are multiplied by it."""
    sinks: bool | None = None
    """Whether a learned logit per query head is in the softmax denominator."""
    causal: bool | None = None
    """Whether a row of a block does not see the later ones."""
    window: int | None = None
    """Positions that a row sees, its own included; 0: all."""
    window_rule: str = "query"
    """Of a block at a: "query" (the row at p sees context from p - window + 1) or "anchor" (every row sees it from a - window)."""
    mask_embedding: bool = True
    """False: the target's own embedding of the mask token, which is not trained."""
    tap_shift: int = 0
    """Added to the number of every tapped layer, and kept within the target's layers."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "path" and value is not None:
                _check_option(field.name, value)
        if self.window_rule not in ("query", "anchor"):
            raise ValueError(f"window_rule: expected 'query' or 'anchor', found {self.window_rule!r}")

    def switches(self) -> dict[str, object]:
        """The switches that differ from their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "path" and getattr(self, field.name) != field.default
        }


_LEAST = {"rotary_dim": 0, "window": 0, "tap_shift": -(2**31)}


def _check_option(name: str, value: object) -> None:
    if name in ("sinks", "causal", "mask_embedding"):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, found {value!r}")
    elif name in _LEAST:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, found {value!r}")
        if value < _LEAST[name]:
            raise ValueError(f"{name}: expected {_LEAST[name]} or more, found {value}")
    elif name in ("rope_theta", "value_scale"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: expected a number, found {value!r}")
        if not 1e-38 <= value <= 3.4e38:
            raise ValueError(f"{name}: expected a positive number that float32 can hold, found {value}")


@dataclass(frozen=True)
class DraftConfig:
    """The config.json of a DFlash drafter."""

    hidden_size: int
    """H, as the target's."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    """First dims of a query or key head that are rotated."""
    attention_value_scale: float
    sinks: bool
    layer_pattern: tuple[int, ...]
    """Per layer: 0 all of the context, 1 the last `window` positions."""
    window: int
    """0 where no layer has one."""
    causal: tuple[bool, bool]
    """Whether a row sees no later row of its block, in layers without and with a window."""
    block_size: int
    """B, rows of a block, the anchor included."""
    short_block_size: int
    """Rows of a cheaper block that the drafter was trained to fill as well, 0 without one. Not in published drafters."""
    target_layer_ids: tuple[int, ...]
    """Layers of the target whose residual streams make the context."""
    mask_token_id: int | None
    num_target_layers: int | None
    vocab_size: int | None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, target_layers: int, source: str = "config.json") -> DraftConfig:
        """Reads a parsed config.json, flat or with a nested `dflash_config`.

        target_layers: layers of the target, for a config that lists no taps. source: the file's name, for messages.
        Raises CheckpointError; warns once (UserWarning) about keys it does not know.
        """
        if not isinstance(raw, Mapping):
            raise CheckpointError(f"{source}: expected an object, found {show(raw)}")
        given = Fields(_merge(raw, source), f"{source}: ", _WITHOUT_EFFECT)
        config = _read(given, target_layers)
        given.warn_about_unknown()
        return config


def _merge(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    nested = raw.get("dflash_config")
    merged = {key: value for key, value in raw.items() if key != "dflash_config"}
    if nested is None:
        return merged
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{source}: dflash_config: expected an object, found {show(nested)}")
    for key, value in nested.items():
        if merged.get(key) is not None and value is not None and merged[key] != value:
            raise CheckpointError(f"{source}: dflash_config.{key}: expected {show(merged[key])} as {key} says, found {show(value)}")
        if value is not None or key not in merged:
            merged[key] = value
    return merged


def _read(given: Fields, target_layers: int) -> DraftConfig:
    for name in ("projector_type", "sample_from_anchor"):
        found = given.take(name)[1]
        if found not in (None, False, "linear"):
            raise given.fail(name, "a plain DFlash drafter", found)
    given.only("silu", "hidden_act")
    given.only(False, "attention_bias")
    hidden, layers = given.integer("hidden_size"), given.integer("num_hidden_layers")
    target_hidden = given.integer("target_hidden_size", default=hidden)
    if target_hidden != hidden:
        raise given.fail("target_hidden_size", f"{hidden} as hidden_size says", target_hidden)
    heads = given.integer("num_attention_heads")
    kv_heads = given.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise given.fail("num_key_value_heads", f"a divisor of {heads} heads", kv_heads)
    head_dim = given.integer("head_dim", default=max(hidden // heads, 1))
    theta, factor = read_rope(given, default_theta=10000.0)[0]
    if factor > 1:
        raise given.fail("partial_rotary_factor", "at most 1", factor)
    block = given.integer("block_size")
    if not 2 <= block <= MAX_BLOCK:
        raise given.fail("block_size", f"2 to {MAX_BLOCK}", block)
    short = given.integer("short_block_size", default=0, least=0)
    if short and not 2 <= short < block:
        raise given.fail("short_block_size", f"0, or 2 to {block - 1}", short)
    pattern, by_type = _read_pattern(given, layers)
    window = given.integer("swa_window_size", "sliding_window", default=None if any(pattern) else 0, least=int(any(pattern)))
    # Drafters that list layer types and say nothing else are causal in their sliding layers.
    said = given.take("is_causal", "causal")[1] is not None
    causal = (given.flag("is_causal", "causal"),) * 2 if said else (False, by_type and any(pattern))
    return DraftConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=given.integer("v_head_dim", default=head_dim),
        intermediate_size=given.integer("intermediate_size"),
        rms_norm_eps=given.number("rms_norm_eps", "layernorm_epsilon", default=1e-6),
        rope_theta=theta,
        rotary_dim=int(head_dim * factor),
        attention_value_scale=given.number("attention_value_scale", default=1.0),
        sinks=given.flag("attention_sink_bias", "add_swa_attention_sink_bias"),
        layer_pattern=pattern,
        window=window if any(pattern) else 0,
        causal=causal,
        block_size=block,
        short_block_size=short,
        target_layer_ids=_read_taps(given, target_layers),
        mask_token_id=_optional(given, "mask_token_id", least=0),
        num_target_layers=_optional(given, "num_target_layers"),
        vocab_size=_optional(given, "vocab_size"),
    )


def _optional(given: Fields, name: str, least: int = 1) -> int | None:
    return given.integer(name, least=least) if given.take(name)[1] is not None else None


def _read_pattern(given: Fields, layers: int) -> tuple[tuple[int, ...], bool]:
    """Per layer 0 full or 1 sliding; and whether the file says it layer by layer."""
    types = read_list(given, "layer_types", layers, {"full_attention": 0, "sliding_attention": 1})
    flat, nested = given.take("use_sliding_window"), given.take("use_swa")
    name, used = nested if nested[1] is not None else flat
    has_window = given.take("swa_window_size", "sliding_window")[1] is not None
    if types is not None:
        return types, True
    sliding = has_window if used is None else given.flag(name)
    return (int(sliding),) * layers, False


def _read_taps(given: Fields, target_layers: int) -> tuple[int, ...]:
    name, ids = given.take("target_layer_ids")
    if ids is None:
        count = given.integer("num_hidden_layers")
        if count == 1:
            return (target_layers // 2,)
        last = max(target_layers - 3, 1)
        return tuple(min(round(1 + i * (last - 1) / (count - 1)), target_layers - 1) for i in range(count))
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_TAPS:
        raise given.fail(name, f"a list of 1 to {MAX_TAPS} layers", ids)
    for at, layer in enumerate(ids):
        if type(layer) is not int or not 0 <= layer < target_layers:
            raise given.fail(f"{name}[{at}]", f"a layer of the target, 0 to {target_layers - 1}", layer)
    return tuple(ids)
