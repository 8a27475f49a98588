"""model/config: every rule refuses by name, and what the published models need passes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from mimo_ultraspeed import _probe

FULL = {"heads": 4, "kv_heads": 2, "head_dim": 24, "v_head_dim": 16, "rotary_dim": 8, "window": 0, "rope_theta": 1e7, "sinks": 0}
CONFIG: dict[str, Any] = {
    "hidden": 64,
    "layers": 2,
    "vocab": 100,
    "max_positions": 256,
    "dense_width": 96,
    "expert_width": 32,
    "experts": 4,
    "top_k": 2,
    "norm_eps": 1e-5,
    "value_scale": 0.612,
    "routed_scale": 1.0,
    "norm_topk": 1,
    "tied_head": 0,
    "qkv_chunks": 2,
    "full": FULL,
    "sliding": {**FULL, "window": 8, "rope_theta": 1e4, "sinks": 1},
    "layer_sliding": [0, 1],
    "layer_sparse": [0, 1],
}


def changed(path: str, value: object) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, key = path.split(".")
    at = config
    for parent in parents:
        at = at[parent]
    at[key] = value
    return config


def test_good_config_passes() -> None:
    _probe.config_check(CONFIG)
    pro = {"heads": 128, "kv_heads": 8, "head_dim": 192, "v_head_dim": 128, "rotary_dim": 64}
    big = {**CONFIG, "hidden": 6144, "layers": 70, "vocab": 152576, "max_positions": 1 << 20, "experts": 384, "top_k": 8}
    big |= {"dense_width": 16384, "expert_width": 2048, "qkv_chunks": 8, "full": {**FULL, **pro}}
    big |= {"sliding": {**CONFIG["sliding"], **pro, "window": 128}, "layer_sliding": [0] + [1] * 69, "layer_sparse": [0] + [1] * 69}
    _probe.config_check(big)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("hidden", 0, r"config.hidden: expected 1 to \d+, found 0"),
        ("hidden", 1 << 31, r"config.hidden: expected 1 to \d+, found 2147483648"),
        ("hidden", 1 << 40, r"config.hidden: expected 0 to 4294967295, found 1099511627776"),
        ("hidden", -1, r"config.hidden: expected 0 to 4294967295, found -1"),
        ("layers", 513, r"config.layers: expected 1 to 512, found 513"),
        ("vocab", 0, r"config.vocab: "),
        ("max_positions", 0, r"config.max_positions: "),
        ("dense_width", 0, r"config.dense_width: "),
        ("expert_width", 0, r"config.expert_width: "),
        ("experts", 0, r"config.experts: "),
        ("top_k", 0, r"config.top_k: expected 1 to 4, found 0"),
        ("top_k", 5, r"config.top_k: expected 1 to 4, found 5"),
        ("norm_eps", 0.0, r"config.norm_eps: expected a finite number above 0, found 0"),
        ("norm_eps", math.nan, r"config.norm_eps: .*found nan"),
        ("norm_eps", 1e300, r"config.norm_eps: .*found inf"),
        ("value_scale", math.inf, r"config.value_scale: expected a finite number, found inf"),
        ("routed_scale", math.nan, r"config.routed_scale: "),
        ("norm_topk", 2, r"config.norm_topk: expected 0 to 1, found 2"),
        ("tied_head", 2, r"config.tied_head: expected 0 to 1, found 2"),
        ("qkv_chunks", 4, r"config.qkv_chunks: expected a divisor of the 4 heads and 2 kv_heads of full attention, found 4"),
        ("full.heads", 0, r"config.full.heads: "),
        ("full.heads", 5, r"config.full.kv_heads: expected a divisor of its 5 heads, found 2"),
        ("full.kv_heads", 0, r"config.full.kv_heads: "),
        ("sliding.kv_heads", 8, r"config.sliding.kv_heads: expected a divisor of its 4 heads, found 8"),
        ("full.head_dim", 20, r"config.full.head_dim: expected a multiple of 8 .*kernels.*found 20"),
        ("sliding.v_head_dim", 12, r"config.sliding.v_head_dim: expected a multiple of 8 .*found 12"),
        ("full.rotary_dim", 7, r"config.full.rotary_dim: expected an even number up to head_dim 24, found 7"),
        ("full.rotary_dim", 26, r"config.full.rotary_dim: "),
        ("full.window", 8, r"config.full.window: expected 0"),
        ("sliding.window", 0, r"config.sliding.window: expected 1"),
        ("full.rope_theta", 0.0, r"config.full.rope_theta: "),
        ("full.sinks", 2, r"config.full.sinks: expected 0 or 1, found 2"),
        ("layer_sliding", [0, 2], r"config.layer_sliding\[1\]: expected 0 to 1, found 2"),
        ("layer_sparse", [0], r"config.layer_sparse: expected 2 entries, one per layer, found 1"),
    ],
)
def test_every_rule(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _probe.config_check(changed(path, value))


def test_kinds_that_no_layer_uses_are_not_checked() -> None:
    config = changed("layer_sliding", [0, 0]) | {"layer_sparse": [0, 0], "experts": 0, "top_k": 0, "expert_width": 0}
    config["sliding"] = {**FULL, "heads": 0}
    _probe.config_check(config)


@pytest.mark.parametrize("key", [*CONFIG, "full.heads", "sliding.window"])
def test_missing_key_is_named(key: str) -> None:
    config = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    at = config
    for parent in parents:
        at = at[parent]
    del at[last]
    with pytest.raises(ValueError, match=rf"config\.{key}: expected a value, found none"):
        _probe.config_check(config)


def test_wrong_types_are_named() -> None:
    with pytest.raises(TypeError, match=r"config.hidden: expected an integer, found 64.0"):
        _probe.config_check(changed("hidden", 64.0))
    with pytest.raises(TypeError, match=r"config.norm_eps: expected a number, found 'small'"):
        _probe.config_check(changed("norm_eps", "small"))
    with pytest.raises(TypeError, match=r"config: expected a dict"):
        _probe.config_check(3)
