"""A model that answers at once: deterministic text, rounds and times, so that runs can be compared to the last digit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

import mimo_ultraspeed as mu

PLAIN, DRAFT, VERIFY = 0.010, 0.002, 0.012  # seconds of a plain step, of drafting, of verifying


def digest(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


class FakeModel:
    """Answers with tokens that depend on messages, seed and temperature only; rounds depend on the options too."""

    precision, backend, threads = "fast", "cpu:fake", 1
    checkpoint = SimpleNamespace(folder=Path("/nowhere/fake"))
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=8)

    def __init__(self, *, draft: bool = True, stop_after: int | None = None, answer: Callable[..., None] | None = None) -> None:
        options = SimpleNamespace(switches=dict)
        drafter = SimpleNamespace(folder=Path("/nowhere/dflash"), block_size=8, taps=(0, 1), parameters=9, options=options)
        self.draft = drafter if draft else None
        self.stop_after, self.on_answer = stop_after, answer
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def generate(self, prompt: Any, *, max_new_tokens: int, progress: bool = True, **options: Any) -> Any:
        if isinstance(prompt, list):
            if self.stop_after is not None and len(self.calls) == self.stop_after:
                raise KeyboardInterrupt
            if sum(len(message["content"]) for message in prompt) > 4000:
                raise mu.ContextOverflowError("too long")
            self.calls.append((list(prompt), options))
        seed = digest(prompt, options["seed"] if options["temperature"] else 0, options["temperature"])
        count = 2 + seed % (max_new_tokens - 2)
        if options.get("verify") == "rejection":
            seed += 1
        ids = [digest(seed, at) % 500 for at in range(count)]
        rounds, seconds = self.rounds(ids, options)
        reason = "length" if count == max_new_tokens else "stop"
        stats = SimpleNamespace(prompt_tokens=9, decode_seconds=seconds, rounds=rounds)
        return SimpleNamespace(text=" ".join(map(str, ids)), token_ids=ids, finish_reason=reason, stats=stats)

    def rounds(self, ids: Sequence[int], options: dict[str, Any]) -> tuple[dict[str, list[Any]] | None, float]:
        if not options.get("speculative", True):
            return None, (len(ids) - 1) * PLAIN
        assert self.draft is not None or options["lookup"]
        found: dict[str, list[Any]] = {name: [] for name in mu_arrays()}
        done, width = 1, options.get("width", 8)
        while done < len(ids):
            accepted = digest(ids, done, sorted(options.items())) % width
            emitted = min(accepted + 1, len(ids) - done)
            row = (width, width - 1, accepted, emitted, (width - 1) * options["lookup"], DRAFT, VERIFY)
            for name, value in zip(found, row, strict=True):
                found[name].append(value)
            done += emitted
        return found, len(found["width"]) * (DRAFT + VERIFY)


def mu_arrays() -> Sequence[str]:
    from mimo_ultraspeed.rounds import ARRAYS

    return ARRAYS


@pytest.fixture
def fake_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """Five conversations of one to three turns."""
    path = tmp_path / "mine.jsonl"
    turns = [["one"], ["two", "and then?"], ["three"], ["four", "go on", "go on"], ["five"]]
    import json

    path.write_text("".join(json.dumps({"turns": words, "extra": 1}) + "\n" for words in turns))
    return path
