"""`train`: a drafter's data, its training, its files."""

from __future__ import annotations

import argparse

from .arguments import add_model, load

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed train data prompts.jsonl --out data --exclude eval/*.jsonl --tokens 1000000
  mimo-ultraspeed train drafter --data data --out run --minutes 600
A run that was stopped goes on when it is started again with the same folder.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser("train", help="train a drafter", description="Trains a drafter for a model.", epilog=_EPILOG)
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    _add_data(steps)
    _add_drafter(steps)
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


def _add_drafter(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = steps.add_parser("drafter", help="train a drafter on answers", description="Trains a drafter. Needs torch.")
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="answers, as `train data` makes them; new ones are taken up"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoint and log go; goes on from what is there")
    parser.add_argument("--cache", metavar="FOLDER", help="where the target's hidden states are kept (default: taps/ in the data)")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="length of the run; the same seed and data give the same drafter")
    length.add_argument("--minutes", type=float, metavar="M", help="length of the run by the clock")
    parser.add_argument("--seed", type=int, default=0, help="of anchors and first weights (default 0)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="for matrices (default adamw)")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="LR", help="highest learning rate (default 0.001)")
    parser.add_argument("--sequences", type=int, default=2, metavar="N", help="answers of a step (default 2)")
    parser.add_argument("--anchors", type=int, default=96, metavar="N", help="most anchors of an answer in a step (default 96)")
    parser.add_argument("--loss", default="ce=0.5,kl=0.5", metavar="MIX", help="of ce, kl and tv (default ce=0.5,kl=0.5)")
    parser.add_argument("--weights", choices=("dpace", "exp", "even"), default="dpace", help="of slots (default dpace)")
    parser.add_argument("--taps", metavar="LAYERS", help="target layers to look at, such as 2,9,16,23,29 (default: five, evenly)")
    parser.add_argument("--markov-rank", type=int, default=64, metavar="R", help="of the Markov head, 0 is none (default 64)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads; changes the speed alone (default 2)")
    parser.add_argument("--device-torch", default="cpu", metavar="DEVICE", help="where torch computes (default cpu)")
    add_model(parser)
    parser.set_defaults(run_step=_drafter)


def _drafter(args: argparse.Namespace) -> int:
    from ..train import import_torch

    import_torch()
    from ..train.loss import parse_mix
    from ..train.start import default_config
    from ..train.trainer import Trainer, TrainOptions

    options = TrainOptions(
        steps=args.steps,
        minutes=args.minutes,
        seed=args.seed,
        optimizer=args.optimizer,
        lr=args.lr,
        sequences=args.sequences,
        anchors=args.anchors,
        mix=parse_mix(args.loss),
        weights=args.weights,
        workers=args.workers,
        device=args.device_torch,
    )
    taps = None if args.taps is None else [int(layer) for layer in args.taps.split(",")]
    with load(args) as model:
        config = default_config(model.config, taps=taps, markov_rank=args.markov_rank)
        trainer = Trainer(model, args.data, args.out, options, config=config, cache=args.cache)
        trainer.run()
    print(f"{trainer.anchors} anchors in {trainer.seconds / 60:.1f} minutes; checkpoint and log in {args.out}")
    return 0
