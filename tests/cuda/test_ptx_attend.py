"""Attention by tensor cores, from its own PTX (tests/ptx): against the equations, in many shapes, beside what is no number."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx.launch import Library

CHUNK, ROWS = 256, 8
CASE = np.dtype(
    [(name, np.uint32) for name in ("rows", "heads", "kv_heads", "head_dim", "v_head_dim", "window", "sliding", "splits")]
    + [(name, np.uint32) for name in ("task_heads", "is_float", "ring", "drafts", "causal", "window_from_anchor", "anchor")]
    + [("context_begin", np.uint32), ("position", np.uint32, ROWS), ("rings", np.uint64, ROWS), ("chunks", np.uint64, ROWS)]
    + [(name, np.uint64) for name in ("sinks", "q", "a", "s")]
)


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("attend.cu", ptx_folder)


def bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def wide(bits: NDArray[np.uint16]) -> NDArray[np.float64]:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48
    v_head_dim: int = 32
    window: int = 0
    splits: int = 1
    task_heads: int = 1
    sinks: bool = False
    is_float: bool = False
    drafts: dict[str, int] = field(default_factory=dict)
    """causal, window_from_anchor, anchor, context_begin of a drafter's block."""


class Sequences:
    """Keys and values of sequences, as the engine has them: of the positions that `lengths` says, all else is not a number."""

    def __init__(self, shape: Shape, lengths: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        self.ring = -(-(shape.window + ROWS) // CHUNK) * CHUNK + CHUNK if shape.window else CHUNK
        self.keys, self.values, self.chunks, self.tables = [], [], [], []
        for length in lengths:
            # Some keys stand out: a softmax over all alike would hide most mistakes.
            keys = rng.normal(size=(length, shape.kv_heads, shape.head_dim)) * rng.choice([0.3, 2.0], (length, 1, 1))
            values = rng.normal(size=(length, shape.kv_heads, shape.v_head_dim))
            if not shape.is_float:
                keys, values = wide(bf16(keys)), wide(bf16(values))
            self.keys.append(keys)
            self.values.append(values)
            self._store(length)

    def _store(self, length: int) -> None:
        shape, keys, values = self.shape, self.keys[-1], self.values[-1]
        slots = self.ring if shape.window else -(-length // CHUNK) * CHUNK
        width = CHUNK * (shape.head_dim + shape.v_head_dim)
        chunks = np.full((slots // CHUNK, shape.kv_heads, width), np.nan, np.float32)
        seen = range(max(0, length - shape.window - ROWS) if shape.window else 0, length)
        for position in seen:
            chunk, slot = chunks[position % slots // CHUNK], position % CHUNK
            for g in range(shape.kv_heads):
                chunk[g, slot * shape.head_dim : (slot + 1) * shape.head_dim] = keys[position, g]
                at = CHUNK * shape.head_dim + slot * shape.v_head_dim
                chunk[g, at : at + shape.v_head_dim] = values[position, g]
        self.chunks.append(chunks if shape.is_float else bf16(chunks).reshape(chunks.shape))
        each = self.chunks[-1][0].nbytes
        self.tables.append(self.chunks[-1].ctypes.data + each * np.arange(len(chunks), dtype=np.uint64))


def run(library: Library, shape: Shape, held: Sequences, rows: list[tuple[int, int]], q: NDArray[np.float32], seed: int = 0) -> Any:
    """[rows, heads, Dv] of rows (sequence, position), with queries q [rows, heads, D]."""
    case = np.zeros(1, CASE)
    sinks = np.linspace(-1, 2, shape.heads).astype(np.float32)
    a = np.full((3, ROWS, shape.heads * shape.v_head_dim), 0x7FC0, np.uint16)
    s = np.full((shape.splits, ROWS, shape.heads, shape.v_head_dim + 4), np.nan, np.float32)
    for name in ("heads", "kv_heads", "head_dim", "v_head_dim", "window", "splits", "task_heads", "is_float"):
        case[name] = getattr(shape, name)
    case["rows"], case["sliding"], case["ring"], case["drafts"] = len(rows), shape.window > 0, held.ring, len(shape.drafts) > 0
    for name, value in shape.drafts.items():
        case[name] = value
    for t, (sequence, position) in enumerate(rows):
        case["position"][0, t] = position
        case["rings"][0, t] = held.chunks[sequence].ctypes.data
        case["chunks"][0, t] = held.tables[sequence].ctypes.data
    for name, array in (("q", q), ("a", a), ("s", s)):
        case[name] = array.ctypes.data
    if shape.sinks:
        case["sinks"] = sinks.ctypes.data
    memory = [case.view(np.uint8), q, a, s, sinks, *held.chunks, *held.tables]

    def launch(kernel: str, ctas: int) -> None:
        library.run(kernel, *memory, ctas=ctas, threads=256, shared=16384 + 4 * 64 * (shape.v_head_dim + 3), seed=seed)

    launch("attend", shape.splits * (shape.heads // shape.task_heads))
    if shape.splits > 1:
        launch("merge", len(rows))
    # Elements of a group of eight lie in the order n, n + 4 (csrc/cuda/page.h); the sum of the parts is the float.
    parts = wide(a[:, : len(rows)]).sum(0).reshape(len(rows), shape.heads, shape.v_head_dim // 8, 4, 2)
    return parts.swapaxes(-1, -2).reshape(len(rows), shape.heads, shape.v_head_dim)


def seen_by(shape: Shape, position: int, rows: int) -> range:
    first = max(0, position + 1 - shape.window) if shape.window else 0
    if not shape.drafts:
        return range(first, position + 1)
    anchor = shape.drafts["anchor"]
    if shape.drafts["window_from_anchor"]:
        first = max(0, anchor - shape.window) if shape.window else 0
    first = min(max(first, shape.drafts["context_begin"]), anchor)
    return range(first, position + 1 if shape.drafts["causal"] else anchor + rows)


def expected(shape: Shape, held: Sequences, rows: list[tuple[int, int]], q: NDArray[np.float32]) -> NDArray[np.float64]:
    out = np.zeros((len(rows), shape.heads, shape.v_head_dim))
    asked = q.astype(np.float64) if shape.is_float else wide(bf16(q)).reshape(q.shape)
    sinks = np.linspace(-1, 2, shape.heads).astype(np.float32)
    for t, (sequence, position) in enumerate(rows):
        seen = seen_by(shape, position, len(rows))
        for head in range(shape.heads):
            g = head // (shape.heads // shape.kv_heads)
            scores = held.keys[sequence][seen, g] @ asked[t, head] / np.sqrt(shape.head_dim)
            most = max(scores.max(), sinks[head]) if shape.sinks else scores.max()
            weights = np.exp(scores - most)
            out[t, head] = (
                weights @ held.values[sequence][seen, g] / (weights.sum() + (np.exp(sinks[head] - most) if shape.sinks else 0))
            )
    return out


def queries(shape: Shape, rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, shape.heads, shape.head_dim)).astype(np.float32)


def error(shape: Shape, found: Any, want: NDArray[np.float64]) -> float:
    """Relative to what values are like, which is 1."""
    return float(np.abs(found - want).max())


PRO = {"heads": 16, "kv_heads": 1, "head_dim": 192, "v_head_dim": 128}
SHAPES = {
    "a window": (Shape(window=128, sinks=True), 300),
    "a window that begins": (Shape(window=128, sinks=True), 20),
    "the window of Pro": (Shape(**PRO, window=128, sinks=True), 530),
    "a small window": (Shape(window=12), 500),
    "the first position": (Shape(), 0),
    "full, whole": (Shape(task_heads=2), 333),
    "full, split": (Shape(splits=5, task_heads=2), 700),
    "full, of Pro, split": (Shape(**PRO, splits=3, task_heads=8), 400),
    "more splits than chunks": (Shape(splits=9, task_heads=2, sinks=True), 200),
    "three heads": (Shape(heads=6, kv_heads=2, task_heads=3, head_dim=64, v_head_dim=64), 150),
    "more heads than warps": (Shape(heads=12, kv_heads=1, task_heads=12, head_dim=24, v_head_dim=8), 150),
    "a drafter's block": (
        Shape(window=64, drafts={"causal": 0, "window_from_anchor": 1, "anchor": 290, "context_begin": 0}, head_dim=32), 290,
    ),
    "a drafter's block, causal": (
        Shape(splits=4, drafts={"causal": 1, "window_from_anchor": 0, "anchor": 290, "context_begin": 37}, head_dim=32), 290,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_attention(name: str, rows: int, library: Library) -> None:
    shape, first = SHAPES[name]
    held = Sequences(shape, [first + rows], seed=rows)
    where = [(0, first + t) for t in range(rows)]
    q = queries(shape, rows)
    want = expected(shape, held, where, q)
    assert error(shape, run(library, shape, held, where, q, seed=rows), want) < 2**-8  # weights are BF16
    # The same, of floats, by the code that has no tensor cores: so this test and its memory are right.
    shape = Shape(**{**shape.__dict__, "is_float": True})
    held = Sequences(shape, [first + rows], seed=rows)
    assert error(shape, run(library, shape, held, where, q), expected(shape, held, where, q)) < 5e-6


@pytest.mark.parametrize("name", ["a window", "full, split", "full, of Pro, split", "three heads"])
def test_rows_alone_have_the_same_bits(name: str, library: Library) -> None:
    shape, first = SHAPES[name]
    held = Sequences(shape, [first + 8], seed=1)
    q = queries(shape, 8)
    together = run(library, shape, held, [(0, first + t) for t in range(8)], q)
    for t, count in ((0, 1), (3, 1), (7, 1), (2, 4)):
        part = run(library, shape, held, [(0, first + i) for i in range(t, t + count)], q[t : t + count].copy(), seed=t)
        assert np.array_equal(part, together[t : t + count])


def test_rows_of_several_sequences(library: Library) -> None:
    for shape in (SHAPES["a window"][0], SHAPES["full, split"][0]):
        held = Sequences(shape, [300, 40, 520, 1], seed=2)
        where = [(0, 298), (0, 299), (1, 39), (2, 517), (2, 518), (2, 519), (3, 0)]
        q = queries(shape, len(where))
        found = run(library, shape, held, where, q)
        assert error(shape, found, expected(shape, held, where, q)) < 2**-8
        for t, (sequence, position) in enumerate(where):
            assert np.array_equal(run(library, shape, held, [(sequence, position)], q[t : t + 1].copy()), found[t : t + 1])
