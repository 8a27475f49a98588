"""Speed of the CPU kernels, one thread: python benchmarks/kernels.py [--variant avx2] [--cached] [--reference]

Each matrix kernel runs over a random panel of `--rows` x `--cols` for steps of 1, 2, 4, 8 and 64 rows. GB/s counts the packed
weights once per call, GMAC/s every weight times every row; "x 1 row" is the cost of the step relative to a step of one row.
The panel is larger than the caches unless --cached. --reference also times the plain C kernels on a small panel and prints how
many times faster the variant is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mimo_ultraspeed import _probe

STEPS = (1, 2, 4, 8, 64)
BYTES_PER_WEIGHT = {"f32": 4.0, "bf16": 2.0, "fp8": 1.0 + 4 / 128, "mxfp4": 0.5 + 1 / 32, "q8": 1.0 + 2 / 32, "q4": 0.5 + 4 / 32}
KERNELS = [("q8", "mxfp4"), ("q8", "q8"), ("q8", "q4"), ("f32", "f32"), ("f32", "bf16"), ("f32", "fp8"), ("f32", "mxfp4")]


def aligned(count: int) -> NDArray[np.uint8]:
    """[count] zero bytes that start on a cache line."""
    block = np.zeros(count + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + count]


def random_panel(packing: str, rows: int, cols: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bytes of data and scales of a random panel; every value is finite and of ordinary size."""
    data = aligned(int(rows * cols * {"f32": 4, "bf16": 2, "fp8": 1, "mxfp4": 0.5, "q8": 1, "q4": 0.5}[packing]))
    blocks = rows * cols // 32
    of_scales = {"f32": 0, "bf16": 0, "fp8": rows * -(-cols // 128) * 4, "mxfp4": blocks, "q8": 2 * blocks, "q4": 4 * blocks}
    scales = aligned(of_scales[packing])
    if packing == "f32":
        data.view(np.float32)[:] = rng.standard_normal(rows * cols, dtype=np.float32)
    elif packing == "bf16":
        data.view(np.uint16)[:] = (rng.standard_normal(rows * cols, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        data[:] = rng.integers(0, 0x70 if packing == "fp8" else 256, data.size, dtype=np.uint8)
    if packing == "q8":
        data[data == 128] = 0
    if packing == "mxfp4":
        scales[:] = 120
    elif packing == "q4":
        scales.view(np.float16)[:] = 0.01
    elif packing == "q8":
        scales.view(np.uint16)[:] = 0x3C00
    elif packing == "fp8":
        scales.view(np.float32)[:] = 0.01
    return data, scales


def seconds(call: Callable[[int], object], least: float) -> float:
    """Seconds of one run: the best sample in `least` seconds. Samples are short, so that some of them meet a quiet machine."""
    start = time.perf_counter()
    call(1)
    repeat = 1 + int(1e-4 / max(time.perf_counter() - start, 1e-7))
    best, end = float("inf"), time.perf_counter() + least
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        call(repeat)
        best = min(best, (time.perf_counter() - start) / repeat)
    return best


def activations(kind: str, steps: int, cols: int, variant: str, rng: np.random.Generator) -> object:
    """`steps` rows as the kernels of `kind` take them."""
    x = rng.standard_normal((steps, cols), dtype=np.float32)
    if kind == "f32":
        return x
    rows = [_probe.quantize(variant, row) for row in x]
    return tuple(np.stack(part) for part in zip(*rows, strict=True))


def time_gemm(variant: str, kind: str, packing: str, rows: int, cols: int, steps: tuple[int, ...], least: float) -> list[float]:
    """Seconds per call for each number of rows in `steps`."""
    rng = np.random.default_rng(0)
    data, scales = random_panel(packing, rows, cols, rng)
    x = activations(kind, max(steps), cols, variant, rng)
    octets = rows // 8

    def run(T: int) -> float:
        return seconds(
            lambda n: _probe.gemm(variant, packing, data, scales, rows, cols, x, None, T, 0, octets, rows, n),
            least * (1 if T < 64 else 2),
        )

    return [run(T) for T in steps]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default=None, help="default: the best one this CPU runs")
    parser.add_argument("--rows", type=int, default=0, help="of the panel; default: 256 MiB of weights, or 128 KiB with --cached")
    parser.add_argument("--cols", type=int, default=576)
    parser.add_argument("--cached", action="store_true", help="a panel that fits the second-level cache")
    parser.add_argument("--reference", action="store_true", help="also time the plain C kernels")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.4, help="per measurement")
    args = parser.parse_args()
    variant = _probe.kernel_choose(args.variant)
    print(f"{variant}, one thread, {args.cols} columns, {'cached' if args.cached else 'from memory'}")
    print(f"{'kernel':18}{'rows':>5}{'us':>11}{'GB/s':>8}{'GMAC/s':>9}{'x 1 row':>9}" + (f"{'x ref':>9}" if args.reference else ""))
    for kind, packing in KERNELS:
        if args.only not in f"gemm_{kind}_{packing}":
            continue
        row_bytes = args.cols * BYTES_PER_WEIGHT[packing]
        rows = args.rows or int((128 << 10 if args.cached else 256 << 20) / row_bytes) // 8 * 8
        times = time_gemm(variant, kind, packing, rows, args.cols, STEPS, args.seconds)
        reference = time_gemm("ref", kind, packing, 64, args.cols, STEPS, 0.01) if args.reference else None
        for i, T in enumerate(STEPS):
            line = (
                f"gemm_{kind}_{packing:8}"[:18].ljust(18) + f"{T:5}{times[i] * 1e6:11.1f}{rows * row_bytes / times[i] / 1e9:8.1f}"
            )
            line += f"{rows * args.cols * T / times[i] / 1e9:9.1f}{times[i] / times[0]:9.2f}"
            print(line + (f"{reference[i] / 64 * rows / times[i]:9.1f}" if reference else ""))


if __name__ == "__main__":
    main()
