"""The verification rules: coupled ones give the tokens of plain sampling, rejection gives its law, exactly."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import EngineError

NONE = np.zeros(0, np.uint32)
SEEN = np.array([2], np.uint32)
TOKEN, DRAFT, ACCEPT, RESIDUAL = range(4)
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.2},
    {"temperature": 1.1, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.5},
]


def toy(vocab: int, seed: int) -> Any:
    """A toy language model: logits [vocab] float32 of what follows a tuple of tokens."""

    @functools.cache
    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        draw = np.random.default_rng([seed, len(prefix), *prefix])
        return (1.5 * draw.standard_normal(vocab)).astype(np.float32)

    return logits


def law(logits: np.ndarray, options: dict[str, Any], seen: tuple[int, ...]) -> np.ndarray:
    return _probe.sample_law(logits, options, np.array(sorted(set(seen)), np.uint32))


# ---- the law that is sampled from ----


def by_hand(logits: np.ndarray, options: dict[str, Any], seen: tuple[int, ...]) -> np.ndarray:
    s = logits.astype(np.float64)
    for token in set(seen) if options.get("repetition_penalty", 1.0) != 1.0 else ():
        s[token] = s[token] / options["repetition_penalty"] if s[token] > 0 else s[token] * options["repetition_penalty"]
    weights = np.exp((s - s.max()) / options["temperature"])
    order = np.argsort(-s, kind="stable")
    if options.get("top_k"):
        weights[order[options["top_k"] :]] = 0
    if options.get("top_p", 1.0) < 1:
        reached = np.cumsum(weights[order]) / weights.sum()
        weights[order[int(np.searchsorted(reached, options["top_p"])) + 1 :]] = 0
    if options.get("min_p"):
        weights[weights < options["min_p"]] = 0
    return weights / weights.sum()


@pytest.mark.parametrize("options", SETTINGS)
def test_the_law_is_that_of_the_filters(options: dict[str, Any]) -> None:
    logits = toy(9, 5)
    for first in range(9):
        row = logits((first,))
        assert np.allclose(law(row, options, (first, 3)), by_hand(row, options, (first, 3)), atol=1e-6)
    assert law(row, {"temperature": 0.0}, ()).tolist() == np.eye(9)[int(row.argmax())].tolist()


@pytest.mark.parametrize("options", SETTINGS)
def test_the_law_is_what_sampling_draws_from(options: dict[str, Any]) -> None:
    row = toy(9, 6)(())
    drawn = np.bincount(_probe.sample_many(row, {**options, "seed": 3}, 0, 20000, NONE), minlength=9)
    expected = 20000 * law(row, options, ())
    assert (drawn[expected == 0] == 0).all()
    kept = expected > 0
    assert ((drawn[kept] - expected[kept]) ** 2 / expected[kept]).sum() < 40  # chi-square, 8 degrees: below 1e-5


# ---- rejection at one row, exactly ----


def bisect(below: Any, low: float, high: float) -> float:
    """The least u in [low, high] at which below(u) no longer holds, to the last bits."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def emitted_law(p: np.ndarray, q: np.ndarray | None, draft: int) -> tuple[float, np.ndarray]:
    """Chance that the draft is kept, and the law of the row's token: measured on the core's own function, by the lengths of the
    intervals of its uniforms that lead to each outcome."""
    kept = bisect(lambda u: _probe.reject_one(p, q, draft, u, 0.5)[1], 0.0, 1.0)
    if not _probe.reject_one(p, q, draft, 0.0, 0.5)[1]:
        kept = 0.0
    tokens = np.zeros(len(p))
    tokens[draft] += kept
    if kept >= 1 - 1e-12:
        return kept, tokens
    high = np.nextafter(1.0, 0.0)
    at = 0.0
    while at < high:
        token, _ = _probe.reject_one(p, q, draft, high, at)
        end = bisect(lambda u, token=token: _probe.reject_one(p, q, draft, high, u)[0] == token, at, 1.0)
        tokens[token] += (1 - kept) * (end - at)
        at = end
    return kept, tokens


def random_law(draw: np.random.Generator, vocab: int) -> np.ndarray:
    weights = draw.random(vocab) ** 3 * (draw.random(vocab) < 0.7)
    weights[draw.integers(vocab)] += 0.1
    return weights / weights.sum()


def test_one_row_gives_the_law_of_the_model() -> None:
    draw = np.random.default_rng(0)
    for _ in range(40):
        p, q = random_law(draw, 5), random_law(draw, 5)
        total = np.zeros(5)
        for draft in np.flatnonzero(q):
            kept, tokens = emitted_law(p, q, int(draft))
            assert kept == pytest.approx(min(1.0, p[draft] / q[draft]), abs=1e-12)
            total += q[draft] * tokens
        assert np.allclose(total, p, atol=1e-11)


