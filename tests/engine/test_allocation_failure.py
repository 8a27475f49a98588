"""Every allocation fails once: the error is a clean MemoryError, nothing leaks, and the engine goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """The same for a model with a drafter of some ids only and a Markov head: positional and keyword arguments."""
    options = {"vocab": 100, "markov_rank": 4}
    checkpoint = Checkpoint.open(make(tmp_path_factory.mktemp("made") / "drafted", draft=options, progress=False))
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    config, tensors, files = checkpoint.core_arguments()
    return (config, tensors, files + [str(path) for path in drafter.files]), {"draft": drafter.to_core()}


@pytest.fixture(autouse=True)
def _allocations_work_again() -> Iterator[None]:
    yield
    _probe.alloc_fail(0)


def sweep(action: Callable[[], Any], persistent: bool) -> int:
    """Fails the n-th allocation of the action for n = 1, 2, ... until it succeeds; returns how many failed."""
    for n in range(1, 1000):
        before = _probe.alloc_stats()["live_blocks"]
        _probe.alloc_fail(n, persistent)
        try:
            action()
        except MemoryError as error:
            assert "out of memory" in str(error)
        else:
            _probe.alloc_fail(0)
            return n - 1
        finally:
            _probe.alloc_fail(0)
        assert _probe.alloc_stats()["live_blocks"] == before, f"allocation {n} leaks"
    raise AssertionError("a thousand allocations did not suffice")


@pytest.mark.parametrize("persistent", [False, True])
def test_open_and_load(arguments: tuple[Any, Any, Any], persistent: bool) -> None:
    def open_and_load() -> None:
        engine = _probe.Engine(*arguments, threads=3)
        try:
            engine.load()
        finally:
            engine.close()

    assert sweep(open_and_load, persistent) > 20


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_decode(arguments: tuple[Any, Any, Any], precision: str, persistent: bool) -> None:
    engine = _probe.Engine(*arguments, threads=2, precision=precision)
    engine.load()

    def answer(seed: int) -> list[int]:
        # a prompt of its own each time: an idle cache would save allocations
        job = engine.submit([seed, 2, 3], max_new_tokens=8, repetition_penalty=1.1, logprobs=2, eos=[511])
        out: list[int] = []
        while (event := job.next()) is not None:
            out += event[0]
        return out

    want = answer(1)
    for seed in range(2, 8):  # fills the idle caches, so that the count of live blocks is stable
        answer(seed)
    prompts = iter(range(10, 512))
    assert sweep(lambda: answer(next(prompts)), persistent) >= 6
    assert answer(1) == want


@pytest.mark.parametrize("persistent", [False, True])
def test_decode_with_drafts(arguments: tuple[Any, Any, Any], persistent: bool) -> None:
    engine = _probe.Engine(*arguments, threads=2)
    engine.load()
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "speculative": True, "lookup": True, "verify": "rejection"}

    def answer(seed: int) -> list[int]:
        job = engine.submit([seed, 2, 3, seed, 2], **options)
        out: list[int] = []
        while (event := job.next()) is not None:
            out += event[0]
        return out

    want = answer(1)
    for seed in range(2, 8):
        answer(seed)
    prompts = iter(range(10, 512))
    assert sweep(lambda: answer(next(prompts)), persistent) >= 9
    assert answer(1) == want


@pytest.mark.parametrize("persistent", [False, True])
def test_forward(arguments: tuple[Any, Any, Any], persistent: bool) -> None:
    engine = _probe.Engine(*arguments, threads=2)
    engine.load()
    want = engine.logits([1, 2, 3])
    assert sweep(lambda: engine.logits([1, 2, 3]), persistent) >= 3
    assert sweep(lambda: engine.hidden_states([1, 2, 3], [0]), persistent) >= 3
    assert sweep(lambda: engine.plan(4), persistent) == 2
    assert (engine.logits([1, 2, 3]) == want).all()


@pytest.mark.parametrize("persistent", [False, True])
def test_open_and_load_with_a_drafter(drafted: tuple[tuple[Any, Any, Any], dict[str, Any]], persistent: bool) -> None:
    def open_and_load() -> None:
        engine = _probe.Engine(*drafted[0], **drafted[1], threads=3)
        try:
            engine.load()
        finally:
            engine.close()

    assert sweep(open_and_load, persistent) > 40


@pytest.mark.parametrize("persistent", [False, True])
def test_draft_logits(drafted: tuple[tuple[Any, Any, Any], dict[str, Any]], persistent: bool) -> None:
    engine = _probe.Engine(*drafted[0], **drafted[1], threads=2)
    engine.load()
    want = engine.draft_logits([1, 2, 3], [1, 2])
    assert sweep(lambda: engine.draft_logits([1, 2, 3], [1, 2]), persistent) >= 6
    assert sweep(lambda: engine.plan(4, draft=True), persistent) == 2
    assert (engine.draft_logits([1, 2, 3], [1, 2]) == want).all()


def test_decoding_does_not_allocate(arguments: tuple[Any, Any, Any]) -> None:
    engine = _probe.Engine(*arguments, threads=2)
    engine.load()
    job = engine.submit([1, 2, 3], max_new_tokens=600, queue_bytes=0)
    assert job.next() is not None
    before = _probe.alloc_stats()
    while job.next() is not None:
        pass
    after = _probe.alloc_stats()
    assert after["calls"] == before["calls"]
    assert after["refused"] == before["refused"]
    assert after["peak_bytes"] <= before["peak_bytes"]
