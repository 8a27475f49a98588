"""Writes seeded random checkpoints in the published layouts: for tests, for kernels at real dimensions, for benchmarks.

A made model is well behaved (activations stay of order one) and deterministic: a tensor's bytes depend on the seed and its
name only. Tensors are streamed to disk in pieces of a few MiB, so a checkpoint may be larger than memory.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import AttentionConfig, ModelConfig
from .safetensors_write import DTYPE_BYTES, ShardWriter, bf16_from_f32

__all__ = [
    "SHAPES",
    "SPECIAL_TOKENS",
    "Spec",
    "make",
    "matrix_specs",
    "mlp_specs",
    "norm_spec",
    "pieces",
    "write_all",
    "write_json",
]

_PIECE = 1 << 22  # elements generated at a time; a multiple of 4, as one random word makes 4 of them
_TILE = 128
_BLOCK = 32
_E4M3_SIGMA = 64.0  # standard deviation of FP8 codes before their scale: 4.2 sigma stay below 448
_E2M1_SIGMA = 2.0  # of MXFP4 codes: 3 sigma reach the largest, 6


def _pattern(layers: int, full: set[int]) -> list[int]:
    return [int(i not in full) for i in range(layers)]


_COMMON: dict[str, Any] = {
    "model_type": "mimo_v2",
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "swa_num_key_value_heads": 8,
    "swa_rope_theta": 10000.0,
    "rope_theta": 10000000.0,
    "partial_rotary_factor": 0.334,
    "sliding_window": 128,
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "attention_value_scale": 0.707,
    "intermediate_size": 16384,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "layernorm_epsilon": 1e-5,
    "vocab_size": 152576,
    "max_position_embeddings": 1048576,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_FLASH_BODY: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "swa_num_attention_heads": 64,
    "num_key_value_heads": 4,
    "hybrid_layer_pattern": _pattern(48, {0, 5, 11, 17, 23, 29, 35, 41, 47}),
    "moe_layer_freq": [0] + [1] * 47,
}

_MEDIUM: dict[str, Any] = _COMMON | {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "swa_num_attention_heads": 16,
    "num_key_value_heads": 2,
    "swa_num_key_value_heads": 4,
    "rope_theta": 5000000.0,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "n_routed_experts": 64,
    "vocab_size": 16384,
    "max_position_embeddings": 32768,
    "hybrid_layer_pattern": _pattern(24, {0, 7, 15, 23}),
    "moe_layer_freq": [0] + [1] * 23,
}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _COMMON
    | {
        "hidden_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "swa_num_attention_heads": 8,
        "num_key_value_heads": 2,
        "swa_num_key_value_heads": 4,
        "head_dim": 48,
        "v_head_dim": 32,
        "swa_head_dim": 48,
        "swa_v_head_dim": 32,
        "sliding_window": 8,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
    },
    "nano": _MEDIUM
    | {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "swa_num_attention_heads": 4,
        "num_key_value_heads": 1,
        "swa_num_key_value_heads": 2,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "vocab_size": 8192,
        "hybrid_layer_pattern": _pattern(8, {0, 7}),
        "moe_layer_freq": [0] + [1] * 7,
    },
    "medium": _MEDIUM,
    "flash": _COMMON | _FLASH_BODY | {"model_type": "mimo_v2_flash", "rope_theta": 5000000.0, "max_position_embeddings": 262144},
    "v2.5": _COMMON | _FLASH_BODY,
    "pro": _COMMON
    | {
        "hidden_size": 6144,
        "num_hidden_layers": 70,
        "num_attention_heads": 128,
        "swa_num_attention_heads": 128,
        "num_key_value_heads": 8,
        "attention_value_scale": 0.612,
        "n_routed_experts": 384,
        "hybrid_layer_pattern": _pattern(70, {0, 7, 15, 23, 31, 39, 47, 55, 62, 69}),
        "moe_layer_freq": [0] + [1] * 69,
    },
}
"""The language-model fields of config.json: "tiny" for tests, "nano" and "medium" for measurements, the others as published."""

_DEFAULTS = {
    "tiny": ("fused", "mxfp4"),
    "nano": ("fused", "mxfp4"),
    "medium": ("fused", "mxfp4"),
    "flash": ("flash", "fp8"),
    "v2.5": ("fused", "fp8"),
    "pro": ("fused", "fp8"),
}

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
"""Special tokens of a made tokenizer; their ids follow the 256 byte tokens."""

# MiMo's ChatML: no newline after <|im_end|>.
_CHAT_TEMPLATE = (
    "{%- if not messages or messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are MiMo, a helpful AI assistant engineered by Xiaomi.<|im_end|>' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{{- '<think>' + (message.reasoning_content or '') + '</think>' }}{%- endif %}"
    "{{- message.content + '<|im_end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}{%- endif %}"
)


def make(
    dest: str | os.PathLike[str],
    shape: str = "tiny",
    *,
    seed: int = 0,
    layout: str | None = None,
    weights: str | None = None,
    router: str = "f32",
    overrides: Mapping[str, Any] | None = None,
    mtp: bool = False,
    vision: bool = False,
    draft: bool | Mapping[str, Any] = False,
    index: bool = True,
    shard_bytes: int | None = None,
    headers_only: bool = False,
    progress: bool = True,
) -> Path:
    """Writes a random checkpoint into the new or empty folder `dest` and returns its path.

    shape: a key of SHAPES. overrides: fields of its config.json; a string is read as JSON where it is JSON ("128", "[0, 1]"), and a
      new num_hidden_layers cuts or continues the layer patterns.
    layout: "flash" (split q/k/v; the scale grid of K restarts with every head of a full layer) or "fused" (one qkv tensor of
      [Q|K|V] chunks, as many as full layers have KV heads, each with a scale grid of its own).
    weights: "bf16", "fp8" (128 x 128 tiles), or "mxfp4" (experts in MXFP4, qkv and dense MLPs in FP8). o_proj is BF16 in all.
    router: dtype of router weights, "f32" or "bf16". mtp, vision: add tensors that a reader has to skip.
    draft: True also writes a drafter into `dflash/`; a mapping gives options of `make_draft`.
    index: False writes one shard and no index. shard_bytes: largest shard, by default a third of the model, at most 4 GiB.
    headers_only: headers are real, data are holes of sparse files: any shape in no space and no time. Its weights are zeros.
    Raises ValueError for wrong arguments, CheckpointError for a config that contradicts itself, OSError for a folder with
    files in it or a full disk.
    """
    config = _config(shape, layout, weights, router, overrides or {})
    chunks = config.full.num_kv_heads if config.fused_qkv else 0
    specs = list(_tensors(config, chunks, router.upper(), mtp=mtp, vision=vision))
    options = _draft_options(draft, config)
    total = sum(spec.nbytes for spec in specs)
    folder = Path(dest)
    created = not folder.exists()
    if not created and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: expected a new or empty folder, found files in it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        free = shutil.disk_usage(folder).free
        if not headers_only and total > free:
            raise OSError(f"{folder}: expected {total} bytes of free disk space, found {free}")
        metadata: dict[str, Any] = {"save_format": config.quantization or "bf16"} | ({"tp_size": chunks} if chunks else {})
        largest = min(4 << 30, max(1, total // 3)) if shard_bytes is None else shard_bytes
        writer = ShardWriter(
            folder,
            max_shard_bytes=largest if index else max(1, total),
            index_metadata=metadata if index else None,
            holes=headers_only,
        )
        with writer:
            for spec in specs:
                writer.reserve(spec.name, spec.dtype, spec.shape)
            if not headers_only:
                write_all(writer, specs, seed, total, progress)
        _write_tokenizer(folder, config)
        write_json(folder / "config.json", config.to_dict())
        if options is not None:
            from .make_draft import make_draft

            make_draft(folder / "dflash", config, options, seed=seed, headers_only=headers_only, progress=progress)
    except BaseException:
        if created and not any(folder.iterdir()):
            folder.rmdir()
        raise
    return folder


def _draft_options(draft: bool | Mapping[str, Any], config: ModelConfig) -> dict[str, Any] | None:
    """Checked before anything is written; None for no drafter."""
    from .make_draft import resolve

    return None if draft is False else resolve(draft if isinstance(draft, Mapping) else {}, config)


def _config(shape: str, layout: str | None, weights: str | None, router: str, overrides: Mapping[str, Any]) -> ModelConfig:
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, found {shape!r}")
    layout = _DEFAULTS[shape][0] if layout is None else layout
    weights = _DEFAULTS[shape][1] if weights is None else weights
    for name, value, allowed in (
        ("layout", layout, ("flash", "fused")),
        ("weights", weights, ("bf16", "fp8", "mxfp4")),
        ("router", router, ("f32", "bf16")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    raw = dict(SHAPES[shape])
    for key, value in overrides.items():
        if key not in raw:
            near = difflib.get_close_matches(key, raw, 1)
            raise ValueError(f"{key!r} is not a field of a made config" + (f"; did you mean {near[0]!r}?" if near else ""))
        raw[key] = _value(value)
    if "num_hidden_layers" in overrides and type(raw["num_hidden_layers"]) is int:
        for key in ("hybrid_layer_pattern", "moe_layer_freq"):
            if key not in overrides:
                raw[key] = _resize(raw[key], raw["num_hidden_layers"])
    if layout == "fused":
        raw["attention_projection_layout"] = "fused_qkv"
    if router == "bf16":
        raw["moe_router_dtype"] = "bfloat16"
    if weights != "bf16":
        raw["quantization_config"] = {"quant_method": "fp8", "store_dtype": weights}
    return ModelConfig.from_dict(raw, source=f"made config {shape!r}")


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _resize(pattern: list[int], layers: int) -> list[int]:
    """The pattern's first entries; past its end, all but the first over and over (the first layer is special)."""
    tail = pattern[1:] or pattern
    return [pattern[i] if i < len(pattern) else tail[(i - len(pattern)) % len(tail)] for i in range(layers)]


