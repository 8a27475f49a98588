"""Prompt sets: the four that come with the package, and any `.jsonl` of `{"turns": [...]}`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PUBLISHED", "SCENARIOS", "Item", "PromptSet", "load_prompts", "read_rows"]

SCENARIOS = ("coding", "math", "agent", "chat")
"""Names of the prompt sets of this package."""

PUBLISHED = {
    "coding": 6.30, "math": 5.56, "agent": 4.29, "chat": 3.18,
    "webdev": 6.30, "math500": 5.56, "swe-bench": 4.29, "mt-bench": 3.18, "humaneval": 4.54,
}  # fmt: skip
"""Acceptance lengths that the model card of MiMo-V2.5-Pro-FP4-DFlash gives for its own drafter, whose prompts, sampling and way of
averaging are not published: WebDev for coding, MATH500 for math, SWE-Bench for agent, MT-Bench for chat."""

_FOLDER = Path(__file__).parent / "prompts"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Item:
    """One conversation: what the user says, turn by turn."""

    id: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class PromptSet:
    """The conversations of one scenario."""

    name: str
    path: Path
    sha256: str
    """Of the file."""
    items: tuple[Item, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str], name: str | None = None) -> PromptSet:
        """Reads a .jsonl file: one object a line with "turns" (a list of texts) and perhaps "id"; other keys are left alone.

        name: of the scenario, None for the file's name without its ending. Raises OSError, and ValueError that says file and line.
        """
        source = Path(path).expanduser()
        raw, rows = read_rows(source)
        items: list[Item] = []
        lines: dict[str, int] = {}
        for number, row in rows:
            found = row.get("id", str(len(items)))
            if not isinstance(found, str | int) or isinstance(found, bool):
                raise ValueError(f'{source}:{number}: "id": expected text or an integer, found {ascii(found)[:80]}')
            if (own := str(found)) in lines:
                raise ValueError(f"{source}:{number}: expected an id of its own, found {own!r} of line {lines[own]} again")
            lines[own] = number
            items.append(Item(own, tuple(row["turns"])))
        return cls(name or source.stem, source, hashlib.sha256(raw).hexdigest(), tuple(items))


def read_rows(path: str | os.PathLike[str]) -> tuple[bytes, list[tuple[int, dict[str, Any]]]]:
    """A prompt file, and its objects by line: each has "turns", a list of texts. Raises OSError, and ValueError for other lines,
    or none."""
    source = Path(path).expanduser()
    size = source.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{source}: expected at most {_MOST_BYTES >> 20} MiB of prompts, found {size >> 20}")
    raw = source.read_bytes()
    rows = [(number, _row(line, f"{source}:{number}")) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if not rows:
        raise ValueError(f"{source}: expected at least one prompt, found none")
    return raw, rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object, found damage: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        found = "no such key" if "turns" not in row else ascii(turns)[:80]
        raise ValueError(f'{where}: "turns": expected a list of at least one text, found {found}')
    return row


def load_prompts(scenarios: Sequence[str] = SCENARIOS, files: Sequence[str | os.PathLike[str]] = ()) -> list[PromptSet]:
    """The named sets of this package, then those in files. ValueError for an unknown or doubled name, and as `PromptSet.read`."""
    sets: list[PromptSet] = []
    for name in scenarios:
        if name not in SCENARIOS:
            raise ValueError(f"scenarios: expected some of {', '.join(SCENARIOS)}, found {name!r}; --prompts takes files")
        sets.append(PromptSet.read(_FOLDER / f"{name}.jsonl", name))
    sets += [PromptSet.read(path) for path in files]
    if not sets:
        raise ValueError("prompts: expected a scenario or a file, found neither")
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"prompts: expected one set of each name, found two called {name!r}")
    return sets
