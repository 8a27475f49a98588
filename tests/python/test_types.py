"""The binding itself: arguments, exceptions, references."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _core
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.make import make


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


@pytest.fixture(scope="module")
def engine(arguments: tuple[Any, Any, Any]) -> Any:
    engine = _core.Engine(*arguments, threads=1)
    engine.load()
    return engine


class Liar:
    """Says it is longer than it is."""

    def __len__(self) -> int:
        return 1000

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array([1, 2])


def test_ids_of_every_kind(engine: Any) -> None:
    want = engine.logits([1, 2])
    for ids in ((1, 2), np.array([1, 2]), np.array([1, 2], np.uint8), np.array([1, 9, 2])[::2], range(1, 3), Liar()):
        assert np.array_equal(engine.logits(ids), want)
    assert engine.logits([]).shape == (0, 512)
    for wrong in ([1.0, 2.0], ["a"], [None], [True]):
        with pytest.raises(TypeError, match="tokens: expected integers"):
            engine.logits(wrong)
    with pytest.raises(ValueError, match="tokens: expected 1 dimension, found 2"):
        engine.logits([[1]])
    with pytest.raises(ValueError, match="tokens: item 0"):
        engine.logits([2**40])
    with pytest.raises((OverflowError, TypeError, ValueError)):
        engine.logits([2**70])


def test_types_are_closed(engine: Any) -> None:
    with pytest.raises(TypeError):
        type("Sub", (_core.Engine,), {})
    with pytest.raises(TypeError):
        _core.Job()
    with pytest.raises(TypeError):
        _core.Engine()
    assert not hasattr(engine, "__dict__")


def test_paths_that_are_not_utf8(arguments: tuple[Any, Any, Any], tmp_path: Path) -> None:
    config, tensors, files = arguments
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _core.Engine(config, tensors, [str(tmp_path / ("nowhere" + "\udcff" * 3))] * len(files))
    with pytest.raises(OSError, match="é"):
        _core.Engine(config, tensors, ["/" + "é" * 400] * len(files))
    with pytest.raises(ValueError, match="null byte"):
        _core.Engine(config, tensors, ["a\0b"] * len(files))


def test_nothing_is_leaked(arguments: tuple[Any, Any, Any]) -> None:
    def cycle() -> None:
        engine = _core.Engine(*arguments, threads=2)
        engine.load()
        job = engine.submit([1, 2, 3], max_new_tokens=4, logprobs=2)
        job.next()
        engine.logits([1, 2])
        engine.memory()
        engine.profile(True)
        engine.plan(2)
        del engine  # the job keeps it alive
        while job.next() is not None:
            pass

    cycle()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(30):
        cycle()
    gc.collect()
    assert sys.getallocatedblocks() - before < 60


def test_codec_errors() -> None:
    with pytest.raises(ValueError, match="values: expected a multiple of 32 columns, found 33"):
        _core.mxfp4_encode(np.zeros((2, 33), np.float32))
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        _core.mxfp4_encode(np.full((1, 32), np.nan, np.float32))
    with pytest.raises(ValueError, match="values: expected 2 dimensions, found 1"):
        _core.mxfp4_encode(np.zeros(32, np.float32))
    with pytest.raises(ValueError, match=r"scales: expected shape \(1, 1\) for 32 columns of codes, found \(1, 2\)"):
        _core.mxfp4_decode(np.zeros((1, 16), np.uint8), np.zeros((1, 2), np.uint8))
    codes, scales = _core.mxfp4_encode(np.full((1, 32), 3.0, np.float32))
    assert (_core.mxfp4_decode(codes, scales) == 3.0).all()


def test_profile(engine: Any) -> None:
    engine.profile(True)
    engine.logits(list(range(20)), step=4)
    profile = engine.profile(False)
    assert profile["steps"] == 5 and profile["rows"] == 20
    assert profile["ops"]["qkv"]["calls"] == 20 and profile["ops"]["head"]["calls"] == 5
    assert all(op["wall_ns"] > 0 for op in profile["ops"].values())
    assert profile["ops"]["head"]["macs"] == 20 * 512 * 160
    engine.logits([1])
    assert engine.profile(False)["steps"] == 5  # counting had stopped: the old counts stand
