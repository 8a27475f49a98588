"""Each way of wiring a drafter wrongly is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_drafter import BLOCK, DIM, WINDOW, Constructed

import mimo_ultraspeed as mu
from mimo_ultraspeed.evaluate.drafter import Wiring
from mimo_ultraspeed.evaluate.selfcheck import Score, SelfCheck, compare, differing, variants

RIGHT = "as the checkpoint says"


@pytest.fixture(scope="module")
def made(tiny_model: mu.Model, tmp_path_factory: pytest.TempPathFactory) -> Constructed:
    return Constructed(tiny_model, tmp_path_factory.mktemp("drafter") / "dflash")


def settings(made: Constructed) -> dict[str, Wiring]:
    top = made.layers[-1]
    return variants(made.wiring, head_dim=DIM, has_sinks=True, has_mask=True, target_theta=640_000.0, top=top)


def check(made: Constructed, wiring: Wiring) -> SelfCheck:
    found, name = differing(settings(made), wiring)
    return compare(made.drafter, lambda ids: made.embedding[ids], made.dump, found, name, stride=BLOCK)


def test_the_right_wiring_is_first_and_every_switch_has_an_effect(made: Constructed) -> None:
    found = check(made, made.wiring)
    assert found.passed and found.verdict() == "passed"
    assert found.scores[0].name == RIGHT and found.scores[0].length == BLOCK
    assert found.anchors == 24
    without = {one.name for one in found.scores[1:] if one.differs == 0 or one.length > BLOCK - 0.1}
    assert not without, found.table()
    assert len(found.scores) == 15
    assert found.table().splitlines()[1].startswith("in use")


WRONG: dict[str, dict[str, Any]] = {
    "tap off by one": {"taps": "+1"},
    "tap off by one, down": {"taps": "-1"},
    "missing mask embedding": {"mask_embedding": False},
    "wrong rotary width": {"rotary_dim": DIM},
    "full attention instead of the window": {"window": 0},
    "the target's rope base": {"rope_theta": 640_000.0},
    "two rope bases": {"context_rope_theta": 5_000_000.0},
    "no sinks": {"sinks": False},
    "no value scale": {"value_scale": 1.0},
    "causal": {"causal": (True, True)},
    "window counted from the anchor": {"window_rule": "anchor"},
    "not among the variants": {"window": WINDOW // 2},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_wiring_is_caught(made: Constructed, name: str) -> None:
    change = dict(WRONG[name])
    if "taps" in change:
        change["taps"] = tuple(min(max(tap + int(change["taps"]), 0), made.layers[-1]) for tap in made.taps)
    wrong = replace(made.wiring, **change)
    known, given = differing({RIGHT: made.wiring}, wrong)
    found = compare(made.drafter, lambda ids: made.embedding[ids], made.dump, known, given, stride=BLOCK)
    assert not found.passed
    assert found.scores[0].name == RIGHT and found.scores[0].better
    assert RIGHT in found.verdict() and "FAILED" in found.verdict()


def test_an_untrained_drafter_shows_nothing(made: Constructed) -> None:
    draw = np.random.default_rng(1)
    dump = replace(
        made.dump, answers=tuple(replace(one, tokens=draw.integers(0, 512, len(one.tokens))) for one in made.dump.answers)
    )
    found = compare(made.drafter, lambda ids: made.embedding[ids], dump, {RIGHT: made.wiring}, RIGHT, stride=BLOCK)
    assert "nothing shown" in found.verdict()


def test_what_the_engine_runs_is_told_by_its_drafts(made: Constructed) -> None:
    found = settings(made)
    wrong = next(name for name in found if name.startswith("taps +1"))

    def engine(wiring: Wiring) -> dict[tuple[int, int], Any]:
        answer = made.dump.answers[0]
        anchors = np.array([answer.start, answer.start + BLOCK])
        embedded = made.embedding[answer.tokens]
        context = made.drafter.context(made.dump.taps(answer, wiring.taps))
        drafts = made.drafter.draft(wiring, context, anchors, embedded[anchors], answer.tokens[anchors])
        return {(0, int(anchor)): row for anchor, row in zip(anchors, drafts, strict=True)}

    for name, expected in ((RIGHT, "passed"), (wrong, f"FAILED: the engine drafts as with {wrong}, not as with {RIGHT}")):
        told = compare(
            made.drafter, lambda ids: made.embedding[ids], made.dump, found, RIGHT, stride=BLOCK, engine=engine(found[name])
        )
        assert told.agreement[name] == 1.0 and told.verdict() == expected
        assert told.passed == (name == RIGHT)


def test_a_verdict_needs_a_clear_lead() -> None:
    wiring = Wiring(taps=(1,), rope_theta=1e4, rotary_dim=8)
    used = Score("used", wiring, True, 2.0, 0.0, (0.0, 0.0))
    for lead, better in (((-0.01, 0.3), False), ((0.01, 0.3), True)):
        other = Score("other", wiring, False, 2.1, 0.5, lead)
        assert other.better is better and SelfCheck((other, used), 50).passed is not better
    for agreement, runs in ((0.97, "used"), (0.90, "other")):
        found = SelfCheck((used, other), 50, {"used": agreement, "other": 0.99})
        assert found.engine_runs == runs
