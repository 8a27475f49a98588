"""Microseconds to choose one token, beside the plain NumPy way of doing the same; both run in turns in this process.

The last lines are of a drafter's logits, which are of 4,096 tokens: chosen from by these tokens' ids ("ours"), and spread over
the whole vocabulary.

    python benchmarks/sampling.py [--rounds N]

The logits are made: normal with deviation 2 and a few that stand out, about as peaked as a language model's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_ultraspeed import _probe

Logits = NDArray[np.float32]
DRAFTED = 4096
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, logprobs 5": {"logprobs": 5},
    "T=1": {"temperature": 1.0},
    "T=1, top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "T=1, top-k 50": {"temperature": 1.0, "top_k": 50},
    "T=1, min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
}


def numpy_choice(logits: Logits, options: dict[str, Any], rng: np.random.Generator) -> int:
    """A token of logits [V], with a full sort where a filter asks for an order."""
    if "logprobs" in options:
        shifted = logits - logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        np.argsort(-logprobs)[: options["logprobs"]]
    if "temperature" not in options:
        return int(logits.argmax())
    scores = logits / np.float32(options["temperature"])
    if "top_k" in options:
        scores = np.where(scores < np.partition(scores, -options["top_k"])[-options["top_k"]], -np.inf, scores)
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    if "top_p" in options:
        order = np.argsort(-probabilities)
        above = np.cumsum(probabilities[order]) - probabilities[order]
        scores[order[above >= options["top_p"]]] = -np.inf
    if "min_p" in options:
        scores[probabilities < options["min_p"] * probabilities.max()] = -np.inf
    return int((scores + rng.gumbel(size=len(scores))).argmax())


def made(rng: np.random.Generator, V: int) -> Logits:
    logits = rng.normal(0, 2, V).astype(np.float32)
    logits[rng.integers(V, size=12)] += rng.uniform(6, 14, 12).astype(np.float32)
    return logits


def time_draft(rng: np.random.Generator, V: int, rounds: int) -> tuple[float, float]:
    """Of a drafter's logits at temperature 1: by ids, and spread."""
    logits, ids = made(rng, DRAFTED), np.sort(rng.choice(V, DRAFTED, replace=False)).astype(np.uint32)
    spread, none, options = np.full(V, -np.inf, np.float32), np.zeros(0, np.uint32), {"temperature": 1.0, "logprobs": 0}
    spread[ids] = logits
    by_ids, over_all = [], []
    for turn in range(rounds):
        by_ids.append(microseconds(lambda: _probe.sample_many(logits, options, 100 * turn, 50, none, ids), 50))  # noqa: B023
        over_all.append(microseconds(lambda: _probe.sample_many(spread, options, 100 * turn, 50, none), 50))  # noqa: B023
    return median(by_ids), median(over_all)


def microseconds(work: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / repeats * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side; the median counts")
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    none = np.zeros(0, np.uint32)
    print(f"{'V':>7}  {'case':<20}{'ours us':>10}{'numpy us':>11}{'ratio':>8}")
    for V in (49152, 152576):
        logits = made(rng, V)
        for name, options in CASES.items():
            ours, peer = [], []
            for turn in range(rounds):
                ours.append(microseconds(lambda: _probe.sample_many(logits, options, 100 * turn, 50, none), 50))  # noqa: B023
                peer.append(microseconds(lambda: [numpy_choice(logits, options, rng) for _ in range(3)], 3))  # noqa: B023
            print(f"{V:>7}  {name:<20}{median(ours):>10.0f}{median(peer):>11.0f}{median(peer) / median(ours):>7.1f}x")
    for V in (49152, 152576):
        by_ids, over_all = time_draft(rng, V, rounds)
        print(f"{V:>7}  {'a draft, T=1':<20}{by_ids:>10.0f}{over_all:>11.0f}{over_all / by_ids:>7.1f}x")


if __name__ == "__main__":
    main()
