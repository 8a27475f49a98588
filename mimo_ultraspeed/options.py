"""Sampling and stopping options: what a call says, what generation_config.json says, and which of them was applied.

A call goes before generation_config.json, which goes before the defaults. `GenerationOptions.sources` tells for each option
which of them gave its value.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from .errors import CheckpointError, ContextOverflowError

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "MAX_ANSWERS", "RULES", "GenerationArguments", "GenerationDefaults", "GenerationOptions"]

DEFAULT_MAX_NEW_TOKENS = 2048
"""Longest answer when nothing says otherwise; the rest of the context, if that is less."""
MAX_ANSWERS = 64
MAX_LOGPROBS = 20
RULES = ("coupled", "rejection")
"""How drafts are verified."""
LOOKUP_BY_DEFAULT = True
FILE = "generation_config.json"


class GenerationArguments(TypedDict, total=False):
    """The options of `Model.generate` and `Model.stream`. None stands for an option that is not given."""

    max_new_tokens: int | None
    """Most tokens of the answer, 1 or more; cut to what the context has room for. `max_tokens` is the same."""
    max_tokens: int | None
    temperature: float | None
    """0 is greedy. Default: generation_config.json's if it says `do_sample`, else 0; 1 when the call gives top_k, top_p or min_p,
    or n > 1, and no temperature is to be had."""
    top_k: int | None
    """Only the k most likely tokens; 0 is off."""
    top_p: float | None
    """Only the most likely tokens that together have this probability, 0 < top_p <= 1; 1 is off."""
    min_p: float | None
    """Only tokens at least this fraction as likely as the most likely one, 0 to 1; 0 is off."""
    repetition_penalty: float | None
    """Tokens of prompt and answer: positive logits are divided by it, negative ones multiplied; > 0, 1 is off."""
    seed: int | None
    """0 to 2**64 - 1. Same prompt, options and seed: same answer, alone or beside others. Default: fresh; `Result.seed` tells."""
    stop: str | Sequence[str] | None
    """Strings that end the answer; they are not part of its text."""
    ignore_eos: bool | None
    """Goes on after an end token."""
    logprobs: int | None
    """Log-probabilities of the chosen token and of the n most likely ones, 0 to 20."""
    enable_thinking: bool | None
    """Handed to the chat template; None leaves it to the template."""
    speculative: bool | None
    """False turns drafting off; options that ask for something of drafts are then errors. It never changes what the model says."""
    width: int | None
    """Tokens verified in a round, the last known one included, 1 to the drafter's block (8 without a drafter). Default: in every
    round as many as pay, by the drafter's confidence and the step times of this machine."""
    verify: str | None
    """How drafts are verified: "coupled" (default: the answer is token for token that of speculative=False) or "rejection" (its law
    is, the tokens are not; for comparison with what is published)."""
    lookup: bool | None
    """Also drafts what followed when prompt or answer last went as it goes now, with or without a drafter. Default: True."""
    argmax_drafts: bool | None
    """At a temperature, drafts are the drafter's likeliest tokens and not drawn with the noise of the answer. For comparison."""
    simulate_acceptance: float | None
    """A benchmark's knob: rounds give this many tokens in the mean, whatever the drafter. The answer is decoded without drafts
    first and verified again with its own tokens, some of them spoilt, as drafts; statistics are of the second time."""
    raw: bool | None
    """A text prompt is continued as it stands and not put into the chat template as a message."""


_ELSEWHERE = {
    "do_sample": "temperature (0 is greedy)",
    "max_length": "max_new_tokens (the prompt does not count)",
    "max_completion_tokens": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "stop_words": "stop",
    "repeat_penalty": "repetition_penalty",
    "sampling_seed": "seed",
    "top_logprobs": "logprobs",
    "eos_token_id": "ignore_eos, or a list in generation_config.json",
    "assistant_model": "draft of Model.from_pretrained",
    "num_speculative_tokens": "width (which counts the last known token too)",
    "prompt_lookup_num_tokens": "lookup",
}
"""Names in other libraries, and ours for them."""


def _fail(name: str, expected: str, found: object, kind: type[Exception] = ValueError) -> Exception:
    return kind(f"{name}: expected {expected}, found {found!r}")


