"""Tokens that the resident path draws, by its own PTX (tests/ptx): those of the sampler of the CPU, whatever filters them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx.launch import Library

from mimo_ultraspeed import _probe

BLOCK, ROWS, NO_TOKEN = 256, 8, 2**32 - 1
ADDRESSES = ("logits", "ids", "maxima", "sums", "kept", "kept_count", "filter", "best", "picked")
CASE = np.dtype(
    [(name, np.uint32) for name in ("rows", "vocab", "span", "top_k", "stream", "position")]
    + [(name, np.float32) for name in ("temperature", "top_p", "min_p")]
    + [("drafts", np.uint32), ("z_least", np.float64), ("seed", np.uint64)]
    + [(name, np.uint64) for name in ADDRESSES]
)


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("filter.cu", ptx_folder)


@dataclass
class Drawn:
    tokens: list[int]
    kept: NDArray[np.uint32]
    """How many tokens COLLECT took of each row."""


def draw(
    library: Library,
    logits: NDArray[np.float32],
    ids: NDArray[np.uint32] | None = None,
    seed: int = 0,
    span: int = 512,
    **sampling: Any,
) -> Drawn:
    """The token of each row. ids: the rows are slots 1, 2, ... of a drafter that knows these tokens."""
    drafts = ids is not None
    rows, vocab = logits.shape
    blocks = -(-vocab // BLOCK)
    # What is not written must not matter: it is not a number, or huge.
    held = {
        "logits": np.concatenate([np.full((1, vocab), np.nan, np.float32), logits]) if drafts else logits.copy(),
        "ids": ids.copy() if ids is not None else np.zeros(1, np.uint32),
        "maxima": np.full((ROWS, blocks), np.nan, np.float32),
        "sums": np.full((ROWS, blocks), np.nan, np.float32),
        "kept": np.full((ROWS, vocab, 2), 2**64 - 1, np.uint64),
        "kept_count": np.zeros(ROWS, np.uint32),
        "filter": np.full((ROWS, 2), 2**64 - 1, np.uint64),
        "best": np.full((ROWS, blocks, 2), 2**64 - 1, np.uint64),
        "picked": np.full(ROWS, 12345678, np.uint32),
    }
    case = np.zeros(1, CASE)
    case["rows"], case["vocab"], case["span"], case["position"], case["drafts"] = rows + drafts, vocab, span, 77, drafts
    case["temperature"], case["top_p"], case["seed"], case["stream"] = 1.0, 1.0, 9 + seed, 4
    for name, value in sampling.items():
        case[name] = value
    case["z_least"] = math.log(float(case["min_p"][0])) if case["min_p"][0] > 0 else 0.0
    for name in ADDRESSES:
        case[name] = held[name].ctypes.data if name != "ids" or drafts else 0
    arrays = [case, *held.values()]
    counts = np.zeros(0, np.uint32)
    for kernel, ctas in (
        ("scan", -(-vocab // span)),
        ("collect", -(-vocab // span)),
        ("cut", rows),
        ("sample", -(-vocab // span)),
        ("pick", 1),
    ):
        if kernel == "cut":
            counts = held["kept_count"][int(drafts) : rows + drafts].copy()
        library.run(kernel, *arrays, ctas=ctas, threads=256, shared=16384, seed=seed)
    assert not held["kept_count"].any(), "lists that are not empty for the next step"
    return Drawn(held["picked"][int(drafts) : rows + drafts].tolist(), counts)


def sampler(logits: NDArray[np.float32], ids: NDArray[np.uint32] | None = None, seed: int = 0, **sampling: Any) -> list[int]:
    """What the CPU's sampler draws."""
    options = {"temperature": 1.0, "seed": 9 + seed, "stream": 4} | sampling
    nothing = np.zeros(0, np.uint32)
    first = 77 + (ids is not None)
    places = [
        int(_probe.sample_many(row, options, first + t, 1, nothing, *([] if ids is None else [ids]))[0])
        for t, row in enumerate(logits)
    ]
    return places if ids is None else [int(ids[place]) for place in places]


