"""Calibration: its forward is the engine's, experts chosen by a router get better on text that was not seen, errors are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.__main__ import main
from mimo_ultraspeed.convert import convert
from mimo_ultraspeed.convert.calibrate import Calibration, Experts, _cap, _rows
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import make
from mimo_ultraspeed.weights import Weights, split_reader

PARTS = ("gate", "up", "down")
SHAPE = {"n_routed_experts": 4, "num_hidden_layers": 3}
LAYERS, COUNT = 3, 4


def ids(seed: int, count: int = 300) -> list[int]:
    return (97 + np.random.default_rng(seed).zipf(1.3, count) % 26).tolist()


def experts(read, layer: int, count: int) -> Experts:
    return Experts(*([read(f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight") for e in range(count)] for part in PARTS))


def states(folder: Path, tokens: list[int]) -> np.ndarray:
    with mu.Model.from_pretrained(folder, precision="exact", threads=1, progress=False) as model:
        return model.hidden_states(tokens, range(model.config.num_hidden_layers))


@pytest.mark.parametrize(("layout", "weights", "chosen"), [("fused", "bf16", 2), ("flash", "fp8", 4)])
def test_its_streams_are_the_engines(tmp_path: Path, layout: str, weights: str, chosen: int) -> None:
    overrides = SHAPE | {"num_experts_per_tok": chosen}
    source = make(tmp_path / "source", layout=layout, weights=weights, overrides=overrides, progress=False)
    checkpoint = mu.Checkpoint.open(source)
    read = split_reader(checkpoint)
    tokens = [ids(0, 50), ids(1, 20)]
    calibration = Calibration(
        [np.array(one) for one in tokens], checkpoint.config, read, lambda rows: read("model.embed_tokens.weight")[rows]
    )
    want = np.concatenate([states(source, one) for one in tokens], 1)
    calibration.dense(0, *(read(f"model.layers.0.mlp.{part}_proj.weight") for part in PARTS))
    for layer in range(1, LAYERS):
        calibration.layer(layer, experts(read, layer, COUNT))
        assert np.abs(calibration._stream - want[layer]).max() < 1e-5 * np.abs(want[layer]).max()


@pytest.mark.parametrize(("layout", "weights"), [("fused", "fp8"), ("flash", "bf16")])
def test_a_mixture_with_a_router_improves(tmp_path: Path, layout: str, weights: str) -> None:
    source = make(tmp_path / "source", layout=layout, weights=weights, overrides=SHAPE, progress=False)
    rows = [{"token_ids": ids(seed)} for seed in range(8)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = convert(source, tmp_path / "plain", progress=False)
    calibrated = convert(source, tmp_path / "calibrated", calibrate=tmp_path / "text.jsonl", progress=False)
    unseen = ids(99)
    want, *found = (states(folder, unseen) for folder in (source, plain, calibrated))
    off = [np.square(one - want).sum() for one in found]
    assert off[1] < 0.5 * off[0]
    first, second = (mu.Checkpoint.open(folder) for folder in (plain, calibrated))
    assert first.config == second.config and first.config.quantization == "mxfp4"
    assert first.tp_size == mu.Checkpoint.open(source).tp_size
    kinds = {tensor.name: tensor.dtype for tensor in second.tensors}
    assert kinds["model.layers.1.mlp.experts.3.down_proj.weight"] == "U8"
    for tensor in mu.Checkpoint.open(source).tensors:
        assert ".experts." in tensor.name or kinds[tensor.name] == tensor.dtype
    assert (calibrated / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("chosen", [2, COUNT])
def test_the_checkpoint_holds_what_the_last_forward_used(tmp_path: Path, chosen: int) -> None:
    source = make(tmp_path / "source", weights="bf16", overrides=SHAPE | {"num_experts_per_tok": chosen}, progress=False)
    (tmp_path / "text.jsonl").write_text(json.dumps({"token_ids": ids(0)}) + "\n")
    written = mu.Checkpoint.open(convert(source, tmp_path / "out", calibrate=tmp_path / "text.jsonl", progress=False))
    checkpoint = mu.Checkpoint.open(source)
    read = split_reader(checkpoint)
    stored = Weights(written.tensors, written.files)
    calibration = Calibration([np.array(ids(0))], checkpoint.config, read, lambda rows: read("model.embed_tokens.weight")[rows])
    calibration.dense(0, *(read(f"model.layers.0.mlp.{part}_proj.weight") for part in PARTS))
    want = states(written.folder, ids(0))
    for layer in range(1, LAYERS):
        found = calibration.layer(layer, experts(read, layer, COUNT))
        for part in PARTS:
            for number, matrix in enumerate(getattr(found, part)):
                assert np.array_equal(stored[f"layers.{layer}.mlp.experts.{number}.{part}_proj.weight"], matrix)
        assert np.abs(calibration._rounded - want[layer]).max() < 1e-5 * np.abs(want[layer]).max()


@pytest.mark.parametrize("chosen", [2, COUNT])
def test_a_layer_makes_up_for_what_was_lost_before(tmp_path: Path, chosen: int) -> None:
    """The rounded stream begins off: matrices that may move bring it back, those held to their values do not."""
    source = make(tmp_path / "source", weights="bf16", overrides=SHAPE | {"num_experts_per_tok": chosen}, progress=False)
    checkpoint = mu.Checkpoint.open(source)
    read = split_reader(checkpoint)
    left = []
    for pull in (0.01, 1e9):
        tokens = [np.array(ids(seed)) for seed in range(8)]
        calibration = Calibration(tokens, checkpoint.config, read, lambda rows: read("model.embed_tokens.weight")[rows], pull=pull)
        calibration.dense(0, *(read(f"model.layers.0.mlp.{part}_proj.weight") for part in PARTS))
        calibration._rounded *= 0.8
        calibration.layer(1, experts(read, 1, COUNT))
        left.append(np.square(calibration._stream - calibration._rounded).sum())
    assert left[0] < 0.3 * left[1]


def test_a_starved_expert_borrows_rows() -> None:
    shares = np.zeros(1000, np.float32)
    rows, weights = _rows(shares, 40)
    assert len(rows) == len(np.unique(rows)) == 40 and rows.max() > 900 and (weights > 0).all()
    shares[5:10] = 0.5
    rows, weights = _rows(shares, 40)
    assert len(np.unique(rows)) == 40 and (weights[:5] == 0.5).all() and np.allclose(weights[5:], 0.05)
    rows, weights = _rows(np.ones(30, np.float32), 40)
    assert len(rows) == 30
    shares[:] = 0.25
    assert len(_rows(shares, 40)[0]) == 1000


def test_one_row_does_not_decide() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    rows[0] *= 300
    found = rows * _cap(rows)
    energy = np.square(found).sum(1)
    assert np.array_equal(found[1:], rows[1:]) and energy[0] == pytest.approx(16 * np.median(energy), rel=1e-3)
    assert np.allclose(found[0] / np.linalg.norm(found[0]), rows[0] / np.linalg.norm(rows[0]), atol=1e-6)
    assert (_cap(np.zeros((3, 4), np.float32)) == 1).all()


def test_wrong_sources_and_words(tmp_path: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, source = tmp_path / "text.txt", make(tmp_path / "source", weights="bf16", progress=False)
    text.write_text("x")
    for words, told in (
        ([source, "--experts", "8"], "has experts of its own, found 8"),
        ([source, "--calibrate", tmp_path / "none.txt"], "expected a text to calibrate on, found none"),
        ([source, "--calibrate", text], "text.txt: expected a text of at least 2 tokens, found none"),
        ([tiny_path], "expected BF16, F32 or FP8 to round, found MXFP4"),
    ):
        assert main(["convert", str(words[0]), str(tmp_path / "out"), *map(str, words[1:])]) == 1
        assert told in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    dense = make(tmp_path / "dense", weights="bf16", overrides={"moe_layer_freq": [0, 0, 0, 0]}, progress=False)
    with pytest.raises(CheckpointError, match="expected experts to round, found none"):
        convert(dense, tmp_path / "out", progress=False)