def test_one_row_with_a_certain_draft() -> None:
    draw = np.random.default_rng(1)
    for _ in range(40):
        p = random_law(draw, 5)
        for draft in range(5):
            kept, tokens = emitted_law(p, None, draft)
            assert kept == pytest.approx(p[draft], abs=1e-12)
            assert np.allclose(tokens, p, atol=1e-11)


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("certain", [False, True])
def test_a_block_gives_the_law_of_plain_sampling(options: dict[str, Any], certain: bool) -> None:
    """All drafts and outcomes of a block of two drafts over four tokens, the laws being those of the core."""
    V = 4
    target, drafter = toy(V, 11), toy(V, 12)
    before = (2,)
    joint: Counter[tuple[int, ...]] = Counter()
    rows: dict[Any, Any] = {}

    def row(prefix: tuple[int, ...], slot: int, d: int) -> tuple[float, np.ndarray]:
        key = (prefix, slot, d)
        if key not in rows:
            q = None if certain else law(drafter((slot,)), options, before + prefix)
            rows[key] = emitted_law(law(target(prefix), options, before + prefix), q, d)
        return rows[key]

    for d1, d2 in itertools.product(range(V), repeat=2):
        if certain:
            chance = float((d1, d2) == (1, 3))
        else:
            q1 = law(drafter((0,)), options, before)
            chance = q1[d1] * law(drafter((1,)), options, (*before, d1))[d2]
        if chance == 0:
            continue
        kept1, first = row((), 0, d1)
        for token in range(V):  # rejected: the round ends with the token in its place, and plain sampling goes on
            ends = first[token] - (kept1 if token == d1 else 0.0)
            for after, p in enumerate(law(target((token,)), options, (*before, token))):
                joint[token, after] += chance * ends * p
        _, second = row((d1,), 1, d2)
        for token in range(V):
            joint[d1, token] += chance * kept1 * second[token]
    for pair in itertools.product(range(V), repeat=2):
        p1 = law(target(()), options, before)[pair[0]]
        p2 = law(target((pair[0],)), options, (*before, pair[0]))[pair[1]]
        assert joint[pair] == pytest.approx(p1 * p2, abs=1e-10), pair


# ---- whole blocks, with the noise they draw ----


def draft_of(drafter: Any, slots: int, options: dict[str, Any], seed: int, position: int, seen: list[int], purpose: int) -> Any:
    rows = np.stack([drafter((slot,)) for slot in range(slots)])
    drafts: list[int] = []
    for slot in range(slots):
        known = np.array(sorted({*seen, *drafts}), np.uint32)
        drafts.append(_probe.sample(rows[slot], {**options, "seed": seed, "purpose": purpose}, position + slot, known)[0])
    return rows, np.array(drafts, np.uint32)


def block_logits(target: Any, drafts: np.ndarray) -> np.ndarray:
    return np.stack([target(tuple(int(d) for d in drafts[:k])) for k in range(len(drafts) + 1)])


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("argmax", [False, True])
def test_rejection_with_its_own_noise_gives_the_law(options: dict[str, Any], argmax: bool) -> None:
    """Drafts, acceptances and residuals drawn as the engine draws them: noise shared between any two would show."""
    V, trials, position = 6, 4000, 40
    target, drafter = toy(V, 21), toy(V, 22)
    counts = np.zeros((V, V))
    for seed in range(trials):
        rows, drafts = draft_of(drafter, 2, {**options, "temperature": 0.0} if argmax else options, seed, position, [1], DRAFT)
        tokens, accepted, intact = _probe.verify(
            "rejection", block_logits(target, drafts), drafts, None if argmax else rows, {**options, "seed": seed}, position,
            np.array([1], np.uint32),
        )  # fmt: skip
        assert intact and len(tokens) == accepted + 1 and tokens[:accepted] == drafts[:accepted].tolist()
        if len(tokens) == 1:
            row, seen = target((tokens[0],)), np.unique([1, tokens[0]]).astype(np.uint32)
            tokens.append(_probe.sample(row, {**options, "seed": seed}, position + 1, seen)[0])
        counts[tokens[0], tokens[1]] += 1
    first = law(target(()), options, (1,))
    expected = trials * np.stack([first[a] * law(target((a,)), options, (1, a)) for a in range(V)])
    assert (counts[expected == 0] == 0).all()
    for found, wanted in ((counts.sum(1), expected.sum(1)), (counts, expected)):
        kept = wanted > 5
        freedom = int(kept.sum())
        assert ((found[kept] - wanted[kept]) ** 2 / wanted[kept]).sum() < freedom + 6 * math.sqrt(2 * freedom) + 6