def peaked(rows: int, vocab: int, seed: int) -> NDArray[np.float32]:
    """Logits as a language model has them: a few that stand out, many that do not."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.2, (rows, vocab))
    for row in logits:
        row[rng.integers(0, vocab, 12)] += rng.uniform(3.0, 12.0, 12)
    return logits.astype(np.float32)


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "greedy": {"temperature": 0.0, "top_p": 0.5, "top_k": 3},
    "top-p": {"top_p": 0.95},
    "top-p, hot": {"top_p": 0.9, "temperature": 3.0},
    "top-p, cold": {"top_p": 0.95, "temperature": 0.05},
    "top-p of almost all": {"top_p": 0.999999},
    "top-p of the first": {"top_p": 1e-6},
    "top-k": {"top_k": 20},
    "top-1": {"top_k": 1},
    "top-k of many": {"top_k": 700, "temperature": 2.0},
    "top-k of all": {"top_k": 100000},
    "min-p": {"min_p": 0.02, "temperature": 2.0},
    "all of them": {"top_k": 40, "top_p": 0.9, "min_p": 0.001, "temperature": 1.4},
}


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_are_the_sampler_s(name: str, library: Library) -> None:
    for seed, (rows, vocab) in enumerate([(8, 3000), (1, 5000), (3, 255), (2, 257)]):
        logits = peaked(rows, vocab, seed)
        assert draw(library, logits, seed=seed, **FILTERS[name]).tokens == sampler(logits, seed=seed, **FILTERS[name])


@pytest.mark.parametrize("name", FILTERS)
def test_logits_that_are_alike(name: str, library: Library) -> None:
    """Where logits are equal the lower id comes first, and cuts fall among them."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(-3, 4, (8, 1000)).astype(np.float32)
    coarse[1] = 0.25  # all the same
    coarse[2] = np.where(np.arange(1000) % 2, 0.0, -0.0)
    coarse[3, 7:] = -np.inf  # few are left
    coarse[4] = -np.inf
    coarse[4, 600] = 3.0  # one is
    assert draw(library, coarse, **FILTERS[name]).tokens == sampler(coarse, **FILTERS[name])


@pytest.mark.parametrize("name", ["greedy", "top-k"])
def test_more_blocks_than_lanes(name: str, library: Library) -> None:
    coarse = np.random.default_rng(8).integers(-3, 4, (2, 9000)).astype(np.float32)
    assert draw(library, coarse, **FILTERS[name]).tokens == sampler(coarse, **FILTERS[name])


@pytest.mark.parametrize("name", FILTERS)
def test_slots_of_a_drafter(name: str, library: Library) -> None:
    rng = np.random.default_rng(6)
    ids = np.sort(rng.choice(50000, 900, replace=False)).astype(np.uint32)
    logits = np.round(peaked(7, 900, 3), 1)  # with some that are alike
    assert draw(library, logits, ids, **FILTERS[name]).tokens == sampler(logits, ids, **FILTERS[name])


@pytest.mark.parametrize("name", FILTERS)
def test_rows_without_numbers_have_no_token(name: str, library: Library) -> None:
    logits = peaked(5, 600, 1)
    logits[0, 599], logits[1, 3], logits[2] = np.nan, np.inf, -np.inf
    logits[3] = np.nan
    tokens = draw(library, logits, **FILTERS[name]).tokens
    assert tokens[:4] == [NO_TOKEN] * 4
    assert tokens[4:] == sampler(np.concatenate([logits[4:]] * 5), **FILTERS[name])[4:]


def test_few_tokens_are_collected(library: Library) -> None:
    """A cut is found among those that it may lie among: that is what COLLECT is for."""
    logits = peaked(4, 6000, 2)
    logits[:, 77] = logits.max(axis=1) + 6.0
    for sampling, least, most in (
        ({"top_p": 0.95}, 1, 300),
        ({"top_k": 10}, 10, 200),
        ({"min_p": 0.1}, 0, 0),
        ({"top_p": 0.9, "top_k": 10}, 10, 200),
    ):
        counts = draw(library, logits, **sampling).kept
        assert (counts >= least).all() and (counts <= most).all(), sampling
