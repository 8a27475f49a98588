"""Tiles of experts by tensor cores, from their own PTX (tests/ptx), on pages that this file packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx.launch import ENTRIES, MOE, Library

from mimo_ultraspeed import _probe

ROWS, MXFP4, E4M3 = 8, 3, 4
CASE = np.dtype(
    [(name, np.uint32) for name in ("rows", "hidden", "width", "format", "up", "sms")]
    + [(name, np.uint32) for name in ("tile_rows", "tile_pages", "k_page", "page_bytes", "tiles", "held", "parts", "spare")]
    + [(name, np.uint64) for name in ("moe", "n", "u", "p", "squares", "pages")]
)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
PLACE = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # where element i of a group of eight lies (page.h)
BITS = (6, 7, 8, 15)  # of a code in a half of a register
TURNS = ((0, 6, 28, 4), (0, 6, 28, 26))  # of rows g and g + 8, by a code's number modulo 4
REST = 0x06030603


@pytest.fixture(scope="module")
def library(ptx_folder: Path) -> Library:
    return Library.of("multiply.cu", ptx_folder)


def page(codes: NDArray[Any], exponents: NDArray[Any], k_page: int) -> NDArray[np.uint8]:
    """A page of E2M1 codes [rows, k] with a power of two for each 32, as page.h says it lies."""
    rows, k = codes.shape
    whole = np.zeros((rows, k_page), np.uint32)
    whole[:, :k] = codes
    scales = np.full((rows, k_page // 32), 86 + 127, np.uint8)
    scales[:, : k // 32] = exponents + 127 + 86
    groups = whole.reshape(rows // 16, 2, 8, k_page // 32, 4, 8)  # unit, upper, g, block, c, element
    words = np.zeros(groups.shape[:-1], np.uint32)
    for upper in range(2):
        for i in range(8):
            for bit in range(4):
                at = (BITS[bit] + i // 4 * 16 + TURNS[upper][i % 4]) % 32
                word = upper if i % 4 < 3 else 1 - (REST >> at & 1)
                at -= 2 * word if i % 4 == 3 else 0
                words[:, word] |= (groups[:, upper, ..., i] >> bit & 1) << at
    out = [words.transpose(0, 3, 2, 4, 1).ravel().view(np.uint8)]  # unit, block, lane 4 g + c, upper
    out.append(scales.reshape(rows // 16, 2, 8, k_page // 32).transpose(0, 3, 2, 1).ravel())
    bytes = np.concatenate(out)
    return np.concatenate([bytes, np.zeros(-len(bytes) % 128, np.uint8)])


def e4m3_page(codes: NDArray[Any], exponents: NDArray[Any], largest: NDArray[Any], k_page: int) -> NDArray[np.uint8]:
    """The same as MIMO_PAGE_E4M3; largest: exponent of each row, of all its pages."""
    rows, k = codes.shape
    whole = np.zeros((rows, k_page), np.uint32)
    far = np.repeat(largest[:, None] - exponents, 32, axis=1) > 11
    whole[:, :k] = np.where(far, 0, codes)
    scales = np.zeros((rows, k_page // 32), np.uint8)
    scales[:, : k // 32] = np.maximum(12 - (largest[:, None] - exponents), 0)
    groups = whole.reshape(rows // 16, 2, 8, k_page // 32, 4, 8)
    words = np.zeros(groups.shape[:-1], np.uint32)
    for i in range(8):
        words |= (groups[..., i] & 7) << 4 * i | groups[..., i] >> 3 << (8 * i + 7 if i < 4 else 8 * i - 29)
    out = [words.transpose(0, 3, 2, 4, 1).ravel().view(np.uint8)]
    out.append(scales.reshape(rows // 16, 2, 8, k_page // 32).transpose(0, 3, 2, 1).ravel())
    out.append((largest + 127 - 6).astype(np.uint8).reshape(rows // 16, 2, 8).transpose(0, 2, 1).ravel())
    bytes = np.concatenate(out)
    return np.concatenate([bytes, np.zeros(-len(bytes) % 128, np.uint8)])


def operand(parts: NDArray[np.float64]) -> NDArray[np.uint16]:
    """[parts, rows, K] of values that BF16 has, in the order of groups."""
    bits = (parts.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    grouped = bits.reshape(*bits.shape[:-1], -1, 8)
    out = np.empty_like(grouped)
    out[..., PLACE] = grouped
    return np.ascontiguousarray(out.reshape(bits.shape))


def routes(
    rng: np.random.Generator, rows: int, experts: int, top_k: int
) -> tuple[NDArray[Any], list[list[tuple[int, int, float]]]]:
    """A mimo_moe, and (row, entry, weight) of each chosen expert."""
    chosen = np.sort(np.stack([rng.permutation(experts)[:top_k] for _ in range(rows)]), axis=1).astype(np.uint16)
    share = (rng.integers(1, 9, (rows, top_k)) / 8).astype(np.float32)
    expert, begin, row, weight = _probe.moe_sort(chosen, share, np.arange(rows * top_k, dtype=np.uint32))
    moe = np.zeros(1, MOE)
    moe["experts"] = len(expert)
    for name, values in (("expert", expert), ("begin", begin), ("row", row), ("weight", weight)):
        moe[name][0, : len(values)] = values
    each = [[(int(row[i]), i, float(weight[i])) for i in range(begin[e], begin[e + 1])] for e in range(len(expert))]
    moe["mask"][0, : len(expert)] = [sum(1 << t for t, _, _ in entries) for entries in each]
    return moe, each


def weights(rng: np.random.Generator, count: int, rows: int, k: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    codes, exponents = rng.integers(0, 16, (count, rows, k)), rng.integers(-2, 2, (count, rows, k // 32))
    return codes, exponents, E2M1[codes] * np.repeat(2.0**exponents, 32, axis=2)


def run(library: Library, memory: dict[str, Any], **fields: int) -> None:
    case = np.zeros(1, CASE)
    for name, value in ({"format": MXFP4, "sms": 1} | fields).items():
        case[name] = value
    for name, array in memory.items():
        case[name] = array.ctypes.data
    shared = 16384 + 98816 + memory["pages"].nbytes
    library.run("multiply", case, *memory.values(), threads=256, shared=shared, seed=fields["tile_rows"])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    ("tile_rows", "k", "pages"), [(16, 256, 1), (32, 96, 1), (48, 256, 1), (64, 320, 1), (80, 256, 1), (48, 448, 2), (16, 1024, 1)]
)
def test_down(tile_rows: int, k: int, pages: int, parts: int, library: Library) -> None:
    """Sums over all experts, exact on this grid; five units, two pages, and rows that do not all fit beside the ring (three parts
    of 1024) go by the way that all formats have."""
    rng = np.random.default_rng(tile_rows + k)
    moe, each = routes(rng, ROWS, 24, 3)
    codes, exponents, w = weights(rng, len(each), tile_rows, k)
    k_page = -(-k // 32 // pages) * 32
    ends = [(first, min(first + k_page, k)) for first in range(0, k, k_page)]
    packed = [page(codes[e][:, a:b], exponents[e][:, a // 32 : b // 32], k_page) for e in range(len(each)) for a, b in ends]
    u = rng.integers(-8, 9, (parts, ENTRIES, k)) / 8.0
    held = {
        "moe": moe,
        "n": np.zeros(8, np.uint16),
        "u": operand(u),
        "p": np.full((ROWS, tile_rows), np.nan, np.float32),
        "squares": np.ones(ROWS, np.float32),
        "pages": np.concatenate(packed),
    }
    run(
        library, held, rows=ROWS, hidden=tile_rows, width=k, up=0, parts=parts, tile_rows=tile_rows, tile_pages=pages,
        k_page=k_page, page_bytes=len(packed[0]), tiles=1, held=len(packed),
    )  # fmt: skip
    want = np.zeros((ROWS, tile_rows))
    for e, entries in enumerate(each):
        for t, entry, _ in entries:
            want[t] += w[e] @ u.sum(0)[entry]
    assert np.array_equal(held["p"], want.astype(np.float32))


@pytest.mark.parametrize("format", [MXFP4, E4M3])
@pytest.mark.parametrize(
    ("tile_rows", "k", "pages"),
    [(8, 640, 2), (8, 96, 1), (16, 640, 3), (8, 1536, 4), (16, 2080, 5), (8, 768, 4), (8, 1216, 2), (16, 704, 2), (8, 6144, 4)],
)
@pytest.mark.parametrize("rows", [1, 8])
def test_up(tile_rows: int, k: int, pages: int, rows: int, format: int, library: Library) -> None:
    """Gate and up of every chosen expert for the rows that chose it, times the weight. Elements of rows are sevenths of the
    largest, which E4M3 has exactly."""
    rng = np.random.default_rng(tile_rows + k + rows)
    moe, each = routes(rng, rows, 12, 2)
    tiles, k_page = 3, -(-k // 32 // pages) * 32
    width = tiles * tile_rows
    codes, exponents, w = weights(rng, len(each), 2 * width, k)  # gate, then up
    if format == E4M3:  # also blocks that are far below others of their row
        exponents -= rng.integers(0, 16, exponents.shape) * (rng.random(exponents.shape) < 0.2)
        far = exponents.max(axis=2, keepdims=True) - exponents > 11
        w = E2M1[codes] * np.repeat(np.where(far, 0, 2.0**exponents), 32, axis=2)
    packed = []
    for e in range(len(each)):
        for tile in range(tiles):
            # A unit is 8 rows of gate, then the same of up.
            lines = [half * width + tile * tile_rows + i + j for i in range(0, tile_rows, 8) for half in (0, 1) for j in range(8)]
            for a in range(0, k, k_page):
                b = min(a + k_page, k)
                of = codes[e][lines, a:b], exponents[e][lines, a // 32 : b // 32]
                packed.append(e4m3_page(*of, exponents[e][lines].max(axis=1), k_page) if format == E4M3 else page(*of, k_page))
    sevenths = rng.integers(-6, 7, (1, ROWS, k))
    sevenths[0, np.arange(ROWS), rng.integers(0, k, ROWS)] = -7
    n = sevenths * 2.0 ** rng.integers(-7, -5, (1, ROWS, 1))
    stride = -(-width // 8) * 8
    held = {
        "moe": moe,
        "n": operand(n),
        "u": np.full((1, ENTRIES, stride), 0x7FC0, np.uint16),
        "p": np.zeros(8, np.float32),
        "squares": np.full(ROWS, k, np.float32),
        "pages": np.concatenate(packed),
    }
    run(
        library, held, rows=rows, hidden=k, width=stride, up=1, parts=1, format=format, tile_rows=tile_rows, tile_pages=pages,
        k_page=k_page, page_bytes=len(packed[0]), tiles=tiles, held=len(packed),
    )  # fmt: skip
    got = (held["u"][0].astype(np.uint32) << 16).view(np.float32).reshape(ENTRIES, -1, 8)[..., PLACE].reshape(ENTRIES, stride)
    for e, entries in enumerate(each):
        for t, entry, weight in entries:
            y = w[e] @ n[0, t]
            gate, up = y[:width], y[width:]
            want = weight * gate / (1 + np.exp(-gate)) * up
            np.testing.assert_allclose(got[entry, :width], want, rtol=2**-8, atol=1e-6)
