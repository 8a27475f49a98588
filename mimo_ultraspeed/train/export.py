"""A trained drafter as files in the published layout, and back.

The scales of the taps go into `fc.weight`. Matrices of the layers are FP8 E4M3 with a scale for each 128 x 128 tile, or BF16; the
rest is BF16, norms float32. `d2t` says which tokens the drafter's head has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint import CONFIG, SINGLE, Folder, Tensor
from ..draft import DraftConfig
from ..errors import CheckpointError
from ..safetensors_read import read_header
from ..safetensors_write import ShardWriter, bf16_from_f32
from ..weights import Weights
from .drafter import DrafterConfig, Parameters, Trained
from .trainer import load_training

__all__ = ["FORMATS", "export_drafter", "load_drafter", "load_run"]

FORMATS = ("fp8", "bf16")
_TILE = 128
_LARGEST_FP8 = 448.0


def load_run(path: str | Path, *, averaged: bool = True) -> Trained:
    """The drafter of a training checkpoint. averaged: the moving average of its weights, not the last ones."""
    state = load_training(path)
    parameters = {name: value.float() for name, value in state["ema" if averaged else "parameters"].items()}
    parameters["fc.weight"] = parameters["fc.weight"] / state["tap_rms"]
    return Trained(DrafterConfig(**state["config"]), parameters, state["head_ids"].numpy())


def export_drafter(trained: Trained, folder: str | Path, *, weights: str = "fp8") -> Path:
    """Writes config.json and model.safetensors into a folder without either. Returns the folder."""
    if weights not in FORMATS:
        raise ValueError(f"weights: expected {' or '.join(FORMATS)}, found {weights!r}")
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        raise FileExistsError(f"{folder / 'model.safetensors'}: expected no drafter there")
    arrays: dict[str, tuple[str, NDArray[Any]]] = {}
    for name, value in trained.parameters.items():
        if value.ndim == 1 and name != "mask_embedding":
            arrays[name] = ("F32", value.numpy())
        elif weights == "fp8" and name.startswith("layers."):
            codes, scales = _to_fp8(value)
            arrays[name], arrays[f"{name}_scale_inv"] = ("F8_E4M3", codes), ("F32", scales)
        else:
            arrays[name] = ("BF16", bf16_from_f32(value.contiguous().numpy()))
    arrays["d2t"] = ("I64", trained.head_ids - np.arange(len(trained.head_ids)))
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(folder) as writer:
        for name, (dtype, array) in arrays.items():
            writer.reserve(name, dtype, array.shape)
        for name, (_, array) in arrays.items():
            writer.write(name, array)
    (folder / "config.json").write_text(json.dumps(_config(trained.config), indent=1) + "\n", encoding="utf-8")
    return folder


def load_drafter(folder: str | Path) -> Trained:
    """The drafter of a folder that `export_drafter` wrote. CheckpointError when it is of another kind."""
    source = Folder(Path(folder))
    raw = source.json_object(CONFIG)
    missing = [name for name in _SAME if name not in raw]
    if missing:
        raise CheckpointError(f"{source.path / CONFIG}: expected what `train export` writes, found no {', '.join(missing)}")
    path = source.file(SINGLE)
    read = DraftConfig.from_dict(raw, target_layers=raw["num_target_layers"])
    weights = Weights([Tensor(one.name, one.dtype, one.shape, 0, one.begin, one.end) for one in read_header(path, SINGLE)], [path])
    if "d2t" not in weights:
        raise CheckpointError(f"{path}: expected a drafter with d2t, found none")
    offsets = weights.raw("d2t")
    parameters: Parameters = {
        name: torch.from_numpy(weights[name]) for name in weights if name != "d2t" and not name.endswith("_scale_inv")
    }
    w1 = parameters.get("markov.w1.weight")
    config = DrafterConfig(
        **{name: raw[name] for name in _SAME},
        rotary_dim=read.rotary_dim,
        taps=read.target_layer_ids,
        block_size=read.block_size,
        short_block_size=read.short_block_size,
        window=read.window,
        value_scale=read.attention_value_scale,
        sinks=read.sinks,
        head_size=len(offsets),
        markov_rank=0 if w1 is None else w1.shape[1],
        mask_token_id=read.mask_token_id or 0,
    )
    return Trained(config, parameters, offsets + np.arange(len(offsets)))


_SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "v_head_dim",
    "rope_theta",
    "rms_norm_eps",
    "vocab_size",
    "num_target_layers",
    "max_position_embeddings",
)
"""Fields with the same name and value in config.json."""


def _config(config: DrafterConfig) -> Mapping[str, Any]:
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        **{name: getattr(config, name) for name in _SAME},
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
        "attention_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "block_size": config.block_size,
        "sliding_window": config.window,
        "dflash_config": {
            "target_layer_ids": list(config.taps),
            "mask_token_id": config.mask_token_id,
            "block_size": config.block_size,
            "short_block_size": config.short_block_size,
            "causal": False,
            "use_swa": True,
            "swa_window_size": config.window,
            "attention_value_scale": config.value_scale,
            "attention_sink_bias": config.sinks,
        },
    }


def _to_fp8(matrix: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """E4M3 codes of the matrix's shape, and [tiles, tiles] what they are to be multiplied by."""
    rows, cols = (math.ceil(size / _TILE) for size in matrix.shape)
    padded = torch.zeros(rows * _TILE, cols * _TILE)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    largest = padded.view(rows, _TILE, cols, _TILE).abs().amax((1, 3))
    scales = torch.where(largest > 0, largest / _LARGEST_FP8, 1.0)
    codes = (padded.view(rows, _TILE, cols, _TILE) / scales[:, None, :, None]).view_as(padded)[: matrix.shape[0], : matrix.shape[1]]
    return codes.to(torch.float8_e4m3fn).contiguous().view(torch.uint8).numpy(), scales.numpy()
