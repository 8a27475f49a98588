"""Speculative decoding through _core's types: whatever is drafted, the answer is that of decoding without drafts."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import Drafter, open_drafter
from mimo_ultraspeed.make import make

V, BLOCK, COUNT = 512, 8, 24
PROMPTS = 30 if "ASAN_OPTIONS" in os.environ else 200  # steps take many times as long under the sanitizers
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "hot": {"temperature": 1.0},
    "filtered": {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    "penalised": {"temperature": 0.7, "repetition_penalty": 1.3},
}
OpenEngine = Callable[..., Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full and sliding layers (a window of 8), sinks, MoE, and a drafter of 8 rows that guesses at random."""
    return make(tmp_path_factory.mktemp("made") / "tiny", draft=True, progress=False)


@pytest.fixture(scope="module")
def open_engine(path: Path) -> Iterator[OpenEngine]:
    engines: dict[tuple[str, bool], Any] = {}

    def get(precision: str = "fast", drafter: bool = True) -> Any:
        if (precision, drafter) not in engines:
            checkpoint = Checkpoint.open(path)
            draft = open_drafter("auto", checkpoint) if drafter else None
            engines[precision, drafter] = loaded(checkpoint, draft, precision)
        return engines[precision, drafter]

    yield get
    for engine in engines.values():
        engine.close()


def loaded(checkpoint: Checkpoint, draft: Drafter | None, precision: str = "fast") -> Any:
    """An engine that has read its weights."""
    config, tensors, files = checkpoint.core_arguments()
    files += [str(file) for file in draft.files] if draft is not None else []
    wiring = draft.to_core() if draft is not None else None
    engine = _probe.Engine(config, tensors, files, draft=wiring, precision=precision, threads=2)
    engine.load()
    return engine


def prompt(number: int) -> list[int]:
    """Every other one repeats itself, so that looking up finds something."""
    draw = np.random.default_rng([5, number])
    ids: list[int] = draw.integers(0, V, int(draw.integers(3, 40))).tolist()
    return ids * 3 if number % 2 else ids


def drain(job: Any) -> list[int]:
    out: list[int] = []
    while (event := job.next()) is not None:
        out += event[0]
    return out


def plain(engine: Any, ids: list[int], count: int = COUNT, **options: Any) -> list[int]:
    return drain(engine.submit(ids, max_new_tokens=count, **options))


def check_rounds(job: Any, said: list[int], stopped: bool = False) -> dict[str, list[Any]]:
    rounds = job.stats()["rounds"]
    assert len({len(values) for values in rounds.values()}) == 1
    for width, drafted, accepted, emitted, looked_up in zip(
        *(rounds[name] for name in ("width", "drafted", "accepted", "emitted", "lookup")), strict=True
    ):
        assert drafted == width - 1 and 0 <= accepted <= drafted and 1 <= emitted <= accepted + 1 and looked_up in (0, drafted)
    assert sum(rounds["emitted"]) == len(said) - 1  # the first comes from the prompt's step
    assert all(e == a + 1 for e, a in list(zip(rounds["emitted"], rounds["accepted"], strict=True))[: -1 if stopped else None])
    assert job.stats()["steps"] == 1 + len(rounds["width"])
    return rounds


def scripts(want: list[int], number: int) -> dict[str, list[int]]:
    """Answers that are guessed right, wrong in places, wrong everywhere, or at random."""
    draw = np.random.default_rng([6, number])
    spoilt = [token if draw.random() < 0.7 else (token + 1) % V for token in want]
    wrong = [(token + 1) % V for token in want]
    return {"right": want, "spoilt": spoilt, "wrong": wrong, "random": draw.integers(0, V, 60).tolist()}


