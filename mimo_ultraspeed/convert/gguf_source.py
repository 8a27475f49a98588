"""Reads a GGUF file of the architecture `llama`.

The format keeps the rows of q and k permuted so that the two halves of a rotary pair are neighbours; here they are put back to
where Hugging Face checkpoints and MiMo have them: pair j of a head is rows j and j + D/2.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .gguf_tokenizer import end_token_ids, tokenizer_files
from .llama import LlamaConfig

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

__all__ = ["GGUFSource"]

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Keys of a Llama that this converter reads or that change nothing; any other `llama.` key may change the model and is refused.
_KNOWN_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.causal", "rope.freq_base", "rope.dimension_count",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scale_linear", "expert_count", "expert_used_count",
}  # fmt: skip


class GGUFSource:
    """A GGUF file as a `Source`. Raises CheckpointError for a file that is damaged or not a plain Llama."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = Path(path).name
        self._reader = _open(Path(path))
        self._metadata = _Metadata(self._reader, self._name)
        self._tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        self._stored: dict[str, str] = {}
        self.config = self._read_config()
        self._check_tensors()

    def rows(self, name: str, begin: int, end: int) -> NDArray[np.float32]:
        from gguf.quants import dequantize

        tensor = self._tensors[self._stored[name]]
        if len(tensor.shape) == 1:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)[begin:end]
        order: Any = slice(begin, end)
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            order = _interleaved_rows(int(tensor.shape[1]), self.config.head_dim)[begin:end]
        return np.asarray(dequantize(np.ascontiguousarray(tensor.data[order]), tensor.tensor_type), dtype=np.float32)

    def companions(self) -> Mapping[str, bytes]:
        files = tokenizer_files(self._metadata.values, self._name, self.config.max_positions)
        ids = {"bos_token_id": self.config.bos_token_id, "eos_token_id": list(self.config.eos_token_ids)}
        files["generation_config.json"] = {name: value for name, value in ids.items() if value not in (None, [])}
        return {name: (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode() for name, value in files.items()}

    def _read_config(self) -> LlamaConfig:
        values = self._metadata
        values.only("general.architecture", "llama", required=True)
        for key in values.values:
            if key.startswith("llama.") and key.removeprefix("llama.") not in _KNOWN_KEYS:
                raise CheckpointError(
                    f"{self._name}: {key}: expected no such key in a plain Llama, found {values.values[key]!r:.80}"
                )
        values.only("llama.rope.scaling.type", "none")
        values.only("llama.rope.scaling.factor", 1.0)
        values.only("llama.rope.scale_linear", 1.0)
        values.only("llama.attention.causal", True)
        values.only("llama.expert_count", 0)
        heads, hidden = values.integer("llama.attention.head_count"), values.integer("llama.embedding_length")
        head_dim = values.integer("llama.attention.key_length", hidden // heads)
        values.only("llama.attention.value_length", head_dim)
        values.only("llama.rope.dimension_count", head_dim)
        kv_heads = values.integer("llama.attention.head_count_kv", heads)
        if head_dim % 2 or heads % kv_heads:
            raise CheckpointError(
                f"{self._name}: expected an even head width and {kv_heads} to divide {heads} heads, found {head_dim}"
            )
        if "token_embd.weight" not in self._tensors:
            raise CheckpointError(f"{self._name}: token_embd.weight: expected this tensor, found none")
        tokens = values.values.get("tokenizer.ggml.tokens") or []
        bos = values.values.get("tokenizer.ggml.bos_token_id")
        return LlamaConfig(
            hidden=hidden,
            layers=values.integer("llama.block_count"),
            vocab=int(self._tensors["token_embd.weight"].shape[-1]),
            max_positions=values.integer("llama.context_length"),
            mlp_width=values.integer("llama.feed_forward_length"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope_theta=values.number("llama.rope.freq_base", 10000.0),
            norm_eps=values.number("llama.attention.layer_norm_rms_epsilon"),
            tied_head="output.weight" not in self._tensors,
            eos_token_ids=end_token_ids(values.values),
            bos_token_id=int(bos) if bos is not None and 0 <= int(bos) < len(tokens) else None,
        )

    def _check_tensors(self) -> None:
        expected = {_stored_name(name): (name, shape) for name, shape in self.config.tensors().items()}
        for stored, (name, shape) in expected.items():
            tensor = self._tensors.get(stored)
            if tensor is None:
                raise CheckpointError(f"{self._name}: {stored}: expected a tensor {list(shape)}, found none")
            found = tuple(int(size) for size in reversed(tensor.shape))
            if found != shape:
                raise CheckpointError(f"{self._name}: {stored}: expected shape {list(shape)}, found {list(found)}")
            self._stored[name] = stored
        for stored in self._tensors:
            if stored not in expected:
                raise CheckpointError(
                    f"{self._name}: {stored}: expected no such tensor in a plain Llama (biases, q/k norms, rope factors)"
                )


class _Metadata:
    """The key/value pairs of a GGUF file, read with checks."""

    def __init__(self, reader: GGUFReader, name: str) -> None:
        self._name = name
        self.values: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}

    def only(self, key: str, expected: object, *, required: bool = False) -> None:
        value = self.values.get(key)
        if value != expected and (required or value is not None):
            raise CheckpointError(f"{self._name}: {key}: expected {expected!r}, found {value!r:.80}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise CheckpointError(f"{self._name}: {key}: expected one positive integer, found {value!r:.80}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or not 0 < value < 1e30:
            raise CheckpointError(f"{self._name}: {key}: expected a positive number, found {value!r:.80}")
        # Stored as float32: the shortest decimal that is the same float32 is the number its author wrote.
        return float(str(np.float32(value)))


def _open(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ImportError("reading a GGUF file needs `pip install gguf`") from None
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path.name}: expected a GGUF file, found one that begins with {magic!r}")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader has no error class of its own: damage shows as ValueError, IndexError, MemoryError, ...
        raise CheckpointError(
            f"{path.name}: expected a whole GGUF file, found damage: {type(error).__name__}: {error!s:.200}"
        ) from error


def _stored_name(name: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    _, _, layer, rest = name.split(".", 3)
    stored = next(short for short, long in _LAYER_NAMES.items() if rest == f"{long}.weight")
    return f"blk.{layer}.{stored}.weight"


def _interleaved_rows(rows: int, head_dim: int) -> NDArray[np.intp]:
    """Stored row of each half-split row: (head, half, pair) lies at (head, pair, half)."""
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
