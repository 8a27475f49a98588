"""base/alloc: alignment, zeroing, counters, failures on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mimo_ultraspeed import _probe


@pytest.fixture(autouse=True)
def _allocations_work_again() -> Iterator[None]:
    yield
    _probe.alloc_fail(0)
    _probe.alloc_freeze(False)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_blocks_are_aligned_and_zeroed(size: int) -> None:
    for _ in range(3):  # the block is filled with 0xff before it is freed
        assert _probe.alloc_array(size, 1) == (True, True)


def test_counters() -> None:
    before = _probe.alloc_stats()
    _probe.alloc_reset_peak()
    _probe.alloc_array(1000, 7)
    after = _probe.alloc_stats()
    assert after["calls"] == before["calls"] + 1
    assert after["live_bytes"] == before["live_bytes"]
    assert after["live_blocks"] == before["live_blocks"]
    assert after["peak_bytes"] == before["live_bytes"] + 7000


def test_overflowing_product_is_out_of_memory() -> None:
    with pytest.raises(MemoryError, match="out of memory: a probe needs"):
        _probe.alloc_array(1 << 33, 1 << 33)


def test_nth_allocation_fails_once() -> None:
    _probe.alloc_fail(2)
    _probe.alloc_array(1, 1)
    with pytest.raises(MemoryError):
        _probe.alloc_array(1, 1)
    _probe.alloc_array(1, 1)


def test_persistent_failure_lasts_until_turned_off() -> None:
    _probe.alloc_fail(1, True)
    for _ in range(3):
        with pytest.raises(MemoryError):
            _probe.alloc_array(1, 1)
    _probe.alloc_fail(0)
    _probe.alloc_array(1, 1)


def test_frozen_thread_is_refused_and_counted() -> None:
    before = _probe.alloc_stats()["refused"]
    _probe.alloc_freeze(True)
    with pytest.raises(MemoryError):
        _probe.alloc_array(1, 1)
    _probe.alloc_freeze(False)
    assert _probe.alloc_stats()["refused"] == before + 1
    _probe.alloc_array(1, 1)
