"""`bench`: how fast a model runs here, and where its time goes."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import DEFAULT_MODEL, check_output
from .make import is_override

if TYPE_CHECKING:
    from ..benchmark import BenchResult
    from ..benchmark.rank_result import RankResult

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed bench
  mimo-ultraspeed bench ./MiMo-V2-Flash --threads 8,16,32 --json flash.json --plot flash.svg
  mimo-ultraspeed bench --shape medium --rounds 3
  mimo-ultraspeed bench --shape flash num_hidden_layers=4      real dimensions, fewer layers
Lists are numbers and ranges: 1,2,4 or 1..32 or 1..8,16,32. Figures are medians of rounds in which all kinds of work take turns,
and the machine's own read bandwidth and int8 peak are measured too. Ctrl-C ends the measurement and shows what there is.

One of several GPUs (--world): its share of a shape with a drafter, experts in FP4, random weights made on the GPU.
  mimo-ultraspeed bench --shape pro --world 8 --rank 0 --widths 1,8 --device cuda --json rank.json --plot rank.png
  mimo-ultraspeed bench --shape pro --world 8 --plan-only --gpu H100      what lies where, and a model of its time: no GPU
Steps are timed without what GPUs tell each other; the projected speed of the node adds it as stated and says so.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "bench",
        help="measure a model's speed, and where its time goes",
        description="Measures decoding, prompts, steps of several rows and several prompts at once, and where the time goes.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="MODEL",
        help=f"{DEFAULT_MODEL} (the default), a checkpoint's folder, or a hub id; with --shape: KEY=VALUE fields of config.json",
    )
    parser.add_argument("--shape", metavar="SHAPE", help="a made model instead: tiny, nano, medium, flash, v2.5 or pro")
    parser.add_argument("--draft", metavar="FOLDER", help="the drafter's folder, or none (default: auto, the model's own)")
    parser.add_argument("--prompt-tokens", type=_numbers, default=[32, 512], metavar="LIST", help="lengths of prompts (32,512)")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="tokens of an answer (128)")
    parser.add_argument("--widths", type=_numbers, metavar="LIST", help="rows of steps to time (1..8,16,32); 0 times none")
    parser.add_argument("--threads", type=_numbers, metavar="LIST", help="thread counts, one run each (one per available core)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="prompts answered at once (16); 0 leaves that out")
    parser.add_argument("--precision", choices=("fast", "exact"), default="fast", help="8-bit (default) or float32 activations")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that each kind of work is measured (5)")
    parser.add_argument("--seconds", type=float, metavar="S", help="no further round of a run begins after S seconds")
    rank = parser.add_argument_group("one of several GPUs")
    rank.add_argument("--world", type=int, metavar="N", help="GPUs that share the model, 1 to 8; widths are 1 to 8 then (1,8)")
    rank.add_argument("--rank", type=int, metavar="R", help="which of them (0)")
    rank.add_argument("--routing", metavar="HOW", help="uniform (default), or overlap=P with the experts of the row before")
    rank.add_argument("--context", type=int, metavar="N", help="positions before each step (8192, or what the model has)")
    rank.add_argument("--device", metavar="DEVICE", help="cuda (default) or cuda:N")
    rank.add_argument("--path", metavar="LIST", help="plain, resident (these two, if built), resident-e4m3: one after the other")
    rank.add_argument("--plan-only", action="store_true", help="what lies where and a model of the time; needs no GPU")
    rank.add_argument("--gpu", metavar="NAME", help="the plan's GPU: H100, H200 (default) or B200")
    rank.add_argument("--all-reduce", type=float, metavar="US", help="of each exchange of a projection, in microseconds (4.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and figure here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a figure here: .png, .svg or .pdf (needs matplotlib)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures and prints the report. Status 130 after Ctrl-C, like other commands."""
    from ..benchmark.settings import DEFAULT_WIDTHS
    from ..display import figure_class

    models = [word for word in args.words if not is_override(word)]
    overrides = [word for word in args.words if is_override(word)]
    if len(models) > 1:
        raise ValueError(f"expected one model, found {' and '.join(models)}")
    check_output(args.json)
    if args.plot is not None:
        figure_class(args.plot)
    if args.world is not None:
        if args.draft is not None:
            raise ValueError("--draft: the drafter of one of several GPUs is made up like its weights")
        return _run_rank(args, models, overrides)
    asked = {name: getattr(args, name) for name in ("rank", "routing", "context", "device", "path", "gpu", "all_reduce")}
    asked["plan_only"] = args.plan_only or None
    for name, value in asked.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: of one of several GPUs, which --world asks for")
    from ..benchmark import bench

    result = bench(
        models[0] if models else None,
        shape=args.shape,
        overrides=dict(word.split("=", 1) for word in overrides),
        draft={None: "auto", "none": None}.get(args.draft, args.draft),
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        widths=DEFAULT_WIDTHS if args.widths is None else [] if args.widths == [0] else args.widths,
        threads=args.threads,
        precision=args.precision,
        batch=args.batch,
        rounds=args.rounds,
        seconds=args.seconds,
    )
    return _show(args, result)


def _run_rank(args: argparse.Namespace, models: list[str], overrides: list[str]) -> int:
    from ..benchmark.rank import bench_rank
    from ..benchmark.step_model import Assumptions

    if models or args.shape is None:
        raise ValueError("--world: expected a --shape, whose weights are made up, and no model")
    if args.plan_only and args.plot is not None:
        raise ValueError("--plot: a timeline needs a measurement, and --plan-only makes none")
    default = Assumptions()
    result = bench_rank(
        args.shape,
        overrides=dict(word.split("=", 1) for word in overrides),
        world=args.world,
        rank=args.rank or 0,
        widths=args.widths or (1, 8),
        routing=args.routing or "uniform",
        context=args.context,
        rounds=args.rounds,
        device=args.device or "cuda",
        paths=args.path.split(",") if args.path is not None else None,
        plan_only=args.plan_only,
        gpu=args.gpu or "H200",
        assume=default if args.all_reduce is None else replace(default, all_reduce=args.all_reduce / 1e6),
    )
    return _show(args, result)


def _show(args: argparse.Namespace, result: BenchResult | RankResult) -> int:
    print(result)
    if args.json is not None:
        result.write_json(args.json)
    if args.plot is not None:
        result.plot(args.plot)
    for path in filter(None, (args.json, args.plot)):
        print(f"written: {path}", file=sys.stderr)
    return 130 if result.interrupted else 0


def _numbers(text: str) -> list[int]:
    """ "1,2,4", "1..32", or both mixed."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:\.\.(\d{1,9}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + 10000:
            raise argparse.ArgumentTypeError(f"expected numbers such as 1,2,4 or 1..32, found {text!r}")
        numbers += range(first, last + 1)
    return numbers
