"""Several answers at once: a bounded number in flight, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .result import Result
from .stream import Stream

__all__ = ["IN_FLIGHT", "run_all"]

IN_FLIGHT = 32
"""Answers submitted at a time: as many as the engine decodes in one step."""
_WAIT_SECONDS = 0.05


def run_all(starts: Sequence[Callable[[], Stream]], bar: Any) -> list[Result]:
    """Calls each of `starts` when there is room, reads its stream to the end and tells `bar`; results are in their order.

    After an error or an interrupt no stream is left running. When memory is short, fewer are in flight.
    """
    results: dict[int, Result] = {}
    waiting = deque(enumerate(starts))
    active: dict[int, Stream] = {}
    try:
        while waiting or active:
            _fill(active, waiting)
            seconds = _WAIT_SECONDS  # for the first, which began first; the others' tokens come in the same step
            for at, stream in list(active.items()):
                stream.poll(seconds)
                seconds = 0.0
                if stream.finish_reason is not None:
                    results[at] = active.pop(at).result
                    bar.update()
    finally:
        for stream in active.values():
            stream.close()
    return [results[at] for at in range(len(starts))]


def _fill(active: dict[int, Stream], waiting: deque[tuple[int, Callable[[], Stream]]]) -> None:
    while waiting and len(active) < IN_FLIGHT:
        at, start = waiting[0]
        try:
            active[at] = start()
        except MemoryError:
            if not active:
                raise
            return
        waiting.popleft()
