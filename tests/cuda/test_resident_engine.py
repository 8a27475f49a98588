"""The resident path through the engine, over a driver made up for tests: the kernel's CTAs are threads of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import (
    answer,
    answers_beside_each_other_are_those_alone,
    draft_logits_are_the_cpus,
    engine_arguments,
    hidden_states_are_the_cpus,
    logits_are_the_cpus,
    logits_do_not_depend_on_width,
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

MODELS: dict[str, dict[str, Any]] = {
    "mxfp4": {"weights": "mxfp4", "draft": True},
    "fp8-flash": {"weights": "fp8", "layout": "flash"},
    "fp8-fused": {"weights": "fp8", "layout": "fused", "draft": {"vocab": 100, "window": 24}},
    "bf16": {"weights": "bf16"},
}


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    """A fresh driver for every test, and none left behind."""
    _probe.cuda_fake(memory=GB, processors=2)
    yield
    _probe.cuda_fake()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp("made") / name, progress=False, **MODELS[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("image") / "resident.fatbin"
    path.write_bytes(b"kernels")
    return str(path)


@pytest.fixture
def opened(model_path: Callable[[str], Path], image: str) -> Iterator[Callable[..., Any]]:
    """A loaded engine by its model: on the CPU ("exact"), or on the made-up GPU, by the path `variant`."""
    engines: list[Any] = []

    def get(name: str, variant: str = "resident", **options: Any) -> Any:
        arguments, draft = engine_arguments(model_path(name))
        how = {} if variant == "cpu" else {"variant": variant, "device": 0, "image": image}
        engine = _probe.Engine(*arguments, threads=2, **draft, **({"precision": "exact"} | how | options))
        engines.append(engine)
        engine.load()
        return engine

    yield get
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("name", MODELS)
def test_logits(opened: Any, name: str) -> None:
    gpu = opened(name)
    assert (gpu.backend, gpu.variant) == ("cuda", "resident")
    logits_are_the_cpus(opened(name, "cpu"), gpu, "exact", 24)


def test_every_width_gives_the_same_bits(opened: Any) -> None:
    logits_do_not_depend_on_width(opened("mxfp4", precision="fast"), 19)


def test_hidden_states_and_drafts(opened: Any) -> None:
    cpu, gpu = opened("mxfp4", "cpu"), opened("mxfp4")
    hidden_states_are_the_cpus(cpu, gpu, layers=4)
    draft_logits_are_the_cpus(cpu, gpu)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_the_cpus(opened: Any, name: str, temperature: float) -> None:
    cpu, gpu = opened(name, "cpu"), opened(name)
    prompt = token_ids(21, seed=4)
    want = answer(cpu, prompt, 24, temperature=temperature, seed=9)
    assert answer(gpu, prompt, 24, temperature=temperature, seed=9) == want
    assert answer(gpu, prompt, 24, temperature=temperature, seed=9, speculative=True) == want
