"""What a warp of the resident kernel executes for tiles of experts, counted in PTX: python benchmarks/instructions.py

No GPU is used: the kernel's PTX runs on the host (tests/ptx) and counts. Tiles are those of one of eight ranks of V2.5-Pro on an
H200, for a step of 8 rows; formats that its experts do not have are there for comparison. Moves between registers are not counted,
most of which machine code has not; some operations on bits are two in PTX and one there. "Clocks" are those of eight warps that
begin four instructions of PTX a clock; "reading" those that the bytes take at the published bandwidth.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimo_ultraspeed import _probe
from mimo_ultraspeed.benchmark.step_model import GPUS, SHARED_BYTES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from ptx.launch import ENTRIES, MOE, Library

FORMATS = ("f32", "bf16", "fp8", "mxfp4", "mxfp4 e4m3")  # of pages (csrc/cuda/page.h)
HIDDEN, WIDTH, EXPERTS, TOP_K, ROWS = 6144, 256, 384, 8, 8
GPU, CLOCK = GPUS["H200"], 1.755e9
WARPS, BEGUN, BLOCK = 8, 4, 32
CASE = np.dtype(
    [(name, np.uint32) for name in ("rows", "hidden", "width", "format", "up", "sms")]
    + [(name, np.uint32) for name in ("tile_rows", "tile_pages", "k_page", "page_bytes", "tiles", "held", "parts", "spare")]
    + [(name, np.uint64) for name in ("moe", "n", "u", "p", "squares", "pages")]
)


@dataclass(frozen=True)
class Tiles:
    """Tiles of one of the experts' matrices, and of how many experts a step reads one after the other."""

    name: str
    format: int
    rows: int
    pages: int
    k_page: int
    page_bytes: int
    tiles: int

    @property
    def is_up(self) -> bool:
        return self.name == "expert_up"

    def units(self) -> int:
        """Tiles of tensor cores in a page, 16 rows each."""
        return (2 if self.is_up else 1) * self.rows // 16


def tiles_of(name: str, format: int) -> Tiles:
    up = name == "expert_up"
    rows, tiles, _, _, k_page, pages, page_bytes, _, _ = _probe.pick(
        "up" if up else "down", *((WIDTH, HIDDEN) if up else (HIDDEN, WIDTH)), format, EXPERTS, TOP_K, GPU.sms, SHARED_BYTES
    )
    return Tiles(name, format, rows, pages, k_page, page_bytes, tiles)


def executed(library: Library, tiles: Tiles, experts: int) -> float:
    """Instructions of a warp that multiplies its tiles of so many experts, each of which one row chose."""
    moe = np.zeros(1, MOE)
    moe["experts"] = experts
    moe["expert"][0, :experts] = moe["begin"][0, :experts] = np.arange(experts)
    moe["begin"][0, experts] = experts
    moe["mask"][0, :experts] = 1 << np.arange(experts) % ROWS
    held: dict[str, Any] = {
        "moe": moe,
        "n": np.zeros((ROWS, HIDDEN), np.uint16),
        "u": np.zeros((ENTRIES, WIDTH), np.uint16),
        "p": np.zeros((ROWS, HIDDEN), np.float32),
        "squares": np.ones(ROWS, np.float32),
        "pages": np.zeros(tiles.page_bytes, np.uint8),
    }
    case = np.zeros(1, CASE)
    for field, value in {
        "rows": ROWS, "hidden": HIDDEN, "width": WIDTH, "format": tiles.format, "up": tiles.is_up, "sms": GPU.sms,
        "tile_rows": tiles.rows, "tile_pages": tiles.pages, "k_page": tiles.k_page, "page_bytes": tiles.page_bytes,
        "tiles": tiles.tiles, "held": 1, "parts": 1,
    }.items():  # fmt: skip
        case[field] = value
    for field, array in held.items():
        case[field] = array.ctypes.data
    before = library.executed
    library.run("multiply", case, *held.values(), threads=32 * WARPS, shared=16384 + 98816 + tiles.page_bytes, races=False)
    return (library.executed - before) / (32 * WARPS)


def row_of_table(library: Library, tiles: Tiles) -> str:
    few, many = 8, 56
    # Of up, an SM has every so many-th tile of all experts; of down, its rows of every expert.
    count = (lambda experts: -(-experts * tiles.tiles // GPU.sms)) if tiles.is_up else (lambda experts: experts)
    each = (executed(library, tiles, many) - executed(library, tiles, few)) / (count(many) - count(few))
    blocks = tiles.pages * tiles.k_page // BLOCK * tiles.units() / WARPS
    clocks = each * WARPS / BEGUN
    reading = tiles.pages * tiles.page_bytes / (GPU.bandwidth / GPU.sms / CLOCK)
    return (
        f"| {tiles.name} | {FORMATS[tiles.format]} | {tiles.rows} | {tiles.pages} x {tiles.page_bytes:,} | {each:.0f} "
        f"| {each / blocks:.0f} | {clocks:.0f} | {reading:.0f} |"
    )


def main() -> None:
    print("| stage | format | rows | pages x bytes | PTX a warp and tile | a block of a unit | clocks | reading |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        library = Library.of("multiply.cu", Path(folder), counted=True)
        for name in ("expert_up", "expert_down"):
            for format in ("mxfp4", "mxfp4 e4m3", "fp8", "bf16"):
                if (name, format) != ("expert_down", "mxfp4 e4m3"):  # which there is none of
                    print(row_of_table(library, tiles_of(name, FORMATS.index(format))), flush=True)


if __name__ == "__main__":
    main()
