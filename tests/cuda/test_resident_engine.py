"""The resident path through the engine, over a driver made up for tests: the kernel's CTAs are threads of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_cases
import numpy as np
import pytest
from cuda_cases import (
    a_markov_head_drafts,
    answer,
    answers_beside_each_other_are_those_alone,
    draft_logits_are_the_cpus,
    engine_arguments,
    every_slot,
    faults_are_found_at_their_operations,
    first_wrong,
    hidden_states_are_the_cpus,
    knowing_markov_head,
    logits_are_the_cpus,
    logits_do_not_depend_on_width,
    matched,
    raises,
    slot_after,
    speculation_changes_nothing,
    token_ids,
)

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import EngineError
from mimo_ultraspeed.make import make

pytestmark = pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")

GB = 1 << 30
LOST = 700  # CUDA_ERROR_ILLEGAL_ADDRESS

# Besides: a drafter of some ids with a window, and one with a Markov head.
MODELS = cuda_cases.MODELS | {
    "fp8-fused": {"weights": "fp8", "layout": "fused", "draft": {"vocab": 100, "window": 24}},
    "markov": {"weights": "bf16", "draft": {"vocab": 100, "markov_rank": 4}},
}


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    """A fresh driver for every test, and none left behind."""
    _probe.cuda_fake(memory=GB, processors=2)
    yield
    _probe.cuda_fake()


@pytest.fixture
def opened(model_path: Callable[[str], Path], image: str) -> Iterator[Callable[..., Any]]:
    """A loaded engine by its model, or its model's folder: on the CPU ("exact"), or on the made-up GPU, by the path `variant`."""
    engines: list[Any] = []

    def get(name: str | Path, variant: str = "resident", **options: Any) -> Any:
        arguments, draft = engine_arguments(name if isinstance(name, Path) else model_path(name))
        how = {} if variant == "cpu" else {"variant": variant, "device": 0, "image": image}
        engine = _probe.Engine(*arguments, threads=2, **draft, **({"precision": "exact"} | how | options))
        engines.append(engine)
        engine.load()
        return engine

    yield get
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(opened: Any, name: str, precision: str) -> None:
    gpu = opened(name, precision=precision)
    assert (gpu.backend, gpu.variant) == ("cuda", "resident")
    logits_are_the_cpus(opened(name, "cpu"), gpu, precision, 24)


def test_every_width_gives_the_same_bits(opened: Any) -> None:
    logits_do_not_depend_on_width(opened("mxfp4", precision="fast"), 19)


def test_experts_in_e4m3(opened: Any) -> None:
    """Near the CPU's logits, though not as near as BF16; the same bits at every width, and drafts change no token."""
    gpu = opened("mxfp4", "resident-e4m3", precision="fast")
    assert gpu.variant == "resident-e4m3"
    logits_are_the_cpus(opened("mxfp4", "cpu"), gpu, "e4m3", 24)
    logits_do_not_depend_on_width(gpu, 19)
    speculation_changes_nothing(gpu)
    others = opened("mxfp4", precision="fast").logits(TOKENS)
    assert not np.array_equal(gpu.logits(TOKENS), others)


def test_e4m3_is_of_fast_precision(opened: Any) -> None:
    assert "expected precision 'fast'" in raises(NotImplementedError, lambda: opened("mxfp4", "resident-e4m3"))


def test_e4m3_is_of_gpus_that_have_wgmma(opened: Any) -> None:
    _probe.cuda_fake(memory=GB, processors=2, capability=103)
    text = raises(NotImplementedError, lambda: opened("mxfp4", "resident-e4m3", precision="fast"))
    assert "expected a GPU of compute capability 9.0, which has wgmma, found 10.3; 'resident' multiplies in BF16" in text
    assert opened("mxfp4", precision="fast").variant == "resident"


def test_hidden_states_and_drafts(opened: Any) -> None:
    cpu, gpu = opened("mxfp4", "cpu"), opened("mxfp4")
    hidden_states_are_the_cpus(cpu, gpu, layers=4)
    draft_logits_are_the_cpus(cpu, gpu)


# ---- operation by operation ----

TOKENS = token_ids(8, seed=7)


