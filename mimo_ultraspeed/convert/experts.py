"""Rounds the experts of a MiMo-V2 checkpoint to MXFP4; every other tensor is copied as it is stored."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..checkpoint import CONFIG, INDEX, Checkpoint, Tensor
from ..config import ModelConfig
from ..display import bar
from ..errors import CheckpointError
from ..safetensors_write import ShardWriter, bf16_from_f32
from ..weights import Weights, split_reader
from .calibrate import Experts, Rounder
from .rounding import MX_BLOCK

__all__ = ["is_mimo", "round_experts"]

Array = NDArray[np.float32]
_EXPERT = re.compile(r"model\.layers\.\d+\.mlp\.experts\.\d+\.(?:gate|up|down)_proj\.weight$")
_PARTS = ("gate_proj", "up_proj", "down_proj")


def is_mimo(source: str | os.PathLike[str]) -> bool:
    """A folder whose config.json names a MiMo-V2 model."""
    try:
        raw = json.loads((Path(source).expanduser() / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and str(raw.get("model_type", "")).startswith("mimo_v2")


def round_experts(
    source: Path,
    dest: Path,
    *,
    calibrate: Callable[[Path, ModelConfig, Callable[[str], Array]], Rounder] | None,
    max_shard_bytes: int,
    progress: bool,
    replaced: Mapping[str, Array] = {},
) -> None:
    """Fills the folder `dest`. calibrate: as in `write_checkpoint`; one layer's experts are in memory as float32 at a time.

    replaced: values to write instead of the source's, by whole name, of tensors that are F32 or BF16.

    Raises CheckpointError for a checkpoint without experts, or with experts that are MXFP4 already, and for values that do not fit.
    """
    checkpoint = Checkpoint.open(source)
    config = checkpoint.config
    matrices = {tensor.name: tensor for tensor in checkpoint.tensors if _EXPERT.match(tensor.name)}
    if not matrices:
        raise CheckpointError(f"{source}: expected experts to round, found none")
    for name, tensor in matrices.items():
        if tensor.dtype == "U8":
            raise CheckpointError(f"{name}: expected BF16, F32 or FP8 to round, found MXFP4")
        if tensor.shape[1] % MX_BLOCK:
            raise CheckpointError(f"{name}: expected a multiple of {MX_BLOCK} columns, found {tensor.shape[1]}")
    weights = Weights(checkpoint.tensors, [Path(file) for file in checkpoint.files])
    _copy_descriptions(checkpoint, dest)
    kept = [t for t in checkpoint.tensors if t.name.removesuffix("_scale_inv") not in matrices]
    metadata = {"save_format": "mxfp4"} | ({"tp_size": checkpoint.tp_size} if checkpoint.tp_size else {})
    read = split_reader(checkpoint)
    calibration = calibrate(dest, config, read) if calibrate is not None else None
    with ShardWriter(dest, max_shard_bytes=max_shard_bytes, index_metadata=metadata) as writer:
        for tensor in kept:
            writer.reserve(tensor.name, tensor.dtype, tensor.shape)
        for name, tensor in matrices.items():
            writer.reserve(name, "U8", (tensor.shape[0], tensor.shape[1] // 2))
            writer.reserve(f"{name}_scale", "U8", (tensor.shape[0], tensor.shape[1] // MX_BLOCK))
        for tensor in kept:
            fresh = replaced.get(tensor.name)
            raw = weights.raw(tensor.name.removeprefix("model."), mapped=True) if fresh is None else _as_stored(tensor, fresh)
            writer.write(tensor.name, raw)
        with bar(progress, total=config.num_hidden_layers, desc="Rounding", unit="layer") as shown:
            for layer in range(config.num_hidden_layers):
                _layer(writer, config, read, layer, calibration)
                shown.update(1)


def _as_stored(tensor: Tensor, values: Array) -> NDArray[Any]:
    """The values in the tensor's format. CheckpointError when it has another shape, or is neither F32 nor BF16."""
    if tensor.dtype not in ("F32", "BF16") or tuple(tensor.shape) != values.shape:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        raise CheckpointError(f"{tensor.name}: expected F32 or BF16 {list(values.shape)} to give other values, found {found}")
    return values if tensor.dtype == "F32" else bf16_from_f32(np.ascontiguousarray(values))


def _layer(writer: ShardWriter, config: ModelConfig, read: Callable[[str], Array], layer: int, calibration: Rounder | None) -> None:
    prefix = f"model.layers.{layer}.mlp."
    if not config.moe_layer_freq[layer]:
        if calibration is not None:
            calibration.dense(layer, *(read(f"{prefix}{part}.weight") for part in _PARTS))
        return
    names = [[f"{prefix}experts.{e}.{part}.weight" for e in range(config.n_routed_experts)] for part in _PARTS]
    experts = Experts(*([read(name) for name in part] for part in names))
    if calibration is not None:
        experts = calibration.layer(layer, experts)
    for part, found in zip(names, (experts.gate, experts.up, experts.down), strict=True):
        for name, matrix in zip(part, found, strict=True):
            codes, scales = _core.mxfp4_encode(np.ascontiguousarray(matrix))
            writer.write(name, codes)
            writer.write(f"{name}_scale", scales)


def _copy_descriptions(checkpoint: Checkpoint, dest: Path) -> None:
    """config.json with the experts' new format, and the files beside it that say how text becomes tokens."""
    raw: dict[str, Any] = json.loads((checkpoint.folder / CONFIG).read_text(encoding="utf-8"))
    for where in (raw, raw.get("text_config")):
        if isinstance(where, dict) and (where is raw or where.get("quantization_config") is not None):
            where["quantization_config"] = _quantization(checkpoint.config, where.get("quantization_config"))
    (dest / CONFIG).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    for path in sorted(checkpoint.folder.iterdir()):
        if path.name not in (CONFIG, INDEX) and path.suffix in (".json", ".jinja") and path.is_file():
            (dest / path.name).write_bytes(path.read_bytes())


def _quantization(config: ModelConfig, found: Mapping[str, Any] | None) -> dict[str, Any]:
    mxfp4 = {"store_dtype": "mxfp4", "mxfp4_block_size": MX_BLOCK}
    if found is not None:
        return dict(found) | mxfp4
    parts = ["qkv" if config.fused_qkv else part for part in ("q", "k", "v")]
    layers = range(config.num_hidden_layers)
    ignored = [f"model.layers.{i}.self_attn.{part}_proj" for i in layers for part in [*dict.fromkeys(parts), "o"]]
    ignored += [f"model.layers.{i}.mlp" for i in layers if not config.moe_layer_freq[i]]
    return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "ignored_layers": ignored} | mxfp4
