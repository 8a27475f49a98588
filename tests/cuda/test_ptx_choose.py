"""The resident path's choice of experts, by its own PTX (tests/ptx)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx.launch import MOE, Library

from mimo_ultraspeed import _probe

ROWS = 8
CASE = np.dtype(
    [(name, np.uint32) for name in ("rows", "experts", "top_k", "splits", "hidden", "norm_topk")]
    + [("routed_scale", np.float32), ("norm_eps", np.float32)]
    + [(name, np.uint64) for name in ("p", "squares", "bias", "logits", "moe")]
)


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("choose.cu", ptx_folder)


@pytest.mark.parametrize(
    ("rows", "experts", "top_k", "splits"),
    [(1, 4, 1, 1), (8, 16, 4, 2), (8, 384, 8, 5), (1, 384, 8, 11), (3, 256, 8, 4), (8, 512, 64, 3), (7, 500, 9, 2), (8, 8, 8, 1)],
)
@pytest.mark.parametrize("alike", [False, True])
def test_experts(rows: int, experts: int, top_k: int, splits: int, alike: bool, library: Library) -> None:
    rng = np.random.default_rng(rows + experts + top_k)
    # On a grid: sums are exact, and scores that differ do so by more than sigmoids are wrong.
    logits = rng.integers(-2, 3, (rows, experts)) / 4 if alike else rng.integers(-64, 65, (rows, experts)) / 16
    parts = rng.integers(-64, 65, (splits, ROWS, experts)) / 16
    parts[0, :rows] = logits - parts[1:, :rows].sum(0)
    bias = (rng.integers(0, 2, experts) / 3).astype(np.float32)
    scale, eps = 2.0 ** rng.integers(-1, 2, ROWS), np.float32(1e-5)
    held: dict[str, Any] = {
        "p": parts.astype(np.float32),
        "squares": (16 * (scale**-2 - np.float64(eps))).astype(np.float32),
        "bias": bias,
        "logits": np.full((ROWS, experts), np.nan, np.float32),
        "moe": np.zeros(1, MOE),
    }
    case = np.zeros(1, CASE)
    case["rows"], case["experts"], case["top_k"], case["splits"], case["hidden"] = rows, experts, top_k, splits, 16
    case["norm_topk"], case["routed_scale"], case["norm_eps"] = rows % 2, 1.5, eps
    for name in held:
        case[name] = held[name].ctypes.data
    library.run("choose", case, *held.values(), threads=256, shared=16384, seed=rows)

    found = held["moe"][0]
    y = logits * scale[:rows, None]
    np.testing.assert_allclose(held["logits"][:rows], y, rtol=1e-6)
    gate = 1 / (1 + np.exp(-y))
    order = np.lexsort((np.broadcast_to(np.arange(experts), y.shape), -np.round(gate + bias, 5)))
    chosen = np.sort(order[:, :top_k], axis=1)
    n = rows * top_k
    assert found["chosen"][:n].tolist() == chosen.ravel().tolist()
    share = np.take_along_axis(gate, chosen, 1)
    share = 1.5 * (share / share.sum(1, keepdims=True) if rows % 2 else share)
    np.testing.assert_allclose(found["share"][:n], share.ravel(), rtol=2e-6)
    expert, begin, row, weight = _probe.moe_sort(
        chosen.astype(np.uint16), found["share"][:n].reshape(rows, top_k).copy(), np.arange(n, dtype=np.uint32)
    )
    assert found["experts"] == len(expert)
    assert found["expert"][: len(expert)].tolist() == expert.tolist()
    assert found["begin"][: len(expert) + 1].tolist() == begin.tolist()
    assert found["row"][:n].tolist() == row.tolist()
    assert np.array_equal(found["weight"][:n], weight)
    masks = [sum(1 << int(t) for t in row[begin[i] : begin[i + 1]]) for i in range(len(expert))]
    assert found["mask"][: len(expert)].tolist() == masks


def test_scores_that_are_no_numbers_choose_distinct_experts(library: Library) -> None:
    held: dict[str, Any] = {
        "p": np.full((1, ROWS, 40), np.nan, np.float32),
        "squares": np.ones(ROWS, np.float32),
        "bias": np.zeros(40, np.float32),
        "logits": np.zeros((ROWS, 40), np.float32),
        "moe": np.zeros(1, MOE),
    }
    held["p"].view(np.uint32)[0, :4] = 0xFFFFFFFF
    case = np.zeros(1, CASE)
    case["rows"], case["experts"], case["top_k"], case["splits"], case["hidden"], case["routed_scale"] = 8, 40, 6, 1, 16, 1.0
    for name in held:
        case[name] = held[name].ctypes.data
    library.run("choose", case, *held.values(), threads=256, shared=16384)
    chosen = held["moe"][0]["chosen"][:48].reshape(8, 6)
    assert (np.diff(chosen.astype(int), axis=1) > 0).all() and chosen.max() < 40
