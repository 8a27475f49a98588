"""The sampler against its definition, written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import EngineError

NONE = np.zeros(0, np.uint32)
SPAN = 64  # logits that the sampler visits or skips together


def philox(key: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Philox4x32-10 of counters [n, 4]."""
    a, b, c, d = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b, c, d = (q >> np.uint64(32)) ^ b ^ k0, q & low, (p >> np.uint64(32)) ^ d ^ k1, p & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def gumbel(seed: int, stream: int, position: int, tokens: np.ndarray) -> np.ndarray:
    blocks = int(tokens.max()) // 4 + 1
    counters = np.empty((blocks, 4), np.uint32)
    counters[:] = position & 0xFFFFFFFF, position >> 32, 0, stream
    counters[:, 2] = np.arange(blocks)
    words = philox(np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32), counters).ravel()[tokens]
    return -np.log(-np.log((words.astype(np.float64) + 0.5) * 2.0**-32))


def penalised(logits: np.ndarray, penalty: float, seen: np.ndarray) -> np.ndarray:
    result = logits.copy()
    if penalty != 1.0:
        x, p = logits[seen], np.float32(penalty)
        result[seen] = np.where(x > 0, x / p, x * p)
    return result


def kept_tokens(s: np.ndarray, options: dict[str, float]) -> tuple[np.ndarray, bool]:
    """The tokens that the filters leave, most likely first, and whether rounding might have decided top-p."""
    order = np.lexsort((np.arange(len(s)), -s))
    order = order[np.isfinite(s[order])]
    if 0 < options.get("top_k", 0) < len(order):
        order = order[: options["top_k"]]
    z = (s[order].astype(np.float64) - np.float64(s[order[0]])) / np.float64(np.float32(options["temperature"]))
    count, doubtful = len(order), False
    top_p = float(np.float32(options.get("top_p", 1.0)))
    if top_p < 1.0:
        reached = np.cumsum(np.exp(z)) / np.exp(z).sum()
        count = min(count, int(np.searchsorted(reached, top_p)) + 1)
        doubtful = bool(np.abs(reached - top_p).min() < 1e-6)
    min_p = float(np.float32(options.get("min_p", 0.0)))
    if min_p > 0.0:
        count = min(count, int((z >= math.log(min_p)).sum()))
    return order[:count], doubtful


def oracle(logits: np.ndarray, options: dict[str, float], position: int, seen: np.ndarray) -> tuple[int, bool]:
    """The token of the definition, all noise drawn, everything sorted; and whether rounding might have decided."""
    s = penalised(logits, options.get("repetition_penalty", 1.0), seen)
    if options.get("temperature", 0.0) == 0.0:
        return int(s.argmax()), False
    kept, doubtful = kept_tokens(s, options)
    kept = np.sort(kept)
    z = (s[kept].astype(np.float64) - np.float64(s.max())) / np.float64(np.float32(options["temperature"]))
    score = z + gumbel(options.get("seed", 0), options.get("stream", 0), position, kept)
    return int(kept[score.argmax()]), doubtful


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - float(logits.max())
    others = np.delete(x, x.argmax())
    return x - np.log1p(np.exp(others).sum())


def random_logits(rng: np.random.Generator) -> np.ndarray:
    """Of any size around the span, flat to peaked, some with ties, with masked tokens, or far from zero."""
    V = int(rng.choice([1, 2, 5, 31, 63, 64, 65, 127, 128, 200, 640, 1000, 4097]))
    logits = rng.normal(0, rng.choice([0.0, 0.3, 1, 3, 10]), V)
    if rng.random() < 0.3:
        logits = np.round(logits)
    if rng.random() < 0.3:
        logits[rng.random(V) < rng.choice([0.1, 0.9])] = -np.inf
        logits[rng.integers(V)] = rng.normal()
    if rng.random() < 0.3:
        logits[rng.integers(V)] += 12
    return (logits + rng.choice([0, 0, 50, -50])).astype(np.float32)


