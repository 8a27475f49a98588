"""Where pages lie in a CTA's ring of shared memory: beside a ring that keeps who has which byte."""

from __future__ import annotations

import numpy as np
import pytest

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
