"""Writes a seeded random DFlash drafter beside a made checkpoint, in the published layout or in ours."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .config import ModelConfig
from .make import Spec, matrix_specs, mlp_specs, norm_spec, pieces, write_all, write_json
from .safetensors_write import ShardWriter

__all__ = ["make_draft", "parse_options", "resolve"]

_OPTIONS: dict[str, Any] = {
    "layers": None,
    "block": 8,
    "short_block": 0,
    "taps": None,
    "heads": None,
    "kv_heads": None,
    "head_dim": None,
    "intermediate": None,
    "window": None,
    "rotary": 0.5,
    "rope_theta": 10000.0,
    "value_scale": None,
    "sinks": True,
    "qk_norm": True,
    "causal": None,
    "weights": "bf16",
    "spelling": "nested",
    "mask": "pt",
    "shards": 1,
    "prefix": "",
    "vocab": None,
    "markov_rank": 0,
}
_UNSET = {"causal": bool, "vocab": int}
"""Kinds of the options whose default is None in every shape."""
_CHOICES = {"weights": ("bf16", "fp8", "mxfp4"), "spelling": ("nested", "flat"), "mask": ("pt", "tensor", "none")}
_NAMES = {int: "an integer of 0 or more", float: "a number", bool: "true or false", str: "text", list: "a list"}


def make_draft(
    dest: Path,
    target: ModelConfig,
    options: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    headers_only: bool = False,
    progress: bool = False,
) -> Path:
    """Writes a random drafter of `target` into the new folder `dest` and returns its path.

    options: layers, block, short_block (0: none), taps (a list of target layers), heads, kv_heads, head_dim, intermediate, window
      (0: none), rotary (part of a head that is rotated), rope_theta, value_scale, sinks, qk_norm, causal (None: not said), all by
      default as the published drafters have them for a target of this shape; weights ("bf16", "fp8" or "mxfp4"); spelling of
      config.json ("nested" as V2.5-Pro, "flat" as V2.6-Pro); mask ("pt": the file mask_embedding.pt, "tensor", or "none"); shards
      (1 writes no index); prefix of tensor names; vocab (V', fewer ids than the target's: adds d2t); markov_rank (adds a Markov
      head).
    Raises ValueError for an unknown option or value.
    """
    o = resolve(options or {}, target)
    specs = list(_tensors(o, target))
    dest.mkdir(parents=True)
    total = sum(spec.nbytes for spec in specs)
    index = {"total_parameters": sum(math.prod(spec.shape) for spec in specs)} if o["shards"] > 1 else None
    writer = ShardWriter(
        dest,
        max_shard_bytes=-(-total // o["shards"]),
        stem="dflash_draft_model",
        index_metadata=index,
        holes=headers_only,
    )
    with writer:
        for spec in specs:
            writer.reserve(spec.name, spec.dtype, spec.shape)
        if not headers_only:
            write_all(writer, [spec for spec in specs if spec.fill != "d2t"], seed, total, progress)
            for spec in specs:
                if spec.fill == "d2t":
                    writer.write(spec.name, [_offsets(target.vocab_size, spec.shape[0], seed)])
    if index is not None:
        (dest / "dflash_draft_model.safetensors.index.json").rename(dest / "model.safetensors.index.json")
    if o["mask"] == "pt":
        _write_sidecar(dest / "mask_embedding.pt", target.hidden_size, seed)
    write_json(dest / "config.json", _config(o, target))
    return dest


def resolve(options: Mapping[str, Any], target: ModelConfig) -> dict[str, Any]:
    """All options of `make_draft`, checked, for a target. ValueError for an unknown one, or a value of another kind."""
    found = _OPTIONS | _shape(target)
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ValueError(f"{name!r} is not an option of a made drafter; they are {', '.join(_OPTIONS)}")
        if value is None:
            continue
        kind = _UNSET.get(name, type(found[name]))
        fits = isinstance(value, (kind, int) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
        if not fits or (kind is int and value < 0):
            raise ValueError(f"{name}: expected {_NAMES[kind]}, found {value!r}")
        if value not in _CHOICES.get(name, (value,)):
            raise ValueError(f"{name}: expected {', '.join(_CHOICES[name])}, found {value!r}")
        found[name] = value
    return found


def _shape(target: ModelConfig) -> dict[str, Any]:
    """What depends on the target: the published proportions."""
    layers, small = target.num_hidden_layers, target.hidden_size < 1024
    count = min(3 if small else 5, layers)
    return {
        "layers": 2 if small else 5,
        "taps": [i * (layers - 1) // max(count - 1, 1) for i in range(count)],
        "heads": target.full.num_heads,
        "kv_heads": target.sliding.num_kv_heads if any(target.hybrid_layer_pattern) else target.full.num_kv_heads,
        "head_dim": target.full.v_head_dim,
        "intermediate": target.intermediate_size or 4 * target.hidden_size,
        "window": 8 * (target.sliding.window or 128),
        "value_scale": target.attention_value_scale,
    }


def _tensors(o: Mapping[str, Any], target: ModelConfig) -> Iterator[Spec]:
    hidden, weights, prefix = target.hidden_size, o["weights"], o["prefix"]
    q, kv = o["heads"] * o["head_dim"], o["kv_heads"] * o["head_dim"]
    yield from matrix_specs(f"{prefix}fc.weight", hidden, len(o["taps"]) * hidden, weights)
    yield norm_spec(f"{prefix}hidden_norm.weight", hidden)
    for i in range(o["layers"]):
        layer = f"{prefix}layers.{i}."
        yield norm_spec(f"{layer}input_layernorm.weight", hidden)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield from matrix_specs(f"{layer}self_attn.{name}_proj.weight", rows, hidden, weights)
        yield from matrix_specs(f"{layer}self_attn.o_proj.weight", hidden, q, weights)
        if o["qk_norm"]:
            yield norm_spec(f"{layer}self_attn.q_norm.weight", o["head_dim"])
            yield norm_spec(f"{layer}self_attn.k_norm.weight", o["head_dim"])
        if o["sinks"]:
            yield Spec(f"{layer}self_attn.attention_sink_bias", "BF16", (o["heads"],), "normal", 1.0)
        yield norm_spec(f"{layer}post_attention_layernorm.weight", hidden)
        yield from mlp_specs(f"{layer}mlp.", hidden, o["intermediate"], weights)
    yield norm_spec(f"{prefix}norm.weight", hidden)
    if o["mask"] == "tensor":
        yield Spec("mask_embedding", "BF16", (hidden,), "normal", 1.0)
    vocab = o["vocab"] or target.vocab_size
    if o["vocab"]:
        yield Spec("d2t", "I64", (vocab,), "d2t", 0.0)
    if o["markov_rank"]:
        for name in ("w1", "w2"):
            yield Spec(f"markov.{name}.weight", "BF16", (vocab, o["markov_rank"]), "normal", o["markov_rank"] ** -0.5)


def _config(o: Mapping[str, Any], target: ModelConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": target.hidden_size,
        "intermediate_size": o["intermediate"],
        "num_hidden_layers": o["layers"],
        "num_attention_heads": o["heads"],
        "num_key_value_heads": o["kv_heads"],
        "head_dim": o["head_dim"],
        "v_head_dim": o["head_dim"],
        "partial_rotary_factor": o["rotary"],
        "rope_theta": o["rope_theta"],
        "rms_norm_eps": target.layernorm_epsilon,
        "attention_bias": False,
        "hidden_act": "silu",
        "num_target_layers": target.num_hidden_layers,
        "vocab_size": target.vocab_size,
        "max_position_embeddings": target.max_position_embeddings,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "block_size": o["block"],
    }
    dflash = {"target_layer_ids": o["taps"], "mask_token_id": target.vocab_size - 1}
    if o["short_block"]:
        dflash["short_block_size"] = o["short_block"]
    if o["causal"] is not None:
        dflash["causal"] = o["causal"]
    if o["spelling"] == "nested":
        nested = dflash | {
            "num_anchors": 4096,
            "block_size": o["block"],
            "loss_decay_gamma": 7.0,
            "use_swa": o["window"] > 0,
            "backbone_rotary_base": target.full.rope_theta,
            "attention_value_scale": o["value_scale"],
            "attention_sink_bias": o["sinks"],
        }
        if o["window"]:
            nested["swa_window_size"] = flat["sliding_window"] = o["window"]
        return flat | {"dflash_config": nested}
    kind = "sliding_attention" if o["window"] else "full_attention"
    return flat | {
        "target_hidden_size": target.hidden_size,
        "layer_types": [kind] * o["layers"],
        "use_sliding_window": o["window"] > 0,
        "sliding_window": o["window"] or None,
        "is_causal": bool(dflash.pop("causal", False)),
        "attention_value_scale": o["value_scale"],
        "add_swa_attention_sink_bias": o["sinks"],
        "dflash_config": dflash,
    }


def _offsets(vocab: int, known: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """d2t: `known` ids out of `vocab`, ascending, less their index."""
    scores = np.concatenate(list(pieces(Spec("d2t", "F32", (vocab,), "normal", 1.0), seed)))
    ids = np.sort(np.argsort(scores, kind="stable")[:known])
    return (ids - np.arange(known)).astype(np.int64)


def _write_sidecar(path: Path, hidden: int, seed: int) -> None:
    """What torch.save writes of a BF16 vector, as far as a reader that unpickles nothing can see."""
    spec = Spec("mask_embedding", "BF16", (hidden,), "normal", 1.0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mask_embedding/byteorder", "little")
        archive.writestr("mask_embedding/data/0", b"".join(piece.tobytes() for piece in pieces(spec, seed)))
        archive.writestr("mask_embedding/version", "3\n")


def parse_options(words: list[str]) -> dict[str, Any]:
    """KEY=VALUE words of a command line; a value is read as JSON where it is JSON."""
    options: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options