# ---- the same answer ----


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_whatever_is_drafted_the_answer_is_the_plain_one(open_engine: OpenEngine, precision: str, sampling: str) -> None:
    """PROMPTS prompts each; every width of the drafter, of lookup, of both, and of scripts good and bad."""
    engine = open_engine(precision)
    accepted = dict.fromkeys(("drafter", "lookup", "both", "right", "spoilt", "wrong", "random"), 0)
    for number in range(PROMPTS):
        ids, options = prompt(number), {**SAMPLINGS[sampling], "seed": number}
        want = plain(engine, ids, **options)
        ways: list[tuple[str, dict[str, Any]]] = [
            ("drafter", {}), ("both", {"lookup": True}), ("drafter", {"argmax_drafts": True}),
            *((kind, {"script": script}) for kind, script in scripts(want, number).items()),
        ]  # fmt: skip
        widths = (0, 2 + number % 7)  # all of 2 .. 8 come by
        jobs = [
            (kind, engine.submit(ids, max_new_tokens=COUNT, speculative=True, width=width, **options, **way))
            for (kind, way), width in itertools.product(ways, widths)
        ]
        for kind, job in jobs:  # 14 at once, beside each other
            assert drain(job) == want, (kind, number)
            accepted[kind] += sum(check_rounds(job, want)["accepted"])
    assert accepted["right"] > 0.8 * accepted["spoilt"] > 0
    assert accepted["wrong"] == 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_lookup_alone(open_engine: OpenEngine, sampling: str) -> None:
    engine = open_engine(drafter=False)
    looked_up = accepted = 0
    for number in range(20):
        ids, options = prompt(number), {**SAMPLINGS[sampling], "seed": number}
        want = plain(engine, ids, 60, **options)
        for width in (0, 2, 5, 8):
            job = engine.submit(ids, max_new_tokens=60, speculative=True, lookup=True, width=width, **options)
            assert drain(job) == want
            rounds = check_rounds(job, want)
            looked_up += sum(rounds["lookup"])
            accepted += sum(rounds["accepted"])
    assert looked_up > 0 and (sampling == "hot" or accepted >= 0)


def test_coupled_drafts_of_the_target_itself_are_all_right(open_engine: OpenEngine) -> None:
    """A script of the right tokens fills every round: nothing in the loop loses a draft."""
    engine = open_engine()
    for width in range(1, BLOCK + 1):
        want = plain(engine, prompt(1), 41, temperature=1.0, seed=7)
        job = engine.submit(prompt(1), max_new_tokens=41, speculative=True, script=want, width=width, temperature=1.0, seed=7)
        assert drain(job) == want
        rounds = check_rounds(job, want)
        assert rounds["accepted"] == rounds["drafted"]
        assert rounds["width"][:-1] == [width] * (len(rounds["width"]) - 1)


def test_a_window_survives_refused_drafts(open_engine: OpenEngine) -> None:
    """An answer far longer than the ring of the sliding layers, with most drafts refused."""
    engine = open_engine()
    want = plain(engine, prompt(2), 700)
    draw = np.random.default_rng(1)
    spoilt = [token if draw.random() < 0.5 else (token + 1) % V for token in want]
    job = engine.submit(prompt(2), max_new_tokens=700, speculative=True, script=spoilt, width=BLOCK)
    assert drain(job) == want


def test_a_prompt_is_reused_after_refused_drafts(open_engine: OpenEngine) -> None:
    """The idle cache of a speculative answer has keys of refused drafts beyond its end, also in the rings."""
    engine = open_engine()
    for number, length in ((31, 20), (32, 300), (33, 420)):
        ids = np.random.default_rng(number).integers(0, V, length).tolist()
        want = plain(engine, ids, 40)
        wrong = [(token + 1) % V for token in want]
        assert drain(engine.submit(ids, max_new_tokens=40, speculative=True, script=wrong)) == want
        for kept in (length, length + 1, length + 20, length + 38):
            longer = [*(ids + want)[:kept], 7, 8, 9]
            job = engine.submit(longer, max_new_tokens=1)
            assert drain(job) == [int(engine.logits(longer)[-1].argmax())]
            job = engine.submit(longer, max_new_tokens=12, speculative=True, lookup=True)
            assert drain(job) == plain(engine, longer, 12)


def test_a_cut_knows_what_refused_drafts_overwrote(open_engine: OpenEngine) -> None:
    """In rings of 256 positions with windows of 8, all but 249 positions behind the last one written can be kept and used again."""
    engine, other = open_engine(), open_engine(drafter=False)
    cached = []
    for back in range(236, 252):
        ids = np.random.default_rng([9, back]).integers(0, V, 400).tolist()
        want = plain(other, ids, 40)
        end = next(at for at in range(5, 40) if want.index(want[at]) == at)
        wrong = [(token + 1) % V for token in want]
        job = engine.submit(ids, max_new_tokens=40, speculative=True, script=wrong, width=BLOCK, eos=[want[end]])
        assert drain(job) == want[: end + 1]
        kept = [*ids[: 400 + end - back], 1, 2, 3]
        again = engine.submit(kept, max_new_tokens=4, logprobs=2)
        expected = other.submit(kept, max_new_tokens=4, logprobs=2)
        while (event := expected.next()) is not None:
            found = again.next()
            assert (found[0], found[2]) == (event[0], event[2]), back
        cached.append(again.stats()["cached_tokens"] > 0)
    assert cached[0] and not cached[-1]


