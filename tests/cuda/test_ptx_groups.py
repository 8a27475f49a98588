"""Products of warp groups on the machine that runs PTX (tests/ptx/wgmma.c): what PTX says of them, and what breaks its rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx.launch import Fault, Library

from mimo_ultraspeed import _probe

FENCE, PROXY, WAIT, BARRIER, COLUMNS, EARLY, SWIZZLE = range(1, 8)


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("groups.cu", ptx_folder)


def run(library: Library, gap: int = 0, broken: int = 0, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """D, and what it must be. All that E4M3 has is in A and B."""
    rng = np.random.default_rng(seed)
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    A, B = rng.permutation(np.resize(codes, 64 * 32)).reshape(64, 32), rng.permutation(np.resize(codes, 32 * 32)).reshape(32, 32)
    C = rng.integers(-8, 8, (64, 32)).astype(np.float32)
    D = np.zeros((64, 32), np.float32)
    library.run("groups", D, A, B, C, gap, broken, threads=128, shared=8 * (128 + gap), seed=seed)
    a, b = (_probe.fp8_decode(x.reshape(-1)).reshape(x.shape).astype(np.float64) for x in (A, B))
    once = (a @ b.T + C).astype(np.float32)
    return D, (a @ b.T + once).astype(np.float32)


@pytest.mark.parametrize("gap", [0, 16, 128])
def test_products(library: Library, gap: int) -> None:
    for seed in range(4):
        found, want = run(library, gap, seed=seed)
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (FENCE, "expected wgmma.fence before the first product of a group"),
        (PROXY, "wrote without fence.proxy.async after it"),
        (WAIT, "it ended without waiting for 2 products"),
        (BARRIER, "race: it reads shared memory"),
        (COLUMNS, "of its warp group has columns"),
        (SWIZZLE, "without swizzle"),
    ],
)
def test_broken_rules(library: Library, broken: int, said: str) -> None:
    with pytest.raises(Fault, match=said):
        for seed in range(8):
            run(library, broken=broken, seed=seed)


def test_sums_are_not_there_before_they_are_waited_for(library: Library) -> None:
    assert np.isnan(run(library, broken=EARLY)[0]).all()


def test_rounding(library: Library) -> None:
    values = _probe.fp8_decode(np.arange(127, dtype=np.uint8))
    x = np.concatenate([values, (values[1:] + values[:-1]) / 2, np.geomspace(1e-5, 1e4, 259, dtype=np.float32)]).astype(np.float32)
    x = np.concatenate([x, -x])
    found = np.zeros(len(x) // 2, np.uint16)
    library.run("narrowest", found, x, threads=len(x) // 2)
    np.testing.assert_array_equal(found.view(np.uint8), _probe.fp8_encode(x))
