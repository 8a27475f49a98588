"""The oracle against transformers' MiMo-V2-Flash in float32, by the files of tests/golden (made by make_goldens.py there)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from reference import e4m3_values, mxfp4_rows, read_config, reference_forward, reference_tensors, restarting

from mimo_ultraspeed.make import make

GOLDEN = Path(__file__).parent / "golden"


def recipes():
    spec = importlib.util.spec_from_file_location("make_goldens", GOLDEN / "make_goldens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["split_bf16", "split_fp8_bf16_router", "fused_mxfp4"])
def case(request, tmp_path_factory):
    module = recipes()
    path = make(tmp_path_factory.mktemp("golden") / request.param, progress=False, **module.CASES[request.param])
    golden = np.load(GOLDEN / f"{request.param}.npz")
    tensors = reference_tensors(path)
    assert module.digest_of(tensors) == pytest.approx(float(golden["digest"]), rel=1e-9), (
        "the weights are not those of the golden file"
    )
    return golden, tensors, read_config(path)


def difference(case, **changes) -> float:
    """Largest difference of a logit, relative to the largest logit."""
    golden, tensors, config = case
    logits, _ = reference_forward(tensors, config | changes, golden["tokens"].tolist())
    return np.abs(logits[:, ::4] - golden["logits"]).max() / np.abs(golden["logits"]).max()


def test_logits_and_every_layer_are_those_of_transformers(case):
    golden, tensors, config = case
    assert difference(case) < 3e-6
    _, hidden = reference_forward(tensors, config, golden["tokens"].tolist())
    assert np.abs(hidden[:, :, ::4] - golden["hidden"]).max() < 3e-5


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 9},
        {"sliding_window": 7},
        {"attention_value_scale": 0.7},
        {"swa_rope_theta": 10100.0},
        {"rope_theta": 9900000.0},
        {"partial_rotary_factor": 0.3},
        {"num_experts_per_tok": 3},
        {"norm_topk_prob": False},
        {"layernorm_epsilon": 1e-4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices(case, change):
    assert difference(case, **change) > 1e-5


def test_the_comparison_notices_a_missing_sink(case):
    golden, tensors, config = case
    bare = {name: value for name, value in tensors.items() if "sink" not in name}
    assert difference((golden, bare, config)) > 1e-3


def test_e4m3_landmarks():
    values = e4m3_values()
    assert [values[i] for i in (0x00, 0x01, 0x08, 0x38, 0x7E, 0xB8)] == [0, 2**-9, 2**-6, 1, 448, -1]
    assert np.isnan(values[[0x7F, 0xFF]]).all() and np.isnan(values).sum() == 2


def test_mxfp4_takes_the_low_nibble_first():
    codes = np.full((1, 16), 0x72, np.uint8)
    row = mxfp4_rows(codes, np.array([[128]], np.uint8))
    assert row[0, :4].tolist() == [2.0, 12.0, 2.0, 12.0]


def test_restarting_grid():
    rows = restarting(2, 130)
    assert (rows[127], rows[128], rows[130], rows[258]) == (0, 1, 2, 3)
