"""The CUDA engine over a driver made up for tests: the host's side is the real one, its kernels run on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import (
    MODELS,
    answer,
    answers_beside_each_other_are_those_alone,
    draft_logits_are_the_cpus,
    engine_arguments,
    every_slot,
    first_wrong,
    hidden_states_are_the_cpus,
    logits_are_the_cpus,
    logits_do_not_depend_on_width,
    open_pair,
    raises,
    speculation_changes_nothing,
    token_ids,
)

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import EngineError
from mimo_ultraspeed.make import make

pytestmark = pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")

GB = 1 << 30
LOST = 700  # CUDA_ERROR_ILLEGAL_ADDRESS
OUT_OF_MEMORY = 2


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    """A fresh driver for every test, and none left behind."""
    _probe.cuda_fake(memory=GB)
    yield
    _probe.cuda_fake()


@pytest.fixture
def pair(
    model_path: Callable[[str], Path], image: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Any, Any]]]:
    opened: list[Any] = []
    monkeypatch.setattr("cuda_cases.cuda_image", lambda: image)

    def get(name: str, precision: str = "exact") -> tuple[Any, Any]:
        opened.extend(open_pair(model_path(name), precision))
        return opened[-2], opened[-1]

    yield get
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(pair: Any, name: str, precision: str) -> None:
    cpu, gpu = pair(name, precision)
    assert (gpu.backend, gpu.variant, cpu.backend) == ("cuda", "plain", "cpu")
    logits_are_the_cpus(cpu, gpu, precision)


def test_every_width_gives_the_same_bits(pair: Any) -> None:
    _, gpu = pair("mxfp4", "fast")
    logits_do_not_depend_on_width(gpu, 40)


def test_hidden_states(pair: Any) -> None:
    hidden_states_are_the_cpus(*pair("mxfp4"), layers=4)


@pytest.mark.parametrize("name", ["mxfp4", "fp8-fused"])
def test_drafts(pair: Any, name: str) -> None:
    draft_logits_are_the_cpus(*pair(name))


@pytest.mark.parametrize("name", ["mxfp4", "fp8-fused"])
def test_speculation_changes_nothing(pair: Any, name: str) -> None:
    speculation_changes_nothing(pair(name)[1])


def test_answers_beside_each_other(pair: Any) -> None:
    answers_beside_each_other_are_those_alone(pair("mxfp4")[1])


def test_contexts_longer_than_chunks_and_rings(pair: Any) -> None:
    cpu, gpu = pair("mxfp4")
    prompt = token_ids(700, seed=9)
    want, found = cpu.logits(prompt)[-20:], gpu.logits(prompt)[-20:]
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()


def test_a_prompt_that_was_seen_is_not_computed_again(pair: Any) -> None:
    _, gpu = pair("mxfp4")
    prompt = token_ids(90, seed=5)
    want = answer(gpu, prompt, 10)
    again = gpu.submit(prompt, max_new_tokens=10)
    said: list[int] = []
    while (event := again.next()) is not None:
        said += event[0]
    assert said == want
    assert again.stats()["cached_tokens"] > 0


def test_a_profile_counts_every_operation(pair: Any) -> None:
    _, gpu = pair("mxfp4")
    gpu.profile(True)
    gpu.logits(token_ids(11))
    told = gpu.profile(False)
    assert (told["steps"], told["rows"]) == (1, 11)
    assert told["ops"]["qkv"]["calls"] == 2 * 4  # two pieces of a step, four layers
    assert set(told["ops"]) >= {"embed", "attention", "route", "expert_up", "head"}
    gpu.profile(True)
    gpu.draft_logits(token_ids(11), [10])
    drafter = gpu.profile(False)["draft"]
    assert (drafter["steps"], drafter["rows"]) == (1, 8)
    assert set(drafter["ops"]) >= {"draft_fuse", "draft_kv", "draft_embed", "attention", "head"}
    assert set(told["ops"]).isdisjoint({"draft_fuse", "draft_kv", "draft_embed"})


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_is_the_oracle_s(pair: Any, model_path: Any, name: str) -> None:
    _, gpu = pair(name)
    prompt = token_ids(8, seed=7)
    assert first_wrong(gpu, model_path(name), prompt) is None
    *_, (last, _, logits, _) = every_slot(gpu, model_path(name), prompt)
    assert last == "head"
    assert np.array_equal(logits, gpu.logits(prompt))


def test_what_cannot_be_traced_is_said(pair: Any) -> None:
    _, gpu = pair("mxfp4")
    for tokens, stop, slot, text in [
        (token_ids(9), 1, 4, "1 to 8 rows, found 9"),
        ([1], 0, 4, "operations, found 0"),
        ([1], 1, 1, "a slot that the target's operations write"),
        ([1], 1, 1024, "a slot that the target's operations write"),
    ]:
        with pytest.raises(ValueError, match=text):
            _probe.cuda_trace(gpu, tokens, stop, slot)
    with pytest.raises(ValueError, match="a stage of the resident kernel's steps"):
        _probe.cuda_skip(gpu, 0)
    _, fast = pair("mxfp4", "fast")
    with pytest.raises(NotImplementedError, match="keys and values in float"):
        _probe.cuda_trace(fast, [1], 2, 16)


# ---- failures ----


def open_gpu(model_path: Any, image: str, name: str = "mxfp4", **options: Any) -> Any:
    arguments, draft = engine_arguments(model_path(name))
    return _probe.Engine(*arguments, threads=2, device=0, image=image, **draft, **options)


def nothing_is_left() -> bool:
    stats = _probe.cuda_fake_stats()
    return (stats["live_blocks"], stats["live_bytes"], stats["live_handles"]) == (0, 0, 0)


def test_closing_gives_everything_back(model_path: Any, image: str) -> None:
    engine = open_gpu(model_path, image)
    engine.load()
    answer(engine, [1, 2, 3], 4)
    engine.close()
    assert nothing_is_left()


@pytest.mark.parametrize("result", [OUT_OF_MEMORY, LOST])
def test_every_call_of_the_driver_fails_once_while_opening_and_loading(model_path: Any, image: str, result: int) -> None:
    kinds = (MemoryError, EngineError) if result == OUT_OF_MEMORY else (EngineError, NotImplementedError)
    _probe.cuda_fake(memory=GB)
    engine = open_gpu(model_path, image)
    opening = _probe.cuda_fake_stats()["calls"]
    engine.load()
    engine.close()
    # every call of opening; of loading, with its thousands of copies, some of each kind
    for n in [*range(1, opening + 1), *(opening + k for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 50, 200, 500, 700))]:
        _probe.cuda_fake(memory=GB, fail_at=n, fail_result=result)
        engine = None
        try:
            engine = open_gpu(model_path, image)
            engine.load()
        except kinds:
            pass
        finally:
            if engine is not None:
                engine.close()
        assert nothing_is_left(), n


@pytest.mark.parametrize("after", [1, 2, 5, 30])
def test_a_lost_device_ends_answers_with_an_error(model_path: Any, image: str, after: int) -> None:
    engine = open_gpu(model_path, image)
    engine.load()
    want = answer(engine, [5, 6, 7], 16, speculative=True)
    running = [engine.submit([seed, 2, 3], max_new_tokens=4000, speculative=True) for seed in range(3)]
    _probe.cuda_fake(memory=GB, fail_at=after, fail_result=LOST, fail_for_good=True)

    def drain(job: Any) -> None:
        while job.next() is not None:
            pass

    for job in running:
        text = raises(EngineError, lambda job=job: drain(job))
        assert "is lost" in text and "CUDA_ERROR_FAKED (700" in text
    for call in (lambda: engine.logits([1, 2]), lambda: answer(engine, [1]), lambda: engine.draft_logits([1, 2], [1])):
        assert "is lost" in raises(EngineError, call)
    engine.close()
    assert len(want) == 16
    assert nothing_is_left()


def test_what_is_missing_is_said(model_path: Any, image: str, tmp_path: Path) -> None:
    _probe.cuda_fake(memory=GB, devices=0)
    assert "no GPU that this process may use" in raises(NotImplementedError, lambda: open_gpu(model_path, image))
    _probe.cuda_fake(memory=GB, init_result=999)
    assert "the driver does not start: CUDA_ERROR_FAKED (999" in raises(NotImplementedError, lambda: open_gpu(model_path, image))
    _probe.cuda_fake(memory=GB, module_result=209)
    assert "no kernels for a GPU made up by a test (sm_90); build with MIMO_CUDA_ARCH=sm_90a" in raises(
        NotImplementedError, lambda: open_gpu(model_path, image)
    )
    _probe.cuda_fake(memory=GB)
    with pytest.raises(FileNotFoundError):
        open_gpu(model_path, str(tmp_path / "none.fatbin"))
    arguments, _ = engine_arguments(make(tmp_path / "many", overrides={"n_routed_experts": 513}, headers_only=True, progress=False))
    with pytest.raises(NotImplementedError, match=r"config\.experts: expected at most 512, found 513"):
        _probe.Engine(*arguments, threads=2, device=0, image=image)
    assert nothing_is_left()


def test_sequences_are_limited(pair: Any) -> None:
    _, gpu = pair("bf16")
    jobs = [gpu.submit([n % 512, 1], max_new_tokens=3) for n in range(60)]
    for job in jobs:
        while job.next() is not None:
            pass
        assert job.finish_reason == "length"


def test_bad_weights_are_refused(tmp_path: Path, image: str) -> None:
    path = make(tmp_path / "model", weights="bf16", progress=False)
    (config, tensors, files), _ = engine_arguments(path)
    name, _, _, file, begin, _ = next(t for t in tensors if t[0].endswith("o_proj.weight"))
    with Path(files[file]).open("r+b") as out:
        out.seek(begin + 6)
        out.write(b"\x80\x7f")  # an infinity
    engine = _probe.Engine(config, tensors, files, threads=2, device=0, image=image)
    with pytest.raises(ValueError, match=f"{name}: row 0: expected finite weights"):
        engine.load()
    engine.close()
    assert nothing_is_left()
