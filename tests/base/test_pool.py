"""The worker threads: where they run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.make import make

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not run: this system has no affinity masks")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


def tasks() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def test_pinned_workers_stay_on_one_core_each(arguments: tuple[Any, Any, Any]) -> None:
    free = _probe.Engine(*arguments, threads=3)
    free.load()
    cores = sorted(os.sched_getaffinity(0))
    before = tasks()
    engine = _probe.Engine(*arguments, threads=3, pin=True)
    engine.load()
    assert np.array_equal(engine.logits([1, 2, 3]), free.logits([1, 2, 3]))
    places = sorted(sorted(os.sched_getaffinity(task)) for task in tasks() - before)
    assert places == sorted([cores[i % len(cores)]] for i in range(3))  # two workers and the driver
    assert sorted(os.sched_getaffinity(0)) == cores  # the caller's own thread is left alone


def test_pinned_workers_keep_to_the_cores_of_the_process(arguments: tuple[Any, Any, Any]) -> None:
    cores = os.sched_getaffinity(0)
    last = max(cores)
    before = tasks()
    os.sched_setaffinity(0, {last})
    try:
        engine = _probe.Engine(*arguments, threads=2, pin=True)
        engine.load()
        assert {frozenset(os.sched_getaffinity(task)) for task in tasks() - before} == {frozenset({last})}
        engine.close()
    finally:
        os.sched_setaffinity(0, cores)
