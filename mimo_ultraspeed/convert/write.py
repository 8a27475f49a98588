"""Writes a plain Llama as a MiMo-V2 checkpoint, its MLPs dense or split into experts.

Split into N experts of F/N hidden units with all N chosen, a Llama's MLP stays what it was: a zero router gives every expert the
weight 1/N, and `down` carries the factor N. N is a power of two, so that factor only moves the exponent of MXFP4's scales.

Two freedoms of an MLP make the rounding to 4 bits gentler and change nothing before it: hidden units may be scaled (what `up`
gains, `down` loses) and put in any order. See `balance_hidden_units`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..config import AttentionConfig, ModelConfig
from ..errors import CheckpointError
from ..safetensors_write import ShardWriter, bf16_from_f32, f32_from_bf16
from .calibrate import Experts, Rounder
from .llama import LlamaConfig, Source, pieces
from .rounding import MX_BLOCK

__all__ = ["Calibrate", "balance_hidden_units", "check_experts", "write_checkpoint"]

Calibrate = Callable[[Path, ModelConfig, Callable[[str], NDArray[np.float32]]], Rounder]
"""Makes what rounds experts, for a folder with a tokenizer, the config, and a reader of tensors as they are written."""
_MAX_EXPERTS = 64
_MLP = ("gate_proj", "up_proj", "down_proj")


class Progress:
    """A bar over the elements of all tensors; silent when not wanted."""

    def __init__(self, total: int, wanted: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc="Converting", unit="", unit_scale=True, disable=not wanted)

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


def check_experts(config: LlamaConfig, experts: int) -> None:
    """Raises ValueError unless the MLPs of `config` split into `experts` exactly."""
    if experts < 1 or experts & (experts - 1) or experts > _MAX_EXPERTS:
        raise ValueError(f"experts: expected a power of two up to {_MAX_EXPERTS}, found {experts}")
    if config.mlp_width % (experts * MX_BLOCK):
        raise ValueError(
            f"experts: expected F/experts to be a multiple of {MX_BLOCK}, found {config.mlp_width}/{experts} "
            f"= {config.mlp_width / experts:g}"
        )
    if config.hidden % MX_BLOCK:
        raise ValueError(f"experts: expected a hidden size that is a multiple of {MX_BLOCK}, found {config.hidden}")


def write_checkpoint(
    source: Source,
    dest: Path,
    *,
    experts: int | None,
    dtype: str,
    max_shard_bytes: int,
    progress: bool,
    calibrate: Calibrate | None = None,
    mxfp4: bool = True,
    replaced: Mapping[str, NDArray[np.float32]] = {},
) -> None:
    """Fills the folder `dest`. dtype: "bfloat16" or "float32", of every matrix that is not MXFP4. mxfp4: experts are.

    replaced: values to write instead of the source's, by name in the checkpoint, of what is no expert's.
    """
    config = source.config
    model = _model_config(config, experts, dtype, mxfp4)
    # First: a tokenizer that cannot be rebuilt is found before the weights are written, and calibration reads texts with it.
    for name, content in source.companions().items():
        _write_file(dest / name, content)
    _write_file(dest / "config.json", _config_json(config, model))
    stored = {"bfloat16": "BF16", "float32": "F32"}[dtype]
    shapes = config.tensors()
    calibration = calibrate(dest, model, _stored_reader(source, experts, stored)) if calibrate is not None else None
    bar = Progress(sum(int(np.prod(shape)) for shape in shapes.values()), progress)
    try:
        with ShardWriter(dest, max_shard_bytes=max_shard_bytes) as writer:
            _reserve(writer, config, experts, stored, mxfp4)
            for name, shape in shapes.items():
                if experts is None or ".mlp." not in name:
                    writer.write(name, _encoded(source, name, shape, stored, bar, replaced.get(name)))
                elif name.endswith("gate_proj.weight"):  # the three matrices of a layer are balanced together
                    split = _split(source, name, experts)
                    if calibration is not None:
                        split = calibration.layer(int(name.split(".")[2]), split)
                    _write_experts(writer, name, split, None if mxfp4 else stored)
                    bar.advance(3 * int(np.prod(shape)))
            if experts is not None:
                _write_routers(writer, config, experts, replaced)
    finally:
        bar.close()


def _encoded(
    source: Source, name: str, shape: tuple[int, ...], stored: str, bar: Progress, given: NDArray[np.float32] | None
) -> Iterator[NDArray[Any]]:
    for piece in pieces(source, name, shape) if given is None else [given]:
        yield piece if len(shape) == 1 or stored == "F32" else bf16_from_f32(piece)
        bar.advance(piece.size)


def _reserve(writer: ShardWriter, config: LlamaConfig, experts: int | None, stored: str, mxfp4: bool) -> None:
    for name, shape in config.tensors().items():
        if experts is None or ".mlp." not in name:
            writer.reserve(name, "F32" if len(shape) == 1 else stored, shape)
            continue
        if name.endswith("gate_proj.weight"):
            router = name.replace("mlp.gate_proj.", "mlp.gate.")
            writer.reserve(router, "F32", (experts, config.hidden))
            writer.reserve(router.replace(".weight", ".e_score_correction_bias"), "F32", (experts,))
        rows, cols = _expert_shape(name, shape, experts)
        for expert in range(experts):
            weight = _expert_name(name, expert)
            if mxfp4:
                writer.reserve(weight, "U8", (rows, cols // 2))
                writer.reserve(weight + "_scale", "U8", (rows, cols // MX_BLOCK))
            else:
                writer.reserve(weight, stored, (rows, cols))


def _expert_name(name: str, expert: int) -> str:
    return name.replace(".mlp.", f".mlp.experts.{expert}.")


def _expert_shape(name: str, shape: tuple[int, ...], experts: int) -> tuple[int, int]:
    rows, cols = shape
    return (rows, cols // experts) if "down_proj" in name else (rows // experts, cols)


def balance_hidden_units(
    gate: NDArray[np.float32], up: NDArray[np.float32], down: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """gate, up [F, H] and down [H, F] with their hidden units scaled and ordered so that blocks of `down` hold alike columns.

    A block of 32 shares one scale, so a small column beside a large one is lost. Column i of `down` is divided, and row i of `up`
    multiplied, by the square root of its relative norm: half-way to equal columns, as full equality only moves the trouble into
    `up`. Then units are ordered by the norm that is left.
    """
    norms = np.sqrt(np.square(down, dtype=np.float64).sum(axis=0))
    relative = np.where(norms > 0, norms / max(norms.mean(), 1e-30), 1.0)
    scale = np.sqrt(relative)
    order = np.argsort(norms / scale, kind="stable")
    scaled_up = (up * scale[:, None].astype(np.float32))[order]
    scaled_down: NDArray[np.float32] = np.divide(down, scale, dtype=np.float32, casting="same_kind")[:, order]
    return gate[order], scaled_up, scaled_down


def _stored_reader(source: Source, experts: int | None, stored: str) -> Callable[[str], NDArray[np.float32]]:
    """Reads a tensor that is no expert's, with the values it is written with."""
    shapes = source.config.tensors()

    def read(name: str) -> NDArray[np.float32]:
        if ".mlp.gate." in name:
            return np.zeros((experts or 0, source.config.hidden)[: 2 if name.endswith(".weight") else 1], np.float32)
        whole = np.concatenate(list(pieces(source, name, shapes[name])))
        return whole if whole.ndim == 1 or stored == "F32" else f32_from_bf16(bf16_from_f32(whole))

    return read


