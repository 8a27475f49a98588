"""Streams: pieces, stop strings, cancellation from every side, and streams beside each other."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.detokenize import TextStream

PROMPT = [1, 2, 3]
ENDLESS = {"max_new_tokens": 60000, "ignore_eos": True}
Run = Callable[..., subprocess.CompletedProcess[str]]


def wait_for(condition: Callable[[], bool]) -> None:
    """Gives up, and lets the test's own assert fail, after a time no working engine needs."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def test_pieces_add_up_to_the_result(tiny_model: mu.Model) -> None:
    options = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 1, "logprobs": 2}
    with tiny_model.stream(PROMPT, **options, speculative=False) as stream:  # type: ignore[arg-type]
        pieces = list(stream)
    result = stream.result
    assert "".join(piece.text for piece in pieces) == result.text == stream.text()
    assert [number for piece in pieces for number in piece.token_ids] == result.token_ids
    assert result.text == tiny_model.tokenizer.decode(result.token_ids)
    assert [entry for piece in pieces for entry in piece.logprobs or ()] == result.logprobs
    assert [piece.t for piece in pieces] == sorted(piece.t for piece in pieces)
    assert (len(result.token_ids), result.finish_reason) == (40, "length")
    assert {(piece.accepted, piece.drafted) for piece in pieces} == {(0, 0)}


def test_stats(tiny_model: mu.Model) -> None:
    result = tiny_model.generate(PROMPT, max_new_tokens=20, ignore_eos=True, speculative=False)
    stats = result.stats
    assert (stats.prompt_tokens, stats.completion_tokens, stats.steps) == (3, 20, 20)
    assert 0 < stats.time_to_first_token <= stats.queue_seconds + stats.prefill_seconds + stats.decode_seconds
    assert stats.tokens_per_second > 0 and stats.speculative_decoding is None
    told = stats.to_dict()
    assert told["completion_tokens"] == 20
    assert told["time_to_first_token_ms"] == pytest.approx(1e3 * stats.time_to_first_token)


def test_drafts_change_the_steps_and_nothing_else(tiny_model: mu.Model) -> None:
    call: dict[str, Any] = {
        "max_new_tokens": 60,
        "ignore_eos": True,
        "temperature": 1.0,
        "seed": 3,
        "logprobs": 1,
        "stop": "\x00\x01",
    }
    prompt = [7, 8, 9, 10] * 8
    plain = tiny_model.generate(prompt, **call, speculative=False)
    with tiny_model.stream(prompt, **call, simulate_acceptance=3.0) as stream:
        pieces = list(stream)
    result = stream.result
    assert (result.token_ids, result.text, result.logprobs) == (plain.token_ids, plain.text, plain.logprobs)
    assert result.finish_reason == plain.finish_reason
    told = result.stats.speculative_decoding
    assert plain.stats.rounds is None and plain.stats.speculative_decoding is None
    assert told is not None and result.stats.rounds is not None
    assert result.stats.steps < plain.stats.steps and "a round" in result.stats.line()
    assert told["num_spec_tokens"] == 7 and told["mean_acceptance_length"] == pytest.approx(3.0, abs=0.2)
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"]
    assert sum(piece.accepted for piece in pieces) == told["num_accepted_draft_tokens"]
    assert sum(piece.drafted for piece in pieces) == told["num_draft_tokens"] == sum(result.stats.rounds["drafted"])
    looked_up = tiny_model.generate(prompt, **call, width=6, verify="coupled", lookup=True)
    assert looked_up.token_ids == plain.token_ids
    assert looked_up.stats.speculative_decoding is not None
    assert looked_up.stats.speculative_decoding["num_spec_tokens"] == 5


