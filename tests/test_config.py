"""config.json in every spelling, and every value it must refuse."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

from mimo_ultraspeed.config import ModelConfig
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import SHAPES

FLASH: dict[str, Any] = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "auto_map": {"AutoModel": "modeling_mimo_v2_flash.MiMoV2FlashForCausalLM"},
    "model_type": "mimo_v2_flash",
    "hidden_size": 4096,
    "num_hidden_layers": 4,
    "vocab_size": 152576,
    "max_position_embeddings": 262144,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "rope_theta": 5000000,
    "swa_rope_theta": 10000,
    "partial_rotary_factor": 0.334,
    "sliding_window": 128,
    "sliding_window_size": 128,
    "attention_chunk_size": 128,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "attention_value_scale": 0.707,
    "attention_bias": False,
    "intermediate_size": 16384,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": None,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": None,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1],
    "layernorm_epsilon": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "transformers_version": "4.40.1",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "ignored_layers": ["model.layers.0.self_attn.o_proj"],
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    """FLASH with fields replaced; `...` removes one."""
    raw = copy.deepcopy(FLASH) | changes
    return {key: value for key, value in raw.items() if value is not ...}


def read(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(changed(**changes))


def test_published_flash_config_reads_without_a_warning():
    config = read()
    assert (config.full.num_heads, config.full.num_kv_heads, config.full.window, config.full.sinks) == (64, 4, 0, False)
    assert (config.sliding.num_kv_heads, config.sliding.window, config.sliding.sinks) == (8, 128, True)
    assert config.full.rotary_dim == config.sliding.rotary_dim == 64
    assert (config.full.rope_theta, config.sliding.rope_theta) == (5e6, 1e4)
    assert (config.routed_scaling_factor, config.attention_value_scale) == (1.0, 0.707)
    assert (config.quantization, config.fused_qkv, config.router_dtype) == ("fp8", False, None)
    assert config.hybrid_layer_pattern == (0, 1, 1, 0)
    assert config.moe_layer_freq == (0, 1, 1, 1)


def test_to_core_is_the_documented_dictionary():
    attention = {"heads": 64, "kv_heads": 4, "head_dim": 192, "v_head_dim": 128, "rotary_dim": 64}
    assert read().to_core(4) == {
        "hidden": 4096,
        "layers": 4,
        "vocab": 152576,
        "max_positions": 262144,
        "dense_width": 16384,
        "expert_width": 2048,
        "experts": 256,
        "top_k": 8,
        "norm_eps": 1e-5,
        "value_scale": 0.707,
        "routed_scale": 1.0,
        "norm_topk": 1,
        "tied_head": 0,
        "qkv_chunks": 4,
        "full": attention | {"window": 0, "rope_theta": 5e6, "sinks": 0},
        "sliding": attention | {"kv_heads": 8, "window": 128, "rope_theta": 1e4, "sinks": 1},
        "layer_sliding": [0, 1, 1, 0],
        "layer_sparse": [0, 1, 1, 1],
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_written_config_reads_back_equal(shape):
    config = ModelConfig.from_dict(SHAPES[shape] | {"attention_projection_layout": "fused_qkv", "moe_router_dtype": "bfloat16"})
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_written_config_keeps_separate_rotary_factors():
    kinds = {"full_attention": 0.5, "sliding_attention": 0.25}
    rope = {kind: {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part} for kind, part in kinds.items()}
    config = read(rope_parameters=rope, rope_theta=..., swa_rope_theta=..., partial_rotary_factor=...)
    assert (config.full.rotary_dim, config.sliding.rotary_dim) == (96, 48)
    assert ModelConfig.from_dict(config.to_dict()) == config


# The same value under its other name.
@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("layernorm_epsilon", "rms_norm_eps", 1e-5),
        ("n_routed_experts", "num_experts", 256),
        ("n_routed_experts", "num_local_experts", 256),
        ("sliding_window", "sliding_window_size", 128),
        ("sliding_window_size", "sliding_window", 128),
        ("torch_dtype", "dtype", "bfloat16"),
        ("hybrid_layer_pattern", "layer_types", ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]),
        ("moe_layer_freq", "mlp_layer_types", ["dense", "sparse", "sparse", "sparse"]),
        ("moe_layer_freq", "first_k_dense_replace", 1),
        ("rope_theta", "rope_parameters", {"rope_type": "default", "rope_theta": 5000000, "partial_rotary_factor": 0.334}),
        ("rope_theta", "rope_scaling", {"type": "default", "rope_theta": 5000000.0}),
        ("partial_rotary_factor", "rope_parameters", {"partial_rotary_factor": 0.334}),
    ],
)
def test_other_spelling_reads_equal(old, new, value):
    assert read(**{old: ..., new: value}) == read()


@pytest.mark.parametrize(
    ("name", "fallback"),
    [
        ("swa_num_attention_heads", "num_attention_heads"),
        ("swa_num_key_value_heads", "num_key_value_heads"),
        ("swa_head_dim", "head_dim"),
        ("swa_v_head_dim", "v_head_dim"),
        ("swa_rope_theta", "rope_theta"),
    ],
)
@pytest.mark.parametrize("absent", [..., None])
def test_sliding_fields_fall_back_to_the_full_ones(name, fallback, absent):
    assert read(**{name: absent}) == read(**{name: FLASH[fallback]})


def test_config_that_transformers_wrote():
    """It names layers by type, counts the query in the window, and leaves out what its class doubles by itself."""
    removed = [name for name in FLASH if name.startswith(("swa_", "add_"))] + [
        "hybrid_layer_pattern",
        "rope_theta",
        "moe_layer_freq",
    ]
    theirs = {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "sliding_window": 129,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.334},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.334},
        },
    }
    assert read(**dict.fromkeys(removed, ...), **theirs) == read()


def test_nested_text_config_wins_over_the_outer_object():
    inner = changed()
    outer = {
        "model_type": "mimo_v2",
        "text_config": inner,
        "vision_config": {"depth": 2},
        "hidden_size": 1,
        "tie_word_embeddings": True,
    }
    assert ModelConfig.from_dict(outer) == read()


@pytest.mark.parametrize(
    ("freq", "first", "sparse"), [(0, 0, (0, 0, 0, 0)), (1, 0, (1, 1, 1, 1)), (2, 1, (0, 0, 1, 0)), (1, 2, (0, 0, 1, 1))]
)
def test_layer_frequency_as_a_number(freq, first, sparse):
    assert read(moe_layer_freq=freq, first_k_dense_replace=first).moe_layer_freq == sparse


def test_dense_model_needs_no_expert_fields():
    gone = dict.fromkeys(["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_layer_freq"], ...)
    config = read(**gone)
    assert config.moe_layer_freq == (0, 0, 0, 0)
    assert (config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (0, 0, 0)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_full_model_needs_no_sliding_fields():
    config = read(hybrid_layer_pattern=[0, 0, 0, 0], sliding_window=..., sliding_window_size=...)
    assert config.sliding.window == 0


def test_value_scale_is_one_when_absent():
    assert read(attention_value_scale=None).attention_value_scale == 1.0


def test_mxfp4_and_fused_layout():
    quantization = FLASH["quantization_config"] | {"store_dtype": "mxfp4", "mxfp4_block_size": 32}
    config = read(quantization_config=quantization, attention_projection_layout="fused_qkv", moe_router_dtype="bfloat16")
    assert (config.quantization, config.fused_qkv, config.router_dtype) == ("mxfp4", True, "bfloat16")
    assert read(quantization_config=None).quantization is None


def test_unknown_keys_make_one_warning_that_lists_them():
    quantization = FLASH["quantization_config"] | {"surprise": 1}
    with pytest.warns(UserWarning, match=r"ignored 3 unknown keys: aardvark, zebra, quantization_config\.surprise") as caught:
        config = read(zebra=1, aardvark={"x": 2}, quantization_config=quantization)
    assert len(caught) == 1
    assert config == read()


def test_leftovers_of_published_files_make_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(attention_chunk_size=7, auto_map={"AutoConfig": "evil.py"}, vision_config={}, num_nextn_predict_layers=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "4096"}, "config.json: hidden_size: expected a positive integer, found '4096'"),
        ({"hidden_size": ...}, "hidden_size: expected a positive integer, found nothing"),
        ({"hidden_size": None}, "hidden_size: expected a positive integer, found nothing"),
        ({"hidden_size": 4096.0}, "hidden_size: expected a positive integer, found 4096.0"),
        ({"hidden_size": True}, "hidden_size: expected a positive integer, found True"),
        ({"hidden_size": 0}, "hidden_size: expected a positive integer, found 0"),
        ({"vocab_size": 2**31}, "vocab_size: expected at most 2147483647, found 2147483648"),
        ({"num_hidden_layers": 513}, "num_hidden_layers: expected at most 512, found 513"),
        ({"model_type": "llama"}, "model_type: expected 'mimo_v2'"),
        ({"model_type": 3}, "model_type: expected 'mimo_v2'"),
        ({"layernorm_epsilon": "1e-5"}, "layernorm_epsilon: expected a positive number, found '1e-5'"),
        ({"layernorm_epsilon": ...}, "layernorm_epsilon: expected a positive number, found nothing"),
        ({"layernorm_epsilon": -1e-5}, "layernorm_epsilon: expected a positive number that float32 can hold, found -1e-05"),
        ({"rope_theta": float("inf")}, "rope_theta: expected a positive number that float32 can hold, found inf"),
        ({"rope_theta": 10**400}, "rope_theta: expected a positive number that float32 can hold"),
        ({"rope_theta": ...}, "rope_theta: expected a positive number, found nothing"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps: expected 1e-05 as layernorm_epsilon says, found 1e-06"),
        ({"sliding_window_size": 64}, "sliding_window_size: expected 128 as sliding_window says, found 64"),
        ({"num_experts": 8}, "num_experts: expected 256 as n_routed_experts says, found 8"),
        ({"sliding_window": ..., "sliding_window_size": ...}, "sliding_window: expected a positive integer, found nothing"),
        ({"hybrid_layer_pattern": ...}, "hybrid_layer_pattern: expected a list of 4 values"),
        ({"hybrid_layer_pattern": "0110"}, "hybrid_layer_pattern: expected a list of 0 or 1, found '0110'"),
        ({"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern: expected 4 values as num_hidden_layers says, found '2 values'"),
        ({"hybrid_layer_pattern": [0, 1, 2, 0]}, "hybrid_layer_pattern[2]: expected 0 or 1, found 2"),
        ({"hybrid_layer_pattern": [0, 1, True, 0]}, "hybrid_layer_pattern[2]: expected 0 or 1, found True"),
        ({"hybrid_layer_pattern": [0, 1, [], 0]}, "hybrid_layer_pattern[2]: expected 0 or 1, found []"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types: expected the layers of hybrid_layer_pattern"),
        ({"layer_types": ["full_attention", "chunked"] * 2}, "layer_types[1]: expected 'full_attention' or 'sliding_attention'"),
        ({"moe_layer_freq": [0, 1, 1, "1"]}, "moe_layer_freq[3]: expected 0 or 1, found '1'"),
        ({"moe_layer_freq": -1}, "moe_layer_freq: expected 0 to 4, or a list, found -1"),
        ({"moe_layer_freq": 1.5}, "moe_layer_freq: expected a list of 0 or 1, found 1.5"),
        (
            {"n_routed_experts": ...},
            "n_routed_experts: expected a positive integer, as moe_layer_freq has sparse layers, found nothing",
        ),
        ({"num_experts_per_tok": 257}, "num_experts_per_tok: expected at most 64, found 257"),
        ({"num_experts_per_tok": ...}, "num_experts_per_tok: expected a positive integer, found nothing"),
        ({"num_key_value_heads": 5}, "num_key_value_heads: expected a divisor of 64 heads, found 5"),
        ({"swa_num_key_value_heads": 5}, "swa_num_key_value_heads: expected a divisor of 64 heads, found 5"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected at most 1, found 1.5"),
        ({"partial_rotary_factor": 0.33}, "partial_rotary_factor: expected a positive even number of rotated dims"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type: expected 'default', found 'yarn'"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor: expected no scaling of rotary positions, found 4.0"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object, found 'linear'"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta: expected 10000.0 as rope_parameters says, found 5000000"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "llama3"}}},
            "rope_parameters.full_attention.rope_type: expected 'default'",
        ),
        ({"scoring_func": "softmax"}, "scoring_func: expected 'sigmoid', found 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method: expected 'noaux_tc', found 'greedy'"),
        ({"n_group": 2}, "n_group: expected 1, found 2"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ({"attention_bias": True}, "attention_bias: expected False, found True"),
        ({"n_shared_experts": 1}, "n_shared_experts: expected 0, found 1"),
        ({"attention_projection_layout": "kqv"}, "attention_projection_layout: expected 'fused_qkv', found 'kqv'"),
        ({"moe_router_dtype": "float64"}, "moe_router_dtype: expected 'bfloat16' or 'float32', found 'float64'"),
        ({"torch_dtype": "float16"}, "torch_dtype: expected 'bfloat16' or 'float32', found 'float16'"),
        ({"text_config": [1]}, "text_config: expected an object, found [1]"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method: expected 'fp8', found 'awq'"),
        ({"quantization_config": {}}, "quantization_config.quant_method: expected 'fp8', found nothing"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}}, "quantization_config.fmt: expected 'e4m3', found 'e5m2'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}},
            "quantization_config.weight_block_size: expected [128, 128], found [64, 128]",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "store_dtype": "nvfp4"}},
            "quantization_config.store_dtype: expected 'fp8' or 'mxfp4', found 'nvfp4'",
        ),
    ],
)
def test_refused_value_is_named(changes, message):
    with pytest.raises(CheckpointError) as caught:
        read(**changes)
    assert message in str(caught.value)


def test_message_about_a_huge_value_is_short():
    with pytest.raises(CheckpointError) as caught:
        read(hidden_size="x" * 10_000_000)
    assert len(str(caught.value)) < 300


def test_anything_but_an_object_is_refused():
    with pytest.raises(CheckpointError, match="expected an object"):
        ModelConfig.from_dict([1, 2])  # type: ignore[arg-type]
