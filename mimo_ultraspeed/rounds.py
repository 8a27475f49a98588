"""From the raw arrays of speculative rounds to every figure that is derived from them. Nothing else in the package derives any.

A round drafts, verifies `width` rows (the anchor and `drafted` drafts) in one step of the target, and hands out tokens.
`accepted` counts the leading drafts that are equal to the target's own tokens, before an end token, the length limit or a cancel
cuts anything off; `emitted` counts what was handed out after that cut, at most accepted + 1. The first token of an answer
comes from the prompt's step and belongs to no round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ARRAYS",
    "DEFINITIONS",
    "Rounds",
    "acceptance_length",
    "bootstrap_interval",
    "figures",
    "speculative_decoding",
    "vllm_counters",
]

ARRAYS = ("width", "drafted", "accepted", "emitted", "lookup", "draft_seconds", "verify_seconds")
"""Names of the raw arrays, one entry per round."""
_COUNTS = ARRAYS[:5]
_RESAMPLES = 2000


@dataclass(frozen=True)
class Rounds:
    """The rounds of one answer."""

    width: tuple[int, ...]
    """Rows of the target's step, the anchor included."""
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    emitted: tuple[int, ...]
    lookup: tuple[int, ...]
    """Drafts that came from prompt lookup."""
    draft_seconds: tuple[float, ...]
    verify_seconds: tuple[float, ...]
    completion_tokens: int
    """Tokens of the answer, the first one included."""
    finish_reason: str | None = None
    """"stop", "length", "cancelled", "error"; None while the answer runs."""
    decode_seconds: float = 0.0
    """From the end of the prompt to the end of the answer."""

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, Sequence[float]],
        *,
        completion_tokens: int,
        finish_reason: str | None = None,
        decode_seconds: float = 0.0,
    ) -> Rounds:
        """Checks raw arrays. arrays: all of ARRAYS, equally long; empty for an answer without rounds.

        Raises ValueError when one is missing or what they count contradicts itself.
        """
        missing = [name for name in ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"rounds: expected {', '.join(ARRAYS)}, found none of {', '.join(missing)}")
        lengths = {name: len(arrays[name]) for name in ARRAYS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"rounds: expected arrays of one length, found {lengths}")
        counts = {name: tuple(int(value) for value in arrays[name]) for name in _COUNTS}
        for at, (drafted, accepted, emitted) in enumerate(
            zip(counts["drafted"], counts["accepted"], counts["emitted"], strict=True)
        ):
            if not 0 <= accepted <= drafted or not 0 <= emitted <= accepted + 1:
                raise ValueError(
                    f"rounds: round {at}: expected emitted <= accepted + 1 <= drafted + 1, "
                    f"found emitted {emitted}, accepted {accepted}, drafted {drafted}"
                )
        return cls(
            **counts,
            draft_seconds=tuple(float(value) for value in arrays["draft_seconds"]),
            verify_seconds=tuple(float(value) for value in arrays["verify_seconds"]),
            completion_tokens=completion_tokens,
            finish_reason=finish_reason,
            decode_seconds=decode_seconds,
        )

    def __len__(self) -> int:
        return len(self.width)

    def arrays(self) -> dict[str, list[float]]:
        """The raw arrays, ready for JSON."""
        return {name: list(getattr(self, name)) for name in ARRAYS}


# ---- acceptance length, as others count it ----


def _pooled(values: Iterable[float], weights: Iterable[float]) -> float:
    total = sum(weights)
    return sum(values) / total if total else 0.0


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _ours(answers: Sequence[Rounds]) -> float:
    """Tokens handed out over rounds, pooled: what decides speed."""
    return _pooled((sum(a.emitted) for a in answers), (sum(e > 0 for e in a.emitted) for a in answers))


def _vllm(answers: Sequence[Rounds]) -> float:
    """1 + accepted drafts / rounds with drafts, pooled; the bonus token of a cut block counts.

    vllm/v1/spec_decode/metrics.py: num_accepted_tokens is taken before stop conditions look at the tokens, and a step without
    drafts is not a draft.
    """
    rounds = [(n, d) for a in answers for n, d in zip(a.accepted, a.drafted, strict=True) if d > 0]
    return 1.0 + sum(n for n, _ in rounds) / len(rounds) if rounds else 0.0


def _sglang(answers: Sequence[Rounds]) -> float:
    """completion_tokens / spec_verify_ct of each request (the prompt's token is counted, its step is not); mean over requests.

    meta_info.spec_accept_length of SGLang's server; its benchmarks average that over requests.
    """
    return _mean(a.completion_tokens / len(a) for a in answers if len(a))


