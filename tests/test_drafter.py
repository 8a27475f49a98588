"""Opening a drafter: config.json in its spellings, files in any layout, and every contradiction named."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

# As published beside MiMo-V2.5-Pro-FP4-DFlash.
PRO: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 5,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "v_head_dim": 128,
    "partial_rotary_factor": 0.5,
    "block_size": 8,
    "num_target_layers": 70,
    "vocab_size": 152064,
    "max_position_embeddings": 262144,
    "rope_theta": 10000,
    "sliding_window": 1024,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "dflash_config": {
        "target_layer_ids": [0, 15, 31, 47, 69],
        "mask_token_id": 151669,
        "num_anchors": 4096,
        "block_size": 8,
        "loss_decay_gamma": 7.0,
        "use_swa": True,
        "swa_window_size": 1024,
        "backbone_rotary_base": 5000000,
        "attention_value_scale": 0.612,
        "attention_sink_bias": True,
    },
}
V26: dict[str, Any] = {key: value for key, value in PRO.items() if key not in ("dflash_config", "auto_map")} | {
    "target_hidden_size": 6144,
    "max_position_embeddings": 1048576,
    "layer_types": ["sliding_attention"] * 5,
    "is_causal": False,
    "use_sliding_window": True,
    "attention_value_scale": 0.612,
    "add_swa_attention_sink_bias": True,
    "dflash_config": {"target_layer_ids": [0, 15, 31, 47, 69], "mask_token_id": 151675},
}
QWEN: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "block_size": 16,
    "layer_types": ["full_attention"] * 5,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 5,
    "mask_token_id": 151669,
}


def read(raw: dict[str, Any], layers: int = 70) -> mu.DraftConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return mu.DraftConfig.from_dict(raw, target_layers=layers)


def test_the_published_config() -> None:
    config = read(PRO)
    assert config == mu.DraftConfig(
        hidden_size=6144,
        num_hidden_layers=5,
        num_attention_heads=128,
        num_key_value_heads=8,
        head_dim=128,
        v_head_dim=128,
        intermediate_size=16384,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rotary_dim=64,
        attention_value_scale=0.612,
        sinks=True,
        layer_pattern=(1, 1, 1, 1, 1),
        window=1024,
        causal=(False, False),
        block_size=8,
        short_block_size=0,
        target_layer_ids=(0, 15, 31, 47, 69),
        mask_token_id=151669,
        num_target_layers=70,
        vocab_size=152064,
    )


def test_the_flat_spelling() -> None:
    nested, flat = read(PRO), read(V26)
    assert {field for field in vars(nested) if getattr(nested, field) != getattr(flat, field)} == {"mask_token_id"}


def test_a_drafter_of_another_family() -> None:
    config = read(QWEN, layers=36)
    assert config.target_layer_ids == (1, 9, 17, 25, 33)
    assert (config.layer_pattern, config.window, config.causal) == ((0,) * 5, 0, (False, False))
    assert (config.rotary_dim, config.attention_value_scale, config.sinks) == (128, 1.0, False)
    assert read(QWEN | {"num_hidden_layers": 1, "layer_types": None}, layers=36).target_layer_ids == (18,)
    mixed = read(QWEN | {"layer_types": ["sliding_attention"] * 4 + ["full_attention"], "sliding_window": 2048}, layers=36)
    assert (mixed.layer_pattern, mixed.window, mixed.causal) == ((1, 1, 1, 1, 0), 2048, (False, True))
    assert read(QWEN | {"is_causal": True}, layers=36).causal == (True, True)
    assert read({key: value for key, value in QWEN.items() if key != "rope_theta"}, layers=36).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 17}, "block_size: expected 8 as|block_size: expected 2 to 16, found 17"),
        ({"short_block_size": 8}, "short_block_size: expected 0, or 2 to 7, found 8"),
        (
            {"dflash_config": {"target_layer_ids": [0, 70]}},
            r"target_layer_ids\[1\]: expected a layer of the target, 0 to 69, found 70",
        ),
        ({"dflash_config": {"target_layer_ids": []}}, "target_layer_ids: expected a list of 1 to 16 layers"),
        ({"dflash_config": {"target_layer_ids": list(range(17))}}, "target_layer_ids: expected a list of 1 to 16 layers"),
        ({"dflash_config": [1]}, "dflash_config: expected an object"),
        ({"dflash_config": {"block_size": 4}}, "dflash_config.block_size: expected 8 as block_size says, found 4"),
        ({"num_key_value_heads": 7}, "num_key_value_heads: expected a divisor of 128 heads, found 7"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ({"attention_bias": True}, "attention_bias: expected False"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected at most 1"),
        ({"target_hidden_size": 4096}, "target_hidden_size: expected 6144 as hidden_size says, found 4096"),
        ({"layer_types": ["sliding_attention"]}, "layer_types: expected 5 values"),
        ({"projector_type": "domino"}, "projector_type: expected a plain DFlash drafter"),
        ({"sliding_window": 512}, "expected 1024 as swa_window_size says, found 512"),
    ],
)
def test_contradictions(change: dict[str, Any], message: str) -> None:
    raw = {key: value for key, value in (PRO | change).items() if value is not None}
    if change.keys() == {"block_size"}:
        raw["dflash_config"] = {"target_layer_ids": [0]}
    with pytest.raises(mu.CheckpointError, match=message):
        read(raw)


def test_unknown_keys_are_told() -> None:
    with pytest.warns(UserWarning, match="ignored 1 unknown keys: selector_rank"):
        mu.DraftConfig.from_dict(PRO | {"selector_rank": 8}, target_layers=70)


# ---- options ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rope_theta": 0}, ValueError, "rope_theta: expected a positive number"),
        ({"rope_theta": "5e6"}, TypeError, "rope_theta: expected a number"),
        ({"rotary_dim": -2}, ValueError, "rotary_dim: expected 0 or more"),
        ({"rotary_dim": 0.5}, TypeError, "rotary_dim: expected an integer"),
        ({"sinks": 1}, TypeError, "sinks: expected True or False"),
        ({"window": -1}, ValueError, "window: expected 0 or more"),
        ({"window_rule": "both"}, ValueError, "window_rule: expected 'query' or 'anchor'"),
        ({"tap_shift": True}, TypeError, "tap_shift: expected an integer"),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mu.Draft(**options)


# ---- folders ----


@pytest.mark.parametrize(("shape", "parameters"), [("pro", 2_768_316_288), ("v2.5", 1_468_057_152)])
def test_the_published_sizes(shape: str, parameters: int, tmp_path: Path) -> None:
    """As many parameters and tensors as the published drafters have, by their sizes on disk."""
    path = make(tmp_path / shape, shape, draft={"shards": 3}, headers_only=True, progress=False)
    drafter = open_drafter("auto", Checkpoint.open(path))
    assert drafter is not None
    assert (drafter.parameters, len(drafter.tensors)) == (parameters, 64)  # 63 and the mask embedding
    assert drafter.files[0].name.startswith("dflash_draft_model-00001-of-") and len(drafter.files) >= 4
    assert drafter.mask_from == "mask_embedding.pt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "model", draft={"vocab": 100, "markov_rank": 4}, progress=False)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def opened(path: Path, draft: Any = "auto") -> mu.Drafter:
    drafter = open_drafter(draft, Checkpoint.open(path))
    assert drafter is not None
    return drafter


def change_config(path: Path, **changes: Any) -> None:
    file = path / "dflash" / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def test_the_whole_model(made: Path) -> None:
    with mu.Model.from_pretrained(made, threads=2, progress=False) as model:
        assert model.draft is not None
        assert (model.draft.block_size, model.draft.taps, model.draft.draft_vocab_size) == (8, (0, 1, 3), 100)
        assert model.draft.markov_rank == 4
        assert model.draft.options == mu.Draft()
        logits = model.draft_logits([1, 2, 3])
        assert (logits.shape, logits.dtype) == ((7, 512), np.float32)
        known = np.isfinite(logits)
        assert known.sum(1).tolist() == [100] * 7 and (logits[~known] == -np.inf).all()
        assert model.draft.target_ids is not None and known[0, model.draft.target_ids].all()
        np.testing.assert_array_equal(model.draft_logits([1, 2, 3, 4], anchors=[2])[0], logits)
        with pytest.raises(ValueError, match="expected at least one token"):
            model.draft_logits([])
        with pytest.raises(ValueError, match="512"):
            model.draft_logits([512])
        assert "block 8" in repr(model)
    for draft in (None, False):
        with mu.Model.from_pretrained(made, draft=draft, threads=2, progress=False) as model:
            assert model.draft is None
            with pytest.raises(ValueError, match="this model has no drafter"):
                model.draft_logits([1])


def test_where_a_drafter_is_looked_for(made: Path, tmp_path: Path) -> None:
    bare = make(tmp_path / "bare", progress=False)
    checkpoint = Checkpoint.open(bare)
    assert open_drafter("auto", checkpoint) is None
    for draft in (made / "dflash", str(made / "dflash"), mu.Draft(made / "dflash")):
        drafter = open_drafter(draft, checkpoint)
        assert drafter is not None and drafter.folder == made / "dflash"
    for asked in (mu.Draft(sinks=False), True):
        with pytest.raises(FileNotFoundError, match="dflash: expected the folder of a drafter, as draft="):
            open_drafter(asked, checkpoint)
    with pytest.raises(FileNotFoundError, match="nowhere: expected the folder of a drafter"):
        open_drafter("nowhere", checkpoint)
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        open_drafter(bare.parent, checkpoint)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "drafter.safetensors.index.json", None])
def test_shards_of_any_name(index: str | None, tmp_path: Path) -> None:
    path = make(tmp_path / "model", draft={"shards": 3}, progress=False)
    wanted = opened(path)
    folder = path / "dflash"
    stored = folder / "model.safetensors.index.json"
    raw = json.loads(stored.read_text())
    stored.unlink()
    for file in sorted(folder.glob("*.safetensors")):
        file.rename(folder / f"part_{file.name}")
    if index is not None:
        raw["weight_map"] = {name: f"part_{shard}" for name, shard in raw["weight_map"].items()}
        (folder / index).write_text(json.dumps(raw))
    found = opened(path)
    assert found.tensors == wanted.tensors
    assert len(found.files) == len(wanted.files) >= 4


def test_a_snapshot_of_the_hub_cache(made: Path, tmp_path: Path) -> None:
    """Its files are links into a folder of blobs, those of dflash/ too."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "main", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in made.rglob("*") if path.is_file())):
        shutil.copy(file, blobs / str(number))
        link = snapshot / file.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert opened(snapshot).parameters == opened(made).parameters


