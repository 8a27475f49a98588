"""What was measured: every sample, and the machine it was measured on."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hardware import cores, memory_nodes, processor
from ..provenance import software

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from .settings import Settings

__all__ = ["SCHEMA", "BenchResult", "Run"]

SCHEMA = 1


@dataclass
class Run:
    """One number of threads. Lists of samples are in the order of rounds; a kind of work that was not reached is not there."""

    threads: int
    backend: str
    load: dict[str, float]
    memory: dict[str, int]
    samples: dict[str, list[float]] = field(default_factory=dict)
    profiles: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, name: str, *values: float) -> None:
        """More samples of one kind."""
        self.samples.setdefault(name, []).extend(values)


@dataclass
class BenchResult:
    """The outcome of a benchmark. `str(result)` is the report, `plot` a figure, `to_dict` and `write_json` everything.

    The JSON object (schema 1):

      schema       1
      version      of this package; commit: of its git checkout ("+" when files differ from it), or null
      started      UTC, ISO 8601
      interrupted  true if the measurement was ended early; what was complete by then is there
      machine      processor, system, python, cores (available to the process), memory_nodes (with such cores), load_average (at
                   the start and the end, of one minute, or null)
      model        name, layers, hidden, vocabulary, experts, experts_per_token
      settings     what was asked for: prompt_tokens, new_tokens, widths, threads, precision, batch, rounds, seconds
      runs         one for each number of threads:
        threads, backend ("cpu:avx2")
        load       seconds to read and pack the weights; bytes they take packed (files are as a rule in the page cache)
        memory     bytes: weights, embedding, workspace, total, kv_per_position, kv_fixed (per sequence), read_per_token (weights
                   read by a step of one row), process_peak (resident; of the first run only, and of all the process did)
        samples    name -> raw samples, one a round but for steps, which have several:
                     "decode"                seconds per token after the first, one sequence
                     "prefill N"             seconds to the first token of a prompt of N
                     "step W"                seconds of an engine step of W rows of one sequence, without sampling
                     "draft B"               seconds in which the drafter fills a block of B in the course of an answer, choice of
                                             tokens included; a median of each round
                     "batch"                 tokens per second of all answers together, while all are decoded
                     "batch seconds"         from the first submission to the last token
                     "read_bandwidth"        bytes per second that as many threads read, just before "decode"
                     "int8_peak"             products per second, just after the prefills (not on every CPU)
        profiles   "decode", "step W", "draft B", "prefill N" -> one a round: steps (of a draft: blocks), rows, total_ns (inside
                   steps, by the driver's thread), wall_ns (as the caller saw it; of "decode" only), read_bandwidth (of that
                   round), and ops: name -> calls, busy_ns and wait_ns (at the barrier after it) summed over threads, wall_ns (of
                   the driver's thread), bytes read, macs; all summed over the steps
        figures    computed from the samples: see figures.py
    """

    model: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    version: str
    commit: str | None
    started: str
    runs: list[Run] = field(default_factory=list)
    interrupted: bool = False

    @classmethod
    def start(cls, checkpoint: Checkpoint, name: str, settings: Settings) -> BenchResult:
        """A result with no runs yet."""
        config = checkpoint.config
        return cls(
            model={
                "name": name,
                "layers": config.num_hidden_layers,
                "hidden": config.hidden_size,
                "vocabulary": config.vocab_size,
                "experts": config.n_routed_experts,
                "experts_per_token": config.num_experts_per_tok,
            },
            settings=dataclasses.asdict(settings),
            machine={
                "processor": processor(),
                "system": platform.platform(),
                "python": platform.python_version(),
                "cores": cores(),
                "memory_nodes": len(memory_nodes()),
                "load_average": [load_average(), None],
            },
            **software(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that the class describes."""
        from .figures import figures

        fields = {"schema": SCHEMA} | dataclasses.asdict(self)
        for run, written in zip(self.runs, fields["runs"], strict=True):
            written["figures"] = {name: figure.to_dict() for name, figure in figures(run).items()}
        return fields

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict()` to a file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The matplotlib Figure, also written to `path` (.png, .svg or .pdf) if given. ImportError without matplotlib."""
        from .plot import plot

        return plot(self, path)

    def __str__(self) -> str:
        from .report import report

        return report(self)

    def __repr__(self) -> str:
        threads = ", ".join(str(run.threads) for run in self.runs)
        return f"BenchResult({self.model['name']!r}, threads {threads}{', interrupted' if self.interrupted else ''})"


def load_average() -> float | None:
    """Of the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