def _number(name: str, value: object, expected: str, fits: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _fail(name, expected, value, TypeError)
    number = float(value)
    if not math.isfinite(number) or not fits(number):
        raise _fail(name, expected, value)
    return number


def _integer(name: str, value: Any, least: int, most: int | None, note: str = "") -> int:
    expected = f"an integer of {least} or more{note}" if most is None else f"an integer from {least} to {most}{note}"
    try:
        number = operator.index(value)
    except TypeError:
        raise _fail(name, expected, value, TypeError) from None
    if isinstance(value, bool):
        raise _fail(name, expected, value, TypeError)
    if number < least or (most is not None and number > most):
        raise _fail(name, expected, value)
    return number


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _fail(name, "True or False", value, TypeError)
    return value


def _one_of(name: str, value: object, names: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise _fail(name, " or ".join(map(repr, names)), value, TypeError)
    if value not in names:
        raise _fail(name, " or ".join(map(repr, names)), value)
    return value


def _stops(name: str, value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, Sequence) or isinstance(stops, bytes) or not all(isinstance(text, str) for text in stops):
        raise _fail(name, "a string or a list of strings", value, TypeError)
    if "" in stops:
        raise _fail(name, "strings of at least one character", value)
    return tuple(stops)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": lambda name, v: _integer(name, v, 1, None),
    "temperature": lambda name, v: _number(name, v, "a number of 0 or more (0 is greedy)", lambda x: x >= 0),
    "top_k": lambda name, v: _integer(name, v, 0, 2**32 - 1, " (0 is off)"),
    "top_p": lambda name, v: _number(name, v, "a number above 0 and at most 1 (1 is off)", lambda x: 0 < x <= 1),
    "min_p": lambda name, v: _number(name, v, "a number from 0 to 1 (0 is off)", lambda x: 0 <= x <= 1),
    "repetition_penalty": lambda name, v: _number(name, v, "a number above 0 (1 is off)", lambda x: x > 0),
    "seed": lambda name, v: _integer(name, v, 0, 2**64 - 1),
    "stop": _stops,
    "ignore_eos": _flag,
    "logprobs": lambda name, v: _integer(name, v, 0, MAX_LOGPROBS),
    "enable_thinking": _flag,
    "speculative": _flag,
    "width": lambda name, v: _integer(name, v, 1, None),
    "verify": lambda name, v: _one_of(name, v, RULES),
    "lookup": _flag,
    "argmax_drafts": _flag,
    "simulate_acceptance": lambda name, v: _number(name, v, "a number of 1 or more", lambda x: x >= 1),
    "raw": _flag,
}
_ABOUT_DRAFTS = ("width", "lookup", "verify", "argmax_drafts", "simulate_acceptance")
_OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint says about generation: the checked part of generation_config.json that has an effect here."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Of max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty: those the file gives."""
    do_sample: bool = False
    eos: tuple[int, ...] = ()

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> GenerationDefaults:
        """Raises CheckpointError for a value that is out of range. null, and -1 for top_k, stand for no value."""
        values: dict[str, Any] = {}
        try:
            for name in ("max_new_tokens", "temperature", *_OFF):
                value = raw.get(name)
                if value is not None and not (name == "top_k" and value == -1):
                    values[name] = _CHECKS[name](name, value)
            sample = raw.get("do_sample")
            listed = raw.get("eos_token_id")
            ids = [] if listed is None else listed if isinstance(listed, list) else [listed]
            eos = tuple(_integer("eos_token_id", number, 0, 2**32 - 1) for number in ids)
            return cls(values, sample is not None and _flag("do_sample", sample), eos)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{FILE}: {error}") from None


@dataclass(frozen=True)
class GenerationOptions:
    """Everything that decided one answer. Meanings as in `GenerationArguments`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: tuple[str, ...]
    eos: tuple[int, ...]
    """Token ids that end the answer; empty with ignore_eos."""
    logprobs: int | None
    enable_thinking: bool | None
    speculative: bool
    width: int | None
    verify: str
    lookup: bool
    argmax_drafts: bool
    simulate_acceptance: float | None
    raw: bool
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """By option: "call", "generation_config.json", "default", or what else gave its value."""

    @classmethod
    def resolve(
        cls, call: Mapping[str, Any], defaults: GenerationDefaults, *, eos: Sequence[int] = (), n: int = 1
    ) -> GenerationOptions:
        """Checks the call's options and fills in the others.

        eos: end tokens of the model. n: answers to the same prompt. Raises TypeError for an unknown option or a wrong type,
        ValueError for a value out of range.
        """
        given = _given(call)
        values: dict[str, Any] = {
            "max_new_tokens": DEFAULT_MAX_NEW_TOKENS,
            "stop": (),
            "ignore_eos": False,
            "logprobs": None,
            "enable_thinking": None,
            "speculative": True,
            "width": None,
            "verify": RULES[0],
            "lookup": LOOKUP_BY_DEFAULT,
            "argmax_drafts": False,
            "simulate_acceptance": None,
            "raw": False,
            **_OFF,
        }
        sources = dict.fromkeys(values, "default")
        for layer, source in ((defaults.values, FILE), (given, "call")):
            values |= layer
            sources |= dict.fromkeys(layer, source)
        values["temperature"], sources["temperature"] = _temperature(given, defaults, n)
        if "seed" not in given:
            values["seed"], sources["seed"] = int.from_bytes(os.urandom(4), "little"), "fresh"
        if not values["speculative"] and (idle := [name for name in _ABOUT_DRAFTS if given.get(name)]):
            raise ValueError(f"{idle[0]}: it is about drafts, which speculative=False turns off")
        ignore_eos = values.pop("ignore_eos")
        sources["eos"] = "call" if ignore_eos else "model"
        sources.pop("ignore_eos")
        if n > 1 and values["temperature"] == 0:
            raise ValueError(f"n: {n} greedy answers would all be the same; give a temperature above 0, or leave it out")
        return cls(**values, eos=() if ignore_eos else tuple(eos), sources=sources)

    def fit(self, prompt_tokens: int, max_context: int) -> GenerationOptions:
        """The same with max_new_tokens cut to the room the prompt leaves. Raises ContextOverflowError when it leaves none."""
        room = max_context - prompt_tokens
        if room < 1:
            raise ContextOverflowError(
                f"prompt: {prompt_tokens} tokens and at least 1 new one do not fit into the {max_context} positions of max_context"
            )
        if self.max_new_tokens <= room:
            return self
        return replace(self, max_new_tokens=room, sources={**self.sources, "max_new_tokens": "rest of the context"})

    def check_block(self, block: int) -> None:
        """Raises ValueError when width or simulate_acceptance exceed the rows of a round, which the model's drafter decides."""
        for name in ("width", "simulate_acceptance"):
            value = getattr(self, name)
            if value is not None and value > block:
                raise _fail(name, f"at most the {block} tokens of a round", value)

    def fresh(self) -> GenerationOptions:
        """The same, with another seed unless the call gave one: what the next prompt of a list gets."""
        if self.sources.get("seed") != "fresh":
            return self
        return replace(self, seed=int.from_bytes(os.urandom(4), "little"))

    def to_core(self) -> dict[str, Any]:
        """The keyword arguments of _core.Engine.submit, without `stream`."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "eos")
        drafts = ("speculative", "verify", "lookup", "argmax_drafts")
        values = {name: getattr(self, name) for name in names + drafts}
        return values | {"logprobs": -1 if self.logprobs is None else self.logprobs, "width": self.width or 0}

    def describe(self) -> str:
        """One line: what is in effect, and where it comes from unless the call said it."""
        if self.temperature == 0:
            parts = [self._told("temperature", "greedy")]
        else:
            parts = [
                self._told(name) for name in ("temperature", "top_k", "top_p", "min_p") if getattr(self, name) != _OFF.get(name)
            ]
            parts.append(f"seed {self.seed}")
        if self.repetition_penalty != 1:
            parts.append(self._told("repetition_penalty"))
        parts.append(self._told("max_new_tokens"))
        if self.stop:
            parts.append("stop " + " ".join(map(repr, self.stop)))
        if not self.eos:
            parts.append("no end token")
        return ", ".join(parts)

    def _told(self, name: str, text: str | None = None) -> str:
        source = self.sources.get(name, "call")
        return (text or f"{name} {getattr(self, name):g}") + ("" if source == "call" else f" ({source})")


def _given(call: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in call.items() if value is not None}
    for name in call:
        if name not in _CHECKS and name != "max_tokens":
            raise TypeError(_unknown(name))
    if "max_tokens" in given:
        if "max_new_tokens" in given:
            raise TypeError("max_new_tokens and max_tokens are the same option: give one of them")
        given["max_new_tokens"] = _integer("max_tokens", given.pop("max_tokens"), 1, None)
    return {name: _CHECKS[name](name, value) for name, value in given.items()}


def _unknown(name: str) -> str:
    known = sorted([*_CHECKS, "max_tokens", "n"])
    near = difflib.get_close_matches(name, known, 1, 0.6)
    hint = _ELSEWHERE.get(name) or (near[0] if near else "")
    return f"unknown option {name!r}; " + (f"did you mean {hint}?" if hint else f"known are {', '.join(known)}")


def _temperature(given: Mapping[str, Any], defaults: GenerationDefaults, n: int) -> tuple[float, str]:
    """Greedy, unless the call or the file asks for sampling: by a temperature, or by what has no meaning without one."""
    if "temperature" in given:
        return given["temperature"], "call"
    implied = [name for name in ("top_k", "top_p", "min_p") if given.get(name, _OFF[name]) != _OFF[name]] + ["n"] * (n > 1)
    if not defaults.do_sample and not implied:
        return 0.0, FILE if defaults.values else "default"
    source = FILE if "temperature" in defaults.values else "default"
    return defaults.values.get("temperature", 1.0), source if defaults.do_sample else f"{source}, as {implied[0]} asks for sampling"