@pytest.mark.parametrize("processors", [2, 7])
@pytest.mark.parametrize("name", MODELS)
def test_every_operation_is_the_oracle_s(opened: Any, model_path: Any, name: str, processors: int) -> None:
    _probe.cuda_fake(memory=GB, processors=processors)
    gpu = opened(name)
    want = gpu.logits(TOKENS)
    assert first_wrong(gpu, model_path(name), TOKENS) is None
    *_, (last, _, logits, _) = every_slot(gpu, model_path(name), TOKENS)
    assert last == "head"
    assert np.array_equal(logits, want)
    assert np.array_equal(gpu.logits(TOKENS), want)  # a trace leaves the counters of whole steps alone
    for rows in (1, 3):
        assert np.array_equal(slot_after(gpu, TOKENS[:rows], 6, "x"), slot_after(gpu, TOKENS, 6, "x")[:rows])


@pytest.mark.parametrize("after", [1, 2, 3, 4, 6, 8, 10])
def test_a_device_that_fails_while_it_is_traced(opened: Any, after: int) -> None:
    gpu = opened("mxfp4")
    _probe.cuda_fake(memory=GB, processors=2, fail_at=after, fail_result=LOST, fail_for_good=True)
    assert "CUDA_ERROR_FAKED (700" in raises(EngineError, lambda: slot_after(gpu, TOKENS, 6, "x"))


def test_a_fault_is_found_at_its_operation(opened: Any, model_path: Any) -> None:
    faults_are_found_at_their_operations(lambda: opened("mxfp4"), model_path("mxfp4"))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_the_cpus(opened: Any, name: str, temperature: float) -> None:
    cpu, gpu = opened(name, "cpu"), opened(name)
    prompt = token_ids(21, seed=4)
    want = answer(cpu, prompt, 24, temperature=temperature, seed=9)
    assert answer(gpu, prompt, 24, temperature=temperature, seed=9) == want
    assert answer(gpu, prompt, 24, temperature=temperature, seed=9, speculative=True) == want


def drained(job: Any) -> list[int]:
    said: list[int] = []
    while (event := job.next()) is not None:
        said += event[0]
    return said


def launches() -> int:
    return int(_probe.cuda_fake_stats()["launches"])


def test_an_answer_is_a_few_launches(opened: Any) -> None:
    """Rounds that the device runs by itself are not launched one by one; those that the host has to choose are."""
    gpu = opened("mxfp4")
    prompt = token_ids(16, seed=6)
    before = launches()
    assert len(answer(gpu, prompt, 60)) == 60
    assert launches() - before == 2 + 2  # of the prompt; 59 rounds, 32 a launch
    for options in ({"logprobs": 0}, {"repetition_penalty": 1.1}):
        before = launches()
        assert len(answer(gpu, [*prompt[:-1], 1], 4, **options)) == 4
        assert launches() - before >= 3, options


@pytest.mark.parametrize(
    "sampling",
    [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.02}, {"top_k": 40, "top_p": 0.9, "min_p": 0.001}, {"top_k": 600, "top_p": 0.3}],
    ids=lambda sampling: "-".join(sampling),
)
def test_filtered_tokens_are_the_sampler_s(opened: Any, sampling: dict[str, Any]) -> None:
    """The device's cuts against the host's: where log-probabilities are asked for, the host samples the same steps."""
    gpu = opened("markov")
    prompt = token_ids(11, seed=5)
    for seed in range(3):
        options: dict[str, Any] = {"temperature": 1.3, "seed": seed} | sampling
        want = answer(gpu, prompt, 24, logprobs=0, **options)
        before = launches()
        assert answer(gpu, prompt, 24, **options) == want
        assert launches() - before <= 3
    assert want != answer(gpu, prompt, 24, temperature=1.3, seed=2)


def test_a_markov_head_drafts_on_the_device(opened: Any, tmp_path: Path) -> None:
    gpu, prompt, want = knowing_markov_head(opened, tmp_path / "model")
    count = launches()
    a_markov_head_drafts(gpu, prompt, want)
    assert launches() - count == 4 + 1  # the prompt and its context; all rounds


