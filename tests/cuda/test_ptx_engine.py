"""Both GPU paths from the machine code's own PTX, run on the host (tests/ptx): what nvcc made of the kernels, with their barriers,
copies in bulk, shuffles and tensor-core products, and every rule of the device watched (memory, alignment, barriers, races)."""

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
    draft_logits_are_the_cpus,
    engine_arguments,
    every_slot,
    first_wrong,
    hidden_states_are_the_cpus,
    knowing_markov_head,
    logits_are_the_cpus,
    logits_do_not_depend_on_width,
    matched,
    raises,
    token_ids,
)
from ptx.library import build, nvcc

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import EngineError
from mimo_ultraspeed.make import make

pytestmark = [
    pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built"),
]

GB = 1 << 30
MODELS = cuda_cases.MODELS


@pytest.fixture(scope="session")
def libraries(ptx_folder: Path) -> Callable[[str], str]:
    """Where the kernels of a path are."""
    compiler = nvcc()
    assert compiler is not None
    return lambda name: str(build(name, ptx_folder, compiler))


@pytest.fixture
def opened(model_path: Callable[[str], Path], image: str, libraries: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    """A loaded engine by its model, or its folder: on the CPU ("exact"), or on a GPU that runs PTX, by the path `variant`."""
    engines: list[Any] = []

    def get(name: str | Path, variant: str, races: bool = True, seed: int = 0, processors: int = 2, **options: Any) -> Any:
        arguments, draft = engine_arguments(name if isinstance(name, Path) else model_path(name))
        how: dict[str, Any] = {}
        if variant != "cpu":
            kernels = libraries(variant.removesuffix("-e4m3"))
            _probe.cuda_fake(memory=GB, processors=processors, kernels=kernels, seed=seed, races=races)
            how = {"variant": variant, "device": 0, "image": image}
        engine = _probe.Engine(*arguments, threads=2, **draft, **({"precision": "exact"} | how | options))
        engines.append(engine)
        engine.load()
        return engine

    yield get
    for engine in engines:
        engine.close()
    _probe.cuda_fake()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("variant", "precision"), [("plain", "exact"), ("resident", "exact"), ("resident", "fast")])
def test_logits(opened: Any, name: str, variant: str, precision: str) -> None:
    logits_are_the_cpus(opened(name, "cpu"), opened(name, variant, precision=precision), precision, 9)


def test_experts_in_e4m3(opened: Any) -> None:
    """By wgmma. (Its products are exact in test_ptx_multiply.py.)"""
    cpu, gpu = opened("mxfp4", "cpu"), opened("mxfp4", "resident-e4m3", precision="fast")
    logits_are_the_cpus(cpu, gpu, "e4m3", 9)
    logits_do_not_depend_on_width(gpu, 9, (1, 3))
    prompt = token_ids(11, seed=4)
    assert answer(gpu, prompt, 5, speculative=True) == answer(gpu, prompt, 5)


def test_plain_has_the_bits_of_the_host_s_templates(opened: Any, model_path: Any, image: str) -> None:
    tokens = token_ids(8, seed=7)
    gpu = opened("mxfp4", "plain")
    found = list(every_slot(gpu, model_path("mxfp4"), tokens))
    gpu.close()
    _probe.cuda_fake(memory=GB, processors=2)
    arguments, draft = engine_arguments(model_path("mxfp4"))
    host = _probe.Engine(*arguments, threads=2, precision="exact", device=0, image=image, **draft)
    host.load()
    want = list(every_slot(host, model_path("mxfp4"), tokens))
    host.close()
    for (name, slot, one, _), (_, _, other, _) in zip(found, want, strict=True):
        assert np.array_equal(one, other), (name, slot)


@pytest.mark.parametrize("variant", ["plain", "resident"])
def test_every_width_gives_the_same_bits(opened: Any, variant: str) -> None:
    logits_do_not_depend_on_width(opened("mxfp4", variant, races=False, precision="fast"), 10, (1, 3, 8))


def test_plain_hidden_states_and_drafts(opened: Any) -> None:
    cpu, gpu = opened("mxfp4", "cpu"), opened("mxfp4", "plain", races=False)
    hidden_states_are_the_cpus(cpu, gpu, layers=4)
    draft_logits_are_the_cpus(cpu, gpu)


