"""Answers of a target with the residual streams a drafter taps: what every setting of a drafter can be scored on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["Answer", "Dump"]

_FORMAT = "mimo-ultraspeed dump 1"


@dataclass(frozen=True)
class Answer:
    """One prompt with its answer."""

    tokens: NDArray[np.int64]
    """[T]"""
    start: int
    """Place of the answer's first token."""
    states: NDArray[np.float32]
    """[layers, T, H] residual streams."""


@dataclass(frozen=True)
class Dump:
    """Answers and, for each, the residual stream after `layers` of the target."""

    layers: tuple[int, ...]
    answers: tuple[Answer, ...]

    @classmethod
    def make(
        cls, model: Model, prompts: Iterable[Any], layers: Sequence[int], *, max_new_tokens: int = 128, progress: bool = True
    ) -> Self:
        """Answers the prompts greedily without drafts, and keeps the states after `layers`."""
        results = model.generate(
            list(prompts), max_new_tokens=max_new_tokens, temperature=0.0, speculative=False, progress=progress
        )
        kept = sorted(set(layers))
        answers = []
        for result in results:
            ids = np.array([*result.prompt_token_ids, *result.token_ids], np.int64)
            answers.append(Answer(ids, len(result.prompt_token_ids), model.hidden_states(ids, kept)))
        return cls(tuple(kept), tuple(answers))

    def taps(self, answer: Answer, layers: Sequence[int]) -> NDArray[np.float32]:
        """[T, m H]: the streams after the listed layers side by side."""
        return np.concatenate([answer.states[self.layers.index(layer)] for layer in layers], -1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file."""
        arrays: dict[str, Any] = {"format": np.array(_FORMAT), "layers": np.array(self.layers)}
        arrays["starts"] = np.array([answer.start for answer in self.answers])
        for at, answer in enumerate(self.answers):
            arrays |= {f"tokens_{at}": answer.tokens, f"states_{at}": answer.states}
        with Path(path).expanduser().open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote; nothing in it is executed. Raises OSError, and ValueError for another file."""
        source = Path(path).expanduser()
        try:
            with np.load(source, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise KeyError("format")
                starts = [int(start) for start in file["starts"]]
                answers = [Answer(file[f"tokens_{at}"], start, file[f"states_{at}"]) for at, start in enumerate(starts)]
                return cls(tuple(int(layer) for layer in file["layers"]), tuple(answers))
        except (KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{source}: expected a dump of `evaluate self-check`, found something else ({error})") from None
