"""Answers on their way into a result: a file that grows by one line per answer, so that what is done stays done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

__all__ = ["Journal", "record_key"]


def record_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells one answer from every other one of a run."""
    return tuple(record[name] for name in ("group", "scenario", "id", "temperature", "turn", "variant"))


class Journal:
    """The answers of a run, in a file (first line: the run's header) or, without one, in memory."""

    def __init__(self, path: Path | None, header: Mapping[str, Any], *, resume: bool = False) -> None:
        """Starts a journal, or with `resume` goes on with one that is there.

        Raises FileExistsError for one that is there without `resume`, ValueError for one of another run.
        """
        self.records: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if path is None:
            return
        if path.exists() and not resume:
            raise FileExistsError(f"{path}: an unfinished run is there; go on with it (--resume) or remove it")
        kept = self._read(path, header) if path.exists() else [json.dumps(header)]
        # Written anew and swapped in: what an interrupt has left of a last line goes.
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def _read(self, path: Path, header: Mapping[str, Any]) -> list[str]:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # a line without its end was cut off
        kept = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: expected a JSON object, found damage: {error}") from None
            if number == 1:
                _check_same_run(row, header, str(path))
            else:
                self.records[record_key(row)] = row
            kept.append(line)
        return kept or [json.dumps(header)]

    def add(self, record: dict[str, Any]) -> None:
        """Keeps one answer; it is in the file when this returns."""
        self.records[record_key(record)] = record
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _check_same_run(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    for name in ("settings", "prompts", "model", "shard"):
        if found.get(name) != json.loads(json.dumps(expected[name])):
            raise ValueError(
                f"{where}: {name}: expected {json.dumps(expected[name])} of this run, found {json.dumps(found.get(name))}"
            )
