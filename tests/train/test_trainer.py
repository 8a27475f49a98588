"""The training loop: the same bits from any number of threads, and after an interrupt."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.make import make

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train import trainer as trainer_module  # noqa: E402
from mimo_ultraspeed.train.export import export_drafter, load_drafter, load_run  # noqa: E402
from mimo_ultraspeed.train.trainer import CHECKPOINT, LOG, Trainer, TrainOptions, load_training  # noqa: E402

SETTINGS: dict[str, Any] = {"steps": 8, "sequences": 3, "anchors": 6, "lengths": (3, 4), "log_every": 2, "optimizer": "muon"}


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(model: mu.Model, data: Path, out: Path, config: Any, **settings: Any) -> dict[str, Any]:
    trainer = Trainer(model, data, out, TrainOptions(**(SETTINGS | settings)), config=config, cache=data / "taps")
    trainer.run(progress=False)
    state = load_training(out / CHECKPOINT)
    del state["options"], state["seconds"]
    return state


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def test_threads_change_no_bit_and_an_interrupt_none(
    tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "_LOOK_FOR_DATA_EVERY", 3)  # before the interrupt and after it
    whole = trained(tiny_model, answers_folder, tmp_path / "whole", drafter_config, workers=1)
    assert whole["step"] == 8 and whole["anchors"] == 8 * 3 * 6
    assert same(whole, trained(tiny_model, answers_folder, tmp_path / "threads", drafter_config, workers=3))
    assert not same(whole, trained(tiny_model, answers_folder, tmp_path / "seed", drafter_config, seed=1))

    step = Trainer._one_step

    def stopped_before_the_sixth(trainer: Trainer, pool: Any) -> dict[str, Any]:
        if trainer.step == 5:
            raise KeyboardInterrupt
        return step(trainer, pool)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Trainer, "_one_step", stopped_before_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            trained(tiny_model, answers_folder, tmp_path / "stopped", drafter_config)
    assert load_training(tmp_path / "stopped" / CHECKPOINT)["step"] == 5
    assert same(whole, trained(tiny_model, answers_folder, tmp_path / "stopped", None))
    with (tmp_path / "stopped" / LOG).open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8]


def test_taps_are_cached_and_new_answers_are_taken_up(
    tiny_model: mu.Model, answers_folder: Path, greedy_answers: list[dict[str, Any]], tmp_path: Path, drafter_config: Any
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(answers_folder / "answers-00000.jsonl", data)
    trainer = Trainer(tiny_model, data, tmp_path / "run", TrainOptions(**SETTINGS), config=drafter_config)
    taps = trainer._taps(greedy_answers[0])
    files = list((data / "taps").rglob("*.npy"))
    assert len(files) == 4 and taps.dtype == "float16"
    assert taps.shape == (len(greedy_answers[0]["prompt"]) + 39, 3 * tiny_model.config.hidden_size)
    with (data / "answers-00001.jsonl").open("w") as file:
        file.write(json.dumps(greedy_answers[0] | {"id": "new-0"}) + "\n")
        file.write(json.dumps(greedy_answers[0] | {"id": "short-0", "answer": [1, 2]}) + "\n")
        file.write('{"id": "being wri')
    trainer._look_for_data()
    assert len(trainer._records) == 5 and 4 in trainer._queue


@pytest.mark.parametrize("bf16", [False, True])
def test_a_drafter_learns_answers_by_heart(
    tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any, bf16: bool
) -> None:
    long: dict[str, Any] = {"steps": 60, "anchors": 24, "optimizer": "adamw", "lr": 4e-3, "log_every": 10}
    trained(tiny_model, answers_folder, tmp_path, drafter_config, bf16=bf16, **long)
    with (tmp_path / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert float(rows[-1]["accepted"]) > float(rows[0]["accepted"])


def test_bf16_rounds_products_of_layers_alone(
    tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = trainer_module.losses

    def checked(logits: Any, labels: Any, *how: Any) -> Any:
        for one in (logits, labels.target):  # neither was rounded on its way
            assert one.dtype == torch.float32 and (one != one.bfloat16()).float().mean() > 0.9
        return losses(logits, labels, *how)

    monkeypatch.setattr(trainer_module, "losses", checked)
    parts = []
    for bf16 in (False, True):
        options = TrainOptions(**SETTINGS, bf16=bf16)
        trainer = Trainer(tiny_model, answers_folder, tmp_path, options, config=drafter_config, cache=answers_folder / "taps")
        parts.append(trainer._part(trainer._draw(), trainer._read_parameters()))
    whole, rounded = (torch.cat([one.float().flatten() for one in part.gradients]) for part in parts)
    assert 0 < (whole - rounded).norm() < 0.05 * whole.norm()
    assert parts[0].loss != parts[1].loss and parts[0].loss == pytest.approx(parts[1].loss, rel=1e-3)
    types = {name: one.dtype for name, one in zip(trainer.parameters, parts[1].gradients, strict=True)}
    rounds = {name for name, dtype in types.items() if dtype == torch.bfloat16}
    assert rounds == {name for name in drafter_config.matrices() if not name.startswith("markov")}
    assert all(value.dtype == torch.float32 for value in trainer.parameters.values())
    assert same(
        trained(tiny_model, answers_folder, tmp_path / "one", drafter_config, bf16=True, workers=1),
        trained(tiny_model, answers_folder, tmp_path / "three", drafter_config, bf16=True, workers=3),
    )


def test_the_schedule(tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any) -> None:
    options = TrainOptions(steps=100, lr=2.0, warmup=0.1, short=0.5, lengths=(8,), anchors=5)
    trainer = Trainer(tiny_model, answers_folder, tmp_path, options, config=drafter_config, cache=answers_folder / "taps")
    rates = []
    for trainer.step in (0, 5, 10, 55, 100):
        rates.append(trainer.lr())
    assert rates == pytest.approx([0.02, 1.0, 2.0, 1.01, 0.02])
    for trainer.step, length in ((49, 3), (50, 8)):
        drawn = trainer._draw()
        first, last = len(drawn.record["prompt"]), len(drawn.record["prompt"]) + len(drawn.record["answer"]) - 2
        assert drawn.length == length and drawn.anchors == sorted(set(drawn.anchors))
        assert len(drawn.anchors) == 5 and first <= drawn.anchors[0] <= drawn.anchors[-1] <= last


def test_labels_are_what_the_target_says_behind_each_row(
    tiny_model: mu.Model, answers_folder: Path, greedy_answers: list[dict[str, Any]], tmp_path: Path, drafter_config: Any
) -> None:
    options = TrainOptions(steps=1)
    trainer = Trainer(tiny_model, answers_folder, tmp_path, options, config=drafter_config, cache=answers_folder / "taps")
    record = greedy_answers[1]
    tokens = [*record["prompt"], *record["answer"]]
    anchors, length = [len(record["prompt"]), len(tokens) - 10, len(tokens) - 3], 4
    raw = torch.from_numpy(np.array(trainer._taps(record), np.float32))
    labels, previous = trainer._labels(torch.tensor(tokens), torch.tensor(anchors), length, raw)
    said, place = tiny_model.logits(tokens)[:, trainer.head_ids], {int(one): at for at, one in enumerate(trainer.head_ids)}
    assert labels.target is not None
    assert labels.valid.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    for row, anchor in enumerate(anchors):
        for slot in range(length - 1):
            if not labels.valid[row, slot]:
                continue
            assert labels.places[row, slot] == place.get(tokens[anchor + slot + 1], -1)
            assert previous[row, slot] == place.get(tokens[anchor + slot], -1)
            near = np.corrcoef(labels.target[row, slot].numpy(), said[anchor + slot])[0, 1]
            assert near > 0.99, (anchor, slot, near)


def test_a_run_that_begins_with_another_drafter(
    tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any
) -> None:
    before = trained(tiny_model, answers_folder, tmp_path / "before", drafter_config)
    run = load_run(tmp_path / "before" / CHECKPOINT)
    start = load_drafter(export_drafter(run, tmp_path / "drafter", weights="bf16"))
    trainer = Trainer(tiny_model, answers_folder, tmp_path / "after", TrainOptions(**SETTINGS), start=start)
    assert trainer.step == 0 and trainer.config == drafter_config
    assert same(torch.from_numpy(trainer.head_ids), before["head_ids"]) and same(torch.from_numpy(trainer.rms), before["tap_rms"])
    assert trainer.parameters.keys() == before["ema"].keys()
    for name, value in trainer.parameters.items():  # on scaled taps again, but for what BF16 took
        assert torch.allclose(value, before["ema"][name], rtol=2**-8, atol=0), name
    trainer.run(progress=False)
    assert same(start.parameters, load_drafter(tmp_path / "drafter").parameters)  # it is not what is trained
    after = load_training(tmp_path / "after" / CHECKPOINT)
    assert after["step"] == 8 and not same(after["ema"], before["ema"])
    other = make(tmp_path / "other", overrides={"num_hidden_layers": 3}, progress=False)
    with (
        mu.Model.from_pretrained(other, threads=1, progress=False) as model,
        pytest.raises(mu.CheckpointError, match=r"start: expected a drafter for num_target_layers 3, found one for"),
    ):
        Trainer(model, answers_folder, tmp_path / "wrong", TrainOptions(**SETTINGS), start=start)


def test_what_cannot_be_trained_is_refused(tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any) -> None:
    with pytest.raises(ValueError, match=r"steps, minutes: expected exactly one of them"):
        TrainOptions()
    with pytest.raises(ValueError, match=r"lengths: expected block lengths of 2 or more"):
        TrainOptions(steps=1, lengths=(1,))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"expected answers to train on, found none"):
        Trainer(tiny_model, tmp_path / "none", tmp_path / "a", TrainOptions(steps=1), config=drafter_config)
    from mimo_ultraspeed.train.start import default_config

    early = default_config(tiny_model.config, taps=(0, 1), layers=1)
    with pytest.raises(ValueError, match=r"need the target's last layer among the taps"):
        trained(tiny_model, answers_folder, tmp_path / "b", early)