def drafts_of(engine: Any, text: list[int], count: int, options: dict[str, Any]) -> list[int]:
    """What is drawn from draft_logits behind the last token."""
    none = np.zeros(0, np.uint32)
    rows = engine.draft_logits(text, [len(text) - 1])[:count]
    return [_probe.sample(row, options, len(text) + k, none)[0] for k, row in enumerate(rows)]


def check_drafts(engine: Any, ids: list[int], job: Any, draw: Any = drafts_of, **options: Any) -> int:
    """Every round's drafts are known, and so is its count of right ones; returns their sum."""
    text, said = list(ids), drain(job)
    answer, right = [*ids, *said], 0
    rounds = job.stats()["rounds"]
    assert not any(rounds["lookup"])
    text.append(said[0])
    for width, accepted, emitted in zip(rounds["width"], rounds["accepted"], rounds["emitted"], strict=True):
        drafts = draw(engine, text, width - 1, options)
        matches = [draft == token for draft, token in zip(drafts, answer[len(text) :], strict=False)]
        expected = matches.index(False) if False in matches else len(matches)
        assert accepted == expected, (len(text), drafts)
        right += accepted
        text = answer[: len(text) + emitted]
    return right


def test_drafts_are_those_of_the_drafter(open_engine: OpenEngine) -> None:
    """Also behind a prompt that was computed with drafts before, or without, or that a neighbour computes just now."""
    engine = open_engine()
    options: dict[str, Any] = {"temperature": 4.0, "min_p": 0.1, "seed": 3}
    call: dict[str, Any] = {"max_new_tokens": 40, "speculative": True, "width": 4, **options}
    ids = np.random.default_rng(40).integers(0, V, 150).tolist()
    assert check_drafts(engine, ids, engine.submit(ids, **call), **options) > 5
    again = engine.submit(ids, **call)
    assert check_drafts(engine, ids, again, **options) > 5
    assert again.stats()["cached_tokens"] == 149
    for number in range(41, 44):
        ids = np.random.default_rng(number).integers(0, V, 150).tolist()
        drain(engine.submit(ids, max_new_tokens=20))
        job = engine.submit(ids, **call)
        assert check_drafts(engine, ids, job, **options) > 5
        assert 0 < job.stats()["cached_tokens"] < 149  # the drafter's window of 64 is computed again
    ids = np.random.default_rng(44).integers(0, V, 300).tolist()
    jobs = [engine.submit(ids, **call) for _ in range(3)]
    assert all(check_drafts(engine, ids, job, **options) > 5 for job in jobs)


def test_a_short_block_is_drafted_until_it_comes_true(tmp_path: Path) -> None:
    """Up to 4 rows a block of 4 is filled, and a longer one only after a short one that was right to its end."""
    kinds: dict[str, dict[str, Any]] = {"eight": {}, "four": {"block": 4}, "short": {"short_block": 4}}
    engines: dict[str, Any] = {}
    for name, kind in kinds.items():
        checkpoint = Checkpoint.open(make(tmp_path / name, draft=kind, progress=False))
        engines[name] = loaded(checkpoint, open_drafter("auto", checkpoint))
    options: dict[str, Any] = {"temperature": 4.0, "min_p": 0.1, "seed": 3}

    def rounds(name: str, width: int) -> list[dict[str, list[Any]]]:
        found = []
        for number in range(4):
            ids = np.random.default_rng([50, number]).integers(0, V, 40).tolist()
            job = engines[name].submit(ids, max_new_tokens=60, speculative=True, width=width, **options)
            assert drain(job) == plain(engines[name], ids, 60, **options)
            found.append(job.stats()["rounds"])
        return found

    def accepted(name: str, width: int) -> list[list[int]]:
        return [one["accepted"] for one in rounds(name, width)]

    assert accepted("short", 4) == accepted("four", 4) != accepted("eight", 4)
    assert accepted("short", 8) == accepted("eight", 8)
    for one in rounds("short", 0):
        came_true = False
        for drafted, right in zip(one["drafted"], one["accepted"], strict=True):
            assert drafted <= 3 or came_true
            if drafted > 0:  # where drafts cost more than they bring a round has none, and says nothing of the drafter
                came_true = drafted >= 3 and right == drafted
    for engine in engines.values():
        engine.close()


