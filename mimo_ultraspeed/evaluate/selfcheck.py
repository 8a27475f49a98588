"""Scores every disputed switch of a drafter on the same answers. The setting in use should be the best of them.

A drafter that is wired wrongly does not fail: it drafts worse, which looks like a drafter that was trained badly. Whoever trained
it did so with one setting of every switch, so that setting shows: each is tried against recorded answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..rounds import bootstrap_interval
from .drafter import Ids, NumpyDrafter, Wiring
from .dump import Answer, Dump

__all__ = ["Score", "SelfCheck", "compare", "differing", "places", "score", "variants"]

Array = NDArray[np.float32]
_RESAMPLES = 1000
_UNIT = 16  # most neighbouring anchors that are drawn together: they share most of their context
_LEAST_UNITS = 20
_MARGIN = 0.05  # of agreement: the engine rounds where numpy does not, and near-ties fall either way


@dataclass(frozen=True)
class Score:
    """How one setting drafts."""

    name: str
    wiring: Wiring
    in_use: bool
    length: float
    """Mean of 1 + leading drafts that are the answer's own tokens, over all anchors."""
    differs: float
    """Share of drafts that are not those of the setting in use; 0: this switch has no effect on these answers."""
    lead: tuple[float, float]
    """99 % interval of its length less that of the setting in use."""

    @property
    def better(self) -> bool:
        """Clearly better than the setting in use."""
        return not self.in_use and self.lead[0] > 0


@dataclass(frozen=True)
class SelfCheck:
    """All scores, the best first."""

    scores: tuple[Score, ...]
    anchors: int
    agreement: Mapping[str, float] = field(default_factory=dict)
    """By setting: the share of the engine's own drafts that are the same; empty when it was not asked."""

    @property
    def passed(self) -> bool:
        """No setting is clearly better than the one in use, and none is nearer to what the engine drafts."""
        return not any(one.better for one in self.scores) and self.engine_runs in (None, self.in_use.name)

    @property
    def in_use(self) -> Score:
        """The setting in use."""
        return next(one for one in self.scores if one.in_use)

    @property
    def engine_runs(self) -> str | None:
        """The setting whose drafts the engine's agree with; the one in use unless another does clearly more. None: not asked."""
        if not self.agreement:
            return None
        best = max(self.agreement.values())
        mine = self.in_use.name
        return mine if self.agreement[mine] >= best - _MARGIN else max(self.agreement, key=self.agreement.__getitem__)

    def table(self) -> str:
        """Text: a line per setting and a verdict."""
        rows = [("", "setting", "length", "drafts changed", "lead, 99 %", "engine agrees")]
        for one in self.scores:
            effect = "-" if one.in_use else f"{one.differs:.0%}" if one.differs else "none: no effect here"
            lead = "-" if one.in_use else f"{one.lead[0]:+.3f} to {one.lead[1]:+.3f}"
            agrees = f"{self.agreement[one.name]:.0%}" if one.name in self.agreement else ""
            rows.append(
                ("in use" if one.in_use else "BETTER" if one.better else "", one.name, f"{one.length:.3f}", effect, lead, agrees)
            )
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", f"{self.anchors} anchors; the checkpoint's own setting should be first", self.verdict()])

    def verdict(self) -> str:
        """One line: what is wrong, if anything is."""
        better = [one.name for one in self.scores if one.better]
        if better:
            return f"FAILED: {better[0]} drafts clearly better than {self.in_use.name}, which is in use"
        if not self.passed:
            return f"FAILED: the engine drafts as with {self.engine_runs}, not as with {self.in_use.name}"
        if self.in_use.length < 1.1:
            return "nothing shown: hardly any draft is right in any setting, as with a drafter that was not trained for this model"
        return "passed"

    def __str__(self) -> str:
        return self.table()


