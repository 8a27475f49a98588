"""Derived figures on synthetic rounds, counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed.rounds import (
    ARRAYS,
    DEFINITIONS,
    Rounds,
    acceptance_length,
    bootstrap_interval,
    figures,
    speculative_decoding,
    vllm_counters,
)


def rounds(*triples: tuple[int, int, int], reason: str, seconds: float = 0.0) -> Rounds:
    """One answer of (drafted, accepted, emitted), after a first token from the prompt's step."""
    drafted, accepted, emitted = (list(column) for column in zip(*triples, strict=True))
    return Rounds.of(
        {
            "width": [d + 1 for d in drafted],
            "drafted": drafted,
            "accepted": accepted,
            "emitted": emitted,
            "lookup": [d // 2 for d in drafted],
            "draft_seconds": [0.001] * len(drafted),
            "verify_seconds": [0.003] * len(drafted),
        },
        completion_tokens=1 + sum(emitted),
        finish_reason=reason,
        decode_seconds=seconds,
    )


EOS_IN_BLOCK = rounds((7, 3, 4), (7, 7, 8), (7, 5, 3), reason="stop")  # the third accepted draft is the end token
CUT_BY_LENGTH = rounds((7, 0, 1), (7, 6, 4), reason="length")
CANCELLED = rounds((7, 2, 3), (7, 4, 0), reason="cancelled")
WIDTH_ONE = rounds((0, 0, 1), (3, 3, 4), reason="length")  # a round that verified no draft
EOS_AS_BONUS = rounds((7, 2, 3), reason="stop")

EXPECTED = {
    "mimo": (5, 5 / 2, 3, 5 / 2, 3),
    "vllm": (6, 4, 4, 4, 3),
    "sglang": (16 / 3, 3, 2, 3, 4),
    "dflash": (6, 4, 4, 5 / 2, 3),
    "deepspec": (5, 4, 4, 5 / 2, 3),
    "specdec_bench": (4, 2, 2, 2, 2),
    "radixark": (16 / 3, 3, 2, 3, 4),
}
TOGETHER = {
    "mimo": 23 / 6,
    "vllm": 1 + 27 / 7,
    "sglang": (16 / 3 + 3 + 2) / 3,
    "dflash": (6 + 4 + 4) / 3,
    "deepspec": (15 + 8 + 8) / 7,
    "specdec_bench": (4 + 2 + 2) / 3,
    "radixark": 26 / 7,
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_definition_on_cut_blocks(name: str) -> None:
    answers = (EOS_IN_BLOCK, CUT_BY_LENGTH, CANCELLED, WIDTH_ONE, EOS_AS_BONUS)
    assert [acceptance_length([one], name) for one in answers] == pytest.approx(EXPECTED[name])
    assert acceptance_length(answers[:3], name) == pytest.approx(TOGETHER[name])
    assert DEFINITIONS[name].__doc__


def test_no_rounds_count_as_nothing() -> None:
    empty = Rounds.of({name: [] for name in ARRAYS}, completion_tokens=1, finish_reason="stop")
    values = {name: acceptance_length([empty], name) for name in DEFINITIONS}
    assert values == dict.fromkeys(DEFINITIONS, 0.0) | {"specdec_bench": 1.0}
    assert figures([empty])["acceptance_length_ci95"] == [0.0, 0.0]
    assert figures([])["rounds"] == 0
    with pytest.raises(ValueError, match=r"expected one of mimo, vllm.*found 'eagle'"):
        acceptance_length([empty], "eagle")


def test_vllm_names() -> None:
    fields = speculative_decoding([EOS_IN_BLOCK, WIDTH_ONE], drafts=7, detailed=True)
    assert fields == {
        "mean_acceptance_length": 1 + 18 / 4,
        "draft_acceptance_rate": 18 / 24,
        "acceptance_histogram": [0, 0, 0, 2, 0, 1, 0, 1],
        "num_spec_steps": 4,
        "num_accepted_draft_tokens": 18,
        "num_draft_tokens": 24,
        "num_spec_tokens": 7,
        "per_step_accepted": [3, 7, 5, 3],
        "per_step_drafted": [7, 7, 7, 3],
    }
    assert vllm_counters([EOS_IN_BLOCK, WIDTH_ONE], drafts=7) == {
        "vllm:spec_decode_num_drafts": 4,
        "vllm:spec_decode_num_draft_tokens": 24,
        "vllm:spec_decode_num_accepted_tokens": 18,
        "vllm:spec_decode_num_accepted_tokens_per_pos": [4, 4, 4, 2, 2, 1, 1],
    }


def test_rates_have_a_denominator_per_position() -> None:
    told = figures([WIDTH_ONE, CUT_BY_LENGTH], block=8)
    assert told["drafted_at"] == [3, 3, 3, 2, 2, 2, 2]
    assert told["reached_at"] == [3, 2, 2, 1, 1, 1, 1]
    assert told["accepted_at"] == [2, 2, 2, 1, 1, 1, 0]
    assert told["joint_rate"] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 2, 1 / 2, 1 / 2, 0])
    assert told["conditional_rate"] == pytest.approx([2 / 3, 1, 1, 1, 1, 1, 0])
    assert told["histogram"] == [2, 0, 0, 2, 0, 0, 0, 0]
    assert figures([WIDTH_ONE], block=8)["joint_rate"][3:] == [None] * 4
    json.dumps(told)