def test_switches_change_the_config(made: Path) -> None:
    options = mu.Draft(rope_theta=5e6, rotary_dim=8, value_scale=1.0, sinks=False, causal=True, window=5, tap_shift=1)
    drafter = opened(made, options)
    config = drafter.config
    assert (config.rope_theta, config.rotary_dim, config.attention_value_scale) == (5e6, 8, 1.0)
    assert (config.sinks, config.causal, config.window, config.layer_pattern) == (False, (True, True), 5, (1, 1))
    assert drafter.taps == (1, 2, 3)
    assert not any("sink" in tensor.name for tensor in drafter.tensors)
    assert opened(made, mu.Draft(window=0)).config.layer_pattern == (0, 0)
    assert opened(made, mu.Draft(mask_embedding=False)).mask_from == "the target's embedding"
    with pytest.raises(ValueError, match="rotary_dim: expected an even number up to head_dim 32, found 34"):
        opened(made, mu.Draft(rotary_dim=34))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 128}, "dflash: config.json: hidden_size: expected 160 as in the target, found 128"),
        ({"num_target_layers": 5}, "num_target_layers: expected 4 as in the target, found 5"),
        ({"vocab_size": 600}, "vocab_size: expected at most 512, as the target has 512 ids, found 600"),
    ],
)
def test_another_targets_drafter(copy: Path, changes: dict[str, Any], message: str) -> None:
    change_config(copy, **changes)
    with pytest.raises(mu.CheckpointError, match=message):
        opened(copy)


