"""The CUDA engine on a GPU: all of it is `not run` where there is none.

What only a GPU can show: that the kernels compute what the same templates compute on the host, that graphs and copies keep their
order, and that a real driver's failures arrive as errors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import (
    MODELS,
    a_markov_head_drafts,
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
    open_pair,
    raises,
    speculation_changes_nothing,
    token_ids,
)

from mimo_ultraspeed import _core, _probe
from mimo_ultraspeed.cuda import cuda_image
from mimo_ultraspeed.make import make


def missing() -> str | None:
    if not cuda_image().is_file():
        return "CUDA kernels were not built"
    try:
        _core.cuda_devices()
    except NotImplementedError as error:
        return f"no CUDA device ({error})"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=f"not run: {missing()}")


@pytest.fixture(scope="module")
def pair(model_path: Callable[[str], Path]) -> Iterator[Callable[..., tuple[Any, Any]]]:
    opened: dict[tuple[str, str], tuple[Any, Any]] = {}

    def get(name: str, precision: str = "exact") -> tuple[Any, Any]:
        if (name, precision) not in opened:
            opened[name, precision] = open_pair(model_path(name), precision)
        return opened[name, precision]

    yield get
    for engines in opened.values():
        for engine in engines:
            engine.close()


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(pair: Any, name: str, precision: str) -> None:
    logits_are_the_cpus(*pair(name, precision), precision=precision, count=300)


@pytest.mark.parametrize("name", MODELS)
def test_every_width_gives_the_same_bits(pair: Any, name: str) -> None:
    logits_do_not_depend_on_width(pair(name, "fast")[1], 200)


def test_every_run_gives_the_same_bits(pair: Any) -> None:
    _, gpu = pair("mxfp4", "fast")
    prompt = token_ids(100, seed=4)
    want = gpu.logits(prompt)
    for _ in range(20):
        assert np.array_equal(gpu.logits(prompt), want)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_layer_by_layer(pair: Any, name: str) -> None:
    hidden_states_are_the_cpus(*pair(name), layers=4)


@pytest.mark.parametrize("name", ["mxfp4", "fp8-fused"])
def test_drafts(pair: Any, name: str) -> None:
    draft_logits_are_the_cpus(*pair(name))


@pytest.mark.parametrize("name", ["mxfp4", "fp8-fused"])
def test_speculation_changes_nothing(pair: Any, name: str) -> None:
    speculation_changes_nothing(pair(name)[1], prompts=20)


def test_answers_beside_each_other(pair: Any) -> None:
    answers_beside_each_other_are_those_alone(pair("mxfp4")[1], jobs=40)


def test_contexts_longer_than_chunks_and_rings(pair: Any) -> None:
    cpu, gpu = pair("mxfp4")
    prompt = token_ids(1500, seed=9)
    want, found = cpu.logits(prompt)[-100:], gpu.logits(prompt)[-100:]
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")
def test_the_gpu_has_the_bits_of_the_host(pair: Any, model_path: Any) -> None:
    """The same templates on the host: what differs is a kernel that a GPU runs otherwise."""
    _, gpu = pair("mxfp4")
    prompt = token_ids(50, seed=5)
    found = gpu.logits(prompt)
    arguments, draft = engine_arguments(model_path("mxfp4"))
    _probe.cuda_fake(memory=1 << 30)
    try:
        host = _probe.Engine(*arguments, threads=2, precision="exact", device=0, image=str(cuda_image()), **draft)
        host.load()
        want = host.logits(prompt)
        host.close()
    finally:
        _probe.cuda_fake()
    assert np.array_equal(found, want)


@pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")
def test_every_operation_has_the_bits_of_the_host(pair: Any, model_path: Any) -> None:
    """Where the test above fails, this one names the first operation that differs."""
    _, gpu = pair("mxfp4")
    tokens = token_ids(8, seed=7)
    found = [slot for _, _, slot, _ in every_slot(gpu, model_path("mxfp4"), tokens)]
    arguments, draft = engine_arguments(model_path("mxfp4"))
    _probe.cuda_fake(memory=1 << 30)
    try:
        host = _probe.Engine(*arguments, threads=2, precision="exact", device=0, image=str(cuda_image()), **draft)
        host.load()
        want = list(every_slot(host, model_path("mxfp4"), tokens))
        host.close()
    finally:
        _probe.cuda_fake()
    for one, (name, slot, other, _) in zip(found, want, strict=True):
        assert np.array_equal(one, other), (name, slot)


@pytest.fixture
def resident(model_path: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Loaded engines of the resident path by their model or its folder."""
    image = cuda_image("resident")
    if not image.is_file():
        pytest.skip("not run: no resident kernels were built")
    engines: list[Any] = []

    def get(name: str | Path, precision: str = "exact", variant: str = "resident") -> Any:
        arguments, draft = engine_arguments(name if isinstance(name, Path) else model_path(name))
        engine = _probe.Engine(*arguments, threads=2, precision=precision, device=0, image=str(image), variant=variant, **draft)
        engines.append(engine)
        engine.load()
        return engine

    yield get
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_the_resident_kernel(pair: Any, resident: Any, name: str, precision: str) -> None:
    logits_are_the_cpus(pair(name)[0], resident(name, precision), precision=precision, count=300)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_every_width_of_the_resident_kernel_gives_the_same_bits(resident: Any, precision: str) -> None:
    logits_do_not_depend_on_width(resident("mxfp4", precision), 200)


