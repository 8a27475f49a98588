"""The self-check of an open model, with a drafter that the engine runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_drafter import BLOCK, Constructed

import mimo_ultraspeed as mu
from mimo_ultraspeed.__main__ import main
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.evaluate import self_check
from mimo_ultraspeed.evaluate.check import numpy_drafter, wiring_of


@pytest.fixture(scope="module")
def made(tiny_model: mu.Model, tmp_path_factory: pytest.TempPathFactory) -> Constructed:
    return Constructed(tiny_model, tmp_path_factory.mktemp("drafter") / "dflash")


@pytest.fixture(scope="module")
def dump(made: Constructed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dump") / "dump.npz"
    made.dump.save(path)
    return path


def opened(made: Constructed, tiny_path: Path, precision: str = "exact", **switches: Any) -> mu.Model:
    draft = mu.Draft(made.folder, **switches)
    return mu.Model.from_pretrained(tiny_path, draft=draft, threads=2, progress=False, precision=precision)


def test_numpy_and_engine_draft_the_same(made: Constructed, tiny_path: Path) -> None:
    with opened(made, tiny_path) as model:
        assert model.draft is not None
        assert wiring_of(model.draft) == made.wiring
        drafter, weights = numpy_drafter(model.draft, model)
        ids = made.dump.answers[0].tokens[:70]
        states = model.hidden_states(ids, list(made.taps))
        context = drafter.context(np.concatenate(list(states), -1))
        embedded = weights.rows("embed_tokens.weight", ids)
        anchors = np.array([20, 69])
        ours = drafter.logits(made.wiring, context, anchors, embedded[anchors])
        theirs = model.draft_logits(ids, [20, 69])
        assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_the_right_wiring_passes(made: Constructed, tiny_path: Path, dump: Path, precision: str) -> None:
    with opened(made, tiny_path, precision) as model:
        found = self_check(model, dump=dump, stride=BLOCK, progress=False)
    assert found.passed, found.table()
    assert found.in_use.name == "as the checkpoint says" and found.in_use.length == BLOCK
    assert found.agreement[found.in_use.name] > 0.85


@pytest.mark.parametrize(
    "switches",
    [
        {"tap_shift": 1}, {"tap_shift": -1}, {"mask_embedding": False}, {"rotary_dim": 32}, {"window": 0}, {"rope_theta": 5e6},
        {"sinks": False}, {"value_scale": 1.0}, {"causal": True}, {"window_rule": "anchor"},
    ],
    ids=str,
)  # fmt: skip
def test_each_wrong_switch_of_the_engine_is_caught(
    made: Constructed, tiny_path: Path, dump: Path, switches: dict[str, Any]
) -> None:
    with opened(made, tiny_path, **switches) as model:
        found = self_check(model, dump=dump, stride=BLOCK, progress=False)
    assert not found.passed and found.scores[0].name == "as the checkpoint says"
    assert found.in_use.length < BLOCK - 1
    assert found.engine_runs == found.in_use.name  # the engine does what it is told


def test_an_engine_that_does_not_do_as_it_is_told_is_caught(
    made: Constructed, tiny_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(made, tiny_path, tap_shift=1) as wrong, opened(made, tiny_path) as model:
        monkeypatch.setattr(model, "draft_logits", wrong.draft_logits)
        found = self_check(model, dump=dump, stride=BLOCK, progress=False)
    assert not found.passed and found.engine_runs == "taps +1 layer" and "FAILED: the engine drafts as with taps +1" in str(found)


def test_answers_are_recorded(made: Constructed, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model"
    shutil.copytree(tiny_path, target)
    shutil.copytree(made.folder, target / "dflash")
    words = ["evaluate", "self-check", str(target), "--answers", "2", "--max-new-tokens", "20", "--threads", "2"]
    assert main([*words, "--save-dump", str(tmp_path / "d.npz")]) == 0
    told = capsys.readouterr().out
    assert "nothing shown" in told and "as the checkpoint says" in told
    assert main([*words, "--dump", str(tmp_path / "d.npz")]) == 0
    assert capsys.readouterr().out == told


def test_wrong_dumps(made: Constructed, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", layers=np.zeros(1))
    with opened(made, tiny_path) as model:
        for name in ("text.npz", "other.npz"):
            with pytest.raises(ValueError, match=f"{name}: expected a dump"):
                self_check(model, dump=tmp_path / name)
    with mu.Model.from_pretrained(tiny_path, draft=None, progress=False) as model, pytest.raises(ValueError, match="no drafter"):
        self_check(model)


def test_other_kinds_of_drafters(tiny_path: Path, tmp_path: Path) -> None:
    from mimo_ultraspeed.make_draft import make_draft

    for number, options in enumerate(
        (
            {"weights": "fp8", "mask": "pt", "spelling": "flat", "window": 0},
            {"weights": "mxfp4", "vocab": 300, "markov_rank": 8, "mask": "tensor"},
            {"qk_norm": False, "causal": True, "sinks": False},
        )
    ):
        checkpoint = mu.Checkpoint.open(tiny_path)
        folder = make_draft(tmp_path / str(number), checkpoint.config, options, seed=number)
        with mu.Model.from_pretrained(tiny_path, draft=folder, threads=2, progress=False, precision="exact") as model:
            assert model.draft is not None
            own = open_drafter(folder, checkpoint)
            assert own is not None
            drafter, weights = numpy_drafter(own, model)
            ids = np.arange(40) * 7 % 512
            wiring = wiring_of(own)
            context = drafter.context(np.concatenate(list(model.hidden_states(ids, list(wiring.taps))), -1))
            embedded = weights.rows("embed_tokens.weight", ids)
            anchors = np.array([0, 17, 39])
            ours = drafter.draft(wiring, context, anchors, embedded[anchors], ids[anchors])
            theirs = model.draft_logits(ids, [0, 17, 39]).argmax(-1)
            assert (ours == theirs).mean() > 0.9, options
