"""Quantisation-aware training: torch's forward is the engine's, what is written is what was trained, and it helps."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.__main__ import main
from mimo_ultraspeed.convert import convert
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import make
from mimo_ultraspeed.weights import Weights

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train import optimizer as optimizer_module  # noqa: E402
from mimo_ultraspeed.train.distil import distance  # noqa: E402
from mimo_ultraspeed.train.network import Network  # noqa: E402
from mimo_ultraspeed.train.qat import CHECKPOINT, LOG, QatOptions, QatTrainer  # noqa: E402
from mimo_ultraspeed.train.qat_weights import QatWeights  # noqa: E402

SHAPE = {"n_routed_experts": 4, "num_hidden_layers": 3}
SETTINGS: dict[str, Any] = {"window": 48, "sequences": 2, "log_every": 1, "held_out_tokens": 480}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model", weights="bf16", layout="flash", overrides=SHAPE, progress=False)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two to train on, one held out."""
    folder, draw = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for name in "abc":
        rows = [{"token_ids": (97 + draw.zipf(1.3, 480) % 26).tolist()} for _ in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / f"{name}.jsonl" for name in "abc"]


def trained(source: Path, texts: list[Path], out: Path, steps: int, start: Path | None = None, **options: Any) -> QatTrainer:
    trainer = QatTrainer(source, texts[:2], out, QatOptions(steps=steps, **SETTINGS | options), start=start, held_out=texts[2:])
    trainer.run(progress=False)
    return trainer


def engine_logits(folder: Path, ids: list[int]) -> np.ndarray:
    with mu.Model.from_pretrained(folder, precision="exact", threads=1, progress=False) as model:
        return model.logits(ids)


IDS = [97, 98, 5, 300, 99, 97, 100, 41, 42, 43, 44, 97, 98, 99, 130, 7]