def _dflash(answers: Sequence[Rounds]) -> float:
    """Mean over answers of the mean over rounds of accepted + 1, cut or not.

    z-lab/dflash dflash/benchmark.py with dflash/model.py, which appends acceptance_length + 1 before it looks for a stop token.
    Later versions of model.py append what is left after the cut.
    """
    return _mean(_mean(n + 1 for n in a.accepted) for a in answers if len(a))


def _deepspec(answers: Sequence[Rounds]) -> float:
    """Accepted + 1 pooled over rounds, or only the drafts up to the end token when that was an accepted draft.

    deepspec/eval/base_evaluator.py: acceptance_length_sum / proposal_count. A block cut by the length limit counts whole.
    """
    return _pooled((n for a in answers for n in _deepspec_lengths(a)), (len(a) for a in answers))


def _deepspec_lengths(answer: Rounds) -> list[int]:
    lengths = [n + 1 for n in answer.accepted]
    if lengths and answer.finish_reason == "stop" and answer.emitted[-1] <= answer.accepted[-1]:
        lengths[-1] = answer.emitted[-1]
    return lengths


def _specdec_bench(answers: Sequence[Rounds]) -> float:
    """Tokens per streamed step, the prompt's step of one token included; mean over answers.

    NVIDIA Model-Optimizer, examples/specdec_bench, metrics/acceptance_rate.py: Average_AL.
    """
    return _mean(a.completion_tokens / (1 + sum(e > 0 for e in a.emitted)) for a in answers if a.completion_tokens)


def _radixark(answers: Sequence[Rounds]) -> float:
    """Token-weighted: all completion tokens (the prompt's included) over all verify steps.

    token_weighted_acceptance_length in RadixArk's SGLang benchmarks, beside the mean of spec_accept_length over requests.
    """
    return _pooled((a.completion_tokens for a in answers if len(a)), (len(a) for a in answers))


DEFINITIONS: dict[str, Callable[[Sequence[Rounds]], float]] = {
    "mimo": _ours,
    "vllm": _vllm,
    "sglang": _sglang,
    "dflash": _dflash,
    "deepspec": _deepspec,
    "specdec_bench": _specdec_bench,
    "radixark": _radixark,
}
"""Acceptance length by whose definition; "mimo" is ours. Each function's text says what it counts, and where that is from."""


def acceptance_length(answers: Sequence[Rounds], definition: str = "mimo") -> float:
    """Acceptance length of some answers as one of DEFINITIONS counts it; 0 without any rounds. ValueError for another name."""
    if definition not in DEFINITIONS:
        raise ValueError(f"definition: expected one of {', '.join(DEFINITIONS)}, found {definition!r}")
    return DEFINITIONS[definition](answers)


# ---- vLLM's names ----


def speculative_decoding(answers: Sequence[Rounds], *, drafts: int | None = None, detailed: bool = False) -> dict[str, Any]:
    """The fields of vLLM's `metrics.speculative_decoding`, for one answer or some together.

    drafts: most drafts of a round (block size - 1), num_spec_tokens; None is the most there were. detailed: also the arrays per
    step. acceptance_histogram[j] counts the rounds that accepted exactly j drafts. Rounds without drafts are left out, as there.
    """
    rounds = [(n, d) for a in answers for n, d in zip(a.accepted, a.drafted, strict=True) if d > 0]
    most = max((d for _, d in rounds), default=0) if drafts is None else drafts
    histogram = [0] * (most + 1)
    for accepted, _ in rounds:
        histogram[accepted] += 1
    total, offered = sum(n for n, _ in rounds), sum(d for _, d in rounds)
    fields: dict[str, Any] = {
        "mean_acceptance_length": _vllm(answers),
        "draft_acceptance_rate": total / offered if offered else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": len(rounds),
        "num_accepted_draft_tokens": total,
        "num_draft_tokens": offered,
        "num_spec_tokens": most,
    }
    if detailed:
        fields |= {"per_step_accepted": [n for n, _ in rounds], "per_step_drafted": [d for _, d in rounds]}
    return fields


def vllm_counters(answers: Sequence[Rounds], *, drafts: int | None = None) -> dict[str, Any]:
    """The counters of vLLM's /metrics endpoint: vllm:spec_decode_num_drafts and its siblings (per position: a list)."""
    fields = speculative_decoding(answers, drafts=drafts)
    reached = np.cumsum(fields["acceptance_histogram"][::-1])[::-1]
    return {
        "vllm:spec_decode_num_drafts": fields["num_spec_steps"],
        "vllm:spec_decode_num_draft_tokens": fields["num_draft_tokens"],
        "vllm:spec_decode_num_accepted_tokens": fields["num_accepted_draft_tokens"],
        "vllm:spec_decode_num_accepted_tokens_per_pos": [int(count) for count in reached[1:]],
    }


