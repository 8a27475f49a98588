"""The GGUF files that benchmarks write for llama.cpp hold the model that we run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _core
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.make import make

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PROMPT = np.random.default_rng(3).integers(0, 512, 64).tolist()  # eight windows of the tiny model


def benchmark_module(name: str, needs: str) -> ModuleType:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"not run: {needs} is not installed")
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("layout", "weights"), [("fused", "mxfp4"), ("flash", "fp8"), ("fused", "bf16")])
def test_llama_cpp_agrees_on_the_written_file(tmp_path: Path, layout: str, weights: str) -> None:
    write = benchmark_module("gguf_write", "gguf")
    llama = benchmark_module("llama_peer", "llama_cpp")
    checkpoint = Checkpoint.open(make(tmp_path / "tiny", layout=layout, weights=weights, progress=False))
    write.write_gguf(checkpoint, tmp_path / "tiny.gguf")
    peer = llama.LlamaPeer(tmp_path / "tiny.gguf", threads=2, context=256)
    theirs = peer.step(PROMPT, all_rows=True).astype(np.float64)
    engine: Any = _core.Engine(*checkpoint.core_arguments(), precision="exact", threads=2)
    engine.load()
    ours = engine.logits(PROMPT).astype(np.float64)
    engine.close()
    noise = np.sqrt(((ours - theirs) ** 2).mean(axis=1) / (ours**2).mean(axis=1))
    assert np.median(noise) < 0.05, noise  # Q8_0 weights and activations; a rare row routes to other experts
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.8