@pytest.mark.parametrize(("layout", "weights", "chosen"), [("fused", "bf16", 2), ("flash", "fp8", 4), ("fused", "fp8", 2)])
def test_its_forward_is_the_engines(tmp_path: Path, layout: str, weights: str, chosen: int) -> None:
    overrides = SHAPE | {"num_experts_per_tok": chosen}
    folder = make(tmp_path / "source", layout=layout, weights=weights, overrides=overrides, progress=False)
    held = QatWeights(mu.Checkpoint.open(folder), None, torch.device("cpu"), train=(), learn_scale=False)
    network = Network(held.config)
    found = network.logits(held.rest, held.experts, torch.tensor([IDS, IDS[::-1]])).numpy()
    for row, ids in zip(found, (IDS, IDS[::-1]), strict=True):
        wanted = engine_logits(folder, ids)
        np.testing.assert_allclose(row, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "options",
    [{}, {"bf16": True}, {"learn_scale": True, "train": ("router", "norms", "attention", "embedding"), "hidden": 1.0}],
    ids=["experts", "bf16", "all"],
)
def test_the_engine_says_what_the_trainer_said(source: Path, texts: list[Path], tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = trained(source, texts, tmp_path, 3, lr=2e-2, **options)
    said, wanted = trainer.logits(IDS).numpy(), engine_logits(tmp_path / "model", IDS)
    np.testing.assert_allclose(said, wanted, atol=1e-4 * np.abs(wanted).max())
    naive = convert(source, tmp_path / "naive", progress=False)
    assert np.abs(said - engine_logits(naive, IDS)).max() > 1e-2 * np.abs(wanted).max()
    written, first = mu.Checkpoint.open(tmp_path / "model"), mu.Checkpoint.open(naive)
    assert written.config == first.config
    assert [(one.name, one.dtype, one.shape) for one in written.tensors] == [
        (one.name, one.dtype, one.shape) for one in first.tensors
    ]
    moved = {name for name, value in trainer.weights.parameters.items() if not torch.equal(value, _fresh(source, options)[name])}
    assert moved == trainer.weights.parameters.keys()


def _fresh(source: Path, options: dict[str, Any]) -> Any:
    train, learn = options.get("train", ()), options.get("learn_scale", False)
    return QatWeights(mu.Checkpoint.open(source), None, torch.device("cpu"), train=train, learn_scale=learn).parameters


def test_nothing_trained_is_plain_rounding(source: Path, texts: list[Path], tmp_path: Path) -> None:
    trained(source, texts, tmp_path, 0)
    naive = convert(source, tmp_path / "naive", progress=False)
    one, two = (
        Weights(checkpoint.tensors, checkpoint.files) for checkpoint in map(mu.Checkpoint.open, (naive, tmp_path / "model"))
    )
    assert list(one) == list(two)
    assert all(np.array_equal(one[name], two[name]) for name in one if not name.endswith("_scale"))
    again = QatTrainer(source, texts[:2], tmp_path / "again", QatOptions(steps=0, **SETTINGS), start=naive)
    again.run(progress=False)
    assert np.array_equal(again.logits(IDS), trained(source, texts, tmp_path, 0).logits(IDS))


@pytest.mark.parametrize("learn_scale", [False, True])
def test_a_run_starts_from_another_rounding(source: Path, texts: list[Path], tmp_path: Path, learn_scale: bool) -> None:
    start = convert(source, tmp_path / "start", calibrate=texts[0], calibration_tokens=1000, progress=False)
    trainer = QatTrainer(source, texts[:1], tmp_path / "run", QatOptions(steps=0, **SETTINGS, learn_scale=learn_scale), start=start)
    _, experts = trainer.weights.student()
    weights = Weights((checkpoint := mu.Checkpoint.open(start)).tensors, checkpoint.files)
    for part in ("gate", "up", "down"):
        wanted = np.stack([weights[f"layers.1.mlp.experts.{e}.{part}_proj.weight"] for e in range(4)])
        assert np.array_equal(getattr(experts[1], part).detach().numpy(), wanted)
        parameter = trainer.weights.parameters[f"layers.1.{part}"].detach().numpy() * trainer.weights._sizes[f"layers.1.{part}"]
        assert 0.5 < (parameter != wanted).mean() < 1


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_was_stopped_goes_on(source: Path, texts: list[Path], tmp_path: Path, optimizer: str) -> None:
    whole = trained(source, texts, tmp_path / "whole", 6, optimizer=optimizer, warmup=0.0)
    halves = QatTrainer(source, texts[:2], tmp_path / "halves", QatOptions(steps=6, optimizer=optimizer, warmup=0.0, **SETTINGS))
    for _ in range(3):
        halves._one_step()
    halves.save()
    second = trained(source, texts, tmp_path / "halves", 6, optimizer=optimizer, warmup=0.0)
    assert second.step == whole.step == 6 and second.tokens == whole.tokens == 6 * 96
    for name, value in whole.weights.parameters.items():
        assert torch.equal(value, second.weights.parameters[name]), name
    with pytest.raises(CheckpointError, match="expected a run of this model that trains the same"):
        trained(source, texts, tmp_path / "halves", 6, learn_scale=True)


def test_bf16_rounds_products_of_layers_alone(source: Path, texts: list[Path], tmp_path: Path) -> None:
    streams, found = [], []
    for bf16 in (False, True):
        trainer = QatTrainer(source, texts[:1], tmp_path, QatOptions(steps=1, bf16=bf16, **SETTINGS))
        teacher, network, ids = trainer.weights, trainer._network, trainer._draw()
        rest, experts = teacher.student()
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                right, said = network.streams(teacher.rest, teacher.experts, ids), network.streams(rest, experts, ids)
            wanted = distance(network, (teacher.rest, right), (rest, said), ids)  # logits in float32
            found.append(float(trainer._distance(ids, rest, experts).kl))
        assert found[-1] == float(wanted.kl)
        streams.append(said)
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], rel=0.05)
    for one, two in zip(*streams, strict=True):
        assert two.dtype == torch.float32 and 0 < (one - two).norm() < 0.03 * one.norm()


