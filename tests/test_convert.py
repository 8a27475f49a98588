"""Conversion of tiny Llamas, whose right answer is known exactly, from both kinds of source."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from mimo_ultraspeed._core import mxfp4_encode
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.convert import convert
from mimo_ultraspeed.convert.write import balance_hidden_units
from mimo_ultraspeed.errors import CheckpointError, TokenizerError
from mimo_ultraspeed.safetensors_write import bf16_from_f32, f32_from_bf16

H, L, F, N, G, D = 64, 2, 256, 4, 2, 16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

SHORT = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def byte_characters():
    """The characters byte-level BPE shows for the 256 bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]


TOKENS = ["<|endoftext|>", "<|im_end|>", *byte_characters(), "Ġa", "12"]
V = len(TOKENS)


def llama_tensors(seed=0, tied=True):
    """Weights that MXFP4 holds without loss: E2M1 values times one power of two."""
    rng = np.random.default_rng(seed)

    def matrix(rows, cols):
        return E2M1[rng.integers(0, 16, (rows, cols))] * np.float32(0.125)

    tensors = {"model.embed_tokens.weight": matrix(V, H), "model.norm.weight": rng.normal(1, 0.1, H).astype(np.float32)}
    for i in range(L):
        p = f"model.layers.{i}."
        tensors[p + "input_layernorm.weight"] = rng.normal(1, 0.1, H).astype(np.float32)
        tensors[p + "post_attention_layernorm.weight"] = rng.normal(1, 0.1, H).astype(np.float32)
        tensors[p + "self_attn.q_proj.weight"] = matrix(N * D, H)
        tensors[p + "self_attn.k_proj.weight"] = matrix(G * D, H)
        tensors[p + "self_attn.v_proj.weight"] = matrix(G * D, H)
        tensors[p + "self_attn.o_proj.weight"] = matrix(H, N * D)
        tensors[p + "mlp.gate_proj.weight"] = matrix(F, H)
        tensors[p + "mlp.up_proj.weight"] = matrix(F, H)
        tensors[p + "mlp.down_proj.weight"] = matrix(H, F)
    if not tied:
        tensors["lm_head.weight"] = matrix(V, H)
    return tensors