def test_drafts_follow_the_markov_head_of_what_was_drawn(tmp_path: Path) -> None:
    """draft_logits has the bias of the likeliest tokens; while decoding it is that of the token drawn for the slot before."""
    checkpoint = Checkpoint.open(make(tmp_path / "model", draft={"vocab": 400, "markov_rank": 1}, progress=False))
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None and drafter.target_ids is not None
    known, engine = drafter.target_ids, loaded(checkpoint, drafter)
    caches = _probe.draft_caches(engine, 1, 16)

    def bias(token: int) -> np.ndarray:
        found: np.ndarray = _probe.draft_bias(caches, token)[: len(known)]
        return found

    def draw(engine: Any, text: list[int], count: int, options: dict[str, Any]) -> list[int]:
        drafts: list[int] = []
        likeliest = text[-1]
        for k, row in enumerate(engine.draft_logits(text, [len(text) - 1])[:count]):
            spread = np.full(V, -np.inf, np.float32)
            spread[known] = row - bias(likeliest) + bias([*text, *drafts][-1])
            likeliest = int(known[row.argmax()])
            drafts.append(_probe.sample(spread, options, len(text) + k, np.zeros(0, np.uint32))[0])
        return drafts

    options: dict[str, Any] = {"temperature": 3.0, "seed": 4}
    right = 0
    for number in range(3):
        ids = np.random.default_rng([50, number]).integers(0, V, 60).tolist()
        job = engine.submit(ids, max_new_tokens=120, speculative=True, width=6, **options)
        right += check_drafts(engine, ids, job, draw, **options)
    caches = None  # they go before their engine does
    engine.close()
    assert right > 5


# ---- rejection ----


def test_rejection_is_greedy_without_a_temperature(open_engine: OpenEngine) -> None:
    engine = open_engine()
    for number in range(5):
        want = plain(engine, prompt(number))
        job = engine.submit(prompt(number), max_new_tokens=COUNT, speculative=True, lookup=True, verify="rejection")
        assert drain(job) == want


@pytest.mark.parametrize("way", [{}, {"lookup": True}, {"argmax_drafts": True}, {"width": 3}])
def test_rejection_gives_the_law_of_plain_sampling(open_engine: OpenEngine, way: dict[str, Any]) -> None:
    """The first three tokens of many answers, which two rounds or one give, against as many plain ones."""
    engine = open_engine()
    ids, options = prompt(3), {"temperature": 0.5, "top_k": 4}
    counts: dict[bool, dict[tuple[int, ...], int]] = {False: {}, True: {}}
    trials = 1000
    for speculative in (False, True):
        for first in range(0, trials, 25):
            extra: dict[str, Any] = {"speculative": True, "verify": "rejection", **way} if speculative else {}
            seeds = range(10**6 * speculative + first, 10**6 * speculative + first + 25)
            jobs = [engine.submit(ids, max_new_tokens=3, seed=seed, **options, **extra) for seed in seeds]
            for job in jobs:
                said = tuple(drain(job))
                counts[speculative][said] = counts[speculative].get(said, 0) + 1
    common = [said for said, n in counts[False].items() if n >= 10]
    a = np.array([counts[False][said] for said in common] + [trials - sum(counts[False][said] for said in common)])
    b = np.array([counts[True].get(said, 0) for said in common])
    b = np.append(b, trials - b.sum())
    statistic = ((a - b) ** 2 / np.maximum(a + b, 1)).sum()
    freedom = len(a) - 1
    assert statistic < freedom + 6 * np.sqrt(2 * freedom) + 10, (statistic, freedom)


