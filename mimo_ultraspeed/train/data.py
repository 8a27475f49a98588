"""Self-distillation data: the target's own answers to prompts, many at a time, in shards that can be continued.

A folder of `answers-00000.jsonl`, ... with one answer a line:

    {"id", "scenario", "prompt": ids, "answer": ids, "temperature", "seed", "finish"}

What is in an answer depends on the model, the prompt, its options and `seed` alone, not on what was decoded beside it, and an id
names them all: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..display import bar
from ..evaluate.scenarios import read_rows
from .problems import problems
from .variety import as_stub, chats

if TYPE_CHECKING:
    from ..model import Model
    from ..stream import Stream

__all__ = ["DataOptions", "Planned", "make_data", "normalise", "plan", "read_answers", "read_prompts"]

IN_FLIGHT = 32
_PER_SHARD = 1000
_WAIT_SECONDS = 0.05
_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_NOT_WORDS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class DataOptions:
    """What is asked, and how it is answered."""

    seed: int = 0
    tokens: int = 1_000_000
    """Answer tokens after which no new prompt is begun."""
    max_new_tokens: int = 256
    sampled: float = 0.5
    """Share of answers that are sampled; the others are greedy."""
    temperatures: tuple[float, ...] = (0.7, 1.0)
    """Of the sampled answers, drawn evenly."""
    mix: Mapping[str, float] = field(default_factory=lambda: {"coding": 3.0, "math": 3.0, "chat": 3.0, "agent": 1.5})
    """Relative weights of the scenarios; a scenario that is not named has weight 1."""
    templates: float = 0.5
    """Prompts made from templates for one that is read, of chat and of mathematics; half of it is the share of coding prompts
    wrapped as function stubs."""

    def __post_init__(self) -> None:
        for name in ("tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, found {getattr(self, name)}")
        for name in ("sampled", "templates"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class Planned:
    """A conversation to have: every turn becomes one answer."""

    id: str
    scenario: str
    turns: tuple[str, ...]
    temperature: float
    seed: int


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a prompt file: {"turns": [text, ...]}, with "scenario" and "source" or without. ValueError for other lines."""
    return [row for _, row in read_rows(path)[1]]


def normalise(text: str) -> str:
    """What two prompts have in common that differ in case, spacing, punctuation and how the answer is to be given only."""
    return _words(text).removesuffix(_words(_BOXED)).strip()


def _words(text: str) -> str:
    return _NOT_WORDS.sub(" ", text.lower()).strip()


def plan(prompts: Sequence[Mapping[str, Any]], options: DataOptions, excluded: Iterable[str] = ()) -> Iterator[Planned]:
    """Conversations without end, the scenarios interleaved by `options.mix`; after all prompts, again with other seeds.

    excluded: texts that must not be asked. ValueError when a prompt is one of them (see `normalise`).
    """
    forbidden = {normalise(text) for text in excluded}
    by_scenario: dict[str, list[tuple[str, ...]]] = {}
    for row in prompts:
        turns = tuple(row["turns"])
        _check_allowed(turns, forbidden)
        by_scenario.setdefault(str(row.get("scenario", "chat")), []).append(turns)
    if not any(options.mix.get(name, 1.0) > 0 for name in by_scenario):
        raise ValueError("prompts: expected at least one of a scenario with a weight above 0, found none")
    sources = {name: _scenario(name, by_scenario[name], options) for name in sorted(by_scenario)}
    weights = {name: options.mix.get(name, 1.0) for name in sources}
    given = dict.fromkeys(sources, 0.0)
    asked: set[str] = set()
    while sources:
        name = min((name for name in sources if weights[name] > 0), key=lambda name: (given[name] + 1) / weights[name])
        given[name] += 1
        turns, answer_pass = next(sources[name])
        one = _planned(name, turns, answer_pass, options)
        if one.id not in asked and not any(normalise(turn) in forbidden for turn in turns):
            asked.add(one.id)  # templates make some prompts twice
            yield one


def _check_allowed(turns: tuple[str, ...], forbidden: set[str]) -> None:
    for turn in turns:
        if normalise(turn) in forbidden:
            raise ValueError(f"a prompt is also in an evaluation set, and must not be trained on: {turn[:100]!r}")


def _scenario(name: str, turns: list[tuple[str, ...]], options: DataOptions) -> Iterator[tuple[tuple[str, ...], int]]:
    made, posed = chats(options.seed), problems(options.seed)
    for answer_pass in itertools.count():
        draw = random.Random(f"{name} {options.seed} {answer_pass}")
        for one in draw.sample(turns, len(turns)):
            chance = draw.random()
            if name == "chat" and chance < options.templates:
                yield tuple(next(made)["turns"]), answer_pass  # type: ignore[arg-type]
            if name == "math" and chance < options.templates:
                yield _perhaps_boxed((next(posed),), draw), answer_pass
            if name == "coding" and chance < options.templates / 2:
                stub = as_stub(one[0], options.seed)
                one = one if stub is None else (stub,)
            yield _perhaps_boxed(one, draw) if name == "math" else one, answer_pass