def test_the_rest_of_the_figures() -> None:
    told = figures([rounds((7, 3, 4), (5, 1, 2), reason="length", seconds=0.5), CANCELLED], block=8)
    assert (told["requests"], told["rounds"], told["tokens"], told["completion_tokens"]) == (2, 3, 9, 11)
    assert told["acceptance_length"] == 3.0 and told["acceptance_length_request_mean"] == 3.0
    assert told["drafts_per_round"] == pytest.approx(19 / 3)
    assert told["lookup_share"] == pytest.approx(8 / 19)
    assert (told["draft_seconds"], told["verify_seconds"]) == pytest.approx((0.001, 0.003))
    assert told["tokens_per_second"] == pytest.approx(9 / 0.5)


def test_interval_is_seeded_and_covers() -> None:
    draw = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        steps = draw.integers(5, 40, 30)
        tokens = draw.binomial(7 * steps, 0.4) + steps
        low, high = bootstrap_interval(tokens, steps, seed=trial, resamples=400)
        hits += low <= 1 + 7 * 0.4 <= high
    assert 180 <= hits <= 199  # 95 % of 200, less what 30 units cost
    assert bootstrap_interval(tokens, steps, seed=1) == bootstrap_interval(tokens, steps, seed=1)
    assert bootstrap_interval(tokens, steps, seed=1) != bootstrap_interval(tokens, steps, seed=2)


def test_an_interval_pools_and_has_its_level() -> None:
    tokens, steps = [8, 9] * 50, [1, 9] * 50
    low, high = bootstrap_interval(tokens, steps)
    assert 1.4 < low < 1.7 < high < 2.1  # 850 tokens in 500 rounds; the mean of 8 and 1 is another thing
    narrow, wide = (bootstrap_interval(tokens, steps, level=level) for level in (0.5, 0.99))
    assert wide[0] < low < narrow[0] < narrow[1] < high < wide[1]


def test_turns_of_one_conversation_are_drawn_together() -> None:
    good, bad = rounds((7, 7, 8), (7, 7, 8), reason="length"), rounds((7, 0, 1), (7, 0, 1), reason="length")
    together = figures([good, bad] * 10, units=[str(at // 2) for at in range(20)])
    apart = figures([good, bad] * 10)
    assert together["acceptance_length_ci95"] == [4.5, 4.5]
    assert apart["acceptance_length_ci95"][0] < 4 < 5 < apart["acceptance_length_ci95"][1]


def test_contradictions_are_told() -> None:
    arrays = EOS_IN_BLOCK.arrays()
    assert Rounds.of(arrays, completion_tokens=16, finish_reason="stop") == EOS_IN_BLOCK
    with pytest.raises(ValueError, match=r"round 1: expected emitted .* found emitted 8, accepted 6"):
        Rounds.of(arrays | {"accepted": [3, 6, 5]}, completion_tokens=16)
    with pytest.raises(ValueError, match="one length"):
        Rounds.of(arrays | {"width": [8]}, completion_tokens=16)
    with pytest.raises(ValueError, match="found none of lookup"):
        Rounds.of({name: values for name, values in arrays.items() if name != "lookup"}, completion_tokens=16)


def test_stats_converts_itself() -> None:
    from mimo_ultraspeed.result import Stats

    fields: dict[str, Any] = dict.fromkeys(("prompt_tokens", "cached_tokens", "steps"), 1)
    fields |= dict.fromkeys(("queue_seconds", "prefill_seconds", "decode_seconds", "time_to_first_token", "tokens_per_second"), 0.0)
    stats = Stats(**fields, completion_tokens=16, rounds=EOS_IN_BLOCK.arrays(), finish_reason="stop")
    assert {name: stats.as_(name) for name in DEFINITIONS} == pytest.approx({name: EXPECTED[name][0] for name in DEFINITIONS})
    assert Stats(**fields, completion_tokens=16).as_("vllm") is None
    with pytest.raises(ValueError, match="found 'eagle'"):
        stats.as_("eagle")