def _split(source: Source, gate_name: str, experts: int) -> Experts:
    """One layer's MLP as experts, not rounded yet."""
    shapes = source.config.tensors()
    names = [gate_name.replace("gate_proj", matrix) for matrix in _MLP]
    gate, up, down = balance_hidden_units(*(np.concatenate(list(pieces(source, name, shapes[name]))) for name in names))
    return Experts(np.split(gate, experts), np.split(up, experts), np.split(down * np.float32(experts), experts, axis=1))


def _write_experts(writer: ShardWriter, gate_name: str, split: Experts, stored: str | None) -> None:
    """The matrices of one layer's experts, rounded to MXFP4, or as `stored`."""
    for matrix, parts in zip(_MLP, (split.gate, split.up, split.down), strict=True):
        for expert, part in enumerate(parts):
            weight = _expert_name(gate_name.replace("gate_proj", matrix), expert)
            if stored is not None:
                writer.write(weight, part if stored == "F32" else bf16_from_f32(part))
                continue
            codes, scales = _core.mxfp4_encode(np.ascontiguousarray(part))
            writer.write(weight, codes)
            writer.write(weight + "_scale", scales)


def _write_routers(writer: ShardWriter, config: LlamaConfig, experts: int, replaced: Mapping[str, NDArray[np.float32]]) -> None:
    for layer in range(config.layers):
        gate = f"model.layers.{layer}.mlp.gate."
        writer.write(gate + "weight", replaced.get(gate + "weight", np.zeros((experts, config.hidden), np.float32)))
        writer.write(gate + "e_score_correction_bias", np.zeros(experts, np.float32))


def _model_config(config: LlamaConfig, experts: int | None, dtype: str, mxfp4: bool) -> ModelConfig:
    attention = AttentionConfig(
        num_heads=config.heads,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        v_head_dim=config.head_dim,
        partial_rotary_factor=1.0,
        rope_theta=config.rope_theta,
        window=0,
        sinks=False,
    )
    return ModelConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        vocab_size=config.vocab,
        max_position_embeddings=config.max_positions,
        intermediate_size=config.mlp_width,
        moe_intermediate_size=config.mlp_width // experts if experts else 0,
        n_routed_experts=experts or 0,
        num_experts_per_tok=experts or 0,
        layernorm_epsilon=config.norm_eps,
        attention_value_scale=1.0,
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
        tie_word_embeddings=config.tied_head,
        full=attention,
        sliding=attention,
        hybrid_layer_pattern=(0,) * config.layers,
        moe_layer_freq=(int(experts is not None),) * config.layers,
        fused_qkv=False,
        quantization="mxfp4" if experts and mxfp4 else None,
        router_dtype="float32" if experts else None,
        dtype=dtype,
        model_type="mimo_v2_flash",
    )


def _config_json(config: LlamaConfig, model: ModelConfig) -> bytes:
    raw = model.to_dict()
    if ModelConfig.from_dict(raw) != model:
        raise CheckpointError("config.json: expected to read back what was written, found another model")
    if model.quantization:
        parts = [f"model.layers.{i}.self_attn.{name}_proj" for i in range(config.layers) for name in "qkvo"]
        raw["quantization_config"]["ignored_layers"] = parts
    if config.bos_token_id is not None:
        raw["bos_token_id"] = config.bos_token_id
    if config.eos_token_ids:
        raw["eos_token_id"] = list(config.eos_token_ids)
    return (json.dumps(raw, indent=1) + "\n").encode()


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