def _perhaps_boxed(turns: tuple[str, ...], draw: random.Random) -> tuple[str, ...]:
    return (*turns[:-1], turns[-1] + _BOXED) if draw.random() < 0.5 else turns


def _planned(scenario: str, turns: tuple[str, ...], answer_pass: int, options: DataOptions) -> Planned:
    key = json.dumps([options.seed, answer_pass, turns])
    digest = hashlib.sha256(key.encode()).hexdigest()
    draw = random.Random(digest)
    temperature = draw.choice(options.temperatures) if draw.random() < options.sampled else 0.0
    return Planned(digest[:16], scenario, turns, temperature, int(digest[16:28], 16))


def read_answers(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Every whole record of the shards, in their order. A line that is still being written is left out."""
    for path in sorted(Path(folder).glob("answers-*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)


def make_data(
    model: Model,
    prompts: Sequence[Mapping[str, Any]],
    folder: str | Path,
    options: DataOptions | None = None,
    *,
    excluded: Iterable[str] = (),
    progress: bool = True,
) -> int:
    """Answers prompts until the folder holds `options.tokens` answer tokens. Returns how many it holds.

    What is in the folder stays and counts. An interrupt loses only the answers that were being decoded.
    """
    options = DataOptions() if options is None else options
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _Shards(folder) as shards, bar(progress, total=options.tokens, initial=shards.tokens, unit="token") as shown:
        todo = plan(prompts, options, excluded)
        active: deque[_Conversation] = deque()
        try:
            while active or shards.tokens < options.tokens:
                while len(active) < IN_FLIGHT and shards.tokens < options.tokens:
                    active.append(_Conversation(model, next(todo), shards, options.max_new_tokens))
                moved = [conversation.poll(shown) for conversation in active]
                active = deque(conversation for conversation in active if not conversation.done)
                if active and not any(moved):
                    active[0].wait()
        finally:
            for conversation in active:
                conversation.close()
        return shards.tokens


class _Shards:
    """The files of a folder: what is there, and an open one at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.known: dict[str, dict[str, Any]] = {}
        self.tokens = 0
        paths = sorted(folder.glob("answers-*.jsonl"))
        if paths:
            _drop_torn_line(paths[-1])
        for record in read_answers(folder):
            self._count(record)
        self._file: TextIO | None = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, record: dict[str, Any]) -> None:
        if self._file is None or len(self.known) % _PER_SHARD == 0:
            if self._file is not None:
                self._file.close()
            self._file = (self._folder / f"answers-{len(self.known) // _PER_SHARD:05d}.jsonl").open("a", encoding="utf-8")
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._file.flush()
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.known[record["id"]] = record
        self.tokens += len(record["answer"])


def _drop_torn_line(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind(b"\n") + 1])


class _Conversation:
    """One planned conversation: asks turn after turn, and writes each answer."""

    def __init__(self, model: Model, planned: Planned, shards: _Shards, max_new_tokens: int) -> None:
        self._model, self._planned, self._shards, self._max = model, planned, shards, max_new_tokens
        self._messages: list[dict[str, Any]] = []
        self._stream: Stream | None = None
        self._turn = -1
        self.done = False
        self._next_turn()

    def poll(self, shown: Any) -> bool:
        """Takes what has been decoded; whether there was anything."""
        if self._stream is None or self.done:
            return False
        moved = self._stream.poll(0.0) is not None
        if self._stream.finish_reason is None:
            return moved
        result = self._stream.result
        record = {
            "id": self._record_id(),
            "scenario": self._planned.scenario,
            "prompt": result.prompt_token_ids,
            "answer": result.token_ids,
            "temperature": self._planned.temperature,
            "seed": self._planned.seed,
            "finish": result.finish_reason,
        }
        self._shards.append(record)
        shown.update(len(result.token_ids))
        self._answered(result.text)
        return True

    def wait(self) -> None:
        if self._stream is not None:
            self._stream.poll(_WAIT_SECONDS)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _record_id(self) -> str:
        return f"{self._planned.id}-{self._turn}"

    def _answered(self, text: str) -> None:
        self._messages.append({"role": "assistant", "content": text})
        self._next_turn()

    def _next_turn(self) -> None:
        self._turn += 1
        if self._turn == len(self._planned.turns):
            self.done = True
            return
        self._messages.append({"role": "user", "content": self._planned.turns[self._turn]})
        known = self._shards.known.get(self._record_id())
        if known is not None:
            self._answered(self._text(known["answer"]))
            return
        self._stream = self._model.stream(
            self._messages, max_new_tokens=self._max, temperature=self._planned.temperature, seed=self._planned.seed
        )

    def _text(self, ids: Sequence[int]) -> str:
        return self._model.tokenizer.decode(ids, skip_special_tokens=True)