def variants(
    checkpoint: Wiring, *, head_dim: int, has_sinks: bool, has_mask: bool, target_theta: float, top: int
) -> dict[str, Wiring]:
    """The checkpoint's setting and each with one switch turned. top: the target's last layer."""
    found = {"as the checkpoint says": checkpoint}
    bases = [base for base in dict.fromkeys((10_000.0, 5_000_000.0, target_theta)) if base != checkpoint.rope_theta]
    for base in bases:
        found[f"rope base {base:g}"] = replace(checkpoint, rope_theta=base)
    for base in bases:
        found[f"rope base {base:g} for context keys"] = replace(checkpoint, context_rope_theta=base)
    for width in dict.fromkeys((head_dim, head_dim // 2, head_dim // 4)):
        if width not in (checkpoint.rotary_dim, 0) and width % 2 == 0:
            found[f"{width} of {head_dim} dims rotated"] = replace(checkpoint, rotary_dim=width)
    if has_sinks:
        found["no sinks" if checkpoint.sinks else "sinks"] = replace(checkpoint, sinks=not checkpoint.sinks)
    for scale in dict.fromkeys((1.0, 0.612)):
        if scale != checkpoint.value_scale:
            found[f"values times {scale:g}"] = replace(checkpoint, value_scale=scale)
    if has_mask:
        found["the target's embedding of the mask token"] = replace(checkpoint, mask_embedding=False)
    for shift in (-1, 1):
        moved = tuple(min(max(tap + shift, 0), top) for tap in checkpoint.taps)
        found[f"taps {shift:+d} layer"] = replace(checkpoint, taps=moved)
    if checkpoint.window:
        other = "anchor" if checkpoint.window_rule == "query" else "query"
        found[f"window counted from the {other}"] = replace(checkpoint, window_rule=other)
        found["full attention, no window"] = replace(checkpoint, window=0)
    flipped = (not checkpoint.causal[0], not checkpoint.causal[1])
    found["causal in the block" if flipped[1] else "not causal in the block"] = replace(checkpoint, causal=flipped)
    return found


def score(
    drafter: NumpyDrafter, embed: Callable[[Ids], Array], dump: Dump, wiring: Wiring, stride: int
) -> tuple[NDArray[np.int64], Ids]:
    """Lengths [anchors] of what was right, 1 for the anchor's own token included, and the drafts [anchors, B - 1].

    Every stride-th token of an answer is an anchor if a whole block fits behind it: the context is the recorded one, so this is
    what a round that starts there would accept when the target decodes greedily.
    """
    lengths, drafts = [], []
    for answer in dump.answers:
        anchors = places(answer, drafter.shape.block, stride)
        if not len(anchors):
            continue
        embedded = embed(answer.tokens)
        context = drafter.context(dump.taps(answer, wiring.taps))
        drafted = drafter.draft(wiring, context, anchors, embedded[anchors], answer.tokens[anchors])
        wanted = answer.tokens[anchors[:, None] + np.arange(1, drafter.shape.block)]
        lengths.append(1 + np.cumprod(drafted == wanted, 1).sum(1))
        drafts.append(drafted)
    if not lengths:
        raise ValueError(f"dump: expected an answer of more than {drafter.shape.block} tokens, found none")
    return np.concatenate(lengths), np.concatenate(drafts)


def places(answer: Answer, block: int, stride: int) -> Ids:
    """The anchors of an answer."""
    return np.arange(answer.start, len(answer.tokens) - block + 1, stride)


def compare(
    drafter: NumpyDrafter,
    embed: Callable[[Ids], Array],
    dump: Dump,
    settings: Mapping[str, Wiring],
    in_use: str,
    *,
    stride: int = 1,
    engine: Mapping[tuple[int, int], Ids] | None = None,
    seed: int = 0,
) -> SelfCheck:
    """Scores settings, by name, on a dump.

    embed: rows [N, H] of the target's embedding for ids [N]. in_use: name of what the engine is told to do. stride: of anchors.
    engine: drafts [B - 1] that the engine itself made, by number of the answer and anchor.
    """
    scored = {name: score(drafter, embed, dump, wiring, stride) for name, wiring in settings.items()}
    base_lengths, base_drafts = scored[in_use]
    at: dict[tuple[int, int], int] = {}
    for number, answer in enumerate(dump.answers):
        for anchor in places(answer, drafter.shape.block, stride):
            at[number, int(anchor)] = len(at)
    agreement = {}
    if engine:
        rows, theirs = [at[key] for key in engine], np.stack(list(engine.values()))
        agreement = {name: float((drafts[rows] == theirs).mean()) for name, (_, drafts) in scored.items()}
    scores = [
        Score(
            name,
            settings[name],
            name == in_use,
            float(lengths.mean()),
            float((drafts != base_drafts).mean()),
            _interval(lengths - base_lengths, seed),
        )
        for name, (lengths, drafts) in scored.items()
    ]
    ranked = sorted(scores, key=lambda one: (-one.length, not one.in_use))
    return SelfCheck(tuple(ranked), len(base_lengths), agreement)


def _interval(difference: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """99 % bootstrap interval of the mean, by runs of neighbouring anchors."""
    size = min(_UNIT, max(1, len(difference) // _LEAST_UNITS))
    units = np.split(difference, range(size, len(difference), size))
    sums, counts = np.array([part.sum() for part in units]), np.array([len(part) for part in units])
    return bootstrap_interval(sums, counts, seed=seed, resamples=_RESAMPLES, level=0.99)


def differing(settings: Mapping[str, Wiring], wiring: Wiring) -> tuple[dict[str, Wiring], str]:
    """The settings with the one in use among them, and its name."""
    for name, known in settings.items():
        if known == wiring:
            return dict(settings), name
    return {**settings, "as given": wiring}, "as given"
