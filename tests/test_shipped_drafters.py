"""Drafters that come with the package: found by the model's name, whole, small, and with a card."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed import drafter as drafter_module
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.default_model import DEFAULT_MODELS
from mimo_ultraspeed.drafter import SHIPPED, open_drafter
from mimo_ultraspeed.make import make
from mimo_ultraspeed.make_draft import make_draft

NAMES = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())


def test_a_shipped_drafter_serves_its_model_however_that_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, split = (
        make(tmp_path / "fused", progress=False),
        make(tmp_path / "split", layout="flash", weights="bf16", progress=False),
    )
    shipped = make_draft(tmp_path / "drafts" / "some-model", Checkpoint.open(fused).config)
    monkeypatch.setattr(drafter_module, "SHIPPED", tmp_path / "drafts")
    for folder in (fused, split):
        found = open_drafter("auto", Checkpoint.open(folder), shipped="some-model")
        assert found is not None and found.folder == shipped
        assert open_drafter("auto", Checkpoint.open(folder), shipped="other-model") is None
        assert open_drafter("auto", Checkpoint.open(folder)) is None
    own = make_draft(split / "dflash", Checkpoint.open(split).config, seed=1)
    found = open_drafter("auto", Checkpoint.open(split), shipped="some-model")
    assert found is not None and found.folder == own


def test_a_drafter_of_the_default_model_is_shipped() -> None:
    assert "smollm2-135m" in NAMES and set(NAMES) <= set(DEFAULT_MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_whole_and_small_and_tells_how_it_was_made(name: str) -> None:
    folder = SHIPPED / name
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_size <= 16 << 20
    card = (folder / "README.md").read_text(encoding="utf-8")
    for heading in ("## Data", "## Recipe", "## Figures", "## What limits it"):
        assert heading in card


def test_the_folders_are_package_data() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    settings = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["mimo_ultraspeed"]
    package = SHIPPED.parent
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    assert covered >= {path for path in SHIPPED.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def default_model(default_folder: Path) -> Iterator[mu.Model]:
    with mu.Model.from_pretrained("smollm2-135m", threads=2, progress=False) as model:
        yield model


@pytest.mark.model
def test_the_default_model_finds_its_own(default_model: mu.Model) -> None:
    assert default_model.draft is not None
    assert default_model.draft.folder == (SHIPPED / "smollm2-135m").resolve()
    assert default_model.draft.mask_from == "a tensor"
    logits = default_model.draft_logits(default_model.tokenizer.encode("The capital of France is"))
    assert np.isfinite(logits).sum(1).tolist() == [default_model.draft.draft_vocab_size] * 7


@pytest.mark.model
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 9}], ids=["greedy", "sampled"])
def test_its_drafts_come_true_and_change_nothing(default_model: mu.Model, sampling: dict[str, float]) -> None:
    question = "A box has 12 rows of 8 apples. How many apples are in 3 boxes? Think step by step."
    plain = default_model.generate(question, max_new_tokens=64, speculative=False, **sampling)
    drafted = default_model.generate(question, max_new_tokens=64, speculative=True, lookup=False, width=4, **sampling)
    assert drafted.token_ids == plain.token_ids
    assert sum(drafted.stats.rounds["accepted"]) > 0
