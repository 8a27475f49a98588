"""A model whose BF16 matrices were rounded from four bits: it takes less memory, and answers as it would without that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.make import make
from mimo_ultraspeed.safetensors_read import read_header
from mimo_ultraspeed.safetensors_write import bf16_from_f32, f32_from_bf16

VARIANTS = [name for name, why in _probe.kernel_variants().items() if why is None]
IDS = np.random.default_rng(3).integers(0, 512, 40).tolist()


def put_on_levels(path: Path) -> int:
    """Rounds the attention matrices of a checkpoint's file to 16 levels a block, in place; how many weights they have."""
    raw, count = bytearray(path.read_bytes()), 0
    for tensor in read_header(path, path.name):
        if "self_attn" not in tensor.name or tensor.dtype != "BF16" or len(tensor.shape) != 2:
            continue
        stored = np.frombuffer(raw, np.uint16, int(np.prod(tensor.shape)), tensor.begin)
        blocks = f32_from_bf16(stored).reshape(-1, 32)
        least = blocks.min(1, keepdims=True).astype(np.float16).astype(np.float32)
        step = ((blocks.max(1, keepdims=True) - least) / 15).astype(np.float16).astype(np.float32)
        levels = step * np.clip(np.rint((blocks - least) / step), 0, 15) + least
        stored[:] = bf16_from_f32(levels.astype(np.float32).ravel())
        count += stored.size
    path.write_bytes(raw)
    return count


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """The same model as it is and on levels, and how many weights lie on them."""
    made = [make(tmp_path_factory.mktemp("made") / name, weights="bf16", progress=False) for name in ("plain", "levels")]
    return made[0], made[1], sum(map(put_on_levels, sorted(made[1].glob("*.safetensors"))))


def run(folder: Path, precision: str = "fast", threads: int = 2, variant: str | None = None) -> tuple[Any, Any]:
    """Logits of IDS, and the memory of the loaded engine."""
    engine = _probe.Engine(*Checkpoint.open(folder).core_arguments(), precision=precision, threads=threads, variant=variant)
    planned = engine.memory()
    engine.load()
    found, memory = engine.logits(IDS), engine.memory()
    assert memory["weights"] <= planned["weights"] and memory["read_per_token"] <= planned["read_per_token"]
    assert {key for key in memory if memory[key] != planned[key]} <= {"weights", "read_per_token", "total"}
    engine.close()
    assert engine.memory() == memory
    return found, memory


def test_levels_take_less_memory(folders: tuple[Path, Path, int]) -> None:
    plain, levels, count = folders
    before, after = (run(folder)[1] for folder in (plain, levels))
    assert count > 0
    saved = count // 32 * (34 - 20)  # bytes of a block in Q8 and in Q4
    assert before["weights"] - after["weights"] == saved
    assert before["read_per_token"] - after["read_per_token"] == saved
    assert run(levels, "exact")[1] == run(plain, "exact")[1]


def test_levels_keep_the_logits(folders: tuple[Path, Path, int]) -> None:
    exact, fast = (run(folders[1], precision)[0] for precision in ("exact", "fast"))
    assert 0 < np.abs(fast - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_levels_on_every_variant(folders: tuple[Path, Path, int], variant: str) -> None:
    assert np.array_equal(run(folders[1], variant=variant, threads=3)[0], run(folders[1], variant="ref", threads=1)[0])
