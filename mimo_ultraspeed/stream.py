"""An answer as it is being decoded."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .errors import EngineError
from .options import GenerationOptions
from .result import Result, Stats, TokenLogprob
from .rounds import Rounds, speculative_decoding

if TYPE_CHECKING:
    from ._core import Job, _Event
    from .detokenize import TextStream

__all__ = ["Piece", "Stream"]


@dataclass(frozen=True)
class Piece:
    """One engine step of one answer."""

    text: str
    """What has become safe to show; empty while a character, or what may be a stop string, is incomplete."""
    token_ids: list[int]
    """Empty only in a last piece that carries held-back text."""
    accepted: int
    """Drafts of this step that were right, also those after an end token or a stop string."""
    drafted: int
    """Drafts that this step verified."""
    logprobs: list[TokenLogprob] | None
    """One per token, if asked for."""
    t: float
    """Seconds since the prompt was submitted."""


def _cancel_here(job: Job, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the job, but nobody who would ever unlock it
        job.cancel()


class Stream:
    """The pieces of one answer: an iterator, an async iterator and a context manager. Made by `Model.stream`.

    Leaving the `with` block, `close`, `cancel`, an interrupt while waiting, the cancellation of an awaiting task, or dropping the
    last reference ends the decoding within one step; the model stays usable. Safe to use from several threads: each piece goes
    to one of them.
    """

    def __init__(
        self,
        job: Job,
        prompt_token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        index: int = 0,
        text: TextStream | None = None,
    ) -> None:
        """text: turns the answer's ids into text; without it every piece's text is empty."""
        self._job = job
        self._prompt = list(prompt_token_ids)
        self._options = options
        self._index = index
        self._text = text
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._cancelled = False
        self._finish_reason: str | None = None
        self._parts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._steps = 0
        self._first = (0, 0.0)  # tokens and time of the first step
        self._last = 0.0
        self._finalizer = weakref.finalize(self, _cancel_here, job, self._pid)

    # ---- reading ----

    def poll(self, timeout: float | None = None) -> Piece | None:
        """The next piece; waits up to `timeout` seconds for it, without end when None.

        None when the answer is complete (then `finish_reason` is set), or nothing came in time. Raises EngineError when the engine
        failed, KeyboardInterrupt after ending the answer.
        """
        self._check_process()
        with self._lock:
            if self._finish_reason is not None:
                return None
            try:
                return self._next(timeout)
            except BaseException as error:
                self._end("error" if isinstance(error, Exception) else "cancelled")
                raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        piece = self.poll()
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        import asyncio

        try:
            piece = await asyncio.get_running_loop().run_in_executor(None, self.poll)
        except BaseException:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def text(self) -> str:
        """Reads the answer to its end and returns its whole text, earlier pieces included."""
        while self.poll() is not None:
            pass
        return "".join(self._parts)

    # ---- ending ----

    def cancel(self) -> None:
        """Ends the answer within one step and the iteration at once; from any thread. Does nothing after the end."""
        self._cancelled = True
        _cancel_here(self._job, self._pid)

    def close(self) -> None:
        """Ends the answer, unless it is complete. Idempotent."""
        self.cancel()
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._finish_reason is None:
                self._end("cancelled")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- what it is and was ----

    @property
    def options(self) -> GenerationOptions:
        """What was applied."""
        return self._options

    @property
    def finish_reason(self) -> str | None:
        """None until the answer is complete and read, then as in `Result.finish_reason`."""
        return self._finish_reason

    @property
    def stats(self) -> Stats:
        """Counts and times so far."""
        self._check_process()
        core = self._job.stats()
        after_first = len(self._ids) - self._first[0]
        seconds = self._last - self._first[1]
        return Stats(
            prompt_tokens=len(self._prompt),
            cached_tokens=int(core["cached_tokens"]),
            completion_tokens=len(self._ids),
            steps=self._steps,
            queue_seconds=core["queue_seconds"],
            prefill_seconds=core["prefill_seconds"],
            decode_seconds=core["decode_seconds"],
            time_to_first_token=core["first_token_seconds"],
            tokens_per_second=after_first / seconds if after_first and seconds > 0 else 0.0,
            rounds=core["rounds"],
            finish_reason=self._finish_reason,
            speculative_decoding=self._acceptance(core["rounds"], (self._options.width or core["block"]) - 1),
        )

    def _acceptance(self, arrays: Mapping[str, Sequence[float]] | None, drafts: int) -> dict[str, Any] | None:
        if arrays is None:
            return None
        rounds = Rounds.of(arrays, completion_tokens=len(self._ids), finish_reason=self._finish_reason)
        return speculative_decoding([rounds], drafts=drafts, detailed=True)

    @property
    def result(self) -> Result:
        """The answer as far as it was read. RuntimeError while it is neither complete nor cancelled."""
        if self._finish_reason is None:
            raise RuntimeError("the answer is not complete: read the stream to its end, or cancel it")
        return Result(
            text="".join(self._parts),
            token_ids=list(self._ids),
            finish_reason=self._finish_reason,
            stats=self.stats,
            options=self._options,
            prompt_token_ids=list(self._prompt),
            index=self._index,
            logprobs=None if self._options.logprobs is None else list(self._logprobs),
        )

    def __repr__(self) -> str:
        return f"Stream({len(self._ids)} tokens, {self._finish_reason or 'running'})"

    # ---- inside the lock ----

    def _next(self, timeout: float | None) -> Piece | None:
        event = None if self._cancelled else self._job.next(timeout)
        if self._cancelled:
            self._end("cancelled")
            return None
        if event is not None:
            return self._piece(event)
        if not self._job.done:
            return None
        reason = self._job.finish_reason
        held = self._text.finish() if self._text is not None else ""
        self._end("stop" if reason == "eos" else str(reason))
        if not held:
            return None
        self._parts.append(held)
        return Piece(held, [], 0, 0, None, self._last)

    def _piece(self, event: _Event) -> Piece:
        ids, t, core_logprobs, accepted, drafted = event
        at_eos = ids[-1] in self._options.eos
        at_limit = len(self._ids) + len(ids) >= self._options.max_new_tokens
        text, stopped = "", False
        if self._text is not None:
            before = self._text.tokens_used
            text = self._text.feed(ids[:-1] if at_eos else ids)
            if self._text.stopped is None and (at_eos or at_limit):
                text += self._text.finish()
            stopped = self._text.stopped is not None
            if stopped:
                ids = ids[: self._text.tokens_used - before]
        logprobs = None
        if core_logprobs is not None:
            logprobs = [TokenLogprob(token, *_logprob(entry)) for token, entry in zip(ids, core_logprobs, strict=False)]
            self._logprobs += logprobs
        self._ids += ids
        self._parts.append(text)
        self._steps += 1
        self._last = t
        if self._steps == 1:
            self._first = (len(ids), t)
        if stopped:
            self._job.cancel()
        if stopped or at_eos or at_limit:
            while self._job.next() is not None:  # at most one step; from here on its stats are final
                pass
            self._end("stop" if stopped or at_eos else "length")
        return Piece(text, list(ids), accepted, drafted, logprobs, t)

    def _end(self, reason: str) -> None:
        self._finalizer()
        self._finish_reason = reason

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                f"this stream belongs to process {self._pid}: a forked child cannot use it; open the model after the fork"
            )


def _logprob(entry: tuple[float, list[tuple[int, float]]]) -> tuple[float, tuple[tuple[int, float], ...]]:
    return entry[0], tuple(entry[1])
