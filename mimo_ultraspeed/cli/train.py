"""`train`: a drafter's data, its training, its files; experts for four bits."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display import size
from . import train_qat
from .arguments import add_model, check_output, load

if TYPE_CHECKING:
    from ..train.drafter import Trained
    from ..train.measure import Measured

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed train data prompts.jsonl --out data --exclude eval/*.jsonl --tokens 1000000
  mimo-ultraspeed train drafter --data data --out run --minutes 600
  mimo-ultraspeed train export run drafter
  mimo-ultraspeed train measure drafter eval/*.jsonl --limit 20
  mimo-ultraspeed evaluate acceptance --draft drafter
  mimo-ultraspeed train qat ./unrounded --data data text.txt --held-out other.txt --out run --minutes 600
A run that was stopped goes on when it is started again with the same folder.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "train",
        help="train a drafter, or experts for four bits",
        description="Trains a drafter for a model, or a model's experts for four bits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    for step in (_add_data(steps), _add_drafter(steps), _add_export(steps), _add_measure(steps), train_qat.add(steps)):
        step.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs one step."""
    return int(args.run_step(args))


def _add_data(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = steps.add_parser("data", help="the model's own answers to prompts", description="Answers prompts, to train on.")
    parser.add_argument("prompts", nargs="+", metavar="FILE", help='.jsonl of {"turns": [text, ...]}, with "scenario" or without')
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the answers go; what is there stays and counts")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help="evaluation prompts, which must not be trained on")
    parser.add_argument("--tokens", type=int, default=1_000_000, metavar="N", help="answer tokens in all (default 1000000)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of an answer (default 256)")
    parser.add_argument("--sampled", type=float, default=0.5, metavar="SHARE", help="share of sampled answers (default 0.5)")
    parser.add_argument(
        "--templates",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="prompts of our own for one of FILE's, in chat and math (default 0.5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other answers (default 0)")
    add_model(parser)
    parser.set_defaults(run_step=_data)
    return parser


def _data(args: argparse.Namespace) -> int:
    from ..train.data import DataOptions, make_data, read_prompts

    prompts = [row for path in args.prompts for row in read_prompts(path)]
    excluded = [turn for path in args.exclude for row in read_prompts(path) for turn in row["turns"]]
    options = DataOptions(
        seed=args.seed, tokens=args.tokens, max_new_tokens=args.max_new_tokens, sampled=args.sampled, templates=args.templates
    )
    with load(args) as model:
        tokens = make_data(model, prompts, args.out, options, excluded=excluded)
    print(f"{tokens} answer tokens in {args.out}")
    return 0


def _add_drafter(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = steps.add_parser("drafter", help="train a drafter on answers", description="Trains a drafter. Needs torch.")
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="answers, as `train data` makes them; new ones are taken up"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where checkpoint and log go; goes on from what is there")
    parser.add_argument(
        "--start",
        metavar="DRAFTER",
        help="begin with this one (folder of a drafter or of a run, or a checkpoint): to go on, or for a target that has changed",
    )
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
    parser.add_argument("--markov-rank", type=int, metavar="R", help="of the Markov head, 0 is none (default 64)")
    parser.add_argument("--bf16", action="store_true", help="BF16 matrix products, for a processor or GPU that has them")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads; changes the speed alone (default 2)")
    parser.add_argument("--device-torch", default="cpu", metavar="DEVICE", help="where torch computes (default cpu)")
    add_model(parser)
    parser.set_defaults(run_step=_drafter)
    return parser


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
        bf16=args.bf16,
        short=TrainOptions.short if args.start is None else 0.0,
    )
    start = None if args.start is None else _trained(args.start)
    if start is not None and (args.taps, args.markov_rank) != (None, None):
        raise ValueError("start: expected taps and the rank of the Markov head to be that drafter's, found --taps or --markov-rank")
    with load(args) as model:
        taps = None if args.taps is None else _taps(args.taps, model.config.num_hidden_layers)
        rank = {} if args.markov_rank is None else {"markov_rank": args.markov_rank}
        config = default_config(model.config, taps=taps, **rank)
        trainer = Trainer(model, args.data, args.out, options, config=config, start=start, cache=args.cache)
        try:
            trainer.run()
        finally:
            _plot(Path(args.out))
    print(f"{trainer.anchors} anchors in {trainer.seconds / 60:.1f} minutes; checkpoint and log in {args.out}")
    return 0


def _taps(text: str, layers: int) -> list[int]:
    found = [int(word) if word.strip().isdecimal() else -1 for word in text.split(",")]
    if not all(0 <= layer < layers for layer in found):
        raise ValueError(f"taps: expected layers from 0 to {layers - 1}, with commas between them, found {text!r}")
    return found


def _plot(out: Path) -> None:
    """log.png beside the log, where there is a log and matplotlib."""
    from ..train.plot import plot_log
    from ..train.trainer import LOG

    if (out / LOG).exists():
        with contextlib.suppress(ImportError):
            plot_log(out / LOG, out / "log.png")


def _add_export(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = steps.add_parser("export", help="a run as a drafter's folder", description="Writes a drafter's folder. Needs torch.")
    parser.add_argument("trained", metavar="RUN", help="folder of a run, or its checkpoint")
    parser.add_argument("dest", metavar="DEST", help="folder for config.json and model.safetensors; neither may be there")
    parser.add_argument(
        "--weights", choices=("fp8", "bf16"), default="fp8", help="how the layers' matrices are stored (default fp8)"
    )
    parser.add_argument("--last", action="store_true", help="the last weights, not their moving average")
    parser.set_defaults(run_step=_export)
    return parser


def _export(args: argparse.Namespace) -> int:
    from ..train import import_torch

    import_torch()
    from ..train.export import export_drafter, load_run

    folder = export_drafter(load_run(_checkpoint(args.trained), averaged=not args.last), args.dest, weights=args.weights)
    print(f"{size((folder / 'model.safetensors').stat().st_size)} in {folder}")
    return 0


def _checkpoint(run: str) -> Path:
    from ..train.trainer import CHECKPOINT

    path = Path(run) / CHECKPOINT if Path(run).is_dir() else Path(run)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected the checkpoint of a run, found none")
    return path


def _add_measure(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = steps.add_parser(
        "measure",
        help="tokens per round, replayed over greedy answers",
        description="Answers first turns greedily and replays rounds of whole blocks over the answers: by the drafter, by prompt "
        "lookup, by both. Tells of drafts alone; `evaluate acceptance` decodes, and tells of time. Needs torch.",
    )
    parser.add_argument("drafter", metavar="DRAFTER", help="a drafter's folder, a run's folder, or its checkpoint")
    parser.add_argument("prompts", nargs="+", metavar="FILE", help='.jsonl of {"turns": [text, ...]}: one set each')
    parser.add_argument("--limit", type=int, metavar="N", help="at most N prompts of each set")
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N", help="most tokens of an answer (default 96)")
    parser.add_argument("--last", action="store_true", help="of a run: the last weights, not their moving average")
    parser.add_argument("--json", metavar="FILE", help="the figures, also to a file")
    add_model(parser)
    parser.set_defaults(run_step=_measure)
    return parser


def _measure(args: argparse.Namespace) -> int:
    from ..train import import_torch

    import_torch()
    from ..evaluate import load_prompts
    from ..train.measure import answer_greedily, measure

    check_output(args.json)
    trained = _trained(args.drafter, averaged=not args.last)
    sets = {one.name: [item.turns[0] for item in one.items[: args.limit]] for one in load_prompts((), args.prompts)}
    figures: dict[str, Any] = {}
    slots = trained.config.block_size - 1
    print(f"{'':20}{'prompts':>8}  {'drafter':18}{'lookup':>8}{'both':>8}   drafter's slots 1 to {slots}, given those before")
    with load(args) as model:
        for name, prompts in sets.items():
            found = measure(trained, model, answer_greedily(model, prompts, args.max_new_tokens))
            figures[name] = {method: _figures(one) for method, one in found.items()}
            low, high = found["drafter"].interval()
            alone = f"{found['drafter'].tau:.2f} ({low:.2f}-{high:.2f})"
            rates = " ".join("  - " if rate != rate else f"{rate:.2f}" for rate in found["drafter"].conditional())
            others = f"{found['lookup'].tau:8.2f}{found['both'].tau:8.2f}"
            print(f"{name:20}{len(prompts):8}  {alone:18}{others}   {rates}", flush=True)
    if args.json is not None:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _trained(path: str, *, averaged: bool = True) -> Trained:
    from ..train.export import load_drafter, load_run
    from ..train.trainer import CHECKPOINT

    if (Path(path) / "config.json").exists():
        return load_drafter(path)
    if not (Path(path) / CHECKPOINT).exists() and not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected the folder of a drafter or of a run, found neither")
    return load_run(_checkpoint(path), averaged=averaged)


def _figures(one: Measured) -> dict[str, Any]:
    return {
        "tau": one.tau,
        "tau_ci95": one.interval(),
        "emitted": one.emitted.tolist(),
        "rounds": one.rounds.tolist(),
        "reached": one.reached.tolist(),
        "accepted": one.accepted.tolist(),
    }
