"""Shapes of tiles, for any dimensions: they cover the matrix, fit the ring, and share it out evenly where it is large."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_ultraspeed import _probe

FORMATS = ("f32", "bf16", "fp8", "mxfp4", "e4m3")
RING_PAGE = 17408


def element_bytes(name: str) -> float:
    return {"f32": 4.0, "bf16": 2.0, "fp8": 1.0, "mxfp4": 17 / 32, "e4m3": 17 / 32}[name]


@pytest.mark.parametrize(
    ("what", "name"),
    [("up", "e4m3"), *((what, name) for what in ("split", "whole", "paired", "up", "down") for name in FORMATS[:4])],
)
def test_any_dimensions(what: str, name: str) -> None:
    rng = np.random.default_rng(FORMATS.index(name) * 5 + len(what))
    for _ in range(60):
        rows, k = 8 * int(rng.integers(1, 2 ** int(rng.integers(2, 13)))), 32 * int(rng.integers(1, 2 ** int(rng.integers(1, 8))))
        experts = int(rng.integers(2, 400))
        top_k = int(rng.integers(1, min(experts, 16) + 1))
        sms = int(rng.integers(1, 160))
        shape = _probe.pick(what, rows, k, FORMATS.index(name), experts, top_k, sms, 232448)
        tile_rows, tiles, splits, k_split, k_page, tile_pages, page_bytes, expert_pages, activations = shape
        lines = 2 * tile_rows if what in ("paired", "up") else tile_rows
        assert lines % 16 == 0
        assert tiles == -(-rows // tile_rows)
        assert (splits - 1) * k_split < k <= splits * k_split if what != "down" else k_split == k
        assert splits == 1 or what in ("split", "down")
        assert splits == 1 or what == "down" or k_split % 128 == 0
        assert k_split * 16 <= activations
        assert (tile_pages - 1) * k_page < k_split <= tile_pages * k_page
        assert k_page % (128 if name == "fp8" else 32) == 0
        own = lines if name == "e4m3" else 0  # exponents of rows
        assert lines * k_page * element_bytes(name) + own <= page_bytes <= RING_PAGE
        assert lines <= 32 or name != "e4m3"
        assert page_bytes % 128 == 0
        assert expert_pages == tiles * tile_pages * (1 if what == "down" else splits)


@pytest.mark.parametrize(
    ("what", "name", "rows", "k"),
    [
        ("split", "fp8", 3392, 6144), ("split", "bf16", 6144, 2048), ("split", "f32", 384, 6144), ("paired", "fp8", 2048, 6144),
        ("split", "fp8", 6144, 2048), ("whole", "bf16", 19072, 6144), ("split", "bf16", 6144, 3840), ("split", "fp8", 27136, 6144),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sms", [132, 148])
def test_large_matrices_are_shared_out_evenly(what: str, name: str, rows: int, k: int, sms: int) -> None:
    _, tiles, splits, _, _, tile_pages, page_bytes, _, _ = _probe.pick(what, rows, k, FORMATS.index(name), 0, 0, sms, 232448)
    busiest = -(-tiles * splits // sms) * tile_pages * page_bytes
    even = rows * k * element_bytes(name) * (2 if what == "paired" else 1) / sms
    assert busiest < 1.2 * even


@pytest.mark.parametrize("up", ["mxfp4", "e4m3"])
@pytest.mark.parametrize("sms", [132, 148])
def test_experts_of_one_row_and_of_eight_are_shared_out_evenly(sms: int, up: str) -> None:
    _, tiles, _, _, _, tile_pages, page_bytes, _, _ = _probe.pick("up", 256, 6144, FORMATS.index(up), 384, 8, sms, 232448)
    for experts in (8, 59.5):
        busiest = -(-experts * tiles // sms) * tile_pages * page_bytes
        assert busiest < 1.2 * experts * 512 * 6144 * 17 / 32 / sms
    _, tiles, splits, _, _, tile_pages, page_bytes, _, _ = _probe.pick("down", 6144, 256, 3, 384, 8, sms, 232448)
    busiest = -(-tiles * splits // sms) * tile_pages * page_bytes / splits
    assert busiest < 1.2 * 6144 * 256 * 17 / 32 / sms