@pytest.mark.parametrize("options", [*SETTINGS, {"temperature": 1.0, "repetition_penalty": 2.5}])
def test_rejection_of_a_block_is_that_of_its_rows(options: dict[str, Any]) -> None:
    """Each row by its own law, which knows the drafts that were accepted before it."""
    V, slots, position = 6, 2, 9
    target, drafter = toy(V, 41), toy(V, 42)
    accepted = 0
    for seed in range(400):
        call = {**options, "seed": seed}
        rows, drafts = draft_of(drafter, slots, options, seed, position, [2], DRAFT)
        expected: list[int] = []
        kept = True
        for k, draft in enumerate(drafts.tolist()):
            p, q = (law(row, options, (2, *expected)) for row in (target(tuple(expected)), rows[k]))
            accept, residual = (_probe.uniform(purpose, seed, 0, position + k) for purpose in (ACCEPT, RESIDUAL))
            token, kept = _probe.reject_one(p, q, draft, accept, residual)
            expected.append(token)
            if not kept:
                break
        if kept:
            seen = np.array(sorted({2, *expected}), np.uint32)
            expected.append(_probe.sample(target(tuple(expected)), call, position + slots, seen)[0])
        found = _probe.verify("rejection", block_logits(target, drafts), drafts, rows, call, position, SEEN)
        assert found == (expected, len(expected) - 1, True)
        accepted += found[1]
    assert accepted > 40


@pytest.mark.parametrize("options", [*SETTINGS, {"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.4}])
def test_coupled_blocks_give_the_tokens_of_plain_sampling(options: dict[str, Any]) -> None:
    V, slots, position = 6, 5, 7
    target = toy(V, 31)
    for seed in range(300):
        call = {**options, "seed": seed}
        plain: list[int] = []
        for k in range(slots + 1):
            seen = np.array(sorted({2, *plain}), np.uint32)
            plain.append(_probe.sample(target(tuple(plain)), call, position + k, seen)[0])
        right = seed % (slots + 1)
        drafts = np.array(plain[:slots], np.uint32)
        if right < slots:
            drafts[right] = (drafts[right] + 1 + seed % (V - 1)) % V
        tokens, accepted, intact = _probe.verify("coupled", block_logits(target, drafts), drafts, None, call, position, SEEN)
        assert (tokens, accepted, intact) == (plain[: right + 1], right, True)
        if options["temperature"] == 0:
            assert _probe.verify("rejection", block_logits(target, drafts), drafts, None, call, position, SEEN)[0] == tokens


def test_coupled_drafts_are_right_more_often_than_the_likeliest_ones() -> None:
    draw = np.random.default_rng(3)
    coupled = argmax = 0
    for position in range(600):
        row = (1.5 * draw.standard_normal(40)).astype(np.float32)
        near = (row + 0.5 * draw.standard_normal(40)).astype(np.float32)
        call = {"temperature": 1.0, "seed": 5}
        token = _probe.sample(row, call, position, NONE)[0]
        coupled += _probe.sample(near, call, position, NONE)[0] == token
        argmax += int(near.argmax()) == token
    assert coupled > 1.5 * argmax


# ---- noise ----


def test_no_two_draws_share_a_counter() -> None:
    seen: set[tuple[int, ...]] = set()
    many = itertools.product(range(4), (0, 1, 2**32 - 1), (0, 1, 2, 31, 2**32 - 1, 2**32, 2**40), (0, 4, 8, 2**31, 2**32 - 4))
    for count, coordinates in enumerate(many, 1):
        seen.add(_probe.noise_counter(*coordinates))
        assert len(seen) == count, coordinates


def test_purposes_draw_apart() -> None:
    uniforms = {
        purpose: np.array([_probe.uniform(purpose, 9, 0, position) for position in range(4000)])
        for purpose in (TOKEN, DRAFT, ACCEPT, RESIDUAL)
    }
    for one in uniforms.values():
        assert one.min() >= 0 and one.max() < 1 and abs(one.mean() - 0.5) < 0.03
    for a, b in itertools.combinations(uniforms.values(), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.07
        assert abs(np.corrcoef(a[1:], b[:-1])[0, 1]) < 0.07
    flat = np.zeros(64, np.float32)
    token = _probe.sample_many(flat, {"temperature": 1.0, "seed": 4}, 0, 2000, NONE)
    draft = _probe.sample_many(flat, {"temperature": 1.0, "seed": 4, "purpose": DRAFT}, 0, 2000, NONE)
    assert 10 < (token == draft).sum() < 60  # 2000 / 64 by chance


def test_a_bad_row_keeps_the_choices_before_it() -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[0, 1], rows[1, :] = 5.0, math.nan
    with pytest.raises(EngineError, match="logits of position 11"):
        _probe.verify("coupled", rows, np.array([1, 2], np.uint32), None, {}, 10, NONE)
