"""The drafter and its oracle against transformers' DFlash assistant, by files that golden/make_draft_goldens.py wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from draft_reference import draft_reference, draft_settings, draft_tensors
from reference import read_config, reference_forward, reference_tensors

import mimo_ultraspeed as mu
from mimo_ultraspeed.make import make

GOLDEN = Path(__file__).parents[1] / "golden"


def recipes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_draft_goldens", GOLDEN / "make_draft_goldens.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["draft_full", "draft_sliding"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    module = recipes()
    path = make(tmp_path_factory.mktemp("golden") / request.param, progress=False, **module.CASES[request.param])
    golden = np.load(GOLDEN / f"{request.param}.npz")
    digest = module.digest_of(draft_tensors(path / "dflash"))
    assert digest == pytest.approx(float(golden["digest"]), rel=1e-9), "the weights are not those of the golden file"
    return path, golden


def test_the_oracle(case: tuple[Path, Any]) -> None:
    path, golden = case
    tokens, target = golden["tokens"].tolist(), reference_tensors(path)
    hidden = reference_forward(target, read_config(path), tokens)[1]
    w, s = draft_tensors(path / "dflash"), draft_settings(path / "dflash")

    def difference(**changes: Any) -> float:
        blocks = [draft_reference(w, s | changes, target, hidden, tokens, int(anchor)) for anchor in golden["anchors"]]
        return float(np.abs(np.array(blocks)[..., ::4] - golden["logits"]).max() / np.abs(golden["logits"]).max())

    assert difference() < 5e-6
    for change in ({"theta": 9900.0}, {"causal": True}, {"rotary": 16}, {"value_scale": 0.99}, {"eps": 1e-3}):
        assert difference(**change) > 1e-4, change
    if s["window"] is not None:
        assert difference(window=s["window"] + 1) > 1e-4
        assert difference(rule="anchor") > 1e-4


def test_the_engine(case: tuple[Path, Any]) -> None:
    path, golden = case
    with mu.Model.from_pretrained(path, precision="exact", threads=2, progress=False) as model:
        found = model.draft_logits(golden["tokens"], golden["anchors"])[..., ::4]
    assert np.abs(found - golden["logits"]).max() < 1e-4 * np.abs(golden["logits"]).max()