def test_experts_in_e4m3(pair: Any, resident: Any) -> None:
    gpu = resident("mxfp4", "fast", "resident-e4m3")
    logits_are_the_cpus(pair("mxfp4")[0], gpu, precision="e4m3", count=300)
    logits_do_not_depend_on_width(gpu, 200)
    speculation_changes_nothing(gpu)


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_of_the_resident_kernel_is_the_oracle_s(resident: Any, model_path: Any, name: str) -> None:
    gpu, tokens = resident(name), token_ids(8, seed=7)
    assert first_wrong(gpu, model_path(name), tokens) is None
    *_, (last, _, logits, _) = every_slot(gpu, model_path(name), tokens)
    assert last == "head"
    assert np.array_equal(logits, gpu.logits(tokens))


def test_a_fault_of_the_resident_kernel_is_found_at_its_operation(resident: Any, model_path: Any) -> None:
    faults_are_found_at_their_operations(lambda: resident("mxfp4"), model_path("mxfp4"))


def test_a_markov_head_drafts_on_the_gpu(resident: Any, tmp_path: Path) -> None:
    a_markov_head_drafts(*knowing_markov_head(resident, tmp_path / "markov"))


def test_the_built_in_model(pair: Any, tmp_path: Path) -> None:
    from mimo_ultraspeed.default_model import model_folder

    folder = model_folder("smollm2-135m")
    if not folder.is_dir():
        pytest.skip("not run: the built-in model has not been made")
    cpu, gpu = open_pair(folder, "fast")
    prompt = token_ids(200, seed=6, vocab=49152)
    want, found = cpu.logits(prompt), gpu.logits(prompt)
    assert (found.argmax(axis=1) == want.argmax(axis=1)).mean() >= 0.97
    logits_do_not_depend_on_width(gpu, 64)
    for engine in (cpu, gpu):
        engine.close()


def test_a_model_that_does_not_fit(tmp_path: Path) -> None:
    path = make(tmp_path / "pro", shape="pro", headers_only=True, progress=False)
    arguments, _ = engine_arguments(path)
    text = raises(MemoryError, lambda: _core.Engine(*arguments, threads=1, device=0, image=str(cuda_image())))
    assert "does not fit on the GPU" in text
    assert "free on the GPU" in text


@pytest.mark.parametrize("path", ["plain", "resident", "resident-e4m3"])
def test_a_rank_with_made_weights_is_timed(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    from mimo_ultraspeed.benchmark.rank import bench_rank

    if not cuda_image(path).is_file():
        pytest.skip(f"not run: no {path} kernels were built")
    monkeypatch.setenv("MIMO_CUDA_UNTESTED", "1")
    result = bench_rank("tiny", world=2, rounds=2, paths=[path], progress=False)
    times = [time for name, values in result.samples[path].items() if name in ("step 1", "step 8", "draft") for time in values]
    assert all(1e-6 < time < 1 for time in times)
    assert min(result.samples[path]["copy"]) > 1e10
    for profile in result.profiles.values():
        assert 1e-6 < profile.seconds < 1
        assert len(profile.sm_busy) > 8


@pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")
def test_made_weights_are_those_of_the_host(tmp_path: Path) -> None:
    path = make(tmp_path / "model", weights="mxfp4", draft=True, headers_only=True, progress=False)
    arguments, draft = engine_arguments(path)
    engine = _probe.Engine(*arguments, threads=1, **draft)
    found = []
    try:
        for memory in (0, 1 << 30):  # the GPU, then the made-up one
            _probe.cuda_fake(memory=memory)
            rank = _probe.Rank(engine, world=2, context=30, copied=1 << 16)
            rank.open(0, "plain", str(cuda_image()), 1)
            rank.time_steps(8, 1)
            found.append(rank.read(8))
            rank.close()
    finally:
        _probe.cuda_fake()
    for on_gpu, on_host in zip(*found, strict=True):
        assert np.array_equal(on_gpu, on_host)


def test_no_such_gpu(model_path: Any) -> None:
    arguments, _ = engine_arguments(model_path("bf16"))
    text = raises(ValueError, lambda: _core.Engine(*arguments, threads=1, device=99, image=str(cuda_image())))
    assert "device: expected a GPU from 0 to" in text


def test_memory_is_given_back(model_path: Any) -> None:
    arguments, _ = engine_arguments(model_path("bf16"))
    limits = []
    for _ in range(4):
        engine = _core.Engine(*arguments, threads=1, device=0, image=str(cuda_image()), max_context=512)
        engine.load()
        limits.append(engine.memory()["limit"])
        engine.close()
    assert len(set(limits[1:])) == 1


LOSE = """
import sys
from cuda_cases import answer, engine_arguments, raises
from mimo_ultraspeed import _probe
from mimo_ultraspeed.cuda import cuda_image
from mimo_ultraspeed.errors import EngineError
from pathlib import Path

arguments, draft = engine_arguments(Path(sys.argv[1]))
engine = _probe.Engine(*arguments, threads=2, device=0, image=str(cuda_image()), **draft)
engine.load()
assert len(answer(engine, [1, 2, 3], 8)) == 8
job = engine.submit([1, 2], max_new_tokens=100000)
_probe.cuda_spoil(engine)
def drain():
    while job.next() is not None:
        pass
assert "is lost" in raises(EngineError, drain)
assert "is lost" in raises(EngineError, lambda: engine.logits([1]))
engine.close()
print("ended")
"""


def test_a_lost_device_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """In a process of its own: a kernel that reads where nothing is takes the whole context with it."""
    path = make(tmp_path / "model", progress=False, overrides={"max_position_embeddings": 200000})
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).resolve().parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", LOSE, str(path)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ended\n"