def test_a_router_chooses_in_float32_under_autocast(source: Path, texts: list[Path], tmp_path: Path) -> None:
    """Its rows differ by less than BF16 tells apart: rounded, all experts would be alike to it, and the first be chosen."""
    trainer = QatTrainer(source, texts[:1], tmp_path, QatOptions(steps=1, **SETTINGS))
    rest, experts = trainer.weights.student()
    name = "model.layers.1.mlp.gate."
    x = torch.ones(1, trainer._network.config.hidden_size) / 16
    rising = torch.arange(len(rest[name + "weight"]))[:, None] * 1e-5
    rest |= {name + "weight": torch.full_like(rest[name + "weight"], 0.25) + rising}
    rest[name + "e_score_correction_bias"] = torch.zeros(len(rising))
    said = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
            said.append(trainer._network._mixture(rest, "model.layers.1.", experts[1], x))
    assert (said[0] - said[1]).norm() < 0.05 * said[0].norm()


@pytest.mark.parametrize("bf16", [False, True])
def test_muon_computes_in_the_type_that_is_asked_for(
    source: Path, texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    seen: set[torch.dtype] = set()

    def noted(update: torch.Tensor) -> torch.Tensor:
        seen.add(update.dtype)
        return update

    monkeypatch.setattr(optimizer_module, "orthogonalise", noted)
    QatTrainer(source, texts[:1], tmp_path, QatOptions(steps=1, bf16=bf16, **SETTINGS))._one_step()
    assert seen == {torch.bfloat16 if bf16 else torch.float32}


@pytest.mark.parametrize(("optimizer", "bf16"), [("muon", False), ("adamw", False), ("muon", True)])
def test_experts_behind_a_router_get_better_on_text_not_seen(
    source: Path, texts: list[Path], tmp_path: Path, optimizer: str, bf16: bool
) -> None:
    trained(source, texts, tmp_path, 40, optimizer=optimizer, lr=2e-2, bf16=bf16, held_out_tokens=1920)
    with (tmp_path / LOG).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kl"]]
    assert float(rows[-1]["kl"]) < 0.8 * float(rows[0]["kl"])
    assert float(rows[-1]["top1"]) > float(rows[0]["top1"])
    assert [int(row["step"]) for row in rows] == [0, 40]


def test_command_and_wrong_words(source: Path, texts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "qat", str(source), "--data", str(texts[0]), "--held-out", str(texts[2]), "--out", str(tmp_path / "run")]
    assert main([*words, "--steps", "2", "--window", "32", "--train", "norms", "--bf16"]) == 0
    assert "128 tokens in" in capsys.readouterr().out
    assert (tmp_path / "run" / CHECKPOINT).exists() and (tmp_path / "run" / "model" / "config.json").exists()
    assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["options"]["bf16"]
    rounded = tmp_path / "run" / "model"
    fused = make(tmp_path / "fused", weights="bf16", layout="fused", overrides=SHAPE, progress=False)
    for other, extra, told in (
        (source, ["--train", "heads"], "train: expected of router, norms, attention, embedding, found heads"),
        (source, ["--window", "1"], "expected at least 2 and 1, found 1 and 2"),
        (source, ["--window", "5000"], "expected at least 5000 tokens, found 1920"),
        (rounded, [], "in the model to learn from, found MXFP4"),
        (source, ["--start", str(fused)], "expected a rounding of"),
        (fused, ["--train", "attention"], "expected BF16 or F32 to train it, found a part of a fused tensor"),
    ):
        command = ["train", "qat", str(other), "--data", str(texts[0]), "--out", str(tmp_path / "other"), "--steps", "1", *extra]
        assert main(command) == 1
        assert told in capsys.readouterr().err
    with pytest.raises(ValueError, match="steps, minutes: expected exactly one of them"):
        QatOptions()