@dataclass(frozen=True)
class Spec:
    """A tensor to be made; `fill` is how: normal, fp8, fp8_scale, mxfp4, mxfp4_scale, or d2t (a drafter's ids)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    fill: str
    std: float
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def _tensors(config: ModelConfig, chunks: int, router: str, *, mtp: bool, vision: bool) -> Iterator[Spec]:
    hidden, vocab = config.hidden_size, config.vocab_size
    plain = "fp8" if config.quantization else "bf16"
    head_std = 2 / math.sqrt(hidden)  # logits of a standard deviation of 2
    yield Spec("model.embed_tokens.weight", "BF16", (vocab, hidden), "normal", head_std if config.tie_word_embeddings else 1.0)
    for i, (sliding, sparse) in enumerate(zip(config.hybrid_layer_pattern, config.moe_layer_freq, strict=True)):
        prefix = f"model.layers.{i}."
        attention = config.sliding if sliding else config.full
        yield norm_spec(f"{prefix}input_layernorm.weight", hidden)
        yield from _attention(f"{prefix}self_attn.", attention, hidden, chunks, plain, restart_k=not sliding)
        yield norm_spec(f"{prefix}post_attention_layernorm.weight", hidden)
        if not sparse:
            yield from mlp_specs(f"{prefix}mlp.", hidden, config.intermediate_size, plain)
            continue
        experts = config.n_routed_experts
        yield Spec(f"{prefix}mlp.gate.weight", router, (experts, hidden), "normal", 1 / math.sqrt(hidden))
        yield Spec(f"{prefix}mlp.gate.e_score_correction_bias", "F32", (experts,), "normal", 0.1)
        for e in range(experts):
            yield from mlp_specs(f"{prefix}mlp.experts.{e}.", hidden, config.moe_intermediate_size, config.quantization or "bf16")
    yield norm_spec("model.norm.weight", hidden)
    if not config.tie_word_embeddings:
        yield Spec("lm_head.weight", "BF16", (vocab, hidden), "normal", head_std)
    if mtp:
        yield from _mtp(config, chunks, plain)
    if vision:
        for name in ("visual.blocks.0.attn.qkv.weight", "visual.patch_embed.proj.weight", "audio_encoder.layers.0.fc1.weight"):
            yield Spec(name, "BF16", (96, 32), "normal", 1.0)
        yield Spec("speech_embeddings.0.weight", "BF16", (128, hidden), "normal", 1.0)


def _mtp(config: ModelConfig, chunks: int, plain: str) -> Iterator[Spec]:
    hidden = config.hidden_size
    for i in range(3):
        prefix = f"model.mtp.layers.{i}."
        for name in ("enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm"):
            yield norm_spec(f"{prefix}{name}.weight", hidden)
        yield Spec(f"{prefix}eh_proj.weight", "BF16", (hidden, 2 * hidden), "normal", 1 / math.sqrt(2 * hidden))
        yield from _attention(f"{prefix}self_attn.", config.sliding, hidden, chunks, plain, restart_k=False)
        yield from mlp_specs(f"{prefix}mlp.", hidden, config.intermediate_size or hidden, plain)


def norm_spec(name: str, width: int) -> Spec:
    """A norm weight: around one."""
    return Spec(name, "BF16", (width,), "normal", 0.1, 1.0)


def _attention(
    prefix: str, attention: AttentionConfig, hidden: int, chunks: int, layout: str, *, restart_k: bool
) -> Iterator[Spec]:
    heads, kv_heads = attention.num_heads, attention.num_kv_heads
    q, k, v = heads * attention.head_dim, kv_heads * attention.head_dim, kv_heads * attention.v_head_dim
    if chunks:
        if heads % chunks or kv_heads % chunks:
            raise ValueError(f"a fused layout of {chunks} chunks needs heads it divides, found {heads} and {kv_heads}")
        scale_rows = chunks * _tiles((q + k + v) // chunks)
        yield from matrix_specs(f"{prefix}qkv_proj.weight", q + k + v, hidden, layout, scale_rows)
    else:
        yield from matrix_specs(f"{prefix}q_proj.weight", q, hidden, layout)
        k_rows = kv_heads * _tiles(attention.head_dim) if restart_k else None
        yield from matrix_specs(f"{prefix}k_proj.weight", k, hidden, layout, k_rows)
        yield from matrix_specs(f"{prefix}v_proj.weight", v, hidden, layout)
    yield from matrix_specs(f"{prefix}o_proj.weight", hidden, heads * attention.v_head_dim, "bf16")
    if attention.sinks:
        yield Spec(f"{prefix}attention_sink_bias", "BF16", (heads,), "normal", 1.0)


def mlp_specs(prefix: str, hidden: int, width: int, layout: str) -> Iterator[Spec]:
    """Gate, up and down of one MLP."""
    yield from matrix_specs(f"{prefix}gate_proj.weight", width, hidden, layout)
    yield from matrix_specs(f"{prefix}up_proj.weight", width, hidden, layout)
    yield from matrix_specs(f"{prefix}down_proj.weight", hidden, width, layout)


def _tiles(size: int) -> int:
    return -(-size // _TILE)


def matrix_specs(name: str, rows: int, cols: int, layout: str, scale_rows: int | None = None) -> Iterator[Spec]:
    """A weight matrix and its scales; scale_rows: rows of an FP8 scale grid that restarts."""
    std = 1 / math.sqrt(cols)
    if layout == "bf16":
        yield Spec(name, "BF16", (rows, cols), "normal", std)
    elif layout == "fp8":
        yield Spec(name, "F8_E4M3", (rows, cols), "fp8", std)
        grid = (_tiles(rows) if scale_rows is None else scale_rows, _tiles(cols))
        yield Spec(f"{name}_scale_inv", "F32", grid, "fp8_scale", std)
    else:
        if cols % _BLOCK:
            raise ValueError(f"{name}: MXFP4 needs a multiple of {_BLOCK} columns, found {cols}")
        yield Spec(name, "U8", (rows, cols // 2), "mxfp4", std)
        yield Spec(f"{name}_scale", "U8", (rows, cols // _BLOCK), "mxfp4_scale", std)


def write_all(writer: ShardWriter, specs: list[Spec], seed: int, total: int, progress: bool) -> None:
    """The elements of all tensors, into their shards."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc="make", disable=not progress, delay=1) as bar:
        for spec in specs:
            writer.write(spec.name, pieces(spec, seed))
            bar.update(spec.nbytes)


