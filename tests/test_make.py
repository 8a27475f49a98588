"""Made checkpoints: every layout re-opens with the published shapes, bytes depend on seed and name alone, models behave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import read_config, reference_forward, reference_tensors, stored_tensors

from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import SHAPES, SPECIAL_TOKENS, make

LAYOUTS = [(layout, weights) for layout in ("flash", "fused") for weights in ("bf16", "fp8", "mxfp4")]


def tiles(size: int) -> int:
    return -(-size // 128)


def expected_matrix(name: str, rows: int, cols: int, weights: str, scale_rows: int | None = None) -> dict[str, tuple]:
    if weights == "bf16":
        return {name: ("BF16", (rows, cols))}
    if weights == "fp8":
        grid = (tiles(rows) if scale_rows is None else scale_rows, tiles(cols))
        return {name: ("F8_E4M3", (rows, cols)), f"{name}_scale_inv": ("F32", grid)}
    return {name: ("U8", (rows, cols // 2)), f"{name}_scale": ("U8", (rows, cols // 32))}


def expected_tiny(layout: str, weights: str) -> dict[str, tuple]:
    """Every tensor of the tiny shape, written out: hidden 160, 8 heads of 48/32 over 2 (full) or 4 (sliding)."""
    plain = "fp8" if weights != "bf16" else "bf16"
    want = {
        "model.embed_tokens.weight": ("BF16", (512, 160)),
        "lm_head.weight": ("BF16", (512, 160)),
        "model.norm.weight": ("BF16", (160,)),
    }
    for i in range(4):
        p = f"model.layers.{i}."
        kv = 4 if i in (1, 2) else 2
        for norm in ("input_layernorm", "post_attention_layernorm"):
            want[f"{p}{norm}.weight"] = ("BF16", (160,))
        if layout == "fused":
            want |= expected_matrix(f"{p}self_attn.qkv_proj.weight", 384 + 80 * kv, 160, plain, 2 * 3)
        else:
            want |= expected_matrix(f"{p}self_attn.q_proj.weight", 384, 160, plain, 3)
            want |= expected_matrix(f"{p}self_attn.k_proj.weight", 48 * kv, 160, plain, 2)
            want |= expected_matrix(f"{p}self_attn.v_proj.weight", 32 * kv, 160, plain, 1)
        want[f"{p}self_attn.o_proj.weight"] = ("BF16", (160, 256))
        if i in (1, 2):
            want[f"{p}self_attn.attention_sink_bias"] = ("BF16", (8,))
        mlps = [(f"{p}mlp.", 192, plain)] if i == 0 else [(f"{p}mlp.experts.{e}.", 64, weights) for e in range(8)]
        for prefix, width, kind in mlps:
            want |= expected_matrix(f"{prefix}gate_proj.weight", width, 160, kind)
            want |= expected_matrix(f"{prefix}up_proj.weight", width, 160, kind)
            want |= expected_matrix(f"{prefix}down_proj.weight", 160, width, kind)
        if i > 0:
            want[f"{p}mlp.gate.weight"] = ("F32", (8, 160))
            want[f"{p}mlp.gate.e_score_correction_bias"] = ("F32", (8,))
    return want


@pytest.mark.parametrize(("layout", "weights"), LAYOUTS)
def test_every_layout_reopens_with_the_right_shapes(tmp_path, layout, weights):
    checkpoint = Checkpoint.open(make(tmp_path / "m", layout=layout, weights=weights, progress=False))
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in checkpoint.tensors}
    assert found == expected_tiny(layout, weights)
    assert checkpoint.qkv_chunks == (2 if layout == "fused" else 0)
    assert checkpoint.config.quantization == (None if weights == "bf16" else weights)


def test_pro_has_the_published_tensors(tmp_path):
    """159,581 tensors, 1,023,244,718,976 elements, and the scale grid of 216 rows."""
    folder = make(tmp_path / "pro", "pro", mtp=True, headers_only=True)
    with pytest.warns(UserWarning, match="skipped 48 MTP tensors"):
        checkpoint = Checkpoint.open(folder)
    elements = {"F32": 0, "BF16": 0, "F8_E4M3": 0}
    count = 0
    for shard in checkpoint.files:
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__")
        count += len(header)
        for entry in header.values():
            elements[entry["dtype"]] += int(np.prod(entry["shape"], dtype=object))
    assert count == 159_581
    assert elements == {"F32": 224_695_296, "BF16": 9_450_733_440, "F8_E4M3": 1_013_569_290_240}
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    assert shapes["model.layers.69.self_attn.qkv_proj.weight"] == (27136, 6144)
    assert shapes["model.layers.69.self_attn.qkv_proj.weight_scale_inv"] == (216, 48)
    assert checkpoint.qkv_chunks == 8


@pytest.mark.parametrize(
    ("shape", "weights", "layer", "name", "expected"),
    [
        ("pro", "mxfp4", 1, "mlp.experts.0.gate_proj.weight", (2048, 3072)),
        ("pro", "mxfp4", 1, "mlp.experts.0.down_proj.weight_scale", (6144, 64)),
        ("v2.5", "fp8", 0, "self_attn.qkv_proj.weight_scale_inv", (108, 32)),
        ("v2.5", "fp8", 1, "self_attn.qkv_proj.weight_scale_inv", (116, 32)),
        ("flash", "fp8", 0, "self_attn.k_proj.weight_scale_inv", (8, 32)),
        ("flash", "fp8", 1, "self_attn.k_proj.weight_scale_inv", (12, 32)),
    ],
)
def test_published_scale_grids(tmp_path, shape, weights, layer, name, expected):
    overrides = {"num_hidden_layers": 2, "n_routed_experts": 8}
    checkpoint = Checkpoint.open(make(tmp_path / "m", shape, weights=weights, overrides=overrides, headers_only=True))
    assert {tensor.name: tensor.shape for tensor in checkpoint.tensors}[f"model.layers.{layer}.{name}"] == expected


def test_headers_only_takes_no_disk(tmp_path):
    folder = make(tmp_path / "m", headers_only=True, overrides={"vocab_size": 1 << 20})
    sizes = [path.stat() for path in folder.glob("*.safetensors")]
    assert sum(size.st_size for size in sizes) > 600e6
    assert sum(size.st_blocks * 512 for size in sizes) < 1e6


def stored_digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(data.tobytes()).hexdigest() for name, (_, data) in stored_tensors(folder).items()}


def test_bytes_depend_on_seed_and_name_alone(tmp_path):
    first = stored_digests(make(tmp_path / "a", seed=3, progress=False))
    assert (
        stored_digests(make(tmp_path / "b", seed=3, progress=False, index=False, mtp=True, router="f32")).items() >= first.items()
    )
    fewer = stored_digests(make(tmp_path / "c", seed=3, progress=False, overrides={"num_hidden_layers": 2}))
    assert fewer.items() <= first.items()
    other = stored_digests(make(tmp_path / "d", seed=4, progress=False))
    assert not set(other.values()) & set(first.values())


def test_pieces_do_not_show(tmp_path, monkeypatch):
    whole = stored_digests(make(tmp_path / "a", progress=False))
    monkeypatch.setattr("mimo_ultraspeed.make._PIECE", 64)
    assert stored_digests(make(tmp_path / "b", progress=False)) == whole


def test_bytes_are_the_same_on_every_machine(tmp_path):
    """The golden files and figures in notes are about these very weights."""
    digests = stored_digests(make(tmp_path / "m", progress=False, router="bf16"))
    names = ("model.embed_tokens.weight", "model.layers.1.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.up_proj.weight")
    assert [digests[name][:16] for name in names] == ["abdac222089b0356", "a14b072b6da61d51", "dff472c29a617ddc"]


@pytest.mark.parametrize(("layout", "weights"), LAYOUTS)
def test_models_behave(tmp_path, layout, weights):
    folder = make(tmp_path / "m", layout=layout, weights=weights, progress=False)
    logits, hidden = reference_forward(reference_tensors(folder), read_config(folder), list(range(20)))
    assert np.isfinite(logits).all()
    assert hidden.std(axis=(1, 2)).min() > 0.5 and hidden.std(axis=(1, 2)).max() < 4
    assert 1 < logits.std() < 4
    assert len(set(logits.argmax(-1).tolist())) > 5


def test_scales_vary_so_that_a_wrong_one_shows(tmp_path):
    stored = stored_tensors(make(tmp_path / "m", progress=False))
    grid = stored["model.layers.0.self_attn.qkv_proj.weight_scale_inv"][1]
    assert len(np.unique(grid)) == grid.size
    codes = stored["model.layers.1.mlp.experts.0.up_proj.weight_scale"][1]
    assert len(np.unique(codes)) == 3


def test_options_reach_the_config(tmp_path):
    overrides = {
        "tie_word_embeddings": "true",
        "num_hidden_layers": "6",
        "hidden_size": 64,
        "hybrid_layer_pattern": "[0,1,0,1,0,1]",
    }
    checkpoint = Checkpoint.open(make(tmp_path / "m", router="bf16", overrides=overrides, progress=False))
    config = checkpoint.config
    names = {tensor.name: tensor.dtype for tensor in checkpoint.tensors}
    assert config.tie_word_embeddings and "lm_head.weight" not in names
    assert names["model.layers.5.mlp.gate.weight"] == "BF16"
    assert (config.hidden_size, config.hybrid_layer_pattern) == (64, (0, 1, 0, 1, 0, 1))
    assert (config.moe_layer_freq, config.router_dtype) == ((0, 1, 1, 1, 1, 1), "bfloat16")


def test_dense_model(tmp_path):
    checkpoint = Checkpoint.open(make(tmp_path / "m", overrides={"moe_layer_freq": 0}, progress=False))
    assert not any("expert" in tensor.name for tensor in checkpoint.tensors)
    assert checkpoint.config.moe_layer_freq == (0, 0, 0, 0)


def test_shard_size_is_kept(tmp_path):
    folder = make(tmp_path / "m", shard_bytes=200_000, progress=False)
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) > 5
    assert all(path.stat().st_size < 220_000 for path in shards)
    Checkpoint.open(folder)


def test_tokenizer_is_byte_level_with_the_special_tokens(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="not run: tokenizers is not installed")
    folder = make(tmp_path / "m", progress=False)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Grüße,\n\tworld \N{GRINNING FACE}"
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(256, 256 + len(SPECIAL_TOKENS)))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [256, 258]


def test_chat_template_has_no_newline_after_im_end(tmp_path):
    sandbox = pytest.importorskip("jinja2.sandbox", reason="not run: jinja2 is not installed")
    folder = make(tmp_path / "m", progress=False)
    text = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    template = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    system = "<|im_start|>system\nYou are MiMo, a helpful AI assistant engineered by Xiaomi.<|im_end|>"
    messages = [{"role": "user", "content": "Hello"}]
    rendered = template.render(messages=messages, add_generation_prompt=True, enable_thinking=False)
    assert rendered == f"{system}<|im_start|>user\nHello<|im_end|><|im_start|>assistant\n<think></think>"
    messages = [{"role": "system", "content": "S"}, *messages, {"role": "assistant", "content": "Hi"}]
    rendered = template.render(messages=messages, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nS<|im_end|><|im_start|>user\nHello<|im_end|>"
        "<|im_start|>assistant\n<think></think>Hi<|im_end|><|im_start|>assistant\n"
    )


def test_small_vocabulary_has_no_tokenizer(tmp_path):
    folder = make(tmp_path / "m", overrides={"vocab_size": 64}, progress=False)
    assert not (folder / "tokenizer.json").exists()
    assert "eos_token_id" not in json.loads((folder / "generation_config.json").read_text())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": "huge"}, ValueError, "shape must be one of tiny, nano, medium, flash, v2.5, pro, found 'huge'"),
        ({"layout": "split"}, ValueError, "layout must be one of flash, fused, found 'split'"),
        ({"weights": "int4"}, ValueError, "weights must be one of bf16, fp8, mxfp4, found 'int4'"),
        ({"router": "f16"}, ValueError, "router must be one of f32, bf16, found 'f16'"),
        ({"overrides": {"hiden_size": 3}}, ValueError, "did you mean 'hidden_size'"),
        ({"overrides": {"hidden_size": "many"}}, CheckpointError, "hidden_size: expected a positive integer, found 'many'"),
        ({"overrides": {"hidden_size": 40}}, ValueError, "MXFP4 needs a multiple of 32 columns, found 40"),
        ({"overrides": {"swa_num_key_value_heads": 1}}, ValueError, "a fused layout of 2 chunks needs heads it divides"),
    ],
)
def test_wrong_arguments(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        make(tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        make(tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_full_disk_is_noticed_before_writing(tmp_path):
    with pytest.raises(OSError, match="bytes of free disk space"):
        make(tmp_path / "m", overrides={"vocab_size": 2**31 - 1, "hidden_size": 32768}, progress=False)
    assert not (tmp_path / "m").exists()


def test_every_shape_is_a_valid_config():
    assert list(SHAPES) == ["tiny", "nano", "medium", "flash", "v2.5", "pro"]
    pro, flash = SHAPES["pro"], SHAPES["flash"]
    assert [i for i, sliding in enumerate(pro["hybrid_layer_pattern"]) if not sliding] == [0, 7, 15, 23, 31, 39, 47, 55, 62, 69]
    assert [i for i, sliding in enumerate(flash["hybrid_layer_pattern"]) if not sliding] == [0, 5, 11, 17, 23, 29, 35, 41, 47]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"leyers": 2}, "'leyers' is not an option"),
        ({"layers": "two"}, "layers: expected an integer of 0 or more, found 'two'"),
        ({"block": True}, "block: expected an integer"),
        ({"rotary": "half"}, "rotary: expected a number"),
        ({"sinks": 1}, "sinks: expected true or false"),
        ({"weights": "int4"}, "weights: expected bf16, fp8, mxfp4, found 'int4'"),
    ],
)
def test_a_wrong_drafter_is_refused_before_anything_is_written(tmp_path: Path, option: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(tmp_path / "model", draft=option, progress=False)
    assert not (tmp_path / "model").exists()
