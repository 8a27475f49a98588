"""The engine against other arithmetic: transformers in float32, and the numpy oracle of tests/reference.py on every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import read_config, reference_forward, reference_tensors
from test_reference import recipes

from mimo_ultraspeed import _core
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.default_model import ensure_default
from mimo_ultraspeed.make import make

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
EXACT = 1e-4  # of the largest logit

LAYOUTS = [
    {"layout": layout, "weights": weights, "router": router}
    for layout in ("flash", "fused")
    for weights in ("bf16", "fp8", "mxfp4")
    for router in ("f32", "bf16")
]


def loaded(path: Path, precision: str) -> Any:
    engine = _core.Engine(*Checkpoint.open(path).core_arguments(), precision=precision, threads=2)
    engine.load()
    return engine


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("case", ["split_bf16", "split_fp8_bf16_router", "fused_mxfp4"])
def test_exact_is_transformers(case: str, tmp_path: Path) -> None:
    path = make(tmp_path / case, progress=False, **recipes().CASES[case])
    golden = np.load(GOLDEN / f"{case}.npz")
    tokens = golden["tokens"].tolist()
    engine = loaded(path, "exact")
    assert relative(engine.logits(tokens)[:, ::4], golden["logits"]) < EXACT
    hidden = engine.hidden_states(tokens, range(len(golden["hidden"])))
    assert relative(hidden[:, :, ::4], golden["hidden"]) < EXACT


@pytest.mark.parametrize("recipe", LAYOUTS, ids=lambda r: "-".join(r.values()))
def test_every_layout_is_the_oracle(recipe: dict[str, str], tmp_path: Path) -> None:
    path = make(tmp_path / "model", progress=False, seed=31, **recipe)
    tokens = np.random.default_rng(3).integers(0, 512, 48).tolist()
    want, _ = reference_forward(reference_tensors(path), read_config(path), tokens)
    assert relative(loaded(path, "exact").logits(tokens), want) < EXACT
    # Eight bits move a score past its neighbour now and then, which changes an expert and with it the row: the median row is held.
    fast = loaded(path, "fast").logits(tokens)
    assert np.median(np.abs(fast - want).max(axis=1)) < 0.03 * np.abs(want).max()


@pytest.mark.parametrize(
    "overrides",
    [
        {"tie_word_embeddings": True},
        {"vocab_size": 509},  # not a multiple of eight
        {"v_head_dim": 24, "swa_v_head_dim": 24},  # heads that are not whole blocks of 32
        {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": 0.5},  # 24 dims: pairs that do not fall into octets
        {"sliding_window": 300},
        {"add_full_attention_sink_bias": True},
        {"num_experts_per_tok": 8},
        {"num_experts_per_tok": 1, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
        {"hybrid_layer_pattern": [0, 0, 0, 0]},
        {"hybrid_layer_pattern": [1, 1, 1, 1]},
        {"moe_layer_freq": [0, 0, 0, 0]},
        {"hidden_size": 72, "intermediate_size": 88},  # nothing that int8 blocks divide
    ],
    ids=str,
)
def test_irregular_models_are_the_oracle(overrides: dict[str, Any], tmp_path: Path) -> None:
    weights = "bf16" if "hidden_size" in overrides else "mxfp4"
    path = make(tmp_path / "model", progress=False, seed=32, layout="flash", weights=weights, overrides=overrides)
    config = read_config(path)
    tokens = np.random.default_rng(4).integers(0, config["vocab_size"], 400).tolist()
    want, _ = reference_forward(reference_tensors(path), config, tokens)
    assert relative(loaded(path, "exact").logits(tokens), want) < EXACT
    fast = loaded(path, "fast")
    got = fast.logits(tokens)
    assert np.median(np.abs(got - want).max(axis=1)) < 0.03 * np.abs(want).max()
    assert np.array_equal(fast.logits(tokens, step=3), got)


@pytest.fixture(scope="module")
def default_path() -> Path:
    return ensure_default(progress=False)


@pytest.mark.model
def test_the_default_model_exact_is_transformers(default_path: Path) -> None:
    golden = np.load(GOLDEN / "smollm2_logits.npz")
    engine = loaded(default_path, "exact")
    for i in range(3):
        got = engine.logits(golden[f"tokens{i}"])[-4:]
        some = np.take_along_axis(got, golden[f"top_ids{i}"].astype(int), axis=1)
        assert np.abs(some - golden[f"top_logits{i}"]).max() < EXACT * golden[f"max{i}"]
    assert np.abs(got[-1] - golden["last_row"]).max() < EXACT * golden["max2"]


@pytest.mark.model
def test_what_fast_costs_on_the_default_model(default_path: Path) -> None:
    """The bound is loose; the README states what was measured."""
    golden = np.load(GOLDEN / "smollm2_logits.npz")
    tokens = np.concatenate([golden[f"tokens{i}"] for i in range(3)]).tolist()
    exact, fast = (log_softmax(loaded(default_path, precision).logits(tokens)) for precision in ("exact", "fast"))
    divergence = (np.exp(exact) * (exact - fast)).sum(axis=1)
    assert divergence.mean() < 0.03
    assert (exact.argmax(axis=1) == fast.argmax(axis=1)).mean() > 0.9


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
