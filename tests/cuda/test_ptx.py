"""The machine that runs PTX on the host (tests/ptx): it computes what PTX says, and sees what breaks the device's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx.launch import Fault, Library
from ptx.translate import UnknownInstruction, translate

U32, F32 = np.uint32, np.float32


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("kernels.cu", ptx_folder)


def fault(run: Callable[[], None]) -> str:
    """What is said of a kernel that must fail."""
    with pytest.raises(Fault) as caught:
        run()
    return str(caught.value)


SEEDS = range(8)
# Values of the codes without a sign; the last is no number.


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers(library: Library, seed: int) -> None:
    to = np.zeros(128, U32)
    library.run("neighbours", to, 0, threads=128, seed=seed)
    assert np.array_equal(to, (np.arange(128) + 40) % 128)
    for broken in (1, 2):
        said = fault(lambda broken=broken: library.run("neighbours", to, broken, threads=128, seed=seed))
        assert "race: it " in said and "shared memory" in said and "neither happened before the other" in said


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_of_a_warp(library: Library, seed: int) -> None:
    to = np.zeros(64, U32)
    library.run("lanes", to, 0, threads=64, seed=seed)
    assert np.array_equal(to, np.arange(64) ^ 1)
    assert "race" in fault(lambda: library.run("lanes", to, 1, threads=64, seed=seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_one_cta_tells_another(library: Library, seed: int) -> None:
    def run(broken: int) -> None:
        library.run("last_one", to, np.zeros(4 * 64, U32), np.zeros(1, U32), broken, ctas=4, threads=64, seed=seed)

    to = np.zeros(64, U32)
    run(0)
    assert np.array_equal(to, 4 * np.arange(64) + 6)
    assert "race" in (said := fault(lambda: run(1))) and "global memory" in said


def test_barriers_that_some_do_not_come_to(library: Library) -> None:
    to = np.zeros(96, U32)
    library.run("some_meet", to, 0, threads=96)
    assert to.all()
    assert "nobody can go on: CTA 0, thread 0 at line" in (said := fault(lambda: library.run("some_meet", to, 1, threads=96)))
    assert "waits for barrier 0x3" in said and "64 threads wait" in said
    assert "barrier 3 as one of" in fault(lambda: library.run("some_meet", to, 2, threads=96))


def test_barriers_that_ask(library: Library) -> None:
    to = np.zeros(96, U32)
    for yes in (0, 1, 40, 95, 96):
        library.run("all_agree", to, yes, threads=96)
        assert (to == (yes == 96) + 2 * (yes > 0) + 4 * yes).all()


def test_memory_that_is_not_there(library: Library) -> None:
    to = np.zeros(64, U32)

    def run(broken: int) -> None:
        library.run("reaches", to, len(to), broken, threads=32, shared=128)

    run(0)
    assert to[:32].all()
    assert "writes 4 bytes at" in (said := fault(lambda: run(1))) and "where no memory is" in said
    assert "writes 4 bytes of shared memory at" in fault(lambda: run(2))
    assert "which is no multiple of 8" in fault(lambda: run(3))


def test_a_ring_of_pages(library: Library) -> None:
    pages, to = 9, np.zeros(96, U32)
    table = np.random.default_rng(0).integers(0, 1000, (pages, 64)).astype(U32)
    want = table.sum(0)[np.arange(32, 96) % 64]

    def run(broken: int, seed: int = 0, races: bool = True) -> None:
        to[:] = 0
        library.run("ring", to, table, pages, broken, threads=96, seed=seed, races=races)

    for seed in SEEDS:
        run(0, seed)
        assert np.array_equal(to[32:], want)
    for broken, words in ((1, "race: "), (2, "have arrived at already"), (3, "race: ")):
        said = [fault(lambda broken=broken, seed=seed: run(broken, seed)) for seed in SEEDS]
        assert any(words in text for text in said), said  # some orders break another rule first
    wrong = 0
    for seed in SEEDS:  # what a copy is about to overwrite is no page
        try:
            run(1, seed, races=False)
            wrong += not np.array_equal(to[32:], want)
        except Fault:
            wrong += 1
    assert wrong == len(SEEDS)
    said = fault(lambda: run(4, races=False))
    assert "ended while" in said or "nobody has done anything else" in said or "have arrived at already" in said
    assert "expected multiples of 16" in fault(lambda: run(5))


def test_integers(library: Library) -> None:
    rng = np.random.default_rng(1)
    of = rng.integers(0, 1 << 32, (256, 3), dtype=np.uint64).astype(U32)
    of[:8] = [
        [0, 0, 0],
        [0xFFFFFFFF] * 3,
        [1, 0xFFFFFFFF, 0x80000000],
        [0x80000000, 1, 31],
        [5, 5, 5],
        [7, 9, 64],
        [0, 1, 2],
        [3, 0, 63],
    ]
    found = np.zeros((256, 16), U32)
    library.run("integers", found, of, threads=256)
    for row, (a, b, c) in zip(found, of.astype(object), strict=True):
        signed = [x - (1 << 32) if x >> 31 else x for x in (a, b, c)]
        both = b << 32 | a

        def permuted(select: int, both: int = both) -> int:
            out = 0
            for i in range(4):
                nibble = select >> 4 * i & 15
                byte = both >> 8 * (nibble & 7) & 255
                out |= ((255 if byte >> 7 else 0) if nibble & 8 else byte) << 8 * i
            return out

        at, length = c & 63, c >> 8 & 63
        mask = (((1 << length) - 1) << at) & 0xFFFFFFFF
        want = [
            permuted(c & 0x7777),
            (a << (b & 31) | a >> (c & 31)),
            ((b << 32 | a) << (c & 31)) >> 32,
            (b << 32 | a) >> (c & 31),
            a * b >> 32,
            (a * b >> 16) + c,
            a // (b | 1) + a % (b | 1),
            signed[0] >> (c & 31),
            a.bit_count() + 64 * (32 - b.bit_length()),
            min(a, b) ^ max(signed[1], signed[2]),
            b if at >= 32 else (b & ~mask) | (a << at & mask),
            a ^ b ^ c,
            permuted(c & 0xFFFF),
            (a & 0xFFFF) * (b & 0xFFFF),
            (a << 32 | b) >> (c & 63),
            (a > b) + 2 * (signed[0] > signed[1]) + 4 * ((a & 7) == (b & 7)),
        ]
        assert [x & 0xFFFFFFFF for x in want] == row.tolist()


def special_floats(shape: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(2)
    of = (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6, shape)).astype(F32)
    of.reshape(-1)[:12] = [0, -0.0, np.inf, -np.inf, np.nan, 1, 2.5, -2.5, 1e-40, 464, 65520, 3.0]
    rng.shuffle(of)
    return of


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_floats(library: Library) -> None:
    of = special_floats((256, 3))
    found = np.zeros((256, 9), F32)
    library.run("floats", found, of, threads=256)
    a, b, c = of.T
    wide = of.astype(np.float64).T
    clamped = np.trunc(np.nan_to_num(wide[0], nan=0, posinf=2**31, neginf=-(2**31))).clip(-(2**31), 2**31 - 1)
    order = np.select([a < b, a == b, a > b], [1, 2, 3], 4)
    want = [
        (wide[0] * wide[1] + wide[2]).astype(F32),  # rounded twice: within a unit
        a / b, np.sqrt(np.abs(a)), np.fmin(a, b), np.fmax(a, c), np.rint(b), clamped.astype(F32),
        (wide[0] * wide[1] + wide[2]).astype(F32), order,
    ]  # fmt: skip
    for i, column in enumerate(want):
        np.testing.assert_allclose(found[:, i], column, rtol=2e-7 if i == 0 else 0, err_msg=str(i))


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_narrow_floats(library: Library) -> None:
    of = special_floats((256, 2))
    found = np.zeros((256, 2), U32)
    library.run("narrow", found, of, threads=256)
    number = ~np.isnan(of)
    bits = of.view(U32).astype(np.uint64)
    brain = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    assert np.array_equal(found[:, 0].copy().view(np.uint16).reshape(256, 2)[number], brain[number])
    doubled = found[:, 1].copy().view(np.uint16).reshape(256, 2).astype(U32) << 16
    whole = brain.astype(U32) << 16
    want = whole.view(F32) * np.array([2, 4], F32)
    assert np.array_equal(doubled.view(F32)[number], want[number])


def test_shuffles(library: Library) -> None:
    of = np.random.default_rng(3).integers(0, 1 << 32, 32, dtype=np.uint64).astype(U32)
    found = np.zeros((32, 5), U32)
    library.run("shuffles", found, of)
    i = np.arange(32)
    ballot = int(((of & 1).astype(np.uint64) << i.astype(np.uint64)).sum())
    want = [of[i ^ 5], of[np.where(i + 3 < 32, i + 3, i)], of[np.where(i >= 7, i - 7, i)], of[i * 11 % 32], np.full(32, ballot)]
    assert np.array_equal(found, np.stack(want, 1))


def test_sums_and_maxima_of_warps(library: Library) -> None:
    of = np.random.default_rng(6).integers(0, 1 << 32, (3, 32)).astype(U32)
    found = np.zeros((2, 3, 32), U32)
    library.run("reduced", found, of, threads=96)
    assert (found[0] == of.sum(1, dtype=U32)[:, None]).all() and (found[1] == of.max(1)[:, None]).all()


def test_turned_matrices(library: Library) -> None:
    of = np.random.default_rng(5).integers(0, 1 << 16, (8, 8)).astype(np.uint16)
    found = np.zeros((8, 8), np.uint16)
    library.run("turned", found, of)
    assert np.array_equal(found, of.T)


def test_powers_of_two(library: Library) -> None:
    of = np.array([0, 1, -1, 0.5, -20.25, -np.inf, np.inf, -200] + [-0.1 * i for i in range(24)], F32)
    found = np.zeros(32, F32)
    library.run("powers", found, of)
    np.testing.assert_allclose(found, np.exp2(of.astype(np.float64)).astype(F32), rtol=2e-7)


def test_products_of_matrices(library: Library) -> None:
    """The layout of fragments: every value differs, so one that is elsewhere is seen."""
    rng = np.random.default_rng(4)
    A, B, C = (rng.integers(-8, 8, shape).astype(F32) for shape in ((16, 16), (8, 16), (16, 8)))
    D = np.zeros((16, 8), F32)
    a, b = ((x.view(U32) >> 16).astype(np.uint16) for x in (A, B))
    library.run("product", D, a, b, C)
    assert np.array_equal(D, A @ B.T + C)


def test_what_is_not_known_is_an_error(tmp_path: Path) -> None:
    text = """
.version 9.0
.target sm_90a
.address_size 64
.visible .entry strange(.param .u64 strange_param_0)
{
    .reg .f32 %f<3>;
    tanh.approx.f32 %f1, %f2;
    ret;
}
"""
    with pytest.raises(UnknownInstruction, match="line 8: tanh"):
        translate(text)