def random_options(rng: np.random.Generator) -> dict[str, float]:
    options: dict[str, float] = {
        "temperature": float(rng.choice([0.0, 1e-30, 0.3, 1.0, 1.0, 1.7, 50.0])),
        "seed": int(rng.integers(2**64, dtype=np.uint64)),
        "stream": int(rng.integers(2**32)),
    }
    if rng.random() < 0.4:
        options["top_k"] = int(rng.choice([1, 2, 3, 10, 50, 64, 500, 100000]))
    if rng.random() < 0.4:
        options["top_p"] = float(rng.choice([1e-6, 0.1, 0.5, 0.9, 0.95, 0.999]))
    if rng.random() < 0.3:
        options["min_p"] = float(rng.choice([1e-6, 0.01, 0.1, 0.5, 1.0]))
    if rng.random() < 0.3:
        options["repetition_penalty"] = float(rng.choice([0.5, 1.1, 1.3, 3.0]))
    if rng.random() < 0.3:
        options["logprobs"] = int(rng.integers(0, 21))
    return options


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_published_vectors(counter: list[int], key: list[int], block: str) -> None:
    found = _probe.philox(np.array(key, np.uint32), np.array([counter], np.uint32))
    assert " ".join(f"{word:08x}" for word in found[0]) == block
    assert np.array_equal(philox(np.array(key, np.uint32), np.array([counter], np.uint32)), found)


def test_gumbel_is_the_noise_of_its_counter() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        seed, position = (int(x) for x in rng.integers(2**64, size=2, dtype=np.uint64))
        stream = int(rng.integers(2**32))
        tokens = rng.integers(0, 5000, 20)
        rows = [[seed, stream, position, int(t)] for t in tokens]
        np.testing.assert_allclose(_probe.gumbel(np.array(rows, np.uint64)), gumbel(seed, stream, position, tokens), rtol=1e-13)


def test_choice_equals_the_definition() -> None:
    rng = np.random.default_rng(2)
    cases, doubts = 6000, 0
    for case in range(cases):
        logits, options = random_logits(rng), random_options(rng)
        seen = rng.permutation(len(logits))[: rng.integers(len(logits) + 1)].astype(np.uint32)
        position = int(rng.integers(2**40))
        token, doubtful = oracle(logits, options, position, seen)
        found = _probe.sample(logits, options, position, seen)[0]
        if doubtful:
            doubts += 1
        else:
            assert found == token, (case, len(logits), options)
    assert doubts < cases / 50


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 40}, {"top_k": 3000, "top_p": 0.5}, {"min_p": 0.02}])
def test_choice_equals_the_definition_on_a_large_vocabulary(spread: float, options: dict[str, float]) -> None:
    logits = np.random.default_rng(3).normal(0, spread, 150_001).astype(np.float32)
    options = {"temperature": 1.0, "seed": 7, "stream": 1, **options}
    found = _probe.sample_many(logits, options, 2**33, 8, NONE)
    # Rounding may move the cut of top-p by a token or so, none of which has a noticeable chance among so many.
    assert found.tolist() == [oracle(logits, options, 2**33 + i, NONE)[0] for i in range(8)]


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 20, "top_p": 0.6},
        {"top_p": 0.3},
        {"top_p": 0.8, "min_p": 0.5},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"temperature": 2.0, "top_p": 0.7},
    ],
)
def test_filters_keep_exactly_their_set(options: dict[str, float]) -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        logits = (np.round(rng.normal(0, 1, 90) * 4) / 4).astype(np.float32)  # many ties
        options = {"temperature": 1.0, **options}
        kept, doubtful = kept_tokens(logits, options)
        assert not doubtful
        drawn = np.unique(_probe.sample_many(logits, options, 0, 20_000, NONE))
        assert set(drawn.tolist()) <= set(kept.tolist())
        probability = np.exp((logits[kept] - logits.max()) / options["temperature"])
        likely = kept[probability / probability.sum() > 1e-3]
        assert set(likely.tolist()) <= set(drawn.tolist())


def test_top_k_breaks_ties_by_the_lower_id() -> None:
    for V in (10, SPAN * 3, 1000):
        drawn = _probe.sample_many(np.full(V, -0.0, np.float32), {"temperature": 1.0, "top_k": 3}, 0, 300, NONE)
        assert np.unique(drawn).tolist() == [0, 1, 2]
    signed_zeros = np.array([-0.0, 0.0, -0.0, 0.0], np.float32)
    assert np.unique(_probe.sample_many(signed_zeros, {"temperature": 1.0, "top_k": 2}, 0, 300, NONE)).tolist() == [0, 1]


