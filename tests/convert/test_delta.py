"""A stored rounding gives back the rounding, for the weights it was made of and no others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import mimo_ultraspeed as mu
from mimo_ultraspeed._core import mxfp4_decode, mxfp4_encode
from mimo_ultraspeed.convert import convert, write_delta
from mimo_ultraspeed.convert.calibrate import Experts
from mimo_ultraspeed.convert.experts import round_experts
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import make
from mimo_ultraspeed.safetensors_write import bf16_from_f32, f32_from_bf16
from mimo_ultraspeed.weights import Weights

SHAPE = {"n_routed_experts": 4, "num_hidden_layers": 3}


class Shaken:
    """Rounds what lies near the weights: near in most places, anywhere in some, nothing in a whole block."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)

    def dense(self, number: int, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> None:
        pass

    def layer(self, number: int, experts: Experts) -> Experts:
        return Experts(*([self.shaken(one) for one in getattr(experts, part)] for part in ("gate", "up", "down")))

    def shaken(self, weights: np.ndarray) -> np.ndarray:
        noise = self._draw.standard_normal(weights.shape) * np.abs(weights).mean()
        noise *= np.where(self._draw.random(weights.shape) < 0.02, 5, 0.1)
        moved = (weights + noise).astype(np.float32)
        moved[0, :32] = 0
        return mxfp4_decode(*mxfp4_encode(moved))


def values(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = mu.Checkpoint.open(folder)
    weights = Weights(checkpoint.tensors, checkpoint.files)
    return {name: weights[name] for name in weights if not name.endswith("_scale")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model", weights="bf16", overrides=SHAPE, progress=False)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A Hugging Face folder of two layers."""
    hidden, width, vocab, draw = 64, 128, 96, np.random.default_rng(1)
    shapes = {"embed_tokens": (vocab, hidden), "norm": (hidden,)}
    for i in range(2):
        shapes |= {f"layers.{i}.{part}_layernorm": (hidden,) for part in ("input", "post_attention")}
        shapes |= {f"layers.{i}.self_attn.{part}_proj": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"layers.{i}.mlp.{part}_proj": (width, hidden) for part in ("gate", "up")}
        shapes[f"layers.{i}.mlp.down_proj"] = (hidden, width)
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file(
        {f"model.{name}.weight": draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    config = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    config |= {"hidden_size": hidden, "intermediate_size": width, "vocab_size": vocab, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def test_a_rounding_comes_back(source: Path, tmp_path: Path) -> None:
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    round_experts(source, rounded, calibrate=lambda *_: Shaken(), max_shard_bytes=1 << 30, progress=False)
    size = write_delta(source, rounded, tmp_path / "file")
    experts = sum(one.size for name, one in values(source).items() if ".experts." in name)
    assert size == (tmp_path / "file").stat().st_size < experts / 6
    back = values(convert(source, tmp_path / "back", rounding=tmp_path / "file", progress=False))
    wanted = values(rounded)
    assert back.keys() == wanted.keys()
    assert all(np.array_equal(back[name], wanted[name]) for name in wanted)
    plain = values(convert(source, tmp_path / "plain", progress=False))
    assert not all(np.array_equal(plain[name], wanted[name]) for name in wanted)


def test_plain_rounding_costs_next_to_nothing(source: Path, tmp_path: Path) -> None:
    plain = convert(source, tmp_path / "plain", progress=False)
    assert write_delta(source, plain, tmp_path / "file") < 2000


def test_other_weights_and_other_files_are_refused(source: Path, tmp_path: Path) -> None:
    plain, file = convert(source, tmp_path / "plain", progress=False), tmp_path / "file"
    write_delta(source, plain, file)
    other = make(tmp_path / "other", weights="bf16", seed=1, overrides=SHAPE, progress=False)
    with pytest.raises(CheckpointError, match="file: expected the weights it was made of, found others"):
        convert(other, tmp_path / "out", rounding=file, progress=False)
    longer = make(tmp_path / "longer", weights="bf16", overrides=SHAPE | {"num_hidden_layers": 4}, progress=False)
    with pytest.raises(CheckpointError, match="expected"):
        convert(longer, tmp_path / "out", rounding=file, progress=False)
    with pytest.raises(CheckpointError, match="expected a rounding of"):
        write_delta(longer, plain, tmp_path / "none")
    with pytest.raises(ValueError, match="expected one of them at most, found both"):
        convert(source, tmp_path / "out", rounding=file, calibrate=file, progress=False)
    whole = file.read_bytes()
    for damage, told in ((whole[:-400], "expected"), (whole[:60] + b"xxxx" + whole[64:], "found damage"), (b"x", "something else")):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError, match=told):
            convert(source, tmp_path / "out", rounding=file, progress=False)
    assert not (tmp_path / "out").exists()


def test_tensors_that_were_trained_come_back(source: Path, tmp_path: Path) -> None:
    """A norm and a router, as `train qat --train` changes them: in a checkpoint, and where a Llama is converted."""
    before, changed = values(source), {}
    for name in ("norm.weight", "layers.1.mlp.gate.weight"):
        changed[f"model.{name}"] = f32_from_bf16(bf16_from_f32(before[name] * np.float32(1.1)))
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    round_experts(source, rounded, calibrate=None, max_shard_bytes=1 << 30, progress=False, replaced=changed)
    write_delta(source, rounded, tmp_path / "file")
    back, wanted = values(convert(source, tmp_path / "back", rounding=tmp_path / "file", progress=False)), values(rounded)
    assert all(np.array_equal(back[name], wanted[name]) for name in wanted)
    assert {name for name in wanted if not np.array_equal(wanted[name], before[name]) and ".experts." not in name} == {
        name.removeprefix("model.") for name in changed
    }


def test_a_llama_takes_them_too(llama: Path, tmp_path: Path) -> None:
    unrounded = convert(llama, tmp_path / "unrounded", experts=2, mxfp4=False, dtype="float32", progress=False)
    changed = {
        f"model.{name}": values(unrounded)[name] + 1 for name in ("layers.0.input_layernorm.weight", "layers.1.mlp.gate.weight")
    }
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    round_experts(unrounded, rounded, calibrate=lambda *_: Shaken(), max_shard_bytes=1 << 30, progress=False, replaced=changed)
    write_delta(unrounded, rounded, tmp_path / "file")
    wanted = values(rounded)
    back = values(convert(llama, tmp_path / "back", experts=2, rounding=tmp_path / "file", dtype="float32", progress=False))
    assert back.keys() == wanted.keys() and all(np.array_equal(back[name], wanted[name]) for name in wanted)
