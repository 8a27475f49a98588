"""The machine's own rates: that they are numbers, and that wrong arguments are told. How large they are is the machine's affair."""

from __future__ import annotations

import pytest

from mimo_ultraspeed import _core


def test_read_bandwidth_is_a_rate() -> None:
    for threads in (1, 3):
        assert 1e6 < _core.read_bandwidth(1 << 20, threads, 0.002) < 1e15


def test_int8_peak_is_a_rate_where_there_are_kernels() -> None:
    if all(reason is not None for name, reason in _core.cpu_variants().items() if name != "ref"):
        with pytest.raises(NotImplementedError, match="int8 peak"):
            _core.int8_peak(1, 0.002)
        return
    assert 1e6 < _core.int8_peak(2, 0.002) < 1e17


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((64, 1, 0.1), "bytes: expected at least 128 for each of 1 threads, found 64"),
        ((-1, 1, 0.1), "bytes: expected 1 or more, found -1"),
        ((1 << 20, 0, 0.1), "threads: expected 1 to 1024, found 0"),
        ((1 << 20, 1, 0.0), "seconds: expected more than 0"),
        ((1 << 20, 1, float("nan")), "seconds: expected more than 0"),
    ],
)
def test_wrong_arguments(arguments: tuple[int, int, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        _core.read_bandwidth(*arguments)
    with pytest.raises(ValueError, match="threads: expected 1"):
        _core.int8_peak(-1, 0.1)