def load(path: Path) -> None:
    mu.Model.from_pretrained(path, threads=1, progress=False).close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": 3},
            r"draft: model.layers.2.input_layernorm.weight: expected a tensor of \[160\] elements, found none",
        ),
        ({"num_hidden_layers": 1}, "draft: model.layers.1.*: expected no such tensor by the config"),
        ({"intermediate_size": 96}, r"draft: model.layers.0.mlp.gate_proj.weight: expected shape \[96, 160\], found \[192, 160\]"),
        (
            {"num_key_value_heads": 2},
            r"draft: model.layers.0.self_attn.k_proj.weight: expected shape \[64, 160\], found \[128, 160\]",
        ),
        ({"head_dim": 20, "v_head_dim": 20}, "head_dim: expected a multiple of 8"),
    ],
)
def test_tensors_that_do_not_fit_the_config(copy: Path, changes: dict[str, Any], message: str) -> None:
    change_config(copy, **changes)
    with pytest.raises(ValueError, match=message):
        load(copy)


def test_a_tap_too_many(copy: Path) -> None:
    file = copy / "dflash" / "config.json"
    raw = json.loads(file.read_text())
    raw["dflash_config"]["target_layer_ids"] = [0, 1, 2, 3]
    file.write_text(json.dumps(raw))
    with pytest.raises(mu.CheckpointError, match=r"draft: model.fc.weight: expected shape \[160, 640\], found \[160, 480\]"):
        load(copy)