def test_rejection_accepts_as_often_as_laws_overlap(open_engine: OpenEngine) -> None:
    """A draft is kept with probability sum of min(p, q), and its place has the law p, whatever the (here unlike) drafter."""
    engine = open_engine("exact")
    options, trials = {"temperature": 4.0, "min_p": 0.1}, 400
    none = np.zeros(0, np.uint32)
    ids, overlap, kept, places, variance = [3, 1, 4], 0.0, 0, np.zeros(4), 0.0
    expected = np.zeros(4)
    for seed in range(trials):
        job = engine.submit(ids, max_new_tokens=3, seed=seed, speculative=True, verify="rejection", width=2, **options)
        said = drain(job)
        text = [*ids, said[0]]
        p = _probe.sample_law(engine.logits(text)[-1], options, none)
        q = _probe.sample_law(engine.draft_logits(text, [len(text) - 1])[0], options, none)
        chance = np.minimum(p, q).sum()
        overlap += chance
        variance += chance * (1 - chance)
        kept += job.stats()["rounds"]["accepted"][0]
        places[said[1] % 4] += 1
        expected += [p[i::4].sum() for i in range(4)]
    assert 0.2 * trials < overlap < 0.95 * trials
    assert abs(kept - overlap) < 4.5 * np.sqrt(variance)
    assert ((places - expected) ** 2 / expected).sum() < 25


# ---- ends, options, neighbours ----


def test_an_end_token_inside_a_block(open_engine: OpenEngine) -> None:
    engine = open_engine()
    free = plain(engine, prompt(4))
    for at in range(1, 12):
        stop = free[at]
        want = free[: free.index(stop) + 1]
        job = engine.submit(prompt(4), max_new_tokens=COUNT, speculative=True, script=free, eos=[stop], width=BLOCK)
        assert drain(job) == want and job.finish_reason == "eos"
        rounds = check_rounds(job, want, stopped=True)
        if rounds["width"]:
            assert rounds["accepted"][-1] == rounds["drafted"][-1]  # also the right ones behind the end


def test_the_length_ends_inside_a_block(open_engine: OpenEngine) -> None:
    engine = open_engine()
    free = plain(engine, prompt(5))
    for count in range(1, 20):
        job = engine.submit(prompt(5), max_new_tokens=count, speculative=True, script=free, width=BLOCK)
        assert drain(job) == free[:count] and job.finish_reason == "length"
        check_rounds(job, free[:count])


def test_the_context_ends_inside_a_block(path: Path) -> None:
    engine = _probe.Engine(*Checkpoint.open(path).core_arguments(), threads=1, max_context=40)
    engine.load()
    free = plain(engine, prompt(0)[:20], 20)
    assert drain(engine.submit(prompt(0)[:20], max_new_tokens=20, speculative=True, script=free)) == free


def test_events_of_rounds(open_engine: OpenEngine) -> None:
    engine = open_engine()
    free = plain(engine, prompt(6))
    job = engine.submit(prompt(6), max_new_tokens=COUNT, speculative=True, script=free, width=5, logprobs=3)
    wanted = engine.submit(prompt(6), max_new_tokens=COUNT, logprobs=3)
    logprobs: list[Any] = []
    while (event := wanted.next()) is not None:
        logprobs += event[2]
        assert event[3:] == (0, 0)
    events = []
    while (event := job.next()) is not None:
        events.append(event)
    assert [entry for event in events for entry in event[2]] == logprobs
    assert [len(event[0]) for event in events] == [1, *job.stats()["rounds"]["emitted"]]
    assert [event[3:] for event in events[1:]] == list(
        zip(job.stats()["rounds"]["accepted"], job.stats()["rounds"]["drafted"], strict=True)
    )


def test_a_slow_reader_gets_narrow_rounds(open_engine: OpenEngine) -> None:
    engine = open_engine()
    free = plain(engine, prompt(7))
    job = engine.submit(prompt(7), max_new_tokens=COUNT, speculative=True, script=free, queue_bytes=0)
    other = engine.submit(prompt(8), max_new_tokens=COUNT, speculative=True, lookup=True)
    assert drain(other) == plain(engine, prompt(8))
    assert drain(job) == free
    assert max(job.stats()["rounds"]["width"]) <= 2


def test_cancelling_in_a_round(open_engine: OpenEngine) -> None:
    engine = open_engine()
    job = engine.submit(prompt(9), max_new_tokens=3000, speculative=True, lookup=True)
    assert job.next() is not None
    threading.Thread(target=job.cancel).start()
    said = drain(job)
    assert job.finish_reason == "cancelled" and len(said) < 3000
    assert sum(job.stats()["rounds"]["emitted"]) + 1 == job.stats()["completion_tokens"]
    assert drain(engine.submit(prompt(8), max_new_tokens=COUNT, speculative=True)) == plain(engine, prompt(8))


