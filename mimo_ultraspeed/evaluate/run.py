"""Measures acceptance: answers every prompt plainly and with each kind of drafting, in turns, and keeps the raw rounds."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..errors import ContextOverflowError
from ..provenance import software
from ..rounds import Rounds
from .environment import machine, model_identity
from .journal import Journal, record_key
from .report import Evaluation
from .scenarios import SCENARIOS, Item, PromptSet, load_prompts

if TYPE_CHECKING:
    from ..model import Model
    from ..result import Result

__all__ = ["MODES", "VERIFIERS", "Settings", "acceptance"]

MODES = ("drafter", "lookup", "both")
"""Where drafts come from: the drafter alone, prompt lookup alone, or the drafter with prompt lookup over it."""
VERIFIERS = ("coupled", "argmax", "rejection")
"""How sampled answers are drafted and verified; at temperature 0 all are the same. "argmax" verifies the drafter's most likely
tokens against the same coupled noise."""
_VERIFY: dict[str, dict[str, Any]] = {
    "coupled": {"verify": "coupled"},
    "argmax": {"verify": "coupled", "argmax_drafts": True},
    "rejection": {"verify": "rejection"},
}
_FORMAT = "mimo-ultraspeed acceptance 1"


@dataclass(frozen=True)
class Settings:
    """What, beside model and prompts, decides the answers and what is counted. Equal settings can be merged and resumed."""

    modes: tuple[str, ...] = MODES
    temperatures: tuple[float, ...] = (0.0, 1.0)
    verify: tuple[str, ...] = ("coupled", "argmax")
    max_new_tokens: int = 256
    limit: int | None = None
    """Most conversations of a scenario; None is all of them."""
    width: int | None = None
    """Rows verified per round, the anchor included; None is the engine's choice by cost."""
    seed: int = 0
    simulate_acceptance: float | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From fields as JSON has them, lists instead of tuples. TypeError for an unknown one."""
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**given)

    def __post_init__(self) -> None:
        _some_of("modes", self.modes, MODES)
        _some_of("verify", self.verify, VERIFIERS)
        if not self.temperatures or any(not math.isfinite(t) or t < 0 for t in self.temperatures):
            raise ValueError(f"temperatures: expected numbers of 0 or more, found {list(self.temperatures)}")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"temperatures: expected each once, found {list(self.temperatures)}")
        for name, value in (("max_new_tokens", self.max_new_tokens), ("limit", self.limit), ("width", self.width)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected an integer of 1 or more, found {value}")


def _some_of(name: str, found: Sequence[str], known: Sequence[str]) -> None:
    if not found or len(set(found)) < len(found) or any(one not in known for one in found):
        raise ValueError(f"{name}: expected some of {', '.join(known)}, each once, found {', '.join(found) or 'none'}")


@dataclass(frozen=True)
class Variant:
    """One way to decode: plainly, or by one kind of drafts and verification."""

    name: str
    options: tuple[tuple[str, Any], ...]


def variants(settings: Settings, group: str, temperature: float) -> list[Variant]:
    """The ways to decode in one group of modes ("drafter" needs one, "lookup" runs without), plain decoding first."""
    found = [Variant("plain", (("speculative", False),))]
    common: dict[str, Any] = {"speculative": True}
    if settings.width is not None:
        common["width"] = settings.width
    if settings.simulate_acceptance is not None:
        common["simulate_acceptance"] = settings.simulate_acceptance
    for mode in settings.modes:
        if (mode == "lookup") != (group == "lookup"):
            continue
        # Looked-up drafts are not drawn, and greedy ones have no noise: one verifier stands for all.
        kinds = settings.verify if temperature > 0 and group == "drafter" else settings.verify[:1]
        for kind in kinds:
            options = common | {"lookup": mode != "drafter"} | (_VERIFY[kind] if temperature > 0 else {})
            found.append(Variant(f"{mode} {kind}" if len(kinds) > 1 else mode, tuple(options.items())))
    return found


def acceptance(
    model: Model | str | os.PathLike[str] = "smollm2-135m",
    *,
    draft: Any = "auto",
    scenarios: Sequence[str] = SCENARIOS,
    prompts: Sequence[str | os.PathLike[str]] = (),
    settings: Settings | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
    on_interrupt: Callable[[], object] | None = None,
    **options: Any,
) -> Evaluation:
    """Answers prompts with and without drafts and tells how many tokens a round gives, where drafts die, and what it is worth.

    model: a name, folder or hub id, opened here with `draft`; or an open Model. scenarios: of the package's prompt sets. prompts:
      .jsonl files of {"turns": [...]}, each a scenario of its own.
    settings: see `Settings`; its fields may be given as options instead (`temperatures=(0.0,)`). Other options go to
      `Model.from_pretrained`.
    out: the result's .json file. While it runs, every answer is appended to `out` + ".journal" as it ends, and `resume=True` goes
      on from there. shard: (i, n) answers only the i-th of n parts, i from 1; `merge` puts the results together.
    on_interrupt: called on Ctrl-C instead of raising; what is done is saved and returned, with `complete` false.

    Plain and speculative decoding take turns on each prompt, so that a slow minute of the machine meets both. Later turns of a
    conversation follow the plain answer. Prompts that do not fit into the context are left out and counted.

    Raises ValueError for settings that contradict each other or the model, FileExistsError when `out` is there already.
    """
    fields = {name: options.pop(name) for name in list(options) if name in Settings.__dataclass_fields__}
    if settings is not None and fields:
        raise TypeError(f"settings: expected either settings or its fields, found both ({', '.join(fields)})")
    chosen = settings or Settings.of(fields)
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard: expected i/n with 1 <= i <= n, found {shard[0]}/{shard[1]}")
    target = None if out is None else Path(out).expanduser()
    if target is not None and target.exists() and not resume:
        raise FileExistsError(f"{target}: a result is there already; name another file, or remove it")
    if target is not None and target.exists() and not Path(f"{target}.journal").exists():
        return Evaluation.load(target)
    run = _Run(chosen, load_prompts(scenarios, prompts), shard, _Opener(model, draft, progress, options), target, resume, progress)
    return run.all(on_interrupt)


class _Opener:
    """Opens the model of a group: with the drafter, or without one."""

    def __init__(self, model: Any, draft: Any, progress: bool, options: dict[str, Any]) -> None:
        self.model, self.draft, self.options = model, draft, options | {"progress": progress}

    def open(self, group: str) -> Any:
        """A context manager that gives the model. ValueError when the group needs a drafter and there is none."""
        given = not isinstance(self.model, str | os.PathLike)
        if given and ((self.model.draft is not None) == (group == "drafter")):
            return nullcontext(self.model)
        if given and group == "drafter":
            raise ValueError("modes: the model has no drafter; open it with one, or ask for modes=('lookup',)")
        from ..model import Model

        source = self.model.checkpoint.folder if given else self.model
        opened = Model.from_pretrained(source, draft=self.draft if group == "drafter" else None, **self.options)
        if group == "drafter" and opened.draft is None:
            opened.close()
            raise ValueError(f"modes: {source} has no drafter (draft={self.draft!r}); modes=('lookup',) runs without one")
        return opened


class _Run:
    def __init__(
        self,
        settings: Settings,
        sets: list[PromptSet],
        shard: tuple[int, int],
        opener: _Opener,
        out: Path | None,
        resume: bool,
        progress: bool,
    ) -> None:
        self.settings, self.sets, self.shard, self.opener = settings, sets, shard, opener
        self.out, self.resume, self.progress = out, resume, progress
        self.groups = [
            group for group in ("drafter", "lookup") if any((mode == "lookup") == (group == "lookup") for mode in settings.modes)
        ]

    def all(self, on_interrupt: Callable[[], object] | None) -> Evaluation:
        journal: Journal | None = None
        try:
            for group in self.groups:
                with self.opener.open(group) as model:
                    if journal is None:
                        journal = Journal(
                            None if self.out is None else Path(f"{self.out}.journal"), self.header(model), resume=self.resume
                        )
                    self.answers(model, group, journal)
        except KeyboardInterrupt:
            if journal is None or on_interrupt is None:
                raise
            on_interrupt()
        finally:
            if journal is not None:
                journal.close()
        assert journal is not None
        result = Evaluation.build(self.header_, list(journal.records.values()))
        if self.out is not None:
            result.save(self.out)
            if result.complete:
                Path(f"{self.out}.journal").unlink()
        return result

    def header(self, model: Model) -> dict[str, Any]:
        self.header_: dict[str, Any] = {
            "format": _FORMAT,
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "prompts": {
                one.name: {
                    "file": one.path.name,
                    "sha256": one.sha256,
                    "ids": [item.id for item in one.items[: self.settings.limit]],
                    "turns": [len(item.turns) for item in one.items[: self.settings.limit]],
                }
                for one in self.sets
            },
            "model": json.loads(json.dumps(model_identity(model))),
            "machine": machine(),
            "software": software(),
            "shard": list(self.shard),
        }
        return self.header_

    def items(self) -> Iterator[tuple[PromptSet, int, Item]]:
        """Those of this shard: conversations are dealt out one by one over all scenarios."""
        dealt = 0
        for one in self.sets:
            for index, item in enumerate(one.items[: self.settings.limit]):
                if dealt % self.shard[1] == self.shard[0] - 1:
                    yield one, index, item
                dealt += 1

    def answers(self, model: Model, group: str, journal: Journal) -> None:
        from ..display import bar

        kinds = {t: variants(self.settings, group, t) for t in self.settings.temperatures}
        work = [(one, index, item, t) for one, index, item in self.items() for t in self.settings.temperatures]
        total = sum(len(item.turns) * len(kinds[t]) for _, _, item, t in work)
        for variant in {v.name: v for found in kinds.values() for v in found}.values():  # first use is slow
            model.generate("Say hello.", max_new_tokens=8, progress=False, seed=0, temperature=0.0, **dict(variant.options))
        with bar(self.progress, total=total, unit="answer", desc=f"acceptance, {group}") as shown:
            for one, index, item, t in work:
                shown.set_postfix_str(f"{one.name} {item.id}", refresh=False)
                self.conversation(model, group, journal, (one, index, item, t), kinds[t], shown)

    def conversation(
        self,
        model: Model,
        group: str,
        journal: Journal,
        what: tuple[PromptSet, int, Item, float],
        kinds: list[Variant],
        shown: Any,
    ) -> None:
        one, index, item, temperature = what
        messages: list[dict[str, str]] = []
        for turn, text in enumerate(item.turns):
            messages.append({"role": "user", "content": text})
            plain = None
            # The order changes from one answer to the next, so that none of them always runs on the warmer cache.
            for variant in kinds if (index + turn) % 2 == 0 else kinds[::-1]:
                head: dict[str, Any] = {"group": group, "scenario": one.name, "index": index, "id": item.id}
                head |= {"temperature": temperature, "turn": turn, "variant": variant.name}
                record = journal.records.get(record_key(head))
                if record is None:
                    record = head | self.answer(model, messages, variant, self.seed(one.name, item.id, turn), temperature)
                    journal.add(record)
                if variant.name == "plain":
                    plain = record
                shown.update()
            assert plain is not None
            messages.append({"role": "assistant", "content": plain.get("text") or " "})

    def answer(
        self, model: Model, messages: list[dict[str, str]], variant: Variant, seed: int, temperature: float
    ) -> dict[str, Any]:
        options: dict[str, Any] = dict(variant.options) | {"temperature": temperature, "seed": seed}
        try:
            result: Result = model.generate(messages, max_new_tokens=self.settings.max_new_tokens, progress=False, **options)
        except ContextOverflowError as error:
            return {"skipped": str(error)}
        ids = result.token_ids
        record: dict[str, Any] = {
            "seed": seed,
            "prompt_tokens": result.stats.prompt_tokens,
            "completion_tokens": len(ids),
            "finish_reason": result.finish_reason,
            "decode_seconds": result.stats.decode_seconds,
            "token_ids_sha256": hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest(),
        }
        if variant.name == "plain":
            return record | {"text": result.text}
        arrays: Any = getattr(result.stats, "rounds", None)
        if arrays is None:
            raise ValueError("rounds: this build's engine keeps no rounds, so there is no acceptance to measure")
        checked = Rounds.of(arrays, completion_tokens=len(ids), finish_reason=result.finish_reason)
        return record | {"rounds": checked.arrays()}

    def seed(self, scenario: str, item: str, turn: int) -> int:
        """Of one answer: the same in every variant, shard and order of running."""
        text = json.dumps([self.settings.seed, scenario, item, turn])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