# ---- ours ----


def bootstrap_interval(
    tokens: Sequence[int] | NDArray[np.int64],
    rounds: Sequence[int] | NDArray[np.int64],
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of sum(tokens) / sum(rounds) when the [N] units are drawn again with replacement. level: its share."""
    counts, steps = np.asarray(tokens, np.float64), np.asarray(rounds, np.float64)
    if not steps.sum():
        return 0.0, 0.0
    picked = np.random.default_rng(seed).integers(0, len(steps), (resamples, len(steps)))
    drawn = steps[picked].sum(1)
    ratios = counts[picked].sum(1)[drawn > 0] / drawn[drawn > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def figures(
    answers: Sequence[Rounds], *, block: int | None = None, units: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Everything derived from the rounds of some answers, ready for JSON.

    block: rows of the widest round, None the widest there was. units: what the bootstrap draws, one name per answer: answers of
    the same conversation depend on each other and share one; None draws answers.

    Keys: requests, rounds, tokens (handed out by rounds), completion_tokens; acceptance_length (tokens / rounds),
    acceptance_length_ci95, acceptance_length_request_mean; histogram (rounds that handed out 1..block tokens); drafted_at,
    reached_at and accepted_at (rounds that drafted position k, whose drafts before k were all accepted, that accepted k), their
    ratios joint_rate (accepted_at / drafted_at) and conditional_rate (accepted_at / reached_at), null without a denominator;
    drafts_per_round, lookup_share; draft_seconds and verify_seconds (mean of a round), tokens_per_second (while decoding);
    definitions (acceptance length by DEFINITIONS), speculative_decoding and vllm_counters.
    """
    live = [[at for at, count in enumerate(a.emitted) if count > 0] for a in answers]
    widest = max((max(a.width) for a in answers if len(a)), default=1) if block is None else block

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(a, name)[at] for a, kept in zip(answers, live, strict=True) for at in kept], np.float64)

    drafted, accepted, emitted = column("drafted"), column("accepted"), column("emitted")
    count = len(emitted)
    names = list(units) if units is not None else [str(at) for at in range(len(answers))]
    tokens: dict[str, int] = dict.fromkeys(names, 0)
    steps: dict[str, int] = dict.fromkeys(names, 0)
    for name, answer, kept in zip(names, answers, live, strict=True):
        tokens[name] += sum(answer.emitted)
        steps[name] += len(kept)
    positions = range(1, widest)
    drafted_at = [int((drafted >= k).sum()) for k in positions]
    reached_at = [int(((drafted >= k) & (accepted >= k - 1)).sum()) for k in positions]
    accepted_at = [int((accepted >= k).sum()) for k in positions]
    later, seconds = sum(max(a.completion_tokens - 1, 0) for a in answers), sum(a.decode_seconds for a in answers)
    return {
        "requests": len(answers),
        "rounds": count,
        "tokens": int(emitted.sum()),
        "completion_tokens": sum(a.completion_tokens for a in answers),
        "acceptance_length": _ours(answers),
        "acceptance_length_ci95": list(bootstrap_interval(list(tokens.values()), list(steps.values()), seed=seed)),
        "acceptance_length_request_mean": _mean(_ours([a]) for a, kept in zip(answers, live, strict=True) if kept),
        "histogram": [int((emitted == k).sum()) for k in range(1, widest + 1)],
        "drafted_at": drafted_at,
        "reached_at": reached_at,
        "accepted_at": accepted_at,
        "joint_rate": _rates(accepted_at, drafted_at),
        "conditional_rate": _rates(accepted_at, reached_at),
        "drafts_per_round": float(drafted.mean()) if count else 0.0,
        "lookup_share": float(column("lookup").sum() / drafted.sum()) if drafted.sum() else 0.0,
        "draft_seconds": float(column("draft_seconds").mean()) if count else 0.0,
        "verify_seconds": float(column("verify_seconds").mean()) if count else 0.0,
        "tokens_per_second": later / seconds if seconds > 0 else 0.0,
        "definitions": {name: acceptance_length(answers, name) for name in DEFINITIONS},
        "speculative_decoding": speculative_decoding(answers, drafts=widest - 1),
        "vllm_counters": vllm_counters(answers, drafts=widest - 1),
    }


def _rates(over: Sequence[int], under: Sequence[int]) -> list[float | None]:
    return [a / b if b else None for a, b in zip(over, under, strict=True)]