def test_prompt_lookup_beside_the_drafter(opened: Any, tmp_path: Path) -> None:
    """On the device, which knows the prompt; rounds say how many of their drafts were looked up."""
    make(tmp_path / "model", overrides={"vocab_size": 12}, draft={"window": 24}, progress=False)  # few ids: text comes again
    gpu, prompt = opened(tmp_path / "model"), token_ids(40, seed=1, vocab=12)
    for temperature in (0.0, 1.0):
        want = answer(gpu, prompt, 60, temperature=temperature)
        gpu = opened(tmp_path / "model")  # one that has seen none of it
        for lookup in (True, False):
            count = launches()
            job = gpu.submit(prompt, max_new_tokens=60, speculative=True, lookup=lookup, temperature=temperature)
            assert drained(job) == want
            rounds = job.stats()["rounds"]
            assert launches() - count < len(rounds["drafted"])  # the device goes from round to round: the host launches each
            known, sure = len(prompt) + 1, 0
            for drafted, looked_up, emitted in zip(rounds["drafted"], rounds["lookup"], rounds["emitted"], strict=True):
                length, _ = matched([*prompt, *want][:known])
                assert looked_up in (0, drafted) and (lookup or not looked_up)
                if known > len(prompt) + 1 and lookup and length != 2:  # two tokens need the drafter's word
                    assert looked_up == (drafted if length > 2 else 0)
                    sure += looked_up > 0
                known += emitted
            assert sure > 2 or not lookup


@pytest.mark.parametrize("width", range(1, 9))
def test_drafts_of_every_width_change_no_token(opened: Any, width: int) -> None:
    gpu = opened("mxfp4")
    prompt = token_ids(12, seed=width)
    sampling: dict[str, Any] = {"temperature": 0.9, "seed": width} if width % 2 else {}
    want = answer(gpu, prompt, 20, **sampling)
    job = gpu.submit(prompt, max_new_tokens=20, speculative=True, width=width, **sampling)
    assert drained(job) == want
    rounds = job.stats()["rounds"]
    for drafted, accepted, emitted in zip(rounds["drafted"], rounds["accepted"], rounds["emitted"], strict=True):
        assert 1 <= emitted <= accepted + 1 <= drafted + 1 <= width
    assert sum(rounds["emitted"]) == 19


def test_more_ctas_than_work(opened: Any) -> None:
    """Some CTAs have nothing to do before the tokens are chosen, and are late in every round."""
    _probe.cuda_fake(memory=GB, processors=20)
    gpu = opened("fp8-fused")
    prompt = token_ids(10, seed=3)
    want = answer(gpu, prompt, 9)
    for count in range(2, 9):
        assert answer(gpu, prompt, count, speculative=True, width=2) == want[:count]


def test_speculation_changes_nothing(opened: Any) -> None:
    speculation_changes_nothing(opened("fp8-fused", precision="fast"), 2)


def test_answers_beside_each_other(opened: Any) -> None:
    """Several jobs go through steps, one alone through rounds of the device: the same tokens."""
    answers_beside_each_other_are_those_alone(opened("mxfp4"), 4)


def test_the_mail_goes_round_for_many_laps(opened: Any) -> None:
    """Answers of more tokens than the ring has places, one after the other; a reader with little room in between."""
    cpu, gpu = opened("bf16", "cpu"), opened("bf16")
    prompt = token_ids(5, seed=8)
    want = answer(cpu, prompt, 600)
    assert answer(gpu, prompt, 600) == want
    assert drained(gpu.submit(prompt, max_new_tokens=300, queue_bytes=1)) == want[:300]


def test_an_end_token_ends_the_answer(opened: Any) -> None:
    gpu = opened("mxfp4")
    prompt = token_ids(9, seed=2)
    want = answer(gpu, prompt, 24)
    end = want[13]
    for options in ({}, {"speculative": True}):
        job = gpu.submit(prompt, max_new_tokens=24, eos=[511, end], **options)
        assert drained(job) == want[: want.index(end) + 1]
        assert job.finish_reason == "eos"
    many = list(range(500, 512))  # more than the device compares with: the host does
    assert answer(gpu, prompt, 24, eos=[*many, end])[-1] in (*many, end)


def test_a_cancelled_answer_leaves_a_cache_that_serves(opened: Any) -> None:
    cpu, gpu = opened("mxfp4", "cpu"), opened("mxfp4")
    prompt = token_ids(30, seed=3)
    job = gpu.submit(prompt, max_new_tokens=3000, speculative=True)
    said = job.next()[0]
    job.cancel()
    said += drained(job)
    assert job.finish_reason == "cancelled"
    assert len(said) < 3000
    again = gpu.submit(prompt + said, max_new_tokens=12, speculative=True)
    assert drained(again) == answer(cpu, prompt + said, 12)
    assert again.stats()["cached_tokens"] > 0