def test_drafts_options_out_of_range(tiny_model: mu.Model) -> None:
    for options, message in (
        ({"width": 9}, "width: expected at most the 8 tokens of a round, found 9"),
        ({"width": 0}, "width: expected an integer of 1 or more, found 0"),
        ({"verify": "typical"}, "verify: expected 'coupled' or 'rejection', found 'typical'"),
        ({"simulate_acceptance": 8.5}, "simulate_acceptance: expected at most the 8 tokens of a round, found 8.5"),
        ({"simulate_acceptance": 0.5}, "simulate_acceptance: expected a number of 1 or more, found 0.5"),
        (
            {"simulate_acceptance": 2, "speculative": False},
            "simulate_acceptance: it is about drafts, which speculative=False turns off",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_model.stream(PROMPT, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lookup: expected True or False, found 1"):
        tiny_model.stream(PROMPT, lookup=1)  # type: ignore[arg-type]


def test_text_continues_after_pieces_were_read(tiny_model: mu.Model) -> None:
    whole = tiny_model.stream(PROMPT, max_new_tokens=30, ignore_eos=True).text()
    stream = tiny_model.stream(PROMPT, max_new_tokens=30, ignore_eos=True)
    next(stream)
    assert stream.text() == whole
    with pytest.raises(StopIteration):
        next(stream)


def test_result_of_an_incomplete_stream_is_refused(tiny_model: mu.Model) -> None:
    with tiny_model.stream(PROMPT, **ENDLESS) as stream:
        next(stream)
        with pytest.raises(RuntimeError, match="not complete"):
            _ = stream.result
        assert stream.finish_reason is None and "running" in repr(stream)


def test_closing_cancels(tiny_model: mu.Model) -> None:
    with tiny_model.stream(PROMPT, **ENDLESS) as stream:
        first = next(stream)
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.token_ids == first.token_ids and stream.result.text == first.text
    wait_for(lambda: stream._job.finish_reason is not None)
    assert stream._job.finish_reason == "cancelled"


def test_closing_a_complete_stream_changes_nothing(tiny_model: mu.Model) -> None:
    with tiny_model.stream(PROMPT, max_new_tokens=3, ignore_eos=True) as stream:
        assert len(list(stream)) == 3
        stream.cancel()
    stream.close()
    assert stream.result.finish_reason == "length"


def test_dropping_the_last_reference_cancels(tiny_model: mu.Model) -> None:
    stream = tiny_model.stream(PROMPT, **ENDLESS)
    next(stream)
    job = stream._job
    del stream
    gc.collect()
    wait_for(lambda: job.finish_reason is not None)
    assert job.finish_reason == "cancelled"


def test_cancel_from_another_thread_ends_a_waiting_reader(tiny_model: mu.Model) -> None:
    stream = tiny_model.stream(PROMPT, **ENDLESS)
    started = threading.Event()
    read: list[int] = []

    def reader() -> None:
        for piece in stream:
            read.extend(piece.token_ids)
            started.set()

    thread = threading.Thread(target=reader)
    thread.start()
    started.wait(60)
    stream.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert stream.finish_reason == "cancelled"
    assert stream.result.token_ids == read


def test_two_readers_get_each_piece_once(tiny_model: mu.Model) -> None:
    stream = tiny_model.stream(PROMPT, max_new_tokens=300, ignore_eos=True)
    shares: list[list[mu.Piece]] = [[], []]
    threads = [threading.Thread(target=share.extend, args=(stream,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    pieces = sorted([*shares[0], *shares[1]], key=lambda piece: piece.t)
    assert [number for piece in pieces for number in piece.token_ids] == stream.result.token_ids
    assert len(stream.result.token_ids) == 300


def test_interleaved_streams_equal_serial_ones(tiny_model: mu.Model) -> None:
    prompts = [[n, n + 1, n + 2] * (n + 1) for n in range(8)]
    options = [{"max_new_tokens": 50 + 7 * n, "ignore_eos": True, "temperature": n / 4, "seed": n} for n in range(8)]
    serial = [tiny_model.generate(prompt, **option).token_ids for prompt, option in zip(prompts, options, strict=True)]
    streams = [tiny_model.stream(prompt, **option) for prompt, option in zip(prompts, options, strict=True)]
    got: list[list[int]] = [[] for _ in streams]
    while any(stream.finish_reason is None for stream in streams):
        for stream, ids in zip(streams, got, strict=True):
            piece = stream.poll()
            ids += piece.token_ids if piece is not None else []
    assert got == serial


def test_a_reader_that_stops_reading_holds_up_nobody(tiny_model: mu.Model) -> None:
    with tiny_model.stream(PROMPT, **ENDLESS) as asleep:
        next(asleep)
        assert len(tiny_model.generate([4, 5], max_new_tokens=1000, ignore_eos=True).token_ids) == 1000
        assert asleep.finish_reason is None


def test_stop_string_across_tokens(tiny_model: mu.Model) -> None:
    options = {"max_new_tokens": 200, "ignore_eos": True, "temperature": 1.0, "seed": 5}
    whole = tiny_model.generate(PROMPT, **options)
    at = next(at for at in range(20, 200) if whole.text[at : at + 4].isascii() and whole.text.find(whole.text[at : at + 4]) == at)
    stop = whole.text[at : at + 4]
    pieces = list(stream := tiny_model.stream(PROMPT, stop=["never there", stop], **options))
    result = stream.result
    assert (result.text, result.finish_reason) == (whole.text[:at], "stop")
    assert "".join(piece.text for piece in pieces) == result.text
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    assert tiny_model.tokenizer.decode(result.token_ids) == whole.text[: at + 4]
    assert result.stats.completion_tokens == len(result.token_ids)


def test_end_token_ends_and_is_not_text(tiny_model: mu.Model) -> None:
    free = tiny_model.generate(PROMPT, max_new_tokens=30, ignore_eos=True, temperature=1.0, seed=3)
    end = free.token_ids[10]
    at = free.token_ids.index(end)
    stream = mu.Stream(
        tiny_model._engine.submit(PROMPT, max_new_tokens=30, temperature=1.0, seed=3, eos=[end]),
        PROMPT,
        mu.GenerationOptions.resolve({"max_new_tokens": 30}, tiny_model.generation_defaults, eos=(end,)),
    )
    stream.text()
    assert (stream.result.token_ids, stream.result.finish_reason) == (free.token_ids[: at + 1], "stop")


class StepsOfThree:
    """A job whose steps give several tokens each, as accepted drafts do."""

    def __init__(self, steps: list[list[int]], reason: str) -> None:
        self.steps, self.reason, self.cancelled = list(steps), reason, False

    def next(self, timeout: float | None = None) -> tuple[list[int], float, None, int, int] | None:
        return (self.steps.pop(0), 1.0 - len(self.steps) / 10, None, 2, 7) if self.steps and not self.cancelled else None

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def done(self) -> bool:
        return not self.steps or self.cancelled

    @property
    def finish_reason(self) -> str:
        return self.reason

    def stats(self) -> dict[str, object]:
        times = dict.fromkeys(("cached_tokens", "queue_seconds", "prefill_seconds", "decode_seconds", "first_token_seconds"), 0.0)
        return {**times, "block": 8, "rounds": None}


def scripted(model: mu.Model, steps: list[bytes], reason: str, **call: object) -> tuple[mu.Stream, StepsOfThree]:
    options = mu.GenerationOptions.resolve(call, model.generation_defaults, eos=(256,))
    job = StepsOfThree([list(step) for step in steps], reason)
    text = TextStream(model.tokenizer, options.stop)
    return mu.Stream(job, [1], options, text=text), job  # type: ignore[arg-type]


def test_a_stop_string_in_the_middle_of_a_step(tiny_model: mu.Model) -> None:
    stream, job = scripted(tiny_model, [b"abc", b"deX", b"Yfg", b"hij"], "length", stop="XY")
    pieces = list(stream)
    assert [piece.text for piece in pieces] == ["abc", "de", ""]
    assert [bytes(piece.token_ids) for piece in pieces] == [b"abc", b"deX", b"Y"]
    assert (stream.result.text, stream.result.finish_reason, job.cancelled) == ("abcde", "stop", True)
    assert (stream.stats.completion_tokens, stream.stats.steps) == (7, 3)
    assert [(piece.accepted, piece.drafted) for piece in pieces] == [(2, 7)] * 3


def test_held_back_text_comes_with_the_last_step(tiny_model: mu.Model) -> None:
    stream, _ = scripted(tiny_model, [b"ab\xc3", b"\xa9X"], "length", stop="XY", max_new_tokens=5)
    assert [piece.text for piece in stream] == ["ab", "éX"]
    assert stream.finish_reason == "length"


def test_held_back_text_of_an_unforeseen_end(tiny_model: mu.Model) -> None:
    stream, _ = scripted(tiny_model, [b"abX"], "cancelled", stop="XY")
    assert [(piece.text, bytes(piece.token_ids)) for piece in stream] == [("ab", b"abX"), ("X", b"")]
    assert (stream.finish_reason, stream.result.text) == ("cancelled", "abX")


def test_tokens_per_second_leaves_the_first_step_out(tiny_model: mu.Model) -> None:
    stream, _ = scripted(tiny_model, [b"abc", b"def", b"gh"], "length")
    stream.text()
    assert stream.stats.tokens_per_second == pytest.approx(5 / 0.2)
    assert stream.stats.mean_itl_ms == pytest.approx(40.0)


def test_an_interrupt_inside_a_step_ends_the_answer(tiny_model: mu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = tiny_model.stream(PROMPT, **ENDLESS)

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextStream, "feed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    wait_for(lambda: stream._job.finish_reason is not None)
    assert stream.finish_reason == stream._job.finish_reason == "cancelled"


def test_async_iteration(tiny_model: mu.Model) -> None:
    async def read(prompt: list[int]) -> list[int]:
        async with tiny_model.stream(prompt, max_new_tokens=50, ignore_eos=True) as stream:
            return [number async for piece in stream for number in piece.token_ids]

    async def both() -> list[list[int]]:
        return await asyncio.gather(read([1, 2]), read([3, 4]))

    assert asyncio.run(both()) == [tiny_model.generate(p, max_new_tokens=50, ignore_eos=True).token_ids for p in ([1, 2], [3, 4])]


def test_cancelling_the_awaiting_task_cancels_the_answer(tiny_model: mu.Model) -> None:
    stream = tiny_model.stream(PROMPT, **ENDLESS)

    async def main() -> None:
        reading = asyncio.Event()

        async def read() -> None:
            async for _ in stream:
                reading.set()

        task = asyncio.create_task(read())
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_for(lambda: stream._job.finish_reason is not None)
    assert stream._job.finish_reason == "cancelled"
    assert list(stream) == []


def test_closing_the_model_ends_streams(tiny_path: object) -> None:
    model = mu.Model.from_pretrained(str(tiny_path), progress=False)
    stream = model.stream(PROMPT, **ENDLESS)
    next(stream)
    model.close()
    stream.text()
    assert stream.finish_reason == "cancelled"


INTERRUPTS = """
import os, random, signal, sys, threading
import mimo_ultraspeed as mu

model = mu.Model.from_pretrained(sys.argv[1], progress=False)
expected = model.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True).token_ids
delays = random.Random(0)
answered = threading.Event()

def interrupt(delay):
    while not answered.wait(delay):  # once more if it fell into a place that swallows exceptions, a finaliser for instance
        os.kill(os.getpid(), signal.SIGINT)
        delay = 5

def work(kind):
    if kind == 0:
        model.generate([1, 2, 3], max_new_tokens=3000, ignore_eos=True)
    elif kind == 1:
        with model.stream([4, 5], max_new_tokens=3000, ignore_eos=True) as stream:
            for piece in stream:
                pass
    elif kind == 2:
        model.generate([[1], [2], [3]], n=3, max_new_tokens=500, ignore_eos=True, temperature=1.0, seed=1)
    else:
        model.logits(list(range(200)))

for turn in range(24):
    answered.clear()
    thread = threading.Thread(target=interrupt, args=(delays.uniform(0, 0.15),))
    try:
        thread.start()
        while True:
            work(turn % 4)
    except KeyboardInterrupt:
        answered.set()
    thread.join()
    assert model.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True).token_ids == expected, turn
print("usable")
"""


def test_interrupts_at_random_moments_leave_a_usable_model(run_python: Run, tiny_path: object) -> None:
    done = run_python("-c", INTERRUPTS, str(tiny_path))
    assert (done.stdout, done.returncode) == ("usable\n", 0), done.stderr


FORK = """
import os, sys, warnings
import mimo_ultraspeed as mu

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn about any fork with threads, which is the point here
model = mu.Model.from_pretrained(sys.argv[1], progress=False)
stream = model.stream([1, 2], max_new_tokens=60000, ignore_eos=True)
next(stream)
child = os.fork()
if child == 0:
    refused = 0
    for use in (lambda: next(stream), lambda: model.generate([1]), lambda: model.logits([1]), lambda: stream.stats):
        try:
            use()
        except mu.EngineError as error:
            refused += "forked child" in str(error)
    stream.cancel()
    stream.close()
    model.close()
    del stream, model
    sys.exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(next(stream).token_ids))
"""


def test_a_forked_child_gets_an_error_and_the_parent_goes_on(run_python: Run, tiny_path: object) -> None:
    done = run_python("-c", FORK, str(tiny_path))
    assert (done.stdout, done.stderr) == ("4 1\n", "")


def test_leaving_python_with_a_live_stream(run_python: Run, tiny_path: object) -> None:
    code = (
        "import sys, mimo_ultraspeed as mu\n"
        "model = mu.Model.from_pretrained(sys.argv[1], progress=False)\n"
        "streams = [model.stream([1, 2], max_new_tokens=60000, ignore_eos=True) for _ in range(3)]\n"
        "print(len(next(streams[0]).token_ids))"
    )
    done = run_python("-c", code, str(tiny_path))
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)
