"""A CTA's ring of shared memory: where pages lie, beside a ring that keeps who has which byte; and its own PTX (tests/ptx)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ptx.launch import Library

from mimo_ultraspeed import _probe


def places(sizes: list[int], ring: int) -> tuple[list[int], list[int]]:
    """Each page behind the one before, or at the start where it would reach beyond the end, once its bytes are free."""
    owner: list[int | None] = [None] * ring
    begins, held, end, oldest = [], [], 0, 0
    for i, size in enumerate(sizes):
        begin = end if end + size <= ring else 0
        while any(owner[at] is not None for at in range(begin, begin + size)):
            owner = [None if who == oldest else who for who in owner]
            oldest += 1
        owner[begin : begin + size] = [i] * size
        end = begin + size
        begins.append(begin)
        held.append(i + 1 - oldest)
    return begins, held


@pytest.mark.parametrize("seed", range(200))
def test_pages_lie_where_the_oldest_are_gone_and_no_later(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ring, count = int(rng.integers(4, 40)), 60
    kinds = rng.integers(1, ring + 1, 3) if seed % 2 else rng.integers(1, max(ring // 3, 2), 3)
    sizes = kinds[rng.integers(0, 3, count) if seed % 3 else np.arange(count) // 20]
    begin, held = _probe.ring_places(sizes.astype(np.uint32), ring)
    assert (begin.tolist(), held.tolist()) == places(sizes.tolist(), ring)


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("ring.cu", ptx_folder)


@pytest.mark.parametrize(("ring", "least", "most"), [(2048, 16, 2048), (2048, 16, 64), (4096, 1024, 1600), (640, 16, 320)])
@pytest.mark.parametrize("seed", range(6))
def test_pages_come_whole_and_in_order(ring: int, least: int, most: int, seed: int, library: Library) -> None:
    """More and larger pages than the ring has room for, in drawn orders of threads and copies, and watched for races."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(least // 16, most // 16 + 1, 150).astype(np.uint32) * 16
    sizes[50:60] = least
    data = rng.integers(0, 2**32, int(sizes.sum()) // 4, dtype=np.uint32)
    found, lost = np.zeros(len(sizes), np.uint32), np.zeros(7, np.uint32)
    shared = 2048 + ring
    library.run("ring", data, sizes, found, lost, len(sizes), ring, threads=384, shared=shared, seed=seed)
    assert not lost.any()
    for i, page in enumerate(np.split(data, np.cumsum(sizes)[:-1] // 4)):
        assert found[i] == np.sum(page * np.arange(1, len(page) + 1, dtype=np.uint32), dtype=np.uint32)
