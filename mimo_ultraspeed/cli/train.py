"""`train`: a drafter's data, its training, its files."""

from __future__ import annotations

import argparse

from .arguments import add_model, load

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed train data prompts.jsonl --out data --exclude eval/*.jsonl --tokens 1000000
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser("train", help="train a drafter", description="Trains a drafter for a model.", epilog=_EPILOG)
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    _add_data(steps)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs one step."""
    return int(args.run_step(args))


def _add_data(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("data", help="the model's own answers to prompts", description="Answers prompts, to train on.")
    parser.add_argument("prompts", nargs="+", metavar="FILE", help='.jsonl of {"turns": [text, ...]}, with "scenario" or without')
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the answers go; what is there stays and counts")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help="evaluation prompts, which must not be trained on")
    parser.add_argument("--tokens", type=int, default=1_000_000, metavar="N", help="answer tokens in all (default 1000000)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of an answer (default 256)")
    parser.add_argument("--sampled", type=float, default=0.5, metavar="SHARE", help="share of sampled answers (default 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other answers (default 0)")
    add_model(parser)
    parser.set_defaults(run_step=_data)


def _data(args: argparse.Namespace) -> int:
    from ..train.data import DataOptions, make_data, read_prompts

    prompts = [row for path in args.prompts for row in read_prompts(path)]
    excluded = [turn for path in args.exclude for row in read_prompts(path) for turn in row["turns"]]
    options = DataOptions(seed=args.seed, tokens=args.tokens, max_new_tokens=args.max_new_tokens, sampled=args.sampled)
    with load(args) as model:
        tokens = make_data(model, prompts, args.out, options, excluded=excluded)
    print(f"{tokens} answer tokens in {args.out}")
    return 0