def gguf_tensors(tensors):
    """Under GGUF names; rows of q and k so that the two rows of a rotary pair are neighbours."""
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    renamed = {}
    for name, array in tensors.items():
        if name in outer:
            renamed[outer[name]] = array
            continue
        _, _, layer, rest = name.split(".", 3)
        if "q_proj" in name or "k_proj" in name:
            rows = [
                array[head * D + half * D // 2 + pair]
                for head in range(len(array) // D)
                for pair in range(D // 2)
                for half in (0, 1)
            ]
            array = np.stack(rows)
        renamed[f"blk.{layer}.{SHORT[rest.removesuffix('.weight')]}.weight"] = array
    return renamed


METADATA = {
    "llama.context_length": 128,
    "llama.embedding_length": H,
    "llama.block_count": L,
    "llama.feed_forward_length": F,
    "llama.attention.head_count": N,
    "llama.attention.head_count_kv": G,
    "llama.rope.dimension_count": D,
    "llama.rope.freq_base": 50000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages[0].content }}",
}


def write_gguf(path, tensors=None, *, arch="llama", quantize=None, **changes):
    """A GGUF file; changes: metadata keys with __ for the dots, None removes one."""
    writer = gguf.GGUFWriter(path, arch)
    metadata = METADATA | {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (V - 2))
    writer.add_token_merges(["Ġ a", "1 2"])
    for name, array in gguf_tensors(llama_tensors() if tensors is None else tensors).items():
        if quantize is not None and array.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(path, tensors, dtype="F32", *, config=(), tokenizer=True):
    path.mkdir()
    raw = {
        "model_type": "llama", "hidden_size": H, "num_hidden_layers": L, "vocab_size": V, "intermediate_size": F,
        "num_attention_heads": N, "num_key_value_heads": G, "rope_theta": 50000.0, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in tensors, "eos_token_id": 1, "bos_token_id": 0,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(raw | dict(config)))
    if tokenizer:
        (path / "tokenizer.json").write_text('{"version": "1.0"}')
    if dtype == "BF16":
        torch_free = {name: bf16_from_f32(array) for name, array in tensors.items()}
        save_file(torch_free, path / "model.safetensors")
        data = (path / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].replace(b'"U16"', b'"BF16"')
        (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    else:
        element = {"F32": np.float32, "F16": np.float16, "I8": np.int8}[dtype]
        save_file({name: array.astype(element) for name, array in tensors.items()}, path / "model.safetensors")
    return path


def load(folder):
    """The converted tensors as float32, U8 left alone."""
    checkpoint = Checkpoint.open(folder)
    tensors = {}
    for tensor in checkpoint.tensors:
        with checkpoint.files[tensor.file].open("rb") as file:
            file.seek(tensor.begin)
            raw = file.read(tensor.end - tensor.begin)
        element = {"F32": np.float32, "BF16": np.uint16, "U8": np.uint8}[tensor.dtype]
        array = np.frombuffer(raw, element).reshape(tensor.shape)
        tensors[tensor.name] = f32_from_bf16(array) if tensor.dtype == "BF16" else array
    return tensors


def dequantize(codes, scales):
    elements = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    return E2M1[elements] * np.exp2(scales.astype(np.float32) - 127).repeat(32, axis=1)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_dense_is_lossless_and_unpermuted(tmp_path, tied):
    tensors = llama_tensors(tied=tied)
    folder = convert(write_gguf(tmp_path / "m.gguf", tensors), tmp_path / "out", progress=False)
    found = load(folder)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert np.array_equal(found[name], array), name
    config = Checkpoint.open(folder).config
    assert (config.full.num_heads, config.full.num_kv_heads, config.full.rotary_dim, config.full.rope_theta) == (N, G, D, 50000.0)
    assert (config.layernorm_epsilon, config.attention_value_scale, config.tie_word_embeddings) == (1e-5, 1.0, tied)
    assert not any(config.moe_layer_freq) and not any(config.hybrid_layer_pattern)


def test_experts_hold_the_balanced_mlp(tmp_path):
    tensors = llama_tensors()
    folder = convert(write_gguf(tmp_path / "m.gguf", tensors), tmp_path / "out", experts=4, progress=False)
    found, config = load(folder), Checkpoint.open(folder).config
    assert (config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size, config.quantization) == (
        4,
        4,
        64,
        "mxfp4",
    )
    for i in range(L):
        mlp = f"model.layers.{i}.mlp."
        assert not found[mlp + "gate.weight"].any() and not found[mlp + "gate.e_score_correction_bias"].any()
        parts = {
            name: [
                dequantize(found[f"{mlp}experts.{e}.{name}_proj.weight"], found[f"{mlp}experts.{e}.{name}_proj.weight_scale"])
                for e in range(4)
            ]
            for name in ("gate", "up", "down")
        }
        gate, up, down = balance_hidden_units(*(tensors[f"{mlp}{name}_proj.weight"] for name in ("gate", "up", "down")))
        rounded = {"gate": gate, "up": up, "down": 4 * down}
        for name, axis in (("gate", 0), ("up", 0), ("down", 1)):
            want = np.concatenate([dequantize(*mxfp4_encode(p.copy())) for p in np.split(rounded[name], 4, axis)], axis)
            assert np.array_equal(np.concatenate(parts[name], axis), want), name


def test_balancing_changes_order_and_scale_only():
    rng = np.random.default_rng(5)
    gate, up = (rng.standard_normal((128, 64)).astype(np.float32) for _ in range(2))
    down = (rng.standard_normal((64, 128)) * np.exp(2 * rng.standard_normal(128))).astype(np.float32)
    down[:, 7] = 0
    x = rng.standard_normal((10, 64))

    def mlp(gate, up, down):
        g = x @ gate.T.astype(np.float64)
        return (g / (1 + np.exp(-g)) * (x @ up.T.astype(np.float64))) @ down.T.astype(np.float64)

    balanced = balance_hidden_units(gate, up, down)
    want = mlp(gate, up, down)
    assert np.abs(mlp(*balanced) - want).max() < 1e-6 * np.abs(want).max()
    norms = np.linalg.norm(balanced[2], axis=0)
    assert (np.diff(norms) > -1e-5).all()
    assert {tuple(row) for row in balanced[0]} == {tuple(row) for row in gate}

    def error(down):
        codes, scales = mxfp4_encode(np.ascontiguousarray(down))
        return (np.linalg.norm(dequantize(codes, scales) - down, axis=0) / np.maximum(np.linalg.norm(down, axis=0), 1e-9)).mean()

    assert error(balanced[2]) < 0.8 * error(down)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16])
