"""config.json of a MiMo-V2 checkpoint, in all its spellings, as plain checked values.

A closed schema: keys this reader does not know are ignored with one warning that lists them; a key it knows with a value it
cannot honour is a CheckpointError that names the key, what was expected and what was found. Nothing is computed that a file
states: the pattern of full and sliding layers is read, never derived.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import CheckpointError
from .safetensors_read import show

__all__ = ["AttentionConfig", "Fields", "ModelConfig", "read_list", "read_rope"]

_MAX_LAYERS = 512
_MAX_TOP_K = 64
_MAX_INTEGER = 2**31 - 1

# Known, and without effect on what the language model computes here. attention_chunk_size is a leftover of the published files.
_WORDS = """
architectures attention_chunk_size attention_dropout audio_config audio_end_token_id audio_pad_token_id audio_start_token_id
audio_token_id auto_map bos_token_id eos_token_id id2label image_token_id initializer_range is_encoder_decoder label2id
num_nextn_predict_layers output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp
processor_config return_dict router_aux_loss_coef speech_config topk_group transformers_version use_cache video_token_id
vision_config vision_end_token_id vision_start_token_id vision_token_id
"""
_WITHOUT_EFFECT = frozenset(_WORDS.split())
_WITHOUT_EFFECT_QUANTIZATION = frozenset({"ignored_layers", "modules_to_not_convert"})


@dataclass(frozen=True)
class AttentionConfig:
    """The attention of one kind of layer (full or sliding)."""

    num_heads: int
    """N, query heads."""
    num_kv_heads: int
    """G, key/value heads; divides num_heads."""
    head_dim: int
    """D, width of a query or key head."""
    v_head_dim: int
    """Dv, width of a value head."""
    partial_rotary_factor: float
    """Part of head_dim that is rotated, 0 to 1."""
    rope_theta: float
    """Base of the rotary frequencies."""
    window: int
    """Key j is visible from query i iff 0 <= i - j < window; 0 is no window."""
    sinks: bool
    """One learned logit per query head in the softmax denominator."""

    @property
    def rotary_dim(self) -> int:
        """First dims of a query or key head that are rotated: int(head_dim * partial_rotary_factor)."""
        return int(self.head_dim * self.partial_rotary_factor)


@dataclass(frozen=True)
class ModelConfig:
    """The language model of a MiMo-V2 checkpoint. Field names are those of the published config.json files."""

    hidden_size: int
    """H."""
    num_hidden_layers: int
    """L."""
    vocab_size: int
    """V, rows of the embedding; the tokenizer may have fewer entries."""
    max_position_embeddings: int
    """Longest context in tokens."""
    intermediate_size: int
    """F of dense layers; 0 when every layer is sparse and the file gives none."""
    moe_intermediate_size: int
    """F of one expert; 0 without sparse layers."""
    n_routed_experts: int
    """E; 0 without sparse layers."""
    num_experts_per_tok: int
    """K experts chosen per token; 0 without sparse layers."""
    layernorm_epsilon: float
    attention_value_scale: float
    """Values are multiplied by it before they enter the cache."""
    routed_scaling_factor: float
    """The weighted sum of experts is multiplied by it."""
    norm_topk_prob: bool
    """The weights of the chosen experts are divided by their sum."""
    tie_word_embeddings: bool
    """The head is the embedding matrix."""
    full: AttentionConfig
    sliding: AttentionConfig
    hybrid_layer_pattern: tuple[int, ...]
    """Per layer: 0 full attention, 1 sliding window."""
    moe_layer_freq: tuple[int, ...]
    """Per layer: 0 dense MLP, 1 mixture of experts."""
    fused_qkv: bool
    """q, k and v are one tensor of tensor-parallel chunks [Q|K|V]."""
    quantization: str | None
    """None (BF16 or F32), "fp8", or "mxfp4" (experts in MXFP4, the other quantised matrices in FP8)."""
    router_dtype: str | None
    """dtype of the router weights as the file states it ("bfloat16", "float32"), None when it does not."""
    dtype: str
    """dtype of the unquantised weights: "bfloat16" or "float32"."""
    model_type: str

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
        """Reads a parsed config.json.

        raw: the top-level object; a nested `text_config` is merged over it. source: the file's name, for messages.
        Raises CheckpointError; warns once (UserWarning) about keys it does not know.
        """
        if not isinstance(raw, Mapping):
            raise CheckpointError(f"{source}: expected an object, found {show(raw)}")
        fields = Fields(_merge_text_config(raw, source), f"{source}: ")
        config = _read_model(fields)
        fields.warn_about_unknown()
        return config

    def to_core(self, qkv_chunks: int) -> dict[str, Any]:
        """The `config` argument of _core.Engine. qkv_chunks: chunks of the fused qkv tensors, 0 for split q/k/v."""
        return {
            "hidden": self.hidden_size,
            "layers": self.num_hidden_layers,
            "vocab": self.vocab_size,
            "max_positions": self.max_position_embeddings,
            "dense_width": self.intermediate_size,
            "expert_width": self.moe_intermediate_size,
            "experts": self.n_routed_experts,
            "top_k": self.num_experts_per_tok,
            "norm_eps": self.layernorm_epsilon,
            "value_scale": self.attention_value_scale,
            "routed_scale": self.routed_scaling_factor,
            "norm_topk": int(self.norm_topk_prob),
            "tied_head": int(self.tie_word_embeddings),
            "qkv_chunks": qkv_chunks,
            "full": _attention_to_core(self.full),
            "sliding": _attention_to_core(self.sliding),
            "layer_sliding": list(self.hybrid_layer_pattern),
            "layer_sparse": list(self.moe_layer_freq),
        }

    def to_dict(self) -> dict[str, Any]:
        """A config.json in the published spelling; from_dict reads it back to an equal value."""
        full, sliding = self.full, self.sliding
        raw: dict[str, Any] = {
            "architectures": ["MiMoV2FlashForCausalLM" if self.model_type == "mimo_v2_flash" else "MiMoV2ForCausalLM"],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "intermediate_size": self.intermediate_size or None,
            "moe_intermediate_size": self.moe_intermediate_size or None,
            "n_routed_experts": self.n_routed_experts or None,
            "n_shared_experts": None,
            "num_experts_per_tok": self.num_experts_per_tok or None,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": self.norm_topk_prob,
            "routed_scaling_factor": self.routed_scaling_factor,
            "layernorm_epsilon": self.layernorm_epsilon,
            "attention_value_scale": self.attention_value_scale,
            "attention_bias": False,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tie_word_embeddings,
            "num_attention_heads": full.num_heads,
            "num_key_value_heads": full.num_kv_heads,
            "head_dim": full.head_dim,
            "v_head_dim": full.v_head_dim,
            "rope_theta": full.rope_theta,
            "partial_rotary_factor": full.partial_rotary_factor,
            "add_full_attention_sink_bias": full.sinks,
            "swa_num_attention_heads": sliding.num_heads,
            "swa_num_key_value_heads": sliding.num_kv_heads,
            "swa_head_dim": sliding.head_dim,
            "swa_v_head_dim": sliding.v_head_dim,
            "swa_rope_theta": sliding.rope_theta,
            "add_swa_attention_sink_bias": sliding.sinks,
            "sliding_window": sliding.window or None,
            "sliding_window_size": sliding.window or None,
            "hybrid_layer_pattern": list(self.hybrid_layer_pattern),
            "moe_layer_freq": list(self.moe_layer_freq),
            "torch_dtype": self.dtype,
        }
        if sliding.partial_rotary_factor != full.partial_rotary_factor:
            raw["rope_parameters"] = {
                "full_attention": _rope_to_dict(full),
                "sliding_attention": _rope_to_dict(sliding),
            }
        if self.fused_qkv:
            raw["attention_projection_layout"] = "fused_qkv"
        if self.router_dtype is not None:
            raw["moe_router_dtype"] = self.router_dtype
        if self.quantization is not None:
            raw["quantization_config"] = self._quantization_to_dict()
        return raw

    def _quantization_to_dict(self) -> dict[str, Any]:
        quantization: dict[str, Any] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "ignored_layers": [f"model.layers.{i}.self_attn.o_proj" for i in range(self.num_hidden_layers)],
        }
        if self.quantization == "mxfp4":
            quantization |= {"store_dtype": "mxfp4", "mxfp4_block_size": 32}
        return quantization


def _attention_to_core(attention: AttentionConfig) -> dict[str, Any]:
    return {
        "heads": attention.num_heads,
        "kv_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "v_head_dim": attention.v_head_dim,
        "rotary_dim": attention.rotary_dim,
        "window": attention.window,
        "rope_theta": attention.rope_theta,
        "sinks": int(attention.sinks),
    }


def _rope_to_dict(attention: AttentionConfig) -> dict[str, Any]:
    return {
        "rope_type": "default",
        "rope_theta": attention.rope_theta,
        "partial_rotary_factor": attention.partial_rotary_factor,
    }


def _merge_text_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    nested = raw.get("text_config")
    if nested is None:
        return {key: value for key, value in raw.items() if key != "text_config"}
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{source}: text_config: expected an object, found {show(nested)}")
    outer = {key: value for key, value in raw.items() if key != "text_config"}
    return {**outer, **{key: value for key, value in nested.items() if value is not None or key not in outer}}


class Fields:
    """Typed access to a JSON object by any of several spellings; remembers what was asked for."""

    def __init__(self, raw: Mapping[str, Any], prefix: str, without_effect: frozenset[str] = _WITHOUT_EFFECT) -> None:
        self._raw = raw
        self._prefix = prefix
        self._known = set(without_effect)
        self._unknown_nested: list[str] = []

    def fail(self, name: str, expected: str, found: object) -> CheckpointError:
        shown = "nothing" if found is None else show(found)
        return CheckpointError(f"{self._prefix}{name}: expected {expected}, found {shown}")

    def take(self, *names: str) -> tuple[str, Any]:
        """The spelling in use and its value; null is absent, and then the first spelling is named."""
        self._known.update(names)
        present = [(name, self._raw[name]) for name in names if self._raw.get(name) is not None]
        if not present:
            return names[0], None
        first, value = present[0]
        for other, second in present[1:]:
            if type(value) is not type(second) or value != second:
                raise self.fail(other, f"{show(value)} as {first} says", second)
        return first, value

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        name, value = self.take(*names)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= _MAX_INTEGER:
            kind = "a positive integer" if least == 1 else f"an integer of {least} or more"
            raise self.fail(name, kind if type(value) is not int or value < least else f"at most {_MAX_INTEGER}", value)
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        name, value = self.take(*names)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(name, "a positive number", value)
        if not 1e-38 <= value <= 3.4e38:  # the core keeps these values as float32
            raise self.fail(name, "a positive number that float32 can hold", value)
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        name, value = self.take(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", value)
        return value

    def choice(self, allowed: Mapping[str, str], *names: str, default: str) -> str:
        name, value = self.take(*names)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(name, " or ".join(repr(word) for word in allowed), value)
        return allowed[value]

    def only(self, expected: object, *names: str) -> None:
        """A field this engine honours at one value alone; absent is that value."""
        name, value = self.take(*names)
        if value is not None and (type(value) is not type(expected) or value != expected):
            raise self.fail(name, show(expected), value)

    def nested(self, name: str, without_effect: frozenset[str] = frozenset()) -> Fields | None:
        _, value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(name, "an object", value)
        return Fields(value, f"{self._prefix}{name}.", without_effect)

    def keys(self) -> set[str]:
        return set(self._raw)

    def unknown(self) -> list[str]:
        return sorted(str(key) for key in self._raw if key not in self._known) + self._unknown_nested

    def adopt_unknown(self, name: str, inner: Fields) -> None:
        self._unknown_nested += [f"{name}.{key}" for key in inner.unknown()]

    def warn_about_unknown(self) -> None:
        unknown = self.unknown()
        if unknown:
            shown = ", ".join(show(key)[1:-1] for key in unknown[:20]) + (", ..." if len(unknown) > 20 else "")
            warnings.warn(f"{self._prefix}ignored {len(unknown)} unknown keys: {shown}", UserWarning, stacklevel=4)


def _read_model(fields: Fields) -> ModelConfig:
    name, model_type = fields.take("model_type")
    if model_type is None:
        model_type = "mimo_v2"
    if not isinstance(model_type, str) or not model_type.startswith("mimo_v2"):
        raise fields.fail(name, "'mimo_v2' or 'mimo_v2_flash' (other models: see `mimo-ultraspeed convert`)", model_type)
    _refuse_unsupported(fields)
    layers = fields.integer("num_hidden_layers")
    if layers > _MAX_LAYERS:
        raise fields.fail("num_hidden_layers", f"at most {_MAX_LAYERS}", layers)
    pattern, by_names = _read_pattern(fields, layers)
    hidden = fields.integer("hidden_size")
    # The class of transformers that writes layer_types doubles the KV heads of sliding layers and gives them sinks by itself.
    full, sliding = _read_attention(fields, hidden, pattern, implied=by_names and model_type == "mimo_v2_flash")
    experts = fields.integer("n_routed_experts", "num_experts", "num_local_experts", default=0, least=0)
    sparse = _read_sparse(fields, layers, experts)
    top_k = fields.integer("num_experts_per_tok", default=None if any(sparse) else 0, least=int(any(sparse)))
    expert_width = fields.integer("moe_intermediate_size", default=None if any(sparse) else 0, least=int(any(sparse)))
    dense_width = fields.integer("intermediate_size", default=0 if all(sparse) else None, least=int(not all(sparse)))
    if any(sparse) and top_k > min(experts, _MAX_TOP_K):
        raise fields.fail("num_experts_per_tok", f"at most {min(experts, _MAX_TOP_K)}", top_k)
    return ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        intermediate_size=dense_width,
        moe_intermediate_size=expert_width if any(sparse) else 0,
        n_routed_experts=experts if any(sparse) else 0,
        num_experts_per_tok=top_k if any(sparse) else 0,
        layernorm_epsilon=fields.number("layernorm_epsilon", "rms_norm_eps"),
        attention_value_scale=fields.number("attention_value_scale", default=1.0),
        routed_scaling_factor=fields.number("routed_scaling_factor", default=1.0),
        norm_topk_prob=fields.flag("norm_topk_prob", default=True),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        full=full,
        sliding=sliding,
        hybrid_layer_pattern=pattern,
        moe_layer_freq=sparse,
        fused_qkv=fields.choice({"fused_qkv": "fused_qkv"}, "attention_projection_layout", default="split") == "fused_qkv",
        quantization=_read_quantization(fields),
        router_dtype=fields.choice({"bfloat16": "bfloat16", "float32": "float32"}, "moe_router_dtype", default="") or None,
        dtype=fields.choice({"bfloat16": "bfloat16", "float32": "float32"}, "torch_dtype", "dtype", default="bfloat16"),
        model_type=model_type,
    )


def _refuse_unsupported(fields: Fields) -> None:
    fields.only("silu", "hidden_act")
    fields.only(False, "attention_bias")
    fields.only(False, "mlp_bias")
    fields.only(0, "n_shared_experts", "num_shared_experts")
    fields.only("sigmoid", "scoring_func")
    fields.only("noaux_tc", "topk_method")
    fields.only(1, "n_group")


def _read_pattern(fields: Fields, layers: int) -> tuple[tuple[int, ...], bool]:
    """Per layer 0 full or 1 sliding; and whether the file says it by names (layer_types)."""
    numbers = read_list(fields, "hybrid_layer_pattern", layers, {0: 0, 1: 1})
    names = read_list(fields, "layer_types", layers, {"full_attention": 0, "sliding_attention": 1})
    if numbers is None and names is None:
        raise fields.fail("hybrid_layer_pattern", f"a list of {layers} values, 0 (full) or 1 (sliding), or layer_types", None)
    if numbers is not None and names is not None and numbers != names:
        raise fields.fail("layer_types", "the layers of hybrid_layer_pattern", fields.take("layer_types")[1])
    pattern = numbers if numbers is not None else names
    assert pattern is not None
    return pattern, numbers is None


def read_list(fields: Fields, name: str, layers: int, values: Mapping[Any, int]) -> tuple[int, ...] | None:
    _, given = fields.take(name)
    if given is None:
        return None
    words = " or ".join(repr(value) for value in values)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise fields.fail(name, f"a list of {words}", given)
    if len(given) != layers:
        raise fields.fail(name, f"{layers} values as num_hidden_layers says", f"{len(given)} values")
    kinds = {type(value) for value in values}
    for i, value in enumerate(given):
        if type(value) not in kinds or value not in values:
            raise fields.fail(f"{name}[{i}]", words, value)
    return tuple(values[value] for value in given)


def _read_sparse(fields: Fields, layers: int, experts: int) -> tuple[int, ...]:
    """Per layer 0 dense or 1 sparse: a list, or every n-th layer, both after the first k dense ones."""
    first = fields.integer("first_k_dense_replace", default=0, least=0)
    by_name = read_list(fields, "mlp_layer_types", layers, {"dense": 0, "sparse": 1})
    _, freq = fields.take("moe_layer_freq")
    if freq is None and by_name is not None:
        sparse = by_name
    elif freq is None or type(freq) is int:
        if freq is not None and not 0 <= freq <= layers:
            raise fields.fail("moe_layer_freq", f"0 to {layers}, or a list", freq)
        step = (1 if experts else 0) if freq is None else freq
        sparse = tuple(int(step > 0 and i >= first and i % max(step, 1) == 0) for i in range(layers))
    else:
        listed = read_list(fields, "moe_layer_freq", layers, {0: 0, 1: 1})
        assert listed is not None
        sparse = listed
    if any(sparse) and not experts:
        raise fields.fail("n_routed_experts", "a positive integer, as moe_layer_freq has sparse layers", experts or None)
    return sparse


def _read_attention(
    fields: Fields, hidden: int, pattern: Sequence[int], *, implied: bool
) -> tuple[AttentionConfig, AttentionConfig]:
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    head_dim = fields.integer("head_dim", default=max(hidden // heads, 1))
    v_head_dim = fields.integer("v_head_dim", default=head_dim)
    rope = read_rope(fields)
    swa_head_dim = fields.integer("swa_head_dim", default=head_dim)
    full = AttentionConfig(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        partial_rotary_factor=rope[0][1],
        rope_theta=rope[0][0],
        window=0,
        sinks=fields.flag("add_full_attention_sink_bias"),
    )
    sliding = AttentionConfig(
        num_heads=fields.integer("swa_num_attention_heads", default=heads),
        num_kv_heads=fields.integer("swa_num_key_value_heads", default=2 * kv_heads if implied else kv_heads),
        head_dim=swa_head_dim,
        v_head_dim=fields.integer("swa_v_head_dim", default=v_head_dim),
        partial_rotary_factor=rope[1][1],
        rope_theta=rope[1][0],
        window=_read_window(fields, needed=any(pattern)),
        sinks=fields.flag("add_swa_attention_sink_bias", default=implied),
    )
    _check_attention(fields, full, "")
    if any(pattern):
        _check_attention(fields, sliding, "swa_")
    return full, sliding


def _check_attention(fields: Fields, attention: AttentionConfig, prefix: str) -> None:
    if attention.num_heads % attention.num_kv_heads:
        raise fields.fail(f"{prefix}num_key_value_heads", f"a divisor of {attention.num_heads} heads", attention.num_kv_heads)
    if attention.partial_rotary_factor > 1:
        raise fields.fail("partial_rotary_factor", "at most 1", attention.partial_rotary_factor)
    if attention.rotary_dim % 2 or attention.rotary_dim == 0:
        found = f"{attention.partial_rotary_factor} * {attention.head_dim} -> {attention.rotary_dim}"
        raise fields.fail("partial_rotary_factor", f"a positive even number of rotated dims of {prefix}head_dim", found)


def _read_window(fields: Fields, *, needed: bool) -> int:
    _, size = fields.take("sliding_window_size")
    _, window = fields.take("sliding_window")
    if type(size) is int and type(window) is int and window == size + 1:
        # Rewritten by transformers, which counts the query besides the window: the published figure is the window.
        return fields.integer("sliding_window_size")
    return fields.integer("sliding_window", "sliding_window_size", default=None if needed else 0, least=int(needed))


def read_rope(fields: Fields, default_theta: float | None = None) -> tuple[tuple[float, float], tuple[float, float]]:
    """(theta, partial factor) of full and of sliding layers, from flat keys or from the nested object of newer files."""
    nested: list[dict[str, float]] = [{}, {}]
    for name in ("rope_scaling", "rope_parameters"):
        outer = fields.nested(name)
        if outer is None:
            continue
        if outer.keys() & {"full_attention", "sliding_attention"}:
            for i, kind in enumerate(("full_attention", "sliding_attention")):
                inner = outer.nested(kind)
                if inner is not None:
                    nested[i] |= _read_rope_object(inner)
            if outer.unknown():
                raise outer.fail(outer.unknown()[0], "full_attention and sliding_attention only", "another key")
        else:
            nested = [old | _read_rope_object(outer) for old in nested]
    theta = _one_of(fields, "rope_theta", nested[0].get("rope_theta"))
    theta = default_theta if theta is None else theta
    if theta is None:
        raise fields.fail("rope_theta", "a positive number", None)
    factor = _one_of(fields, "partial_rotary_factor", nested[0].get("partial_rotary_factor"))
    factor = 1.0 if factor is None else factor
    _, swa_given = fields.take("swa_rope_theta")
    swa_theta = fields.number("swa_rope_theta", default=nested[1].get("rope_theta", theta))
    separate = nested[1].get("rope_theta")
    if swa_given is not None and separate is not None and separate not in (swa_theta, theta):
        raise fields.fail("swa_rope_theta", f"{separate} as rope_parameters says", swa_theta)
    return (theta, factor), (swa_theta, nested[1].get("partial_rotary_factor", factor))


def _one_of(fields: Fields, name: str, nested: float | None) -> float | None:
    _, flat = fields.take(name)
    if flat is None:
        return nested
    value = fields.number(name)
    if nested is not None and nested != value:
        raise fields.fail(name, f"{nested} as rope_parameters says", value)
    return value


def _read_rope_object(rope: Fields) -> dict[str, float]:
    rope.only("default", "rope_type", "type")
    read: dict[str, float] = {}
    for name in ("rope_theta", "partial_rotary_factor"):
        _, value = rope.take(name)
        if value is not None:
            read[name] = rope.number(name)
    if rope.unknown():
        name = rope.unknown()[0]
        raise rope.fail(name, "no scaling of rotary positions", rope.take(name)[1])
    return read


def _read_quantization(fields: Fields) -> str | None:
    inner = fields.nested("quantization_config", _WITHOUT_EFFECT_QUANTIZATION)
    if inner is None:
        return None
    name, method = inner.take("quant_method")
    if method != "fp8":
        raise inner.fail(name, "'fp8'", method)
    inner.only("e4m3", "fmt")
    inner.only("dynamic", "activation_scheme")
    inner.only([128, 128], "weight_block_size")
    inner.only(32, "mxfp4_block_size")
    stored = inner.choice({"fp8": "fp8", "mxfp4": "mxfp4"}, "store_dtype", default="fp8")
    fields.adopt_unknown("quantization_config", inner)
    return stored