def test_many_jobs_with_and_without_drafts_and_long_prompts(open_engine: OpenEngine) -> None:
    engine = open_engine()
    calls = []
    for number in range(40):  # more than slots
        ids = np.random.default_rng([8, number]).integers(0, V, 200 if number % 5 == 0 else 10).tolist()
        calls.append((ids, {**list(SAMPLINGS.values())[number % 4], "seed": number, "max_new_tokens": 5 + number}))
    want = [drain(engine.submit(ids, **call)) for ids, call in calls]
    ways: list[dict[str, Any]] = [
        {}, {"speculative": True}, {"speculative": True, "lookup": True}, {"speculative": True, "width": 8},
    ]  # fmt: skip
    jobs = [engine.submit(ids, **call, **ways[number % 3 if number % 7 else 3]) for number, (ids, call) in enumerate(calls)]
    scripted = [engine.submit(ids, **call, script=said, width=8) for (ids, call), said in zip(calls, want, strict=True)]
    assert [drain(job) for job in jobs] == want
    assert [drain(job) for job in scripted] == want


def test_simulated_acceptance_has_its_mean(open_engine: OpenEngine) -> None:
    engine = open_engine(drafter=False)
    want = plain(engine, prompt(10), 400)
    for length in (1.0, 1.5, 2.25, 4.0, 7.3, 8.0):
        job = engine.submit(prompt(10), max_new_tokens=400, speculative=True, script=want, script_right=length)
        assert drain(job) == want
        emitted = check_rounds(job, want)["emitted"][:-2]  # the last ones are cut short
        assert np.mean(emitted) == pytest.approx(length, abs=1 / len(emitted) + 1e-9)


def test_wrong_input(open_engine: OpenEngine) -> None:
    engine = open_engine()
    assert engine.block == BLOCK and open_engine(drafter=False).block == 8
    with pytest.raises(ValueError, match=r"width: expected 1 to 8 \(0: by cost\), found 9"):
        engine.submit([1], max_new_tokens=1, speculative=True, width=9)
    with pytest.raises(ValueError, match="verify: expected 'coupled' or 'rejection', found 'typical'"):
        engine.submit([1], max_new_tokens=1, verify="typical")
    with pytest.raises(ValueError, match="script: token 1: expected an id below 512, found 512"):
        engine.submit([1], max_new_tokens=1, script=[1, 512])
    with pytest.raises(ValueError, match="script_right: expected 1 to 8"):
        engine.submit([1], max_new_tokens=1, script=[1], script_right=8.5)
    assert engine.submit([1], max_new_tokens=1, lookup=True).stats()["rounds"] is None  # speculative is off
    assert open_engine(drafter=False).submit([1], max_new_tokens=1, speculative=True).stats()["rounds"] is None


def test_rounds_allocate_nothing(open_engine: OpenEngine) -> None:
    engine = open_engine()
    for way in ({}, {"lookup": True}, {"lookup": True, "verify": "rejection", "temperature": 1.0}, {"width": 8}):
        job = engine.submit(prompt(11), max_new_tokens=300, queue_bytes=0, speculative=True, repetition_penalty=1.1, **way)
        assert job.next() is not None
        before = _probe.alloc_stats()
        while job.next() is not None:
            pass
        after = _probe.alloc_stats()
        assert (after["calls"], after["refused"]) == (before["calls"], before["refused"])


@pytest.mark.model
@pytest.mark.usefixtures("default_folder")
def test_the_default_model() -> None:
    """Its answers with drafts (of its shipped drafter and of lookup) are those without."""
    asked = [
        "Count from 1 to 12, then again.",
        "def add(a, b):\n    return a + b\n\ndef add(a, b, c):",
        "Write a haiku about memory.",
    ]
    with mu.Model.from_pretrained("smollm2-135m", progress=False) as model:
        for options in ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.1}):
            call: dict[str, Any] = {"max_new_tokens": 40, "seed": 5, "progress": False, **options}
            plain_answers = model.generate(asked, speculative=False, **call)
            for way in ({}, {"lookup": False}, {"width": 8}):
                answers = model.generate(asked, **way, **call)
                assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in plain_answers]
            accepted = sum(sum(answer.stats.rounds["accepted"]) for answer in answers if answer.stats.rounds)
            assert accepted > 0 or options["temperature"] > 0
