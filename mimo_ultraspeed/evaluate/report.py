"""What a run showed: figures per scenario and way of decoding, a table for the terminal, JSON."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ..rounds import Rounds, figures
from .document import load_document, save_document
from .journal import record_key
from .scenarios import PUBLISHED

__all__ = ["Evaluation", "merge"]

FORMAT = "mimo-ultraspeed acceptance 1"
_HEADER = ("format", "settings", "prompts", "model", "machine", "software", "shard")
_KEYS = (*_HEADER, "complete", "answers_expected", "figures", "answers")
ALL = "all"
"""The row that pools every scenario."""

_COLUMNS = (
    ("answers", "{requests}"),
    ("tokens/round", "{acceptance_length:.2f}"),
    ("95 %", "{low:.2f}-{high:.2f}"),
    ("per answer", "{acceptance_length_request_mean:.2f}"),
    ("drafts", "{drafts_per_round:.1f}"),
    ("draft ms", "{draft_ms:.2f}"),
    ("verify ms", "{verify_ms:.2f}"),
    ("break-even", "{break_even}"),
    ("tokens/s", "{tokens_per_second:.1f}"),
    ("plain", "{plain_tokens_per_second:.1f}"),
    ("speed-up", "{speed_up}"),
    ("same", "{same}"),
    ("MiMo", "{published}"),
)
_NOTES = """\
tokens/round  handed out by a round, the target's own token included, pooled; 95 %: bootstrap over conversations
per answer    mean over answers of the mean over their rounds; drafts: verified per round
break-even    tokens/round from which drafting is faster here: (draft + verify) / plain seconds per token
same          answers that are token for token those of plain decoding; rejection sampling is not meant to be
MiMo          published for MiMo-V2.5-Pro with its own drafter; prompts and sampling are not: no target for another model"""


def _order(header: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[Any, ...]:
    scenarios = list(header["prompts"])
    modes = ["plain", *header["settings"]["modes"]]
    kinds = ["", *header["settings"]["verify"]]
    mode, _, kind = record["variant"].partition(" ")
    return (
        record["group"],
        scenarios.index(record["scenario"]),
        record["index"],
        header["settings"]["temperatures"].index(record["temperature"]),
        record["turn"],
        modes.index(mode),
        kinds.index(kind),
    )


@dataclass
class Evaluation:
    """The result of `acceptance`. `str()` is the table; `data` is all of it, ready for JSON."""

    data: dict[str, Any] = field(repr=False)

    @classmethod
    def build(cls, header: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> Self:
        """From the header of a run, or of several that were merged, and its answers in any order."""
        answers = sorted((dict(record) for record in records), key=lambda record: _order(header, record))
        wanted = _wanted(header)
        data = {name: header[name] for name in _HEADER}
        data |= {"complete": len(answers) == wanted, "answers_expected": wanted}
        data |= {"figures": _figures(header, answers), "answers": answers}
        return cls(json.loads(json.dumps(data)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote. Raises OSError, and ValueError for another file."""
        data = load_document(path, "evaluate acceptance", FORMAT)
        missing = [name for name in _KEYS if name not in data]
        if missing:
            raise ValueError(f"{path}: expected a result of `evaluate acceptance`, found one without {', '.join(missing)}")
        return cls(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        save_document(path, self.data)

    @property
    def complete(self) -> bool:
        """Every answer of this run (or shard) is in it."""
        return bool(self.data["complete"])

    @property
    def figures(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By scenario (and "all"), then by way of decoding ("both T=0"): those of `rounds.figures`, and how plain decoding did."""
        found: dict[str, dict[str, dict[str, Any]]] = self.data["figures"]
        return found

    def table(self) -> str:
        """Text: a line per scenario and way of decoding, the conditional rates per position below."""
        rows = [["", "", *(name for name, _ in _COLUMNS)]]
        rates = [["", "accepted, given all before it", *map(str, range(1, self._positions() + 1))]]
        for scenario, by_variant in self.figures.items():
            for variant, one in by_variant.items():
                rows.append([scenario, variant, *_cells(scenario, one)])
                rates.append([scenario, variant, *("-" if r is None else f"{r:.2f}" for r in one["conditional_rate"])])
        if len(rows) == 1:
            return "no answers yet"
        return f"{_align(rows)}\n\n{_align(rates)}\n\n{self.description()}\n\n{_NOTES}"

    def description(self) -> str:
        """What was measured on what, in a few lines."""
        model, settings, machine = self.data["model"], self.data["settings"], self.data["machine"]
        machines = machine if isinstance(machine, list) else [machine]
        sets = ", ".join(f"{name} {one['sha256'][:12]}" for name, one in self.data["prompts"].items())
        found, wanted = len(self.data["answers"]), self.data["answers_expected"]
        skipped = sum("skipped" in record for record in self.data["answers"])
        lines = [
            f"{model['name']}, {model['precision']}, {model['backend']}, {model['threads']} threads; "
            + "; ".join(f"{one['cpu']}, {one['cores']} cores" for one in machines),
            f"mimo-ultraspeed {self.data['software']['version']} {self.data['software']['commit'] or ''}; prompts {sets}",
            f"at most {settings['max_new_tokens']} tokens, width {settings['width'] or 'by cost'}, seed {settings['seed']}",
        ]
        if settings["simulate_acceptance"] is not None:
            lines.append(f"SIMULATED: rounds were made to give {settings['simulate_acceptance']} tokens, whatever the drafter")
        if found < wanted:
            lines.append(f"INCOMPLETE: {found} of {wanted} answers")
        if skipped:
            lines.append(f"{skipped} answers left out: their prompt does not fit into the context")
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Acceptance lengths, conditional rates and histograms as a matplotlib figure, saved if a path is given.

        ImportError without matplotlib: `pip install 'mimo-ultraspeed[notebook]'`.
        """
        from .plot import draw

        return draw(self, path)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table())}</pre>"

    def _positions(self) -> int:
        return max((len(one["conditional_rate"]) for by in self.figures.values() for one in by.values()), default=0)


