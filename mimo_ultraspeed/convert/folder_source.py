"""Reads a Hugging Face folder: config.json of a plain Llama, safetensors in BF16, F16 or F32, tokenizer files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..safetensors_read import HeaderTensor, parse_json, read_header, show
from ..safetensors_write import f32_from_bf16
from .llama import LlamaConfig

__all__ = ["FolderSource"]

_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_ELEMENT = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MAX_FILE = 256 << 20

# Keys with one value that keeps the model a plain Llama; absent or null is that value.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "quantization_config": None,
    "sliding_window": None,
}


class FolderSource:
    """A folder as a `Source`. Raises CheckpointError for one that contradicts itself or is not a plain Llama."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = Path(path)
        if not (self._folder / "tokenizer.json").is_file():
            raise CheckpointError(f"{self._folder}: expected tokenizer.json, found none")
        self._raw = self._json("config.json")
        self._tensors: dict[str, tuple[Path, HeaderTensor]] = {}
        for shard in sorted(self._folder.glob("*.safetensors")):
            for tensor in read_header(shard, shard.name):
                if tensor.name in self._tensors:
                    raise CheckpointError(f"{shard.name}: {show(tensor.name)}: expected in one shard, found in two")
                self._tensors[tensor.name] = (shard, tensor)
        if not self._tensors:
            raise CheckpointError(f"{self._folder}: expected *.safetensors files, found none")
        self.config = self._read_config()
        self._check_tensors()

    def rows(self, name: str, begin: int, end: int) -> NDArray[np.float32]:
        shard, tensor = self._tensors[name]
        element = np.dtype(_ELEMENT[tensor.dtype])
        cols = tensor.shape[1] if len(tensor.shape) == 2 else 1
        with shard.open("rb") as file:
            file.seek(tensor.begin + begin * cols * element.itemsize)
            flat = np.fromfile(file, dtype=element, count=(end - begin) * cols)
        if flat.size != (end - begin) * cols:
            raise CheckpointError(f"{shard.name}: {name}: expected {(end - begin) * cols} elements, found {flat.size}: truncated")
        values = f32_from_bf16(flat) if tensor.dtype == "BF16" else flat.astype(np.float32)
        return values.reshape(-1, cols) if len(tensor.shape) == 2 else values

    def companions(self) -> Mapping[str, bytes]:
        files = {}
        for name in _COMPANIONS:
            path = self._folder / name
            if path.is_file():
                if path.stat().st_size > _MAX_FILE:
                    raise CheckpointError(f"{name}: expected at most {_MAX_FILE} bytes, found {path.stat().st_size}")
                files[name] = path.read_bytes()
        return files

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not path.is_file():
            raise CheckpointError(f"{self._folder}: expected {name}, found none")
        value = parse_json(path.read_bytes(), name)
        if not isinstance(value, dict):
            raise CheckpointError(f"{name}: expected an object, found {show(value)}")
        return value

    def _read_config(self) -> LlamaConfig:
        if self._raw.get("model_type") != "llama":
            raise CheckpointError(f"config.json: model_type: expected 'llama', found {show(self._raw.get('model_type'))}")
        for key, expected in _ONLY.items():
            value = self._raw.get(key)
            if value is not None and (type(value) is not type(expected) or value != expected):
                raise CheckpointError(f"config.json: {key}: expected {show(expected)}, found {show(value)}")
        heads, hidden = self._integer("num_attention_heads"), self._integer("hidden_size")
        head_dim = self._integer("head_dim", hidden // heads)
        kv_heads = self._integer("num_key_value_heads", heads)
        if head_dim % 2 or heads % kv_heads:
            found = f"{kv_heads} and {head_dim}"
            raise CheckpointError(
                f"config.json: num_key_value_heads, head_dim: expected a divisor of {heads}, an even width; found {found}"
            )
        bos = self._raw.get("bos_token_id")
        return LlamaConfig(
            hidden=hidden,
            layers=self._integer("num_hidden_layers"),
            vocab=self._integer("vocab_size"),
            max_positions=self._integer("max_position_embeddings"),
            mlp_width=self._integer("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope_theta=self._rope_theta(),
            norm_eps=self._number("rms_norm_eps", self._raw.get("rms_norm_eps")),
            tied_head=bool(self._raw.get("tie_word_embeddings", False)),
            eos_token_ids=self._end_tokens(),
            bos_token_id=bos if type(bos) is int else None,
        )

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(f"config.json: {key}: expected a positive integer, found {show(value)}")
        return value

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise CheckpointError(f"config.json: {key}: expected a positive number, found {show(value)}")
        return float(value)

    def _rope_theta(self) -> float:
        theta = self._raw.get("rope_theta")
        for outer in ("rope_scaling", "rope_parameters"):
            rope = self._raw.get(outer)
            if rope is None:
                continue
            if not isinstance(rope, dict):
                raise CheckpointError(f"config.json: {outer}: expected an object, found {show(rope)}")
            for key, value in rope.items():
                if key == "rope_theta":
                    theta = value
                elif not (key in ("rope_type", "type") and value == "default") and not (
                    key == "partial_rotary_factor" and value == 1
                ):
                    raise CheckpointError(
                        f"config.json: {outer}.{key}: expected no scaling of rotary positions, found {show(value)}"
                    )
        return self._number("rope_theta", 10000.0 if theta is None else theta)

    def _end_tokens(self) -> tuple[int, ...]:
        value = self._raw.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int and number >= 0 for number in listed):
            raise CheckpointError(f"config.json: eos_token_id: expected token ids, found {show(value)}")
        return tuple(listed)

    def _check_tensors(self) -> None:
        expected = self.config.tensors()
        for name, shape in expected.items():
            if name not in self._tensors:
                raise CheckpointError(f"{name}: expected a tensor {list(shape)}, found none")
            shard, tensor = self._tensors[name]
            if tensor.shape != shape:
                raise CheckpointError(f"{shard.name}: {name}: expected shape {list(shape)}, found {list(tensor.shape)}")
            if tensor.dtype not in _ELEMENT:
                raise CheckpointError(f"{shard.name}: {name}: expected dtype BF16, F16 or F32, found {tensor.dtype}")
        for name, (shard, _) in self._tensors.items():
            tied = self.config.tied_head and name == "lm_head.weight"
            if name not in expected and not tied and not name.endswith(".rotary_emb.inv_freq"):
                raise CheckpointError(
                    f"{shard.name}: {show(name)}: expected no such tensor in a plain Llama (biases, q/k norms, adapters)"
                )