def pieces(spec: Spec, seed: int) -> Iterator[NDArray[Any]]:
    """The tensor's elements, a piece at a time: each is a table's entry at 16 random bits, so that numpy's raw bit streams,
    which never change between its versions, decide every byte."""
    digest = hashlib.sha256(f"{seed}:{spec.name}".encode()).digest()
    stream = np.random.SFC64(np.random.SeedSequence(int.from_bytes(digest[:16], "little")))
    table = _table(spec.fill, spec.dtype, spec.std, spec.mean)
    left = math.prod(spec.shape)
    while left:
        count = min(left, _PIECE)
        bits = stream.random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]
        yield table[bits]
        left -= count


@lru_cache(maxsize=1)
def _normal() -> NDArray[np.float64]:
    """[65536] evenly spaced quantiles of the standard normal distribution."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / 65536) for i in range(65536)])


@lru_cache(maxsize=64)
def _table(fill: str, dtype: str, std: float, mean: float) -> NDArray[Any]:
    """[65536] elements of a tensor, indexed by 16 random bits."""
    steps = np.arange(65536)
    if fill == "fp8":
        return _nearest(_normal() * _E4M3_SIGMA, _e4m3_values())
    if fill == "fp8_scale":
        return (std / _E4M3_SIGMA * (0.5 + steps / 65536)).astype(np.float32)
    if fill == "mxfp4":
        nibble = _nearest(_normal()[128::256] * _E2M1_SIGMA, _e2m1_values())
        packed: NDArray[np.uint8] = nibble[steps & 255] | (nibble[steps >> 8] << np.uint8(4))
        return packed
    if fill == "mxfp4_scale":
        code = 127 + round(math.log2(std / _E2M1_SIGMA))
        jittered: NDArray[np.uint8] = np.array([code - 1, code, code, code + 1], np.uint8)[steps & 3]
        return jittered
    values = (_normal() * std + mean).astype(np.float32)
    return bf16_from_f32(values) if dtype == "BF16" else values


def _nearest(values: NDArray[np.float64], codes: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The code (index into `codes`, NaN never) nearest to each value."""
    order = np.argsort(codes, kind="stable")[: np.count_nonzero(~np.isnan(codes))]
    middles = (codes[order][1:] + codes[order][:-1]) / 2
    nearest: NDArray[np.uint8] = order[np.searchsorted(middles, values)].astype(np.uint8)
    return nearest


def _e4m3_values() -> NDArray[np.float64]:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values: NDArray[np.float64] = np.where(code & 128, -size, size)
    values[[127, 255]] = np.nan
    return values


def _e2m1_values() -> NDArray[np.float64]:
    size = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    return np.concatenate([size, -size])


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """An object as a text file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each byte: itself where printable, else one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _write_tokenizer(folder: Path, config: ModelConfig) -> None:
    """A byte-level tokenizer (id = byte value, then the special tokens), where the vocabulary has room for it."""
    generation: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 0.95}
    if config.vocab_size >= 256 + len(SPECIAL_TOKENS):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "bos_token": None,
                "model_max_length": config.max_position_embeddings,
                "clean_up_tokenization_spaces": False,
                "chat_template": _CHAT_TEMPLATE,
            },
        )
        generation["eos_token_id"] = [tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")]
    write_json(folder / "generation_config.json", generation)
