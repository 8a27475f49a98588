"""How many drafts come true, without decoding speculatively: rounds replayed over greedy answers that are known beforehand.

With exact verification a drafter cannot change a greedy answer, so its context at every position is known from the answer alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..rounds import bootstrap_interval
from .drafter import Block, Trained, context, draft_greedily, hidden
from .target import TargetWeights

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["METHODS", "Measured", "answer_greedily", "drafts", "lookup", "measure", "rounds"]

METHODS = ("drafter", "lookup", "both")
LONGEST_GRAM, SHORTEST_GRAM = 4, 2


@dataclass(frozen=True)
class Measured:
    """Of one method over a set of answers."""

    emitted: NDArray[np.int64]
    """[prompts]: tokens that rounds handed out."""
    rounds: NDArray[np.int64]
    """[prompts]: rounds they took."""
    reached: NDArray[np.int64]
    """[B - 1]: rounds in which all drafts before slot k came true."""
    accepted: NDArray[np.int64]
    """[B - 1]: rounds in which slot k did too."""

    @property
    def tau(self) -> float:
        """Tokens per round, over all rounds."""
        return float(self.emitted.sum() / max(self.rounds.sum(), 1))

    def interval(self) -> tuple[float, float]:
        """95 % of tau under resampling of the prompts."""
        return bootstrap_interval(self.emitted, self.rounds)

    def conditional(self) -> list[float]:
        """[B - 1]: rate at which slot k comes true when all before it did."""
        return [float(right / tried) if tried else float("nan") for right, tried in zip(self.accepted, self.reached, strict=True)]


def answer_greedily(model: Model, prompts: Sequence[str], max_new_tokens: int) -> list[dict[str, list[int]]]:
    """{"prompt": ids, "answer": ids} of each prompt."""
    results = model.generate(list(prompts), max_new_tokens=max_new_tokens, temperature=0.0, speculative=False)
    return [{"prompt": result.prompt_token_ids, "answer": result.token_ids} for result in results]


def drafts(trained: Trained, model: Model, weights: TargetWeights, record: Mapping[str, Sequence[int]]) -> NDArray[np.int64]:
    """[answer - 1, B - 1]: the drafter's tokens for a block anchored at each token of the answer but the last."""
    tokens = [*record["prompt"], *record["answer"]]
    first, size = len(record["prompt"]), trained.config.block_size
    anchors = torch.arange(first, len(tokens) - 1)
    states = model.hidden_states(tokens[:-1], trained.config.taps)
    taps = torch.from_numpy(states.transpose(1, 0, 2).reshape(len(tokens) - 1, -1))
    embedding, head = torch.from_numpy(weights.embedding()), torch.from_numpy(weights.head()[trained.head_ids])
    ids = torch.tensor(tokens)
    places = torch.full((trained.config.vocab_size,), -1)
    places[torch.from_numpy(trained.head_ids)] = torch.arange(len(trained.head_ids))
    with torch.no_grad():
        known = context(trained.parameters, trained.config, taps)
        predicted = hidden(trained.parameters, trained.config, known, Block(embedding[ids[anchors]], anchors, size))
        chosen = draft_greedily(trained.parameters, predicted, head, places[ids[anchors]])
    tokens_of: NDArray[np.int64] = trained.head_ids[chosen.numpy()]
    return tokens_of


def lookup(tokens: Sequence[int], anchor: int, count: int) -> tuple[int, list[int]]:
    """The longest n-gram up to the anchor that came before, and `count` tokens after the latest place of it; 0 and [] without one.

    Where these reach the anchor they go on as the text did since, as in the engine.
    """
    known = list(tokens[: anchor + 1])
    for gram in range(LONGEST_GRAM, SHORTEST_GRAM - 1, -1):
        for at in range(anchor, gram - 1, -1):
            if known[at - gram : at] == known[-gram:]:
                return gram, [known[at + i % (len(known) - at)] for i in range(count)]
    return 0, []


def rounds(record: Mapping[str, Sequence[int]], drafted: NDArray[np.int64], method: str, size: int) -> list[int]:
    """Drafts that come true in each round of an answer. A round begins only where a whole block still fits.

    drafted: [answer - 1, size - 1]. method: "drafter", "lookup", or "both": what was found by three tokens or more, or by two if
    the drafter says its first token too; else the drafter's. So decodes a GPU; a CPU goes by what came true of either before.
    """
    tokens = [*record["prompt"], *record["answer"]]
    first, at = len(record["prompt"]), len(record["prompt"])
    counts = []
    while at + size <= len(tokens):
        gram, found = lookup(tokens, at, size - 1) if method != "drafter" else (0, [])
        own = drafted[at - first].tolist()
        is_believed = gram > SHORTEST_GRAM or (gram > 0 and found[0] == own[0])
        offered = found if method == "lookup" or is_believed else own
        right = 0
        while right < len(offered) and offered[right] == tokens[at + 1 + right]:
            right += 1
        counts.append(right)
        at += right + 1
    return counts


def measure(trained: Trained, model: Model, records: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Measured]:
    """Every method over answers as `answer_greedily` gives them."""
    weights, size = TargetWeights(model.checkpoint), trained.config.block_size
    drafted = [
        drafts(trained, model, weights, record) if len(record["answer"]) > 1 else np.zeros((0, size - 1), np.int64)
        for record in records
    ]
    found = {}
    for method in METHODS:
        replayed = [rounds(record, known, method, size) for record, known in zip(records, drafted, strict=True)]
        every = np.array([count for one in replayed for count in one], np.int64)
        found[method] = Measured(
            emitted=np.array([sum(one) + len(one) for one in replayed]),
            rounds=np.array([len(one) for one in replayed]),
            reached=np.array([(every >= slot).sum() for slot in range(size - 1)]),
            accepted=np.array([(every > slot).sum() for slot in range(size - 1)]),
        )
    return found