def test_equal_scores_go_to_the_lower_id() -> None:
    # A rare position whose largest word, over 64000 tokens of seed 0, stands at two tokens.
    position, tied = 181859, [1823, 12015]
    noise = gumbel(0, 0, position, np.arange(64000))
    assert np.flatnonzero(noise == noise.max()).tolist() == tied
    assert _probe.sample(np.zeros(64000, np.float32), {"temperature": 1.0}, position, NONE)[0] == tied[0]


def chi_square_limit(freedom: int) -> float:
    """The value that chi-square exceeds with probability 0.001 (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "seed": 5},
        {"temperature": 1.5, "seed": 6, "stream": 3},
        {"temperature": 1.0, "top_k": 10},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.3, "top_k": 25, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.5},
    ],
)
def test_frequencies_are_the_probabilities(options: dict[str, float]) -> None:
    logits = np.random.default_rng(5).normal(0, 1.2, 32).astype(np.float32)
    seen = np.array([0, 3, 17, int(logits.argmax())], np.uint32)
    s = penalised(logits, options.get("repetition_penalty", 1.0), seen).astype(np.float64)
    kept, _ = kept_tokens(s.astype(np.float32), options)
    probability = np.zeros(32)
    probability[kept] = np.exp((s[kept] - s.max()) / options["temperature"])
    draws = 200_000
    expected = probability / probability.sum() * draws
    counts = np.bincount(_probe.sample_many(logits, options, 0, draws, seen), minlength=32)
    assert counts[expected == 0].sum() == 0
    assert expected[kept].min() > 5
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < chi_square_limit(len(kept) - 1)


def test_noise_of_different_coordinates_is_independent() -> None:
    # A million draws of 32 bits collide 116 times on average; sharing any noise between coordinates would collide far more.
    seeds, streams, positions, tokens = np.meshgrid(
        np.array([0, 1, 2**32, 2**63, 12345], np.uint64),
        np.arange(10, dtype=np.uint64),
        np.concatenate([np.arange(90), 2**32 + np.arange(10)]).astype(np.uint64),
        np.arange(200, dtype=np.uint64),
        indexing="ij",
    )
    rows = np.stack([seeds.ravel(), streams.ravel(), positions.ravel(), tokens.ravel()], axis=1)
    noise = _probe.gumbel(rows)
    assert len(noise) == 1_000_000
    assert len(noise) - len(np.unique(noise)) < 116 + 6 * 11
    assert noise.min() > -3.15 and noise.max() < 22.8741
    assert abs(noise.mean() - 0.5772157) < 5 * 1.2825 / 1000
    assert abs(noise.std() - 1.2825498) < 0.01

    grid = noise.reshape(seeds.shape)
    for axis in range(4):
        first, second = np.take(grid, 0, axis).ravel(), np.take(grid, 1, axis).ravel()
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first)), axis


def test_streams_and_seeds_choose_apart() -> None:
    logits = np.zeros(1000, np.float32)
    chosen = [
        _probe.sample_many(logits, {"temperature": 1.0, "seed": seed, "stream": stream}, 0, 2000, NONE)
        for seed, stream in [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0)]
    ]
    for i, a in enumerate(chosen):
        for b in chosen[:i]:
            assert (a == b).sum() < 15  # 2 by chance


def test_the_choice_depends_on_nothing_but_its_arguments() -> None:
    logits = np.random.default_rng(6).normal(0, 2, 3000).astype(np.float32)
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 11}
    many = _probe.sample_many(logits, options, 100, 50, NONE)
    assert [_probe.sample(logits, options, 100 + i, NONE)[0] for i in reversed(range(50))] == many[::-1].tolist()
    shown = [_probe.sample(logits, {**options, "logprobs": 5}, 100 + i, NONE)[0] for i in range(50)]
    assert shown == many.tolist()


@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.02}, {"purpose": 1}])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 4096])
def test_logits_of_some_tokens_are_chosen_as_if_the_others_had_none(options: dict[str, float], count: int) -> None:
    draw = np.random.default_rng(count)
    ids = np.sort(draw.choice(49_152, count, replace=False)).astype(np.uint32)
    logits = draw.normal(0, 3, count).astype(np.float32)
    logits[count // 2] = logits.max()  # equal ones too
    whole = np.full(49_152, -np.inf, np.float32)
    whole[ids] = logits
    options = {"temperature": 0.9, "seed": 5, "stream": 2, **options}
    places = _probe.sample_many(logits, options, 2**33, 40, NONE, ids)
    assert ids[places].tolist() == _probe.sample_many(whole, options, 2**33, 40, NONE).tolist()
    if count == 4096:
        assert places.tolist() != _probe.sample_many(logits, options, 2**33, 40, NONE).tolist()  # another noise
    with pytest.raises(ValueError, match="ids: expected one for each logit"):
        _probe.sample_many(logits, options, 0, 1, NONE, ids[1:])


def test_a_rising_logit_only_gains() -> None:
    logits = np.random.default_rng(7).normal(0, 1, 300).astype(np.float32)
    options = {"temperature": 1.0, "seed": 3}
    before = _probe.sample_many(logits, options, 0, 2000, NONE)
    raised = logits.copy()
    raised[42] += 2
    after = _probe.sample_many(raised, options, 0, 2000, NONE)
    assert (after == 42).sum() > (before == 42).sum()
    assert np.array_equal(after[after != 42], before[after != 42])


def test_narrower_filters_keep_the_choice_they_still_allow() -> None:
    logits = np.random.default_rng(8).normal(0, 2, 500).astype(np.float32)
    free = _probe.sample_many(logits, {"temperature": 1.0}, 0, 1000, NONE)
    for options in ({"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.1}):
        kept, _ = kept_tokens(logits, {"temperature": 1.0, **options})
        narrow = _probe.sample_many(logits, {"temperature": 1.0, **options}, 0, 1000, NONE)
        allowed = np.isin(free, kept)
        assert 100 < allowed.sum() < 1000
        assert np.array_equal(narrow[allowed], free[allowed])


@pytest.mark.parametrize("V", [1, 63, 64, 65, 256, 257, 5000])
def test_logprobs_are_those_of_the_raw_logits(V: int) -> None:
    rng = np.random.default_rng(V)
    for spread in (0.1, 2.0, 20.0, 300.0):
        logits = (np.round(rng.normal(0, spread, V) * 8) / 8).astype(np.float32)
        expected = log_softmax(logits)
        seen = np.arange(V, dtype=np.uint32)
        for options in ({}, {"temperature": 0.5, "top_k": 5}, {"temperature": 1.0, "repetition_penalty": 1.7}):
            token, logprob, tops = _probe.sample(logits, {**options, "logprobs": 20}, 9, seen)
            np.testing.assert_allclose(logprob, expected[token], rtol=1e-5, atol=1e-30)
            order = np.lexsort((np.arange(V), -logits))[:20]
            assert [t for t, _ in tops] == order.tolist()
            np.testing.assert_allclose([p for _, p in tops], expected[order], rtol=1e-5, atol=1e-30)


def test_logprob_of_a_near_certain_token_keeps_its_digits() -> None:
    for gap in (5, 20, 60, 85):
        logits = np.zeros(1000, np.float32)
        logits[500] = gap
        _, logprob, _ = _probe.sample(logits, {"logprobs": 0}, 0, NONE)
        assert logprob == pytest.approx(-math.log1p(999 * math.exp(-gap)), rel=1e-5)


def test_logprobs_count() -> None:
    logits = np.array([1, -np.inf, 3, 2], np.float32)
    assert _probe.sample(logits, {}, 0, NONE) == (2, None, [])
    token, logprob, tops = _probe.sample(logits, {"logprobs": 0}, 0, NONE)
    assert (token, tops) == (2, []) and logprob == pytest.approx(-0.40760596, rel=1e-5)
    assert [t for t, _ in _probe.sample(logits, {"logprobs": 2}, 0, NONE)[2]] == [2, 3]
    assert [t for t, _ in _probe.sample(logits, {"logprobs": 20}, 0, NONE)[2]] == [2, 3, 0]  # no masked token


def test_top_logprobs_when_their_spans_hold_no_more() -> None:
    # Every span's largest logit stands alone: the bound from span maxima is already exact.
    logits = np.full(SPAN * 40, -5, np.float32)
    logits[::SPAN] = np.arange(40)
    tops = _probe.sample(logits, {"logprobs": 20}, 0, NONE)[2]
    assert [t for t, _ in tops] == [SPAN * i for i in range(39, 19, -1)]


def test_repetition_penalty() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    assert _probe.sample(logits, {"repetition_penalty": 2.0}, 0, NONE)[0] == 0
    assert _probe.sample(logits, {"repetition_penalty": 2.0}, 0, np.array([0], np.uint32))[0] == 1
    assert _probe.sample(-logits, {"repetition_penalty": 2.0}, 0, np.array([3], np.uint32))[0] == 2
    _, logprob, _ = _probe.sample(logits, {"repetition_penalty": 2.0, "logprobs": 0}, 0, np.array([1, 0], np.uint32))
    assert logprob == pytest.approx(log_softmax(logits)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "temperature"),
    [(1e-38, 1e-45), (1.0, 1e-45), (1.0, 1e-30), (1.0, 1e-6), (1e30, 1e-30), (1e30, 1.0), (3e38, 1.0), (3e38, 1e-45)],
)
def test_the_limit_of_low_temperature_is_greedy(scale: float, temperature: float) -> None:
    rng = np.random.default_rng(9)
    for options in ({}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"top_k": 70, "top_p": 0.9, "logprobs": 3}):
        logits = (rng.permutation(np.linspace(-1, 1, 200)) * scale).astype(np.float32)
        assert _probe.sample(logits, {"temperature": temperature, **options}, 5, NONE)[0] == logits.argmax()


def test_extremes_choose_a_valid_token() -> None:
    huge = np.array([-3.4e38, 3.4e38, 3.4e38, -np.inf], np.float32)
    seen = np.arange(4, dtype=np.uint32)
    for temperature in (0.0, 1e-45, 1.0, 3e38):
        for penalty in (1e-30, 1.0, 1e30):
            for extra in ({}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.5}, {"top_p": 0.99999994}):
                options = {"temperature": temperature, "repetition_penalty": penalty, "logprobs": 4, **extra}
                token, logprob, tops = _probe.sample(huge, options, 0, seen)
                assert token != 3
                assert not math.isnan(logprob) and len(tops) == 3


def test_masked_tokens_are_never_chosen() -> None:
    logits = np.full(400, -np.inf, np.float32)
    logits[[5, 77, 399]] = [-100, -100, -101]
    for options in ({}, {"top_k": 2}, {"top_k": 300}, {"top_p": 0.999}, {"min_p": 1e-6}):
        drawn = _probe.sample_many(logits, {"temperature": 10.0, **options}, 0, 500, NONE)
        assert set(drawn.tolist()) == ({5, 77} if options.get("top_k") == 2 else {5, 77, 399})


@pytest.mark.parametrize("V", [1, 3, 64, 130])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "logprobs": 2}, {"temperature": 1.0, "repetition_penalty": 2.0}])
def test_bad_logits_name_the_position(V: int, options: dict[str, float]) -> None:
    seen = np.arange(V, dtype=np.uint32)
    for at in {0, V // 2, V - 1}:
        logits = np.zeros(V, np.float32)
        logits[at] = np.nan
        with pytest.raises(EngineError, match="position 4321: expected numbers, found NaN"):
            _probe.sample(logits, options, 4321, seen)
        logits[at] = np.inf
        with pytest.raises(EngineError, match="position 4321: expected the largest to be finite, found inf"):
            _probe.sample(logits, options, 4321, seen)
    with pytest.raises(EngineError, match="position 4321: expected the largest to be finite, found -inf"):
        _probe.sample(np.full(V, -np.inf, np.float32), options, 4321, seen)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("temperature", [-1.0, math.nan, math.inf], "temperature: expected a finite number >= 0, found"),
        ("top_p", [0.0, -0.5, 1.5, math.nan], "top_p: expected 0 < top_p <= 1, found"),
        ("min_p", [-0.1, 1.1, math.nan], "min_p: expected 0 <= min_p <= 1, found"),
        ("repetition_penalty", [0.0, -1.0, math.inf, math.nan], "repetition_penalty: expected a finite number > 0, found"),
        ("logprobs", [-2, 21, 1000], r"logprobs: expected -1 \(none\) or 0 to 20, found"),
    ],
)
def test_wrong_options_are_named(name: str, values: list[float], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            _probe.sample(np.zeros(4, np.float32), {name: value}, 0, NONE)
