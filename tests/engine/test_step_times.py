"""Steps that are run for their time: their shape, their counters, and that nobody else notices them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.errors import ContextOverflowError, EngineError
from mimo_ultraspeed.make import make


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


@pytest.fixture(scope="module")
def engine(arguments: tuple[Any, Any, Any]) -> Iterator[Any]:
    opened = _probe.Engine(*arguments, threads=2, max_context=600)
    opened.load()
    yield opened
    opened.close()


def test_every_width_has_a_time_in_every_round(engine: Any) -> None:
    times = engine.step_times([1, 3, 128, 1], context=40, repeats=4)
    assert times.shape == (4, 4) and times.dtype == np.int64
    assert (times > 0).all()
    assert engine.step_times([2], context=0).shape == (3, 1)
    assert engine.step_times([128], context=600 - 128, repeats=1).shape == (1, 1)


def test_a_profile_counts_the_timed_steps_alone(engine: Any) -> None:
    profile = engine.step_profile(5, context=200, repeats=7)
    assert (profile["steps"], profile["rows"]) == (7, 35)
    assert profile["ops"]["qkv"]["calls"] == 7 * 4
    assert profile["ops"]["head"]["macs"] == 7 * 5 * 512 * 160
    engine.logits([1, 2, 3])
    assert engine.profile(False)["steps"] == 7  # counting stopped with the last timed step


def test_keys_that_rows_share_count_once_as_bytes(engine: Any) -> None:
    """Full layers: 2 key/value heads, all positions; layers with a window of 8: 4 heads. BF16 keys of 48 and values of 32."""
    attention = engine.step_profile(5, context=200, repeats=7)["ops"]["attention"]
    assert attention["bytes"] == 7 * 2 * (48 + 32) * (2 * 2 * 205 + 2 * 4 * 12)
    assert attention["macs"] == 7 * 8 * (48 + 32) * (2 * sum(range(201, 206)) + 2 * 5 * 8)


def test_answers_do_not_notice(engine: Any) -> None:
    prompt = list(range(30))
    want = engine.logits(prompt)
    job = engine.submit(prompt, max_new_tokens=60)
    engine.step_times([8, 1], context=100)
    text: list[int] = []
    while (event := job.next()) is not None:
        text += event[0]
    again = engine.submit(prompt, max_new_tokens=60)
    while (event := again.next()) is not None:
        assert event[0] == text[: len(event[0])]
        text = text[len(event[0]) :]
    assert np.array_equal(engine.logits(prompt), want)


@pytest.mark.parametrize(
    ("widths", "options", "kind", "told"),
    [
        ([0], {}, ValueError, "widths: expected 1 to 128 rows, found 0"),
        ([1, 129], {}, ValueError, "widths: expected 1 to 128 rows, found 129"),
        ([-1], {}, ValueError, "widths: item 0"),
        ([], {}, ValueError, "widths: expected at least one"),
        ([1.5], {}, TypeError, "widths"),
        ([1], {"repeats": 0}, ValueError, "repeats: expected 1 or more, found 0"),
        ([1], {"context": -1}, ValueError, "context: expected 0 or more, found -1"),
        ([8], {"context": 593}, ContextOverflowError, "a context of 593 and a step of 8 rows need more than the 600 positions"),
    ],
)
def test_wrong_arguments(engine: Any, widths: list[Any], options: dict[str, int], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        engine.step_times(widths, **options)


def test_weights_must_be_there(arguments: tuple[Any, Any, Any], tmp_path: Path) -> None:
    unloaded = _probe.Engine(*arguments, threads=1)
    with pytest.raises(EngineError, match="not loaded"):
        unloaded.step_times([1])
    with pytest.raises(EngineError, match="not loaded"):
        unloaded.step_profile(1)
    unloaded.close()
