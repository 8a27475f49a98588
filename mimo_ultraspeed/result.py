"""What an answer was: its text and tokens, and how long they took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .display import paragraph
from .options import GenerationOptions

__all__ = ["Result", "Stats", "TokenLogprob"]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-softmax of the model's own logits, before penalty and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the most likely tokens, most likely first."""


@dataclass(frozen=True)
class Stats:
    """Counts and times of one answer. Times are in seconds unless the name says otherwise."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed again, because an earlier prompt began the same way."""
    completion_tokens: int
    steps: int
    """Engine steps that gave tokens."""
    queue_seconds: float
    """Submission to the first prompt step."""
    prefill_seconds: float
    decode_seconds: float
    """End of the prompt to the end of the answer; 0 while it runs."""
    time_to_first_token: float
    """Submission to the first token, waiting included; 0 before it."""
    tokens_per_second: float
    """Tokens after the first step over the time they took; 0 without any."""
    rounds: Mapping[str, list[Any]] | None = None
    """Of every round after the prompt's step, None without drafting: width (tokens verified, the last known one included), drafted
    (width - 1), accepted (leading drafts that were right, before any cut by the answer's end), emitted (tokens handed out, at most
    accepted + 1), lookup (drafts that came from prompt lookup), draft_seconds and verify_seconds (of the whole engine step)."""
    speculative_decoding: Mapping[str, Any] | None = None
    """Acceptance of drafts under vLLM's names (`rounds.speculative_decoding`); None without drafting."""
    finish_reason: str | None = None
    """As in `Result`; None while the answer runs."""

    @property
    def time_to_first_token_ms(self) -> float:
        """time_to_first_token in milliseconds, as vLLM names it."""
        return 1e3 * self.time_to_first_token

    @property
    def generation_time_ms(self) -> float:
        """decode_seconds in milliseconds, as vLLM names it."""
        return 1e3 * self.decode_seconds

    @property
    def queue_time_ms(self) -> float:
        """queue_seconds in milliseconds, as vLLM names it."""
        return 1e3 * self.queue_seconds

    @property
    def mean_itl_ms(self) -> float:
        """Mean time between tokens in milliseconds, as vLLM names it; 0 for fewer than two tokens."""
        return 1e3 / self.tokens_per_second if self.tokens_per_second else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Fields and derived values, ready for JSON."""
        derived = ("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}

    def as_(self, definition: str) -> float | None:
        """Acceptance length as another project counts it: one of `rounds.DEFINITIONS`, whose texts say what and where ("vllm",
        "sglang", "dflash", "deepspec", "specdec_bench", "radixark"; "mimo" is ours). None without drafting.
        """
        if self.rounds is None:
            return None
        from .rounds import Rounds, acceptance_length

        answer = Rounds.of(self.rounds, completion_tokens=self.completion_tokens, finish_reason=self.finish_reason)
        return acceptance_length([answer], definition)

    def line(self) -> str:
        """The figures most looked for, on one line."""
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        per_round = ""
        if self.rounds is not None and self.rounds["width"]:
            count, lookup = len(self.rounds["width"]), sum(1 for drafts in self.rounds["lookup"] if drafts)
            looked_up = f", {lookup / count:.0%} by lookup" if lookup else ""
            per_round = f" ({sum(self.rounds['emitted']) / count:.2f} a round{looked_up})"
        return (
            f"{self.prompt_tokens} prompt tokens{cached}, {self.completion_tokens} new, "
            f"first after {self.time_to_first_token:.2f} s, then {self.tokens_per_second:.1f} tokens/s{per_round}"
        )


@dataclass(frozen=True)
class Result:
    """One answer. `str(result)` is its text."""

    text: str
    """Without stop strings and special tokens."""
    token_ids: list[int]
    """All of them: the end token too, and the tokens a stop string was made of."""
    finish_reason: str
    """"stop" (end token or stop string), "length" (max_new_tokens or the context), "cancelled", or "error"."""
    stats: Stats
    options: GenerationOptions
    """What was applied, and why (`options.sources`)."""
    prompt_token_ids: list[int]
    index: int = 0
    """Which of n answers to the prompt."""
    logprobs: list[TokenLogprob] | None = None
    """One per token, if asked for."""

    @property
    def seed(self) -> int:
        """Repeats this answer when given to the same call."""
        return self.options.seed

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Result({self.text!r}, finish_reason={self.finish_reason!r}, {self.stats.line()})"

    def _repr_html_(self) -> str:
        return paragraph(self.text, f"{self.finish_reason} · {self.stats.line()} · {self.options.describe()}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self._repr_html_()}
