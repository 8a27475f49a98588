"""What an engine on a GPU must do, whatever GPU it is: cases that tests run on a made-up driver and on a real one."""

from __future__ import annotations

import functools
import itertools
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import read_config, reference_tensors
from reference_slots import tape_slots

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.cuda import cuda_image
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

# Of the largest logit, from the CPU's in "exact": another order of float32 sums; with "fast", keys and values in BF16 as well, and
# on the resident path what is multiplied, which now and then choose another expert of a random model: then in the median of rows.
TOLERANCE = {"exact": 1e-4, "fast": 0.01, "e4m3": 0.03}


# Layouts and formats of published checkpoints; a drafter with a window, and one of some ids only with a Markov head.
MODELS: dict[str, dict[str, Any]] = {
    "mxfp4": {"weights": "mxfp4", "draft": True},
    "fp8-flash": {"weights": "fp8", "layout": "flash"},
    "fp8-fused": {"weights": "fp8", "layout": "fused", "draft": {"vocab": 100, "markov_rank": 4}},
    "bf16": {"weights": "bf16"},
}


def engine_arguments(path: Path) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Positional and keyword arguments of an Engine for a made checkpoint and its drafter, if it has one."""
    checkpoint = Checkpoint.open(path)
    config, tensors, files = checkpoint.core_arguments()
    if not (path / "dflash").is_dir():
        return (config, tensors, files), {}
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    return (config, tensors, files + [str(file) for file in drafter.files]), {"draft": drafter.to_core()}


def markov_tables(path: Path) -> list[NDArray[np.uint16]]:
    """The two tables [V', rank] of a made checkpoint's drafter, BF16, in its file: what is written to them is written there."""
    file = path / "dflash/dflash_draft_model.safetensors"
    (size,) = struct.unpack("<Q", file.read_bytes()[:8])
    header = json.loads(file.read_bytes()[8 : 8 + size])
    tables: list[NDArray[np.uint16]] = []
    for name in ("markov.w1.weight", "markov.w2.weight"):
        assert header[name]["dtype"] == "BF16"
        begin, _ = header[name]["data_offsets"]
        tables.append(np.memmap(file, np.uint16, "r+", 8 + size + begin, tuple(header[name]["shape"])))
    return tables


def knowing_markov_head(open_engine: Callable[[Path], Any], path: Path) -> tuple[Any, list[int], list[int]]:
    """An engine whose drafter's Markov head knows which token follows which in an answer; the prompt, and that answer."""
    make(path, weights="bf16", draft={"markov_rank": 512}, progress=False)
    prompt = token_ids(16, seed=6)
    want = answer(open_engine(path), prompt, 60)
    before, after = markov_tables(path)
    after[:] = 0
    before[:] = np.eye(512) * 0x3F80
    for token, follower in itertools.pairwise([prompt[-1], *want]):
        after[:, token] = 0
        after[follower, token] = 0x4780  # 2^16
    return open_engine(path), prompt, want


def a_markov_head_drafts(gpu: Any, prompt: list[int], want: list[int]) -> None:
    job = gpu.submit(prompt, max_new_tokens=len(want), speculative=True, width=8)
    said: list[int] = []
    while (event := job.next()) is not None:
        said += event[0]
    assert said == want
    accepted = job.stats()["rounds"]["accepted"]
    assert sum(accepted) > len(want) / 2 and len(accepted) > 5


def matched(text: list[int]) -> tuple[int, int]:
    """How many of a text's last tokens, 4 to 2, it had before, and the latest place after them; zeros: nowhere."""
    for length in (4, 3, 2):
        for at in range(len(text) - 1, length - 1, -1):
            if text[at - length : at] == text[-length:]:
                return length, at
    return 0, 0


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


def logits_do_not_depend_on_width(gpu: Any, count: int = 60, widths: Iterable[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31)) -> None:
    prompt = token_ids(count, seed=1)
    want = gpu.logits(prompt)
    for width in widths:
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


# Bits of mimo_slot (plan/plan.h); routes are two slots here.
_SLOTS = {"angles": 2, "x": 4, "q": 8, "kv": 16, "a": 32, "m": 64, "experts": 128, "shares": 128, "u": 256, "logits": 512}


@functools.cache
def tape_of(path: Path, tokens: tuple[int, ...]) -> list[tuple[str, dict[str, NDArray[Any]]]]:
    """What the oracle says that the operations write."""
    return tape_slots(reference_tensors(path), read_config(path), list(tokens))


def slot_after(gpu: Any, tokens: list[int], operations: int, slot: str) -> NDArray[np.float32]:
    """A slot after so many operations of a step of `tokens` [at most 8] from position 0 on (csrc/cuda/trace.h)."""
    found: NDArray[np.float32] = _probe.cuda_trace(gpu, tokens, operations, _SLOTS[slot])
    half = found.shape[1] // 2
    return {"experts": found[:, :half], "shares": found[:, half:]}.get(slot, found)


def every_slot(gpu: Any, path: Path, tokens: list[int]) -> Iterator[tuple[str, str, NDArray[np.float32], NDArray[Any]]]:
    """All that the operations of a step of `tokens` write, in order: the operation's name and layer, the slot, what it holds, and
    what the oracle says it must. The resident path norms x where it adds to it, the plain one before its experts."""
    tape = tape_of(path, tuple(tokens))
    kept: NDArray[Any] | None = None
    for at, (name, slots) in enumerate(tape):
        for slot, want in slots.items():
            if slot != "m" or gpu.variant == "resident":
                yield name, slot, slot_after(gpu, tokens, at + 1, slot), want
            else:
                kept = want
        if gpu.variant == "plain" and name.startswith("route"):
            assert kept is not None
            yield name, "m", slot_after(gpu, tokens, at + 1, "m"), kept
    with pytest.raises(ValueError, match=f"expected 1 to {len(tape)} operations"):  # so these were all
        slot_after(gpu, tokens, len(tape) + 1, "x")


def first_wrong(gpu: Any, path: Path, tokens: list[int], limit: float = 2e-4) -> str | None:
    """The first operation of which some slot is further from the oracle's than `limit` of its largest value."""
    for name, _, found, want in every_slot(gpu, path, tokens):
        assert found.shape == want.shape
        if not np.abs(found - want).max() <= limit * np.abs(want).max():  # not a number is wrong
            return name
    return None


def _stages_of(gpu: Any, operations: int) -> list[list[int]]:
    """The stages of each operation of a step of the resident kernel, which is of no use after it."""
    stages: list[list[int]] = [[] for _ in range(operations)]
    with pytest.raises(ValueError, match="expected a stage of the resident kernel's steps"):
        for stage in itertools.count():
            stages[_probe.cuda_skip(gpu, stage)].append(stage)
    return stages


def faults_are_found_at_their_operations(opened: Callable[[], Any], path: Path) -> None:
    """A task of a stage does nothing: of every stage of every operation in turn, from the last one on, as the first fault is what
    counts. In the place of what is not written lies what other tokens have left."""
    tokens, others = token_ids(8, seed=7), token_ids(8, seed=8)
    names = [name for name, _ in tape_of(path, tuple(tokens))]
    well = opened()
    want = well.logits(tokens)
    stages = _stages_of(well, len(names))
    assert min(map(len, stages)) >= 1
    for turn in range(max(map(len, stages))):
        gpu = opened()
        for op in (op for op in reversed(range(len(names))) if turn < len(stages[op])):
            gpu.logits(others)
            assert _probe.cuda_skip(gpu, stages[op][turn]) == op
            assert first_wrong(gpu, path, tokens) == names[op], (names[op], turn)
            assert not np.array_equal(gpu.logits(tokens), want)


def raises(kind: type[BaseException], call: Callable[[], object]) -> str:
    """The text of the error that the call ends with."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"expected {kind.__name__}, and the call succeeded")