def merge(results: Sequence[Evaluation | str | os.PathLike[str]]) -> Evaluation:
    """Puts shards of a run together: the same figures as one run would give.

    Raises ValueError when they differ in settings, prompts or model, or have an answer twice.
    """
    found = [one if isinstance(one, Evaluation) else Evaluation.load(one) for one in results]
    if not found:
        raise ValueError("merge: expected at least one result, found none")
    first = found[0].data
    records: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for at, one in enumerate(found):
        for name in ("settings", "prompts", "model"):
            if one.data[name] != first[name]:
                raise ValueError(f"merge: result {at + 1}: {name}: expected that of result 1, found {json.dumps(one.data[name])}")
        for record in one.data["answers"]:
            if record_key(record) in records:
                raise ValueError(f"merge: result {at + 1}: {record_key(record)} is in another result too")
            records[record_key(record)] = record
    machines: list[Any] = []
    for one in found:
        listed = one.data["machine"] if isinstance(one.data["machine"], list) else [one.data["machine"]]
        machines += [each for each in listed if each not in machines]
    header = first | {"shard": [1, 1], "machine": machines[0] if len(machines) == 1 else machines}
    return Evaluation.build(header, records.values())


# ---- inside ----


def _wanted(header: Mapping[str, Any]) -> int:
    """Answers that the run, or its shard, consists of."""
    from .run import Settings, variants

    settings = Settings.of(header["settings"])
    number, parts = header["shard"]
    turns: list[int] = [count for one in header["prompts"].values() for count in one["turns"]]
    kinds = 0
    for group in ("drafter", "lookup"):
        found = [len(variants(settings, group, t)) for t in settings.temperatures]
        kinds += sum(count for count in found if count > 1)  # a group of plain decoding alone is not run
    return sum(turns[number - 1 :: parts]) * kinds


def _figures(header: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    kept = [record for record in answers if "skipped" not in record]
    plain = {record_key(record)[:-1]: record for record in kept if record["variant"] == "plain"}
    block = max((max(r["rounds"]["width"], default=1) for r in kept if "rounds" in r), default=1)
    draft = header["model"]["draft"]
    block = max(block, draft["block_size"] if draft else 1)
    found: dict[str, dict[str, Any]] = {}
    for scenario in [*header["prompts"], ALL]:
        drafted = [r for r in kept if "rounds" in r and scenario in (r["scenario"], ALL) and record_key(r)[:-1] in plain]
        names = dict.fromkeys((r["temperature"], r["group"], r["variant"]) for r in drafted)
        ways = sorted(names, key=lambda name: header["settings"]["temperatures"].index(name[0]))
        rows = {}
        for way in ways:
            mine = [r for r in drafted if (r["temperature"], r["group"], r["variant"]) == way]
            rows[f"{way[2]} T={way[0]:g}"] = _compare(
                mine, [plain[record_key(r)[:-1]] for r in mine], block, header["settings"]["seed"]
            )
        if rows:
            found[scenario] = rows
    if len(header["prompts"]) == 1:
        found.pop(ALL, None)
    return found


def _compare(mine: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], block: int, seed: int) -> dict[str, Any]:
    answers = [
        Rounds.of(
            r["rounds"],
            completion_tokens=r["completion_tokens"],
            finish_reason=r["finish_reason"],
            decode_seconds=r["decode_seconds"],
        )
        for r in mine
    ]
    told = figures(answers, block=block, units=[f"{r['scenario']} {r['id']}" for r in mine], seed=seed)
    tokens, seconds = sum(max(r["completion_tokens"] - 1, 0) for r in plain), sum(r["decode_seconds"] for r in plain)
    per_token = seconds / tokens if tokens else 0.0
    told["plain_tokens_per_second"] = tokens / seconds if seconds > 0 else 0.0
    told["plain_seconds_per_token"] = per_token
    told["speed_up"] = told["tokens_per_second"] * per_token if per_token else None
    told["break_even"] = (told["draft_seconds"] + told["verify_seconds"]) / per_token if per_token else None
    told["same_as_plain"] = sum(a["token_ids_sha256"] == b["token_ids_sha256"] for a, b in zip(mine, plain, strict=True))
    return told


def _cells(scenario: str, one: Mapping[str, Any]) -> list[str]:
    low, high = one["acceptance_length_ci95"]
    shown = dict(one) | {"low": low, "high": high, "draft_ms": 1e3 * one["draft_seconds"], "verify_ms": 1e3 * one["verify_seconds"]}
    shown["break_even"] = "-" if one["break_even"] is None else f"{one['break_even']:.2f}"
    shown["speed_up"] = "-" if one["speed_up"] is None else f"{one['speed_up']:.2f}"
    shown["same"] = f"{one['same_as_plain']}/{one['requests']}"
    shown["published"] = f"{PUBLISHED[scenario.lower()]:.2f}" if scenario.lower() in PUBLISHED else "-"
    return [text.format(**shown) for _, text in _COLUMNS]


def _align(rows: Sequence[Sequence[str]]) -> str:
    columns = max(map(len, rows))
    filled = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[at]) for row in filled) for at in range(columns)]
    lines = (
        "  ".join(f"{cell:<{w}}" if at < 2 else f"{cell:>{w}}" for at, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in filled
    )
    return "\n".join(line.rstrip() for line in lines)