def test_other_work_stops_a_decode(opened: Any) -> None:
    """A call, and another answer, come in between rounds; the first answer goes on as if alone."""
    gpu = opened("bf16")
    prompt = token_ids(8, seed=7)
    want = answer(gpu, prompt, 200)
    job = gpu.submit(prompt, max_new_tokens=200)
    said = job.next()[0]
    assert np.isfinite(gpu.logits([1, 2, 3])).all()
    assert len(answer(gpu, [4, 5], 6)) == 6
    assert said + drained(job) == want


def test_closing_ends_a_decode_and_gives_everything_back(opened: Any) -> None:
    gpu = opened("mxfp4")
    job = gpu.submit(token_ids(4), max_new_tokens=4000, speculative=True)
    assert job.next() is not None
    gpu.close()
    drained(job)
    assert job.finish_reason == "cancelled"
    stats = _probe.cuda_fake_stats()
    assert (stats["live_blocks"], stats["live_bytes"], stats["live_handles"]) == (0, 0, 0)


@pytest.mark.parametrize("program", [0, 1, 2])
def test_a_signal_that_never_comes_loses_the_engine_and_not_the_process(opened: Any, program: int) -> None:
    gpu = opened("mxfp4")
    answer(gpu, [1, 2, 3], 8, speculative=True)
    _probe.cuda_break(gpu, program, 30, 200)
    job = gpu.submit([5, 6, 7], max_new_tokens=50, speculative=program == 0)
    text = raises(EngineError, lambda: drained(job))
    assert "is lost: the resident kernel: compute role of CTA" in text
    assert "signals" in text
    assert "is lost" in raises(EngineError, lambda: gpu.logits([1, 2]))
    gpu.close()
    assert _probe.cuda_fake_stats()["live_blocks"] == 0


@pytest.mark.parametrize("after", [1, 4, 12])
def test_a_lost_device_ends_answers_with_an_error(opened: Any, after: int) -> None:
    gpu = opened("bf16")
    job = gpu.submit([5, 2, 3], max_new_tokens=4000)
    _probe.cuda_fake(memory=GB, processors=2, fail_at=after, fail_result=LOST, fail_for_good=True)
    assert "CUDA_ERROR_FAKED (700" in raises(EngineError, lambda: drained(job))
    gpu.close()


def test_calls_of_the_driver_fail_while_opening_and_loading(model_path: Any, image: str) -> None:
    """Each of opening, and of loading the first ones, and the last, which are the kernel's first steps: nothing stays behind."""
    arguments, _ = engine_arguments(model_path("bf16"))

    def open_and_load() -> tuple[int, int]:
        engine = _probe.Engine(*arguments, threads=1, device=0, image=image, variant="resident")
        try:
            calls = int(_probe.cuda_fake_stats()["calls"])
            engine.load()
            return calls, int(_probe.cuda_fake_stats()["calls"])
        finally:
            engine.close()

    _probe.cuda_fake(memory=GB, processors=2)
    opening, loaded = open_and_load()
    for n in (*range(1, opening + 9), *range(opening + 60, loaded, (loaded - opening) // 4), *range(loaded - 4, loaded + 1)):
        _probe.cuda_fake(memory=GB, processors=2, fail_at=n, fail_result=LOST)
        with pytest.raises((EngineError, NotImplementedError)):
            open_and_load()
            raise EngineError("a step after loading")  # the last calls are of steps that measure, and lose the engine later
        stats = _probe.cuda_fake_stats()
        assert (stats["live_blocks"], stats["live_bytes"], stats["live_handles"]) == (0, 0, 0), n


def test_what_is_missing_is_said(model_path: Any, image: str) -> None:
    arguments, _ = engine_arguments(model_path("bf16"))
    with pytest.raises(ValueError, match="variant: expected 'plain', 'resident' or 'resident-e4m3' on a GPU, found 'fast'"):
        _probe.Engine(*arguments, device=0, image=image, variant="fast")
    _probe.cuda_fake(memory=1 << 21, processors=2)
    with pytest.raises(MemoryError, match="does not fit on the GPU"):
        _probe.Engine(*arguments, device=0, image=image, variant="resident")