def test_quantized_gguf(tmp_path, kind):
    tensors = llama_tensors()
    found = load(
        convert(write_gguf(tmp_path / "m.gguf", tensors, quantize=kind), tmp_path / "out", dtype="float32", progress=False)
    )
    for name, array in tensors.items():
        assert np.abs(found[name] - array).max() <= (0.75 / 250 if kind == gguf.GGMLQuantizationType.Q8_0 else 0), name


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_folder(tmp_path, dtype):
    tensors = llama_tensors(tied=False)
    source = write_folder(tmp_path / "in", tensors, dtype)
    found = load(convert(source, tmp_path / "out", progress=False, max_shard_bytes=100_000))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    for name, array in tensors.items():
        if "norm" not in name or dtype == "F32":
            assert np.array_equal(found[name], array), name
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"version": "1.0"}'


def test_bf16_pieces_of_a_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr("mimo_ultraspeed.convert.llama.PIECE_ELEMENTS", 5 * H)
    tensors = llama_tensors()
    found = load(convert(write_gguf(tmp_path / "m.gguf", tensors), tmp_path / "out", progress=False))
    for name, array in tensors.items():
        assert np.array_equal(found[name], array), name


def test_tokenizer_files(tmp_path):
    from tokenizers import Tokenizer

    folder = convert(write_gguf(tmp_path / "m.gguf"), tmp_path / "out", progress=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(" a12<|im_end|>").tokens == ["Ġa", "1", "2", "<|im_end|>"]  # digits one by one, though "12" has a merge
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": [1, 0]}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["bos_token"], config["add_bos_token"]) == ("<|im_end|>", "<|endoftext|>", False)
    assert config["chat_template"] == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("pre", "tokens"), [("gpt-2", ["12", "Ġa"]), ("llama-bpe", ["<|endoftext|>", "12", "Ġa"]), ("qwen2", ["1", "2", "Ġa"])]
)
def test_kinds_of_words(tmp_path, pre, tokens):
    from tokenizers import Tokenizer

    folder = convert(write_gguf(tmp_path / "m.gguf", tokenizer__ggml__pre=pre), tmp_path / "out", progress=False)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("12 a").tokens == tokens


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"arch": "qwen2"}, CheckpointError, "general.architecture: expected 'llama', found 'qwen2'"),
        ({"llama__rope__scaling__type": "yarn"}, CheckpointError, "llama.rope.scaling.type: expected 'none', found 'yarn'"),
        ({"llama__rope__scaling__factor": 4.0}, CheckpointError, "llama.rope.scaling.factor: expected 1.0, found 4.0"),
        ({"llama__rope__dimension_count": 8}, CheckpointError, "llama.rope.dimension_count: expected 16, found 8"),
        ({"llama__attention__sliding_window": 32}, CheckpointError, "llama.attention.sliding_window: expected no such key"),
        ({"llama__expert_count": 8}, CheckpointError, "llama.expert_count: expected 0, found 8"),
        ({"llama__block_count": None}, CheckpointError, "llama.block_count: expected one positive integer, found None"),
        ({"llama__block_count": 3}, CheckpointError, "blk.2.attn_norm.weight: expected a tensor .64., found none"),
        ({"llama__feed_forward_length": 128}, CheckpointError, "ffn_gate.weight: expected shape .128, 64., found .256, 64."),
        ({"tokenizer__ggml__pre": "mystery"}, TokenizerError, "tokenizer.ggml.pre: expected 'gpt-2' or .*, found 'mystery'"),
        ({"tokenizer__ggml__model": "llama"}, TokenizerError, "tokenizer.ggml.model: expected 'gpt2', found 'llama'"),
        (
            {"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True},
            TokenizerError,
            "bos_token_id: expected an id",
        ),
    ],
)
def test_gguf_that_is_no_plain_llama(tmp_path, changes, error, message):
    path = write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(error, match=message):
        convert(path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "rope_freqs.weight"])