def test_sinks_that_are_not_there(tmp_path: Path) -> None:
    path = make(tmp_path / "model", draft={"sinks": False}, progress=False)
    opened(path)
    with pytest.raises(
        mu.CheckpointError, match=r"draft: model.layers.0.self_attn.attention_sink_bias: expected a tensor of \[8\]"
    ):
        mu.Model.from_pretrained(path, draft=mu.Draft(sinks=True), threads=1, progress=False)


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> None:
    """Stores the drafter's d2t anew."""
    file = path / "dflash" / "dflash_draft_model.safetensors"
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8:start])["d2t"]["data_offsets"]
    ids = np.frombuffer(bytes(raw[start + begin : start + end]), "<i8").copy()
    change({"d2t": ids})
    raw[start + begin : start + end] = ids.tobytes()
    file.write_bytes(raw)


def test_ids_that_the_target_does_not_have(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors["d2t"].__setitem__(3, 509))
    with pytest.raises(mu.CheckpointError, match="d2t: index 3: expected an id below the target's 512, found 512"):
        opened(copy)


def test_ids_that_come_twice(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors["d2t"].__setitem__(4, tensors["d2t"][3] - 1))
    with pytest.raises(mu.CheckpointError, match="d2t: expected different ids, found one twice"):
        opened(copy)


# ---- the mask embedding ----


def write_sidecar(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path / "dflash" / "mask_embedding.pt", "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "expected one little-endian storage data/0, found 0 of them"),
        ({"a/data/0": b"", "b/data/0": b""}, "found 2 of them"),
        ({"a/data/0": bytes(318)}, r"a/data/0: expected 320 bytes \(BF16 \[160\]\), not compressed, found 318"),
        ({"a/data/0": bytes(320), "a/byteorder": b"big"}, "found byte order 'big'"),
    ],
)
def test_a_sidecar_that_is_not_one(copy: Path, parts: dict[str, bytes], message: str) -> None:
    write_sidecar(copy, parts)
    with pytest.raises(mu.CheckpointError, match=message):
        opened(copy)


def test_a_sidecar_that_is_compressed_or_no_zip(copy: Path) -> None:
    write_sidecar(copy, {"a/data/0": bytes(320)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(mu.CheckpointError, match="found 320, compressed"):
        opened(copy)
    (copy / "dflash" / "mask_embedding.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(mu.CheckpointError, match=r"mask_embedding.pt: expected a zip file as torch.save writes it"):
        opened(copy)


def test_a_sidecar_that_torch_wrote(copy: Path) -> None:
    torch = pytest.importorskip("torch", reason="not run: torch is not installed")
    values = torch.linspace(-1, 1, 160).to(torch.bfloat16)
    torch.save({"mask_token_id": 511, "embedding": values}, copy / "dflash" / "mask_embedding.pt")
    mask = next(tensor for tensor in opened(copy).tensors if tensor.name == "model.mask_embedding")
    raw = (copy / "dflash" / "mask_embedding.pt").read_bytes()[mask.begin : mask.end]
    assert raw == values.view(torch.int16).numpy().tobytes()


def test_without_a_mask_embedding(copy: Path) -> None:
    (copy / "dflash" / "mask_embedding.pt").unlink()
    with pytest.warns(UserWarning, match="this drafter has no mask embedding"):
        drafter = opened(copy)
    assert drafter.mask_from == "the target's embedding"
    mask = next(tensor for tensor in drafter.tensors if tensor.name == "model.mask_embedding")
    table = next(tensor for tensor in Checkpoint.open(copy).tensors if tensor.name == "model.embed_tokens.weight")
    assert (mask.file, mask.begin, mask.end - mask.begin) == (table.file, table.begin + 511 * 320, 320)
    raw = json.loads((copy / "dflash" / "config.json").read_text())
    del raw["dflash_config"]["mask_token_id"]
    (copy / "dflash" / "config.json").write_text(json.dumps(raw))
    with (
        pytest.warns(UserWarning, match="no mask embedding"),
        pytest.raises(mu.CheckpointError, match="mask_token_id: expected a token id"),
    ):
        opened(copy)