@pytest.mark.parametrize(("name", "processors"), [("mxfp4", 1), ("mxfp4", 3), ("fp8-fused", 2)])
def test_every_operation_of_the_resident_kernel_is_the_oracle_s(opened: Any, model_path: Any, name: str, processors: int) -> None:
    gpu, tokens = opened(name, "resident", races=False, processors=processors), token_ids(8, seed=7)
    assert first_wrong(gpu, model_path(name), tokens) is None
    *_, (last, _, logits, _) = every_slot(gpu, model_path(name), tokens)
    assert last == "head"
    assert np.array_equal(logits, gpu.logits(tokens))


@pytest.mark.parametrize(("name", "temperature"), [("mxfp4", 0.0), *((name, 0.8) for name in MODELS)])
def test_drafts_change_no_token(opened: Any, name: str, temperature: float) -> None:
    """In any order of threads, on any number of SMs."""
    prompt, options = token_ids(11, seed=4), {"temperature": temperature, "seed": 9}
    want = answer(opened(name, "resident"), prompt, 7, **options)
    gpu = opened(name, "resident", seed=1, processors=3)
    assert answer(gpu, prompt, 7, **options, speculative=True) == want
    stats = _probe.cuda_fake_stats()
    assert stats["copies"] > 100 and stats["held"] > 1e6


def test_filtered_tokens_are_the_sampler_s(opened: Any) -> None:
    """Where log-probabilities are asked for, the host samples the same steps."""
    gpu, prompt = opened("mxfp4", "resident", processors=3), token_ids(11, seed=4)
    options: dict[str, Any] = {"temperature": 1.3, "seed": 5, "top_k": 30, "top_p": 0.9, "min_p": 0.001}
    want = answer(gpu, prompt, 4, logprobs=0, **options)
    assert answer(gpu, prompt, 4, **options, speculative=True) == want


def test_a_markov_head_drafts_on_the_device(opened: Any, tmp_path: Path) -> None:
    a_markov_head_drafts(*knowing_markov_head(lambda path: opened(path, "resident", races=False), tmp_path / "model"))


def test_prompt_lookup_beside_the_drafter(opened: Any, tmp_path: Path) -> None:
    make(tmp_path / "model", overrides={"vocab_size": 4}, draft={"window": 24}, progress=False)
    gpu, prompt = opened(tmp_path / "model", "resident", races=False), token_ids(40, seed=1, vocab=4)
    want = answer(gpu, prompt, 16)
    gpu = opened(tmp_path / "model", "resident")
    job = gpu.submit(prompt, max_new_tokens=16, speculative=True, lookup=True)
    said: list[int] = []
    while (event := job.next()) is not None:
        said += event[0]
    assert said == want
    rounds = job.stats()["rounds"]
    assert sum(rounds["lookup"]) > 0
    known = len(prompt) + 1
    for drafted, looked_up, emitted in zip(rounds["drafted"], rounds["lookup"], rounds["emitted"], strict=True):
        length, _ = matched([*prompt, *want][:known])
        if known > len(prompt) + 1 and length != 2:
            assert looked_up == (drafted if length > 2 else 0)
        known += emitted


@pytest.mark.parametrize("program", [0, 2])
def test_a_signal_that_never_comes_is_an_error(opened: Any, program: int) -> None:
    gpu = opened("mxfp4", "resident", races=False)
    _probe.cuda_break(gpu, program, 30, 200)
    job = gpu.submit([5, 6, 7], max_new_tokens=50, speculative=program == 0)

    def drain() -> None:
        while job.next() is not None:
            pass

    text = raises(EngineError, drain)
    assert "is lost: the resident kernel: compute role of CTA" in text and "signals" in text


def test_a_kernel_that_breaks_a_rule_is_an_error_that_says_which(opened: Any) -> None:
    """What the machine sees arrives as the driver's words: here steps that write where no memory is."""
    gpu = opened("mxfp4", "plain")
    _probe.cuda_spoil(gpu)
    text = raises(EngineError, lambda: gpu.logits([1, 2, 3]))
    assert "where no memory is" in text and "mimo_plain_" in text