def test_gguf_with_tensors_a_plain_llama_lacks(tmp_path, monkeypatch, name):
    plain = gguf_tensors
    monkeypatch.setitem(globals(), "gguf_tensors", lambda tensors: plain(tensors) | {name: np.ones(64, np.float32)})
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=f"{name}: expected no such tensor in a plain Llama"):
        convert(path, tmp_path / "out", progress=False)


def test_damaged_gguf(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="expected a whole GGUF file, found damage"):
        convert(path, tmp_path / "out", progress=False)
    path.write_bytes(b"PK\3\4" + whole[4:])
    with pytest.raises(CheckpointError, match="expected a GGUF file, found one that begins with b'PK"):
        convert(path, tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError, match="expected a GGUF file or a Hugging Face folder"):
        convert(tmp_path / "none", tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen2"}, "model_type: expected 'llama', found 'qwen2'"),
        ({"attention_bias": True}, "attention_bias: expected False, found True"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.rope_type: expected no scaling"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: expected None"),
        ({"num_key_value_heads": 3}, "expected a divisor of 4"),
        ({"hidden_size": "64"}, "hidden_size: expected a positive integer"),
        ({"rms_norm_eps": None}, "rms_norm_eps: expected a positive number"),
        ({"vocab_size": 7}, "model.embed_tokens.weight: expected shape"),
    ],
)
def test_folder_that_is_no_plain_llama(tmp_path, config, message):
    source = write_folder(tmp_path / "in", llama_tensors(), config=config)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "out", progress=False)


def test_folder_with_wrong_tensors(tmp_path):
    tensors = llama_tensors()
    with pytest.raises(CheckpointError, match="expected dtype BF16, F16 or F32, found I8"):
        convert(write_folder(tmp_path / "a", tensors, "I8"), tmp_path / "out", progress=False)
    extra = tensors | {"model.layers.0.self_attn.q_norm.weight": np.ones(D, np.float32)}
    with pytest.raises(CheckpointError, match=r"q_norm.weight'?: expected no such tensor"):
        convert(write_folder(tmp_path / "b", extra), tmp_path / "out", progress=False)
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json, found none"):
        convert(write_folder(tmp_path / "c", tensors, tokenizer=False), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("experts", "message"),
    [(3, "power of two"), (0, "power of two"), (128, "up to 64"), (16, "a multiple of 32, found 256/16 = 16")],
)
def test_experts_that_do_not_divide(tmp_path, experts, message):
    with pytest.raises(ValueError, match=message):
        convert(write_gguf(tmp_path / "m.gguf"), tmp_path / "out", experts=experts, progress=False)


def test_nothing_is_left_after_an_error(tmp_path):
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan
    path = write_gguf(tmp_path / "m.gguf", tensors)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: expected finite weights"):
        convert(path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        convert(path, tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "notes").read_text() == "keep"
    with pytest.raises(ValueError, match="dtype: expected 'bfloat16' or 'float32', found 'int8'"):
        convert(path, tmp_path / "out", dtype="int8", progress=False)


def test_conversion_is_deterministic(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    first, second = (convert(path, tmp_path / name, experts=2, progress=False) for name in "ab")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
