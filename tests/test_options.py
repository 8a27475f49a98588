"""Which options apply to an answer, where they come from, and what is said about wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from mimo_ultraspeed.errors import CheckpointError, ContextOverflowError
from mimo_ultraspeed.options import DEFAULT_MAX_NEW_TOKENS, GenerationDefaults, GenerationOptions

SAMPLES = GenerationDefaults.read({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 77})
GREEDY = GenerationDefaults.read({"do_sample": False, "temperature": 0.6, "top_p": 0.9})
NOTHING = GenerationDefaults.read({})


def resolve(defaults: GenerationDefaults = NOTHING, n: int = 1, **call: Any) -> GenerationOptions:
    return GenerationOptions.resolve(call, defaults, eos=(7, 8), n=n)


def test_greedy_without_any_wish() -> None:
    options = resolve()
    assert (options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty) == (0, 0, 1, 0, 1)
    assert (options.max_new_tokens, options.eos, options.stop, options.logprobs) == (DEFAULT_MAX_NEW_TOKENS, (7, 8), (), None)
    assert set(options.sources.values()) == {"default", "fresh", "model"}


def test_the_file_applies_and_says_so() -> None:
    options = resolve(SAMPLES)
    assert (options.temperature, options.top_p, options.top_k, options.max_new_tokens) == (0.6, 0.9, 20, 77)
    assert options.sources["temperature"] == options.sources["top_p"] == "generation_config.json"
    assert "temperature 0.6 (generation_config.json)" in options.describe()
    assert f"seed {options.seed}" in options.describe()


def test_do_sample_false_is_greedy_until_the_call_wants_sampling() -> None:
    assert resolve(GREEDY).temperature == 0
    assert "greedy (generation_config.json)" in resolve(GREEDY).describe()
    asked = resolve(GREEDY, top_k=5)
    assert (asked.temperature, asked.top_p, asked.top_k) == (0.6, 0.9, 5)
    assert asked.sources["temperature"] == "generation_config.json, as top_k asks for sampling"
    assert resolve(top_p=0.5).temperature == 1
    assert resolve(n=2).temperature == 1
    assert resolve(top_k=0).temperature == 0


def test_the_call_goes_before_the_file() -> None:
    options = resolve(SAMPLES, temperature=0, top_p=1.0, max_tokens=5)
    assert (options.temperature, options.top_p, options.max_new_tokens) == (0, 1, 5)
    assert options.sources["temperature"] == options.sources["max_new_tokens"] == "call"


def test_none_is_not_given() -> None:
    assert resolve(SAMPLES, temperature=None, seed=None, max_tokens=None).temperature == 0.6


def test_ignore_eos() -> None:
    assert resolve(ignore_eos=True).eos == ()
    assert "no end token" in resolve(ignore_eos=True).describe()


def test_stop_is_a_string_or_several() -> None:
    assert resolve(stop="a").stop == ("a",)
    assert resolve(stop=["a", "b"]).stop == ("a", "b")
    assert resolve(stop=[]).stop == ()


def test_seeds_are_fresh_unless_given() -> None:
    assert resolve().seed != resolve().seed or resolve().seed != resolve().seed
    assert resolve(seed=2**64 - 1).seed == 2**64 - 1
    assert resolve(seed=3).fresh().seed == 3


def test_numpy_numbers_are_numbers() -> None:
    import numpy as np

    options = resolve(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(9))
    assert (options.temperature, options.top_k, options.seed) == (0.5, 3, 9)
    assert type(options.top_k) is int and type(options.temperature) is float


WRONG_VALUES = [
    ("temperature", -0.1, "0 or more"),
    ("temperature", float("nan"), "0 or more"),
    ("temperature", float("inf"), "0 or more"),
    ("top_p", 0, "above 0 and at most 1"),
    ("top_p", 1.5, "above 0 and at most 1"),
    ("min_p", -1, "from 0 to 1"),
    ("min_p", 1.01, "from 0 to 1"),
    ("top_k", -1, "an integer from 0"),
    ("repetition_penalty", 0, "above 0"),
    ("max_new_tokens", 0, "1 or more"),
    ("max_tokens", 0, "1 or more"),
    ("logprobs", 21, "from 0 to 20"),
    ("seed", -1, "from 0 to"),
    ("seed", 2**64, "from 0 to"),
    ("stop", "", "at least one character"),
    ("stop", ["a", ""], "at least one character"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG_VALUES)
def test_a_value_out_of_range_names_option_expected_and_found(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ") and expected in message and f"found {value!r}" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.5"), ("temperature", True), ("top_k", 1.5), ("top_k", True), ("stop", 5), ("stop", b"x"),
        ("stop", [1]), ("ignore_eos", 1), ("seed", "1"), ("logprobs", True),
    ],
)  # fmt: skip
def test_a_wrong_type_is_a_type_error(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected .*, found"):
        resolve(**{name: value})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "temperature"),
        ("topp", "top_p"),
        ("do_sample", "temperature"),
        ("max_length", "max_new_tokens"),
        ("xyzzy", "known are"),
    ],
)
def test_an_unknown_option_gets_did_you_mean(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"unknown option '{name}'.*{hint}"):
        resolve(**{name: 1})


def test_an_unknown_option_is_told_even_when_it_is_none() -> None:
    with pytest.raises(TypeError, match="unknown option 'temprature'"):
        resolve(temprature=None)


def test_both_names_of_one_option() -> None:
    with pytest.raises(TypeError, match="give one of them"):
        resolve(max_tokens=1, max_new_tokens=1)


@pytest.mark.parametrize(
    "asked", [{"width": 4}, {"lookup": True}, {"verify": "rejection"}, {"argmax_drafts": True}, {"simulate_acceptance": 2.0}]
)
def test_asking_for_drafts_while_turning_them_off_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(asked))}: it is about drafts, which speculative=False turns off$"):
        resolve(speculative=False, **asked)
    assert resolve(speculative=True, **asked).speculative


def test_turning_off_twice_is_no_contradiction() -> None:
    options = resolve(speculative=False, lookup=False, argmax_drafts=False)
    assert not options.speculative and not options.lookup


def test_several_greedy_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="n: 4 greedy answers would all be the same"):
        resolve(n=4, temperature=0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"top_p": 2}, "top_p: expected .* found 2"),
        ({"do_sample": "yes"}, "do_sample: expected True or False"),
        ({"eos_token_id": [1, -1]}, "eos_token_id: expected"),
        ({"temperature": "hot"}, "temperature: expected a number"),
    ],
)
def test_a_bad_file_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"generation_config.json: {message}"):
        GenerationDefaults.read(raw)


def test_the_file_s_ways_to_say_nothing() -> None:
    assert GenerationDefaults.read({"top_k": -1, "temperature": None, "eos_token_id": 5, "pad_token_id": 0}).values == {}
    assert GenerationDefaults.read({"eos_token_id": 5}).eos == (5,)


def test_fit_cuts_to_the_context_and_says_so() -> None:
    fitted = resolve(max_new_tokens=100).fit(60, 100)
    assert (fitted.max_new_tokens, fitted.sources["max_new_tokens"]) == (40, "rest of the context")
    assert resolve(max_new_tokens=40).fit(60, 100).sources["max_new_tokens"] == "call"
    assert resolve().fit(99, 100).max_new_tokens == 1


def test_fit_tells_the_numbers_of_an_overflow() -> None:
    with pytest.raises(ContextOverflowError, match=r"prompt: 100 tokens .* the 100 positions"):
        resolve().fit(100, 100)
