"""Taps that are kept: computed once for a model's weights, and again for others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.make import make
from mimo_ultraspeed.train.features import Features

IDS = [97, 98, 5, 300, 99]


def test_they_are_computed_once_and_again_for_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, calls = make(tmp_path / "model", progress=False), []
    compute = Features.compute
    monkeypatch.setattr(Features, "compute", lambda self, ids: calls.append(1) or compute(self, ids))

    def taps() -> np.ndarray:
        with mu.Model.from_pretrained(folder, threads=1, progress=False) as model:
            return np.array(Features(model, [0, 2], tmp_path / "taps").of("one", IDS))

    first = taps()
    with mu.Model.from_pretrained(folder, threads=1, progress=False) as model:
        states = model.hidden_states(IDS, [0, 2])
    assert first.dtype == np.float16 and np.allclose(first, np.concatenate(list(states), 1), atol=2e-3, rtol=1e-3)
    assert np.array_equal(taps(), first) and len(calls) == 1
    for path in mu.Checkpoint.open(folder).files:
        os.utime(path, ns=(0, 0))
    assert np.array_equal(taps(), first) and len(calls) == 2
