"""`bench`: how fast a model runs here, and where its time goes."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from .arguments import DEFAULT_MODEL, check_output
from .make import is_override

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed bench
  mimo-ultraspeed bench ./MiMo-V2-Flash --threads 8,16,32 --json flash.json --plot flash.svg
  mimo-ultraspeed bench --shape medium --rounds 3
  mimo-ultraspeed bench --shape flash num_hidden_layers=4      real dimensions, fewer layers
Lists are numbers and ranges: 1,2,4 or 1..32 or 1..8,16,32. Figures are medians of rounds in which all kinds of work take turns,
and the machine's own read bandwidth and int8 peak are measured too. Ctrl-C ends the measurement and shows what there is.
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
    parser.add_argument("--prompt-tokens", type=_numbers, default=[32, 512], metavar="LIST", help="lengths of prompts (32,512)")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="tokens of an answer (128)")
    parser.add_argument("--widths", type=_numbers, metavar="LIST", help="rows of steps to time (1..8,16,32); 0 times none")
    parser.add_argument("--threads", type=_numbers, metavar="LIST", help="thread counts, one run each (one per available core)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="prompts answered at once (16); 0 leaves that out")
    parser.add_argument("--precision", choices=("fast", "exact"), default="fast", help="8-bit (default) or float32 activations")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that each kind of work is measured (5)")
    parser.add_argument("--seconds", type=float, metavar="S", help="no further round of a run begins after S seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and figure here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a figure here: .png, .svg or .pdf (needs matplotlib)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Measures and prints the report. Status 130 after Ctrl-C, like other commands."""
    from ..benchmark import bench
    from ..benchmark.settings import DEFAULT_WIDTHS
    from ..display import figure_class

    models = [word for word in args.words if not is_override(word)]
    overrides = [word for word in args.words if is_override(word)]
    if len(models) > 1:
        raise ValueError(f"expected one model, found {' and '.join(models)}")
    check_output(args.json)
    if args.plot is not None:
        figure_class(args.plot)
    result = bench(
        models[0] if models else None,
        shape=args.shape,
        overrides=dict(word.split("=", 1) for word in overrides),
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        widths=DEFAULT_WIDTHS if args.widths is None else [] if args.widths == [0] else args.widths,
        threads=args.threads,
        precision=args.precision,
        batch=args.batch,
        rounds=args.rounds,
        seconds=args.seconds,
    )
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
