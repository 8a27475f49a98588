"""Writes a MiMo-V2 checkpoint as a GGUF file of architecture `mimo2`, so that llama.cpp runs the same model.

    pip install gguf
    python benchmarks/gguf_write.py CHECKPOINT FILE.gguf

MXFP4 experts keep every bit (only the order of their nibbles differs); norms, sinks and the router are F32; all other matrices
become Q8_0 (blocks of 32 int8 with an FP16 scale), which is a rounding of the stored values. Tensors are read, converted and
written one at a time, so memory stays at a few times the largest of them. The file has no tokenizer: it takes and gives ids.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from mimo_ultraspeed.checkpoint import Checkpoint, Tensor
from mimo_ultraspeed.config import AttentionConfig

__all__ = ["write_gguf"]

_BLOCK, _TILE = 32, 128
_ELEMENTS = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2"), "F8_E4M3": np.dtype("u1"), "U8": np.dtype("u1")}
_QUANTS = gguf.GGMLQuantizationType
_BLOCK_BYTES = {_QUANTS.Q8_0: 34, _QUANTS.MXFP4: 17}


class _Entry(NamedTuple):
    """A tensor of the file: its name, logical shape (slowest axis first), type, and what reads it."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    read: Callable[[], NDArray[Any]]


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Writes `checkpoint` to `path`. Raises ValueError for a model that the `mimo2` architecture cannot express."""
    config = checkpoint.config
    sparse = any(config.moe_layer_freq)
    if sparse and (not config.norm_topk_prob or (config.routed_scaling_factor or 1.0) != 1.0):
        raise ValueError(
            "mimo2 normalises the chosen experts' weights and does not scale them; this config asks for something else"
        )
    writer = gguf.GGUFWriter(path, "mimo2")
    _write_config(writer, checkpoint)
    entries = list(_entries(checkpoint))
    for entry in entries:
        shape, dtype, nbytes = _stored(entry)
        writer.add_tensor_info(entry.name, shape, dtype, nbytes, raw_dtype=entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(_encode(entry))
    writer.close()


def _write_config(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    kinds = [config.sliding if sliding else config.full for sliding in config.hybrid_layer_pattern]
    if any((a.num_heads, a.head_dim, a.v_head_dim) != (kinds[0].num_heads, kinds[0].head_dim, kinds[0].v_head_dim) for a in kinds):
        raise ValueError("mimo2 has one number of heads and one head width for all layers; this config has two")
    writer.add_block_count(len(kinds))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(kinds[0].num_heads)
    writer.add_head_count_kv([a.num_kv_heads for a in kinds])
    writer.add_key_length(kinds[0].head_dim)
    writer.add_value_length(kinds[0].v_head_dim)
    writer.add_rope_dimension_count(kinds[0].rotary_dim)
    writer.add_rope_freq_base(config.full.rope_theta)
    writer.add_rope_freq_base_swa(config.sliding.rope_theta)
    writer.add_sliding_window(config.sliding.window or 0)
    writer.add_sliding_window_pattern([bool(sliding) for sliding in config.hybrid_layer_pattern])
    writer.add_layer_norm_rms_eps(config.layernorm_epsilon)
    writer.add_float32("mimo2.attention.value_scale", config.attention_value_scale)
    if any(config.moe_layer_freq):
        writer.add_expert_count(config.n_routed_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_tokenizer_model("none")


def _entries(checkpoint: Checkpoint) -> Iterator[_Entry]:
    config, source = checkpoint.config, _Source(checkpoint)
    hidden, experts = config.hidden_size, config.n_routed_experts

    def matrix(name: str, stored: str, rows: int, cols: int) -> _Entry:
        return _Entry(name, (rows, cols), _QUANTS.Q8_0, lambda: source.matrix(stored))

    def vector(name: str, stored: str) -> _Entry:
        return _Entry(name, source.shape(stored), _QUANTS.F32, lambda: source.matrix(stored))

    yield matrix("token_embd.weight", "model.embed_tokens.weight", config.vocab_size, hidden)
    yield vector("output_norm.weight", "model.norm.weight")
    if not config.tie_word_embeddings:
        yield matrix("output.weight", "lm_head.weight", config.vocab_size, hidden)
    for layer, sparse in enumerate(config.moe_layer_freq):
        here, there = f"blk.{layer}.", f"model.layers.{layer}."
        attention = config.sliding if config.hybrid_layer_pattern[layer] else config.full
        yield vector(f"{here}attn_norm.weight", f"{there}input_layernorm.weight")
        for which, rows in _qkv_rows(attention).items():
            yield _Entry(f"{here}attn_{which}.weight", (rows, hidden), _QUANTS.Q8_0, partial(source.qkv, layer, which))
        yield matrix(
            f"{here}attn_output.weight", f"{there}self_attn.o_proj.weight", hidden, attention.num_heads * attention.v_head_dim
        )
        if attention.sinks:
            yield vector(f"{here}attn_sinks.weight", f"{there}self_attn.attention_sink_bias")
        yield vector(f"{here}ffn_norm.weight", f"{there}post_attention_layernorm.weight")
        if not sparse:
            width = config.intermediate_size
            for which, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                yield matrix(f"{here}ffn_{which}.weight", f"{there}mlp.{which}_proj.weight", *shape)
            continue
        width = config.moe_intermediate_size
        yield vector(f"{here}ffn_gate_inp.weight", f"{there}mlp.gate.weight")
        yield vector(f"{here}exp_probs_b.bias", f"{there}mlp.gate.e_score_correction_bias")
        packed = source.dtype(f"{there}mlp.experts.0.gate_proj.weight") == "U8"
        kind = _QUANTS.MXFP4 if packed else _QUANTS.Q8_0
        for which, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
            names = [f"{there}mlp.experts.{e}.{which}_proj.weight" for e in range(experts)]
            yield _Entry(f"{here}ffn_{which}_exps.weight", (experts, *shape), kind, partial(source.stacked, names))


def _qkv_rows(attention: AttentionConfig) -> dict[str, int]:
    heads, kv_heads = attention.num_heads, attention.num_kv_heads
    return {"q": heads * attention.head_dim, "k": kv_heads * attention.head_dim, "v": kv_heads * attention.v_head_dim}


def _stored(entry: _Entry) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and bytes as they lie in the file."""
    if entry.kind == _QUANTS.F32:
        return entry.shape, np.dtype(np.float32), int(np.prod(entry.shape)) * 4
    *outer, cols = entry.shape
    if cols % _BLOCK:
        raise ValueError(f"{entry.name}: expected rows of a multiple of {_BLOCK} elements, found {cols}")
    shape = (*outer, cols // _BLOCK * _BLOCK_BYTES[entry.kind])
    return shape, np.dtype(np.uint8), int(np.prod(shape))


def _encode(entry: _Entry) -> NDArray[Any]:
    values = entry.read()
    shape, dtype, _ = _stored(entry)
    encoded = gguf.quants.quantize(values, _QUANTS.Q8_0) if entry.kind == _QUANTS.Q8_0 else values
    if encoded.shape != shape or encoded.dtype != dtype:
        raise ValueError(f"{entry.name}: expected {shape} {dtype}, found {encoded.shape} {encoded.dtype}")
    return np.ascontiguousarray(encoded)


class _Source:
    """The checkpoint's tensors by name, dequantised to float32 unless they stay MXFP4."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = checkpoint.config
        self._chunks = checkpoint.qkv_chunks
        self._tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        self._files = [np.memmap(path, np.uint8, "r") for path in checkpoint.files]
        self._qkv: tuple[str, NDArray[np.float32]] | None = None

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def matrix(self, name: str, parts: int = 1) -> NDArray[np.float32]:
        """float32 values; parts: how many equal parts of the rows have an FP8 scale grid of their own."""
        elements, dtype = self._elements(self._tensors[name]), self.dtype(name)
        if dtype == "F32":
            return elements.astype(np.float32)
        if dtype == "BF16":
            return (elements.astype(np.uint32) << 16).view(np.float32)
        if dtype == "U8":
            return gguf.quants.dequantize(self.mxfp4(name), _QUANTS.MXFP4)
        scales = self._elements(self._tensors[f"{name}_scale_inv"])
        rows, cols = elements.shape
        part, grid = rows // parts, scales.shape[0] // parts
        row = np.arange(rows)
        spread = scales[row // part * grid + row % part // _TILE][:, np.arange(cols) // _TILE]
        return _e4m3_values()[elements] * spread

    def mxfp4(self, name: str) -> NDArray[np.uint8]:
        """[R, C/32*17]: a block is its scale, then 16 bytes with element i low and element i + 16 high."""
        codes = self._elements(self._tensors[name])
        rows, half = codes.shape
        blocks = half // 16
        pairs = codes.reshape(rows, blocks, 16)  # as stored: element 2j low, 2j + 1 high
        nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, blocks, 2, 16)
        packed = np.empty((rows, blocks, 17), np.uint8)
        packed[:, :, 0] = self._elements(self._tensors[f"{name}_scale"])
        packed[:, :, 1:] = nibbles[:, :, 0] | nibbles[:, :, 1] << 4
        return packed.reshape(rows, blocks * 17)

    def stacked(self, names: Sequence[str]) -> NDArray[Any]:
        """Experts' matrices, MXFP4 where they are stored so: [E, R, ...]."""
        return np.stack([self.mxfp4(name) if self.dtype(name) == "U8" else self.matrix(name) for name in names])

    def qkv(self, layer: int, which: str) -> NDArray[np.float32]:
        """All rows of q, k or v of a layer, from split tensors or from fused chunks of [Q|K|V]."""
        prefix = f"model.layers.{layer}.self_attn."
        sliding = bool(self._config.hybrid_layer_pattern[layer])
        attention = self._config.sliding if sliding else self._config.full
        if not self._chunks:
            name = f"{prefix}{which}_proj.weight"
            return self.matrix(name, self._parts_of_k(name, attention) if which == "k" else 1)
        name = f"{prefix}qkv_proj.weight"
        if self._qkv is None or self._qkv[0] != name:
            self._qkv = name, self.matrix(name, self._chunks)
        rows = [count // self._chunks for count in _qkv_rows(attention).values()]
        chunks = np.split(self._qkv[1], self._chunks)
        return np.concatenate([np.split(chunk, np.cumsum(rows)[:2])["qkv".index(which)] for chunk in chunks])

    def _parts_of_k(self, name: str, attention: AttentionConfig) -> int:
        """Heads, where the scale grid of K restarts with every head."""
        if self.dtype(name) != "F8_E4M3":
            return 1
        rows, grid = self.shape(name)[0], self.shape(f"{name}_scale_inv")[0]
        per_head = attention.num_kv_heads * -(-attention.head_dim // _TILE)
        return attention.num_kv_heads if grid == per_head != -(-rows // _TILE) else 1

    def _elements(self, tensor: Tensor) -> NDArray[Any]:
        return self._files[tensor.file][tensor.begin : tensor.end].view(_ELEMENTS[tensor.dtype]).reshape(tensor.shape)


def _e4m3_values() -> NDArray[np.float32]:
    """[256]: the value of every E4M3 code; NaN codes are NaN."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[code & 127 == 127] = np.nan
    return np.where(code & 128, -size, size).astype(np.float32)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    write_gguf(Checkpoint.open(sys.argv[1]), Path(sys.argv[2]))
