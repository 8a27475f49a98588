"""What lies where on a GPU, decided before anything is allocated: sizes of real shapes, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cuda_cases import engine_arguments, raises

from mimo_ultraspeed import _probe
from mimo_ultraspeed.make import make

pytestmark = pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")

GB = 10**9
H200 = 141 * GB
RESERVE = 256 << 20
SEQUENCES = 40

# One rank of eight: heads and the width of every expert are split, the vocabulary too.
RANK = {
    "num_attention_heads": 16,
    "num_key_value_heads": 1,
    "swa_num_attention_heads": 16,
    "swa_num_key_value_heads": 1,
    "moe_intermediate_size": 256,
    "intermediate_size": 2048,
    "vocab_size": 19072,
}


@pytest.fixture(autouse=True)
def _no_fake_is_left() -> Iterator[None]:
    yield
    _probe.cuda_fake()


def plan(path: Path, image: str, memory: int, **options: Any) -> dict[str, int]:
    """The memory of an engine that is opened and never loaded."""
    arguments, draft = engine_arguments(path)
    _probe.cuda_fake(memory=memory)
    engine = _probe.Engine(*arguments, threads=1, device=0, image=image, **draft, **options)
    told = dict(engine.memory())
    assert _probe.cuda_fake_stats()["live_bytes"] == 0, "opening must not allocate"
    engine.close()
    return told


def test_tiny_counts_every_byte_of_its_checkpoint(tmp_path: Path, image: str) -> None:
    path = make(tmp_path / "model", weights="mxfp4", progress=False)
    told = plan(path, image, GB)
    (_, tensors, _), _ = engine_arguments(path)
    matrices = sum(end - begin for _, _, shape, _, begin, end in tensors if len(shape) == 2)
    count = sum(len(shape) == 2 for _, _, shape, _, _, _ in tensors)
    assert matrices <= told["weights"] + told["embedding"] <= matrices * 1.02 + 256 * count
    assert told["total"] + RESERVE <= told["limit"] + RESERVE <= GB
    # tiny has two full layers of one key/value head
    assert told["kv_per_position"] * 256 % 2 == 0
    assert told["kv_fixed"] == 0


def test_what_is_left_goes_to_keys_and_values(tmp_path: Path, image: str) -> None:
    path = make(tmp_path / "model", progress=False, overrides={"max_position_embeddings": 1 << 20})
    small, large = (plan(path, image, memory, max_context=1 << 19) for memory in (GB, 3 * GB))
    chunk = 256 * small["kv_per_position"]
    assert small["total"] == large["total"]
    assert 0 <= 2 * GB - (large["limit"] - small["limit"]) < 2 * chunk
    # no more than all sequences can fill
    full = plan(path, image, 200 * GB, max_context=4096)
    assert full["limit"] - full["total"] == SEQUENCES * 4096 * small["kv_per_position"]


def test_too_large_is_an_error_with_the_table(tmp_path: Path, image: str) -> None:
    path = make(tmp_path / "model", progress=False, draft=True)
    text = raises(MemoryError, lambda: plan(path, image, 280 << 20))
    assert text.startswith("out of memory: the model does not fit on the GPU\n")
    lines = text.splitlines()[1:]
    sizes = {" ".join(line.split()[2:]): float(line.split()[0]) for line in lines}
    assert list(sizes)[:3] == ["weights", "embedding", "the drafter's weights"]
    *parts, total, free = sizes.values()
    assert sum(parts) == pytest.approx(total, abs=1.0)
    assert total > free == pytest.approx((280 << 20) / 1e6, abs=0.1)
    assert list(sizes)[-2:] == ["in all", "free on the GPU"]


def test_a_rank_of_the_largest_model(tmp_path: Path, image: str) -> None:
    path = make(tmp_path / "pro", shape="pro", weights="mxfp4", layout="flash", headers_only=True, progress=False, overrides=RANK)
    told = plan(path, image, H200, max_context=131072)
    # 69 layers of 384 experts of 3 x 6144 x 256 weights in 4.25 bits are 69.2 GB; attention, routers and head come to it
    experts = 69 * 384 * 3 * 6144 * 256 * 4.25 / 8
    assert experts < told["weights"] < experts + 6 * GB
    assert told["kv_per_position"] == 10 * (192 + 128) * 2  # ten full layers of one head, in BF16
    assert told["limit"] <= H200 - RESERVE
    assert (told["limit"] - told["total"]) // told["kv_per_position"] > 8 * 131072 // 2
    text = raises(MemoryError, lambda: plan(path, image, 64 * GB, max_context=131072))
    assert "does not fit on the GPU" in text
