"""A model of the step time of eight GPUs: python benchmarks/step_time.py [--shapes flash,v2.5,pro] [--nodes H100,H200,B200]

No GPU is used and nothing is measured: every figure is a projection from the assumptions below. What is real are the bytes and the
stages: each shape is made (headers only), its tape is lowered to the queues of one of eight ranks as the CUDA engine would run them
(csrc/cuda/lower.h), and the pages of weights of every stage are counted, with their padding and with the SM that has most of them.

Assumptions (each an option):
- Bandwidth, memory and L2 as NVIDIA publishes them (8 GPUs of one node), of which kernels reach --fraction.
- A stage waits for all of the stage before, which costs --hand-over us. Partial sums are joined by the last who made some, which
  costs --join us, over the ranks --all-reduce us instead; choosing experts costs --choose us more. Arithmetic hides behind memory.
- Weights are asked for ahead as far as the ring in shared memory is long; experts only when they are chosen, and until then up to
  half of L2 is filled with what comes after them. Nothing else is overlapped.
- Experts of the rows of a step: each row chooses K of E. A choice is one of the row before with probability --overlap, else
  uniform: with 0 the rows are independent. Expected numbers of distinct experts are used, no spread.
- Every full layer reads --context positions of keys and values in BF16, every sliding layer its window.
- Width 8 is a round with a drafter: block of 8 verified, context and block of the drafter. Width 1 has none. Acceptance is given,
  not modelled: 6.30, 5.56 and 4.29 tokens a round (published or reported of V2.5-Pro; for other shapes an illustration).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mimo_ultraspeed._core import Rank
from mimo_ultraspeed.benchmark.rank import shape_engine
from mimo_ultraspeed.benchmark.step_model import ACCEPTANCES, GPUS, Assumptions, Gpu, Lowered, lowered, step

RANKS = 8


def rows_of_table(shape: str, rank: Lowered, gpu: Gpu, overlaps: Iterable[float], assume: Assumptions) -> Iterable[str]:
    """Markdown rows: width 1, then width 8 at each overlap."""
    plain = step(rank, gpu, 1, False, assume)
    fits = f"{rank.weights / 1e9:.1f} GB" + ("" if rank.weights < 0.92 * gpu.memory else " (does not fit)")
    yield (
        f"| {shape} | 8x {gpu.name} | {fits} | 1 | | {plain.bytes / 1e9:.2f} | {plain.floor * 1e3:.2f} | {plain.time * 1e3:.2f} "
        f"| {plain.floor / plain.time:.0%} | {plain.stages} | {1 / plain.time:.0f} | | |"
    )
    for overlap in overlaps:
        s = step(rank, gpu, 8, True, replace(assume, overlap=overlap))
        speeds = " | ".join(f"{acceptance / s.time:.0f}" for acceptance in ACCEPTANCES)
        yield (
            f"| {shape} | 8x {gpu.name} | {fits} | 8 | {overlap:.2f} | {s.bytes / 1e9:.2f} | {s.floor * 1e3:.2f} "
            f"| {s.time * 1e3:.2f} | {s.floor / s.time:.0%} | {s.stages} | {speeds} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Assumptions()
    parser.add_argument("--shapes", default="flash,v2.5,pro")
    parser.add_argument("--nodes", default="H100,H200,B200")
    parser.add_argument(
        "--overlap", default="0,0.5", help="of a row's experts with the row before's, one or more (default %(default)s)"
    )
    parser.add_argument("--fraction", type=float, default=default.fraction, help="of the published bandwidth (default %(default)s)")
    parser.add_argument("--hand-over", type=float, default=default.hand_over * 1e6, help="us (default %(default)s)")
    parser.add_argument("--join", type=float, default=default.join * 1e6, help="us (default %(default)s)")
    parser.add_argument("--all-reduce", type=float, default=default.all_reduce * 1e6, help="us (default %(default)s)")
    parser.add_argument("--choose", type=float, default=default.choose * 1e6, help="us (default %(default)s)")
    parser.add_argument("--context", type=int, default=default.context, help="positions (default %(default)s)")
    args = parser.parse_args()
    times = (us / 1e6 for us in (args.hand_over, args.join, args.all_reduce, args.choose))
    assume = Assumptions(args.fraction, *times, 0.0, args.context)
    overlaps = [float(text) for text in args.overlap.split(",")]
    print(
        f"Projections, not measurements: {assume.fraction:.0%} of the published bandwidth, {args.hand_over:g} us a hand-over, ",
        end="",
    )
    print(f"{args.join:g} us a join, {args.all_reduce:g} us an all-reduce, {args.choose:g} us a choice of experts, ", end="")
    print(f"{assume.context} positions of context.\n")
    print("| shape | node | weights a GPU | width | overlap | GB read a GPU | floor ms | model ms | of floor | stages ", end="")
    print("| tokens/s at " + " | at ".join(f"{acceptance:.2f}" for acceptance in ACCEPTANCES) + " |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|" + "---:|" * len(ACCEPTANCES))
    for shape in args.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rank = Rank(shape_engine(Path(folder) / "model", shape), world=RANKS)
            for name in args.nodes.split(","):
                gpu = GPUS[name]
                for row in rows_of_table(shape, lowered(rank, gpu), gpu, overlaps, assume):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
