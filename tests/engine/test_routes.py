"""A router of zeros is never read, and its layer has a barrier less: the answers are those of reading it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mimo_ultraspeed import _core
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.make import make


def fill_routers(folder: Path, value: float) -> int:
    """Sets every router weight of a checkpoint, in place; how many matrices that were."""
    filled = 0
    for path in folder.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:begin]).items():
            if not name.endswith("mlp.gate.weight"):
                continue
            first, end = entry["data_offsets"]
            bits = np.float32(value).tobytes()[4 - {"F32": 4, "BF16": 2}[entry["dtype"]] :]
            data[begin + first : begin + end] = bits * ((end - first) // len(bits))
            filled += 1
        path.write_bytes(data)
    return filled


@pytest.mark.parametrize("precision", ("exact", "fast"))
def test_zero_routers_answer_as_negative_zeros_do(tmp_path: Path, precision: str) -> None:
    zero = make(tmp_path / "zero", progress=False)
    negative = tmp_path / "negative"
    shutil.copytree(zero, negative)
    assert fill_routers(Path(zero), 0.0) == fill_routers(negative, -0.0) > 0
    prompt = np.random.default_rng(3).integers(0, 512, 90).tolist()

    def logits(folder: Path, threads: int, step: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        engine = _core.Engine(*Checkpoint.open(folder).core_arguments(), precision=precision, threads=threads)
        try:
            engine.load()
            return np.asarray(engine.logits(prompt, step=step))
        finally:
            engine.close()

    want = logits(negative, 2, 90)
    for threads in (1, 2, 5):
        for step in (1, 4, 5, 90):
            assert np.array_equal(logits(Path(zero), threads, step), want), (threads, step)
