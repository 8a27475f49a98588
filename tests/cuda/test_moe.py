"""The router's choice in the order in which the expert tasks read it."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_ultraspeed import _probe


@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 8, 2), (8, 8, 2), (8, 8, 8), (5, 384, 8), (8, 384, 8), (8, 512, 64)])
def test_sorted_by_expert_then_row(rows: int, experts: int, top_k: int) -> None:
    rng = np.random.default_rng(rows * experts + top_k)
    chosen = np.stack([rng.choice(experts, top_k, replace=False) for _ in range(rows)]).astype(np.uint16)
    weight = rng.random((rows, top_k), np.float32)
    entries = sorted((int(chosen[t, k]), t, float(weight[t, k])) for t in range(rows) for k in range(top_k))
    distinct = sorted({e for e, _, _ in entries})
    for order in (np.arange(len(entries)), rng.permutation(len(entries))):
        expert, begin, row, weights = _probe.moe_sort(chosen, weight, order.astype(np.uint32))
        assert expert.tolist() == distinct
        assert begin.tolist() == [sum(e < d for e, _, _ in entries) for d in distinct] + [len(entries)]
        assert row.tolist() == [t for _, t, _ in entries]
        assert weights.tolist() == [w for _, _, w in entries]
