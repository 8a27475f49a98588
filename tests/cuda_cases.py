"""What an engine on a GPU must do, whatever GPU it is: cases that tests run on a made-up driver and on a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.cuda import cuda_image
from mimo_ultraspeed.drafter import open_drafter

# Of the largest logit, from the CPU's in "exact": another order of float32 sums; with "fast", keys and values in BF16 as well,
# which now and then choose another expert of a random model: then in the median of rows.
TOLERANCE = {"exact": 1e-4, "fast": 0.01}


def engine_arguments(path: Path) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Positional and keyword arguments of an Engine for a made checkpoint and its drafter, if it has one."""
    checkpoint = Checkpoint.open(path)
    config, tensors, files = checkpoint.core_arguments()
    if not (path / "dflash").is_dir():
        return (config, tensors, files), {}
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    return (config, tensors, files + [str(file) for file in drafter.files]), {"draft": drafter.to_core()}


def open_pair(path: Path, precision: str = "exact") -> tuple[Any, Any]:
    """The same model on the CPU, exact, and on GPU 0, both loaded."""
    (config, tensors, files), draft = engine_arguments(path)
    engines = [
        _probe.Engine(config, tensors, files, threads=2, **draft, **how)
        for how in ({"precision": "exact"}, {"precision": precision, "device": 0, "image": str(cuda_image())})
    ]
    for engine in engines:
        engine.load()
    return engines[0], engines[1]


def token_ids(count: int, seed: int = 0, vocab: int = 512) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab, count)]


def answer(engine: Any, prompt: list[int], count: int = 24, **options: Any) -> list[int]:
    job = engine.submit(prompt, max_new_tokens=count, **options)
    said: list[int] = []
    while (event := job.next()) is not None:
        said += event[0]
    return said


def logits_are_the_cpus(cpu: Any, gpu: Any, precision: str, count: int = 60) -> None:
    prompt = token_ids(count)
    want, found = cpu.logits(prompt), gpu.logits(prompt)
    assert np.isfinite(found).all()
    rows = np.abs(found - want).max(axis=1) / np.abs(want).max()
    assert (rows.max() if precision == "exact" else np.median(rows)) <= TOLERANCE[precision]


def logits_do_not_depend_on_width(gpu: Any, count: int = 60) -> None:
    prompt = token_ids(count, seed=1)
    want = gpu.logits(prompt)
    for width in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31):
        assert np.array_equal(gpu.logits(prompt, step=width), want), width


def hidden_states_are_the_cpus(cpu: Any, gpu: Any, layers: int) -> None:
    prompt = token_ids(21, seed=2)
    every = list(range(layers)) * 5  # more than a step takes at once
    want, found = cpu.hidden_states(prompt, every), gpu.hidden_states(prompt, every)
    for at, (one, other) in enumerate(zip(want, found, strict=True)):
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max(), f"after layer {every[at]}"


def draft_logits_are_the_cpus(cpu: Any, gpu: Any) -> None:
    prompt = token_ids(70, seed=3)
    anchors = [0, 1, 9, 30, 69]
    want, found = cpu.draft_logits(prompt, anchors), gpu.draft_logits(prompt, anchors)
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()
    assert np.array_equal(gpu.draft_logits(prompt, anchors, step=5), found)


def speculation_changes_nothing(gpu: Any, prompts: int = 4) -> None:
    for seed in range(prompts):
        prompt = token_ids(5 + 9 * seed, seed=20 + seed)
        sampling: dict[str, Any] = {"temperature": 0.8, "seed": seed} if seed % 2 else {}
        plain = answer(gpu, prompt, **sampling)
        for width in (0, 2, 8):
            assert answer(gpu, prompt, speculative=True, lookup=True, width=width, **sampling) == plain, (seed, width)


def answers_beside_each_other_are_those_alone(gpu: Any, jobs: int = 12) -> None:
    prompts = [token_ids(1 + 5 * i, seed=40 + i) for i in range(jobs)]
    alone = [answer(gpu, prompt, 8) for prompt in prompts]
    running = [gpu.submit(prompt, max_new_tokens=8) for prompt in prompts]
    together: list[list[int]] = []
    for job in running:
        said: list[int] = []
        while (event := job.next()) is not None:
            said += event[0]
        together.append(said)
    assert together == alone


# What operations of the made model "tiny" write: name in plan/ops.def -> (bit of mimo_slot, elements of a row).
_ATTENTION = {"qkv": (8, 384), "attention": (32, 256), "out_proj": (4, 160)}
_DENSE = {"dense_up": (256, 192), "dense_down": (4, 160)}
_SPARSE = {"route": (64, 160), "expert_up": (256, 64), "expert_down": (4, 160)}


def every_slot(gpu: Any, tokens: list[int]) -> list[tuple[str, NDArray[np.float32]]]:
    """The operations of a step of `tokens` through "tiny", in order: name and layer, and what each wrote."""
    steps = [("embed", (4, 160))]
    for layer in range(4):
        steps += [(f"{name} of layer {layer}", slot) for name, slot in (_ATTENTION | (_SPARSE if layer else _DENSE)).items()]
    steps.append(("head", (512, 512)))
    return [(name, _probe.cuda_trace(gpu, tokens, at + 1, bit)[:, :width]) for at, (name, (bit, width)) in enumerate(steps)]


def raises(kind: type[BaseException], call: Callable[[], object]) -> str:
    """The text of the error that the call ends with."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"expected {kind.__name__}, and the call succeeded")
