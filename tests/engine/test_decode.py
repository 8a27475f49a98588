"""The decode loop through _core's types: what the answers are, and that nothing about scheduling changes them."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.errors import ContextOverflowError, EngineError
from mimo_ultraspeed.make import make

Arguments = tuple[Any, Any, Any]
PRECISIONS = ("exact", "fast")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    return Checkpoint.open(make(tmp_path_factory.mktemp("made") / "tiny", progress=False)).core_arguments()


@pytest.fixture(scope="module")
def open_engine(arguments: Arguments) -> Iterator[Callable[..., Any]]:
    engines: dict[tuple[Any, ...], Any] = {}

    def get(precision: str = "fast", threads: int = 2, variant: str | None = None) -> Any:
        key = (precision, threads, variant)
        if key not in engines:
            engines[key] = _probe.Engine(*arguments, precision=precision, threads=threads, variant=variant)
            engines[key].load()
        return engines[key]

    yield get
    for engine in engines.values():
        engine.close()


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 512, count).tolist()


def drain(job: Any) -> list[int]:
    out: list[int] = []
    while (event := job.next()) is not None:
        out += event[0]
    return out


def answer(engine: Any, prompt: list[int], count: int = 24, **options: Any) -> list[int]:
    return drain(engine.submit(prompt, max_new_tokens=count, **options))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_do_not_depend_on_the_width_of_the_step(open_engine: Any, precision: str) -> None:
    prompt = tokens(300)
    engine = open_engine(precision)
    want = engine.logits(prompt)
    for step in (1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 100, 127):
        assert np.array_equal(engine.logits(prompt, step=step), want), step
    assert np.array_equal(engine.logits(prompt[:150]), want[:150])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_do_not_depend_on_the_number_of_threads(open_engine: Any, precision: str) -> None:
    prompt = tokens(140, seed=1)
    want = open_engine(precision, threads=1).logits(prompt)
    for threads in (2, 3, 5, 8):
        for step in (1, 4, 128):
            assert np.array_equal(open_engine(precision, threads=threads).logits(prompt, step=step), want), (threads, step)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_over_long_contexts_does_not_depend_on_how_it_is_shared(open_engine: Any, precision: str) -> None:
    prompt = tokens(2700, seed=9)
    want = open_engine(precision, threads=1).logits(prompt, step=1)[-120:]  # row by row, all by one worker
    for threads, step in ((1, 7), (1, 128), (2, 3), (2, 8), (3, 5), (3, 128)):  # tiles of rows, and of chunks in up to two waves
        engine = open_engine(precision, threads=threads)
        assert np.array_equal(engine.logits(prompt, step=step)[-120:], want), (threads, step)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_windows_longer_than_a_chunk(tmp_path: Path, precision: str) -> None:
    """Rows of a tile begin at different keys then, and some of them a chunk before others."""
    folder = make(tmp_path / "wide", overrides={"sliding_window": 400}, progress=False)
    arguments, prompt = Checkpoint.open(folder).core_arguments(), tokens(720, seed=11)
    want = None
    for threads, step in ((1, 1), (1, 128), (2, 8), (3, 5)):
        engine = _probe.Engine(*arguments, precision=precision, threads=threads)
        engine.load()
        logits = engine.logits(prompt, step=step)
        engine.close()
        want = logits if want is None else want
        assert np.array_equal(logits, want), (threads, step)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_long_contexts_of_several_sequences_in_one_step(open_engine: Any, precision: str, threads: int) -> None:
    """Rows of a tile are of different sequences then, some of which end long before others."""
    engine = open_engine(precision, threads=threads)
    prompts = [tokens(length, seed=length) for length in (610, 590, 1300, 40, 611, 270)]
    alone = [answer(engine, prompt, 12) for prompt in prompts]
    jobs = [engine.submit(prompt, max_new_tokens=12) for prompt in prompts]
    assert [drain(job) for job in jobs] == alone


@pytest.mark.parametrize("variant", [name for name in _probe.kernel_variants() if name != "ref"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_those_of_the_reference_kernels(open_engine: Any, precision: str, variant: str) -> None:
    if (why := _probe.kernel_variants()[variant]) is not None:
        pytest.skip(f"not run: {variant}: {why}")
    prompt = tokens(60, seed=2)
    assert np.array_equal(
        open_engine(precision, variant=variant).logits(prompt), open_engine(precision, variant="ref").logits(prompt)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_greedy_decoding_is_the_argmax_of_the_logits(open_engine: Any, precision: str) -> None:
    engine = open_engine(precision)
    prompt = tokens(20, seed=3)
    text = list(prompt)
    for _ in range(20):
        text.append(int(engine.logits(text)[-1].argmax()))
    assert answer(engine, prompt, 20) == text[20:]


def test_hidden_states_and_their_widths(open_engine: Any) -> None:
    engine = open_engine("exact")
    prompt = tokens(50, seed=4)
    hidden = engine.hidden_states(prompt, [3, 0, 3])
    assert hidden.shape == (3, 50, 160)
    assert np.array_equal(hidden[0], hidden[2])
    assert not np.array_equal(hidden[0], hidden[1])
    assert np.array_equal(engine.hidden_states(prompt, [0, 3], step=1), hidden[[1, 0]])
    with pytest.raises(ValueError, match="layers: expected numbers below 4, found 4"):
        engine.hidden_states(prompt, [4])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_jobs_beside_each_other_answer_as_alone(open_engine: Any, precision: str) -> None:
    engine = open_engine(precision)
    prompts = [tokens(1 + 7 * i, seed=10 + i) for i in range(40)]  # more jobs than slots
    options = [{"temperature": 0.9, "seed": i} if i % 2 else {} for i in range(40)]
    alone = [answer(engine, prompt, 12, **extra) for prompt, extra in zip(prompts, options, strict=True)]
    jobs = [engine.submit(prompt, max_new_tokens=12, **extra) for prompt, extra in zip(prompts, options, strict=True)]
    assert [drain(job) for job in jobs] == alone
    assert all(job.finish_reason == "length" and job.done for job in jobs)


def test_a_prompt_that_was_seen_is_not_computed_again(open_engine: Any) -> None:
    engine = open_engine()
    prompt = tokens(90, seed=5)
    first = engine.submit(prompt, max_new_tokens=10)
    want = drain(first)
    again = engine.submit(prompt, max_new_tokens=10)
    assert drain(again) == want
    assert again.stats()["cached_tokens"] == 89
    longer = engine.submit(prompt + want[:5] + [7, 8, 9], max_new_tokens=6)
    fresh = engine.logits(prompt + want[:5] + [7, 8, 9])[-1].argmax()
    assert drain(longer)[0] == fresh
    assert longer.stats()["cached_tokens"] == 95


def test_seeds_and_streams(open_engine: Any) -> None:
    engine = open_engine()
    prompt = tokens(10, seed=6)
    hot = {"temperature": 1.2}
    assert answer(engine, prompt, seed=1, **hot) == answer(engine, prompt, seed=1, **hot)
    assert answer(engine, prompt, seed=1, **hot) != answer(engine, prompt, seed=2, **hot)
    assert answer(engine, prompt, seed=1, stream=0, **hot) != answer(engine, prompt, seed=1, stream=1, **hot)


def test_eos_ends_an_answer(open_engine: Any) -> None:
    engine = open_engine()
    prompt = tokens(10, seed=7)
    free = answer(engine, prompt, 20)
    stop = free[4]
    job = engine.submit(prompt, max_new_tokens=20, eos=[stop, 511])
    assert drain(job) == free[: free.index(stop) + 1]
    assert job.finish_reason == "eos"


def test_logprobs(open_engine: Any) -> None:
    engine = open_engine("exact")
    prompt = tokens(10, seed=8)
    job = engine.submit(prompt, max_new_tokens=3, logprobs=4)
    text = list(prompt)
    while (event := job.next()) is not None:
        row = engine.logits(text)[-1].astype(np.float64)
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        ids, _, logprobs, _, _ = event
        (logprob, tops) = logprobs[0]
        order = np.argsort(-expected, kind="stable")[:4]
        assert [token for token, _ in tops] == order.tolist()
        assert np.allclose([value for _, value in tops], expected[order], atol=1e-4)
        assert logprob == pytest.approx(expected[ids[0]], abs=1e-4)
        text += ids
    assert engine.submit(prompt, max_new_tokens=1).next()[2] is None
    assert engine.submit(prompt, max_new_tokens=1, logprobs=0).next()[2][0][1] == []


def test_a_reader_that_does_not_read_stops_only_its_own_job(open_engine: Any) -> None:
    engine = open_engine()
    slow = engine.submit(tokens(5), max_new_tokens=500, queue_bytes=0)
    other = answer(engine, tokens(6), 50)
    assert len(other) == 50
    assert slow.stats()["completion_tokens"] <= 3
    assert len(drain(slow)) == 500


def test_cancel_ends_an_answer(open_engine: Any) -> None:
    engine = open_engine()
    job = engine.submit(tokens(5), max_new_tokens=2000)
    assert job.next() is not None
    threading.Thread(target=job.cancel).start()
    drain(job)
    assert job.finish_reason == "cancelled"
    assert job.stats()["completion_tokens"] < 2000
    job.cancel()  # nothing more happens
    waiting = [engine.submit(tokens(5), max_new_tokens=2000) for _ in range(40)]
    del waiting
    gc.collect()
    assert len(answer(engine, tokens(6), 5)) == 5


def test_next_with_a_timeout(open_engine: Any) -> None:
    engine = open_engine()
    job = engine.submit(tokens(5), max_new_tokens=4000, queue_bytes=0)
    while job.next(timeout=0.0) is None:
        assert not job.done
    job.cancel()
    drain(job)
    assert job.done and job.next(timeout=0.01) is None


def test_wrong_input(arguments: Arguments, open_engine: Any) -> None:
    engine = open_engine()
    with pytest.raises(ValueError, match="prompt: expected at least one token, found none"):
        engine.submit([], max_new_tokens=1)
    with pytest.raises(ValueError, match="prompt: token 1: expected an id below 512, found 512"):
        engine.submit([1, 512], max_new_tokens=1)
    with pytest.raises(ValueError, match="prompt: item 0: expected an id of 0 or more, found -1"):
        engine.submit([-1], max_new_tokens=1)
    with pytest.raises(TypeError, match="prompt: expected integers, found float64"):
        engine.submit([0.5], max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens: expected at least 1, found 0"):
        engine.submit([1], max_new_tokens=0)
    with pytest.raises(ContextOverflowError, match="2 prompt tokens and 4095 new ones need more than the 4096 positions"):
        engine.submit([1, 2], max_new_tokens=4095)
    with pytest.raises(ContextOverflowError, match="4097 tokens"):
        engine.logits([0] * 4097)
    with pytest.raises(ValueError, match="temperature"):
        engine.submit([1], max_new_tokens=1, temperature=-1.0)
    with pytest.raises(ValueError, match="precision: expected 'fast' or 'exact', found 'half'"):
        _probe.Engine(*arguments, precision="half")
    with pytest.raises(ValueError, match="max_context: expected at most the model's 4096 positions, found 5000"):
        _probe.Engine(*arguments, max_context=5000)
    with pytest.raises(ValueError, match="sse9"):
        _probe.Engine(*arguments, variant="sse9")
    with pytest.raises(EngineError, match="not loaded"):
        _probe.Engine(*arguments).submit([1], max_new_tokens=1)
    with pytest.raises(EngineError, match="not loaded"):
        _probe.Engine(*arguments).logits([1])


def test_missing_and_shrinking_files(arguments: Arguments, tmp_path: Path) -> None:
    config, tensors, files = arguments
    with pytest.raises(OSError, match="nowhere"):
        _probe.Engine(config, tensors, [str(tmp_path / "nowhere")] * len(files))
    copies = [tmp_path / Path(name).name for name in files]
    for copy, name in zip(copies, files, strict=True):
        copy.write_bytes(Path(name).read_bytes())
    engine = _probe.Engine(config, tensors, [str(copy) for copy in copies])
    for copy in copies:
        os.truncate(copy, copy.stat().st_size // 2)
    with pytest.raises(ValueError, match="truncated: expected"):
        engine.load()
    with pytest.raises(ValueError, match=r"(?s).*"):
        _probe.Engine(config, tensors, [str(copy) for copy in copies])


def test_closing(arguments: Arguments) -> None:
    engine = _probe.Engine(*arguments, threads=2)
    engine.load()
    jobs = [engine.submit(tokens(5), max_new_tokens=4000) for _ in range(40)]
    engine.close()
    engine.close()
    for job in jobs:
        drain(job)
        assert job.finish_reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        engine.submit([1], max_new_tokens=1)
    with pytest.raises(EngineError, match="closed"):
        engine.logits([1])
    assert not engine.loaded
    del engine
    del jobs[:20]
    gc.collect()


def test_loading_reports_progress_and_can_be_stopped(arguments: Arguments) -> None:
    seen: list[tuple[int, int]] = []
    engine = _probe.Engine(*arguments, threads=2)
    engine.load(progress=lambda done, total: seen.append((done, total)))
    assert seen and seen[-1][0] == seen[-1][1]
    engine.load()  # nothing more to do

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    other = _probe.Engine(*arguments, threads=2)
    with pytest.raises(KeyboardInterrupt):
        other.load(progress=stop)
    other.load()
    assert np.array_equal(other.logits([1, 2, 3]), engine.logits([1, 2, 3]))


def _use_in_child(engine: Any, job: Any) -> None:
    """Everything that would lock, in a child that has no thread but this one."""
    for use in (
        lambda: engine.submit([1], max_new_tokens=1),
        lambda: engine.logits([1]),
        lambda: engine.hidden_states([1], [0]),
        lambda: engine.profile(True),
        engine.load,
        job.next,
    ):
        with pytest.raises(EngineError, match="a forked child cannot use it"):
            use()
    assert job.next() is None and job.done and job.finish_reason == "error"
    job.cancel()
    job.stats()
    assert not engine.loaded
    engine.close()


def _run_in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that does `work`: 0 when that passes, minus SIGALRM when it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_an_error_and_never_waits(arguments: Arguments, open_engine: Any) -> None:
    engine = open_engine()
    job = engine.submit(tokens(5), max_new_tokens=4000, queue_bytes=0)
    assert _run_in_child(lambda: _use_in_child(engine, job)) == 0
    job.cancel()
    assert len(answer(engine, tokens(5), 4)) == 4
    # Closing joins the workers while it holds the mutex: some of these children inherit it locked.
    for i in range(40):
        closing = _probe.Engine(*arguments, threads=64)
        closing.load()
        job = closing.submit(tokens(5), max_new_tokens=4000, queue_bytes=0)
        thread = threading.Thread(target=closing.close)
        thread.start()
        time.sleep(1e-4 * i)
        assert _run_in_child(partial(_use_in_child, closing, job)) == 0
        thread.join()


def test_many_threads_on_one_engine(open_engine: Any) -> None:
    engine = open_engine(threads=3)
    want = {i: answer(engine, tokens(4 + i, seed=i), 10) for i in range(8)}
    wrong: list[int] = []

    def work(i: int) -> None:
        for round_number in range(5):
            job = engine.submit(tokens(4 + i, seed=i), max_new_tokens=10)
            if round_number == 3:
                job.cancel()
            elif drain(job) != want[i]:
                wrong.append(i)
            engine.logits([i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_decoding_releases_the_gil(open_engine: Any) -> None:
    engine = open_engine()
    counted = 0
    running = True

    def count() -> None:
        nonlocal counted
        while running:
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    engine.logits(tokens(2000))
    running = False
    thread.join()
    assert counted > 10


@pytest.mark.parametrize("precision", PRECISIONS)
def test_prompts_that_begin_alike_are_computed_once(open_engine: Any, precision: str) -> None:
    engine = open_engine(precision)
    common = tokens(300, seed=20)
    prompts = [common] * 4 + [common[:200] + tokens(20, seed=21), common + tokens(150, seed=22)]
    alone = []
    for i, prompt in enumerate(prompts):
        answer(engine, tokens(30, seed=100 + i), 1)  # other prompts push the idle caches out
        alone.append(drain(engine.submit(prompt, max_new_tokens=10, temperature=1.0, stream=i)))
    for i in range(5):
        answer(engine, tokens(30, seed=200 + i), 1)
    jobs = [engine.submit(prompt, max_new_tokens=10, temperature=1.0, stream=i) for i, prompt in enumerate(prompts)]
    assert [drain(job) for job in jobs] == alone
    shared = [job.stats()["cached_tokens"] for job in jobs]
    assert shared[0] == 0
    assert sum(count >= 128 for count in shared) >= 3, shared
    ended = [engine.submit(tokens(400, seed=23), max_new_tokens=50, stream=i) for i in range(3)]
    ended[0].cancel()
    assert drain(ended[1]) == drain(ended[2])


@pytest.mark.parametrize("shared", [16, 17, 24, 255, 256, 257, 300, 513])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copied_cache_is_as_good_as_the_first(open_engine: Any, precision: str, shared: int) -> None:
    engine = open_engine(precision)
    common = tokens(shared, seed=30 + shared)
    prompts = [[*common, 1, 2], [*common, 3, *tokens(20, seed=31)]]
    assert prompts[0][:shared] == prompts[1][:shared]

    def events(job: Any) -> list[Any]:
        return [(event[0], event[2]) for event in iter(job.next, None)]

    options = {"max_new_tokens": 12, "temperature": 1.0, "logprobs": 5}
    alone = events(engine.submit(prompts[1], **options))
    for i in range(5):
        answer(engine, tokens(30, seed=300 + i), 1)  # other prompts push the idle cache out
    first, second = [engine.submit(prompt, **options) for prompt in prompts]
    events(first)
    assert events(second) == alone
    assert second.stats()["cached_tokens"] == shared


def test_following_a_job_that_nobody_reads(open_engine: Any) -> None:
    engine = open_engine()
    prompt = tokens(100, seed=24)
    unread = engine.submit(prompt, max_new_tokens=100, queue_bytes=0)
    assert unread.next() is not None
    while unread.next(timeout=0.02) is None:
        pass
    follower = engine.submit(prompt, max_new_tokens=5)
    assert len(drain(follower)) == 5
    assert follower.stats()["cached_tokens"] == 99
