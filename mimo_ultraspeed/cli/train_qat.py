"""`train qat`: a model's experts for four bits."""

from __future__ import annotations

import argparse

__all__ = ["add"]


def add(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The step's arguments."""
    parser = steps.add_parser(
        "qat",
        help="train experts for four bits",
        description="Trains a model's experts so that, rounded to MXFP4, they say what they said before. Writes OUT/model, a "
        "checkpoint. Needs torch.",
    )
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint whose experts are not rounded (`convert --unrounded`)")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="FILE", help="texts, .jsonl, or folders of answers; each as often as another"
    )
    parser.add_argument("--held-out", nargs="+", default=[], metavar="FILE", help="the same kinds, to measure on")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="where checkpoint, log and model go; goes on from what is there"
    )
    parser.add_argument(
        "--start", metavar="MODEL", help="begin from this rounding (`convert --calibrate`), not from the source's weights"
    )
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="length of the run; the same seed and data give the same model")
    length.add_argument("--minutes", type=float, metavar="M", help="length of the run by the clock")
    parser.add_argument("--seed", type=int, default=0, help="of the windows that are drawn (default 0)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon", help="for matrices (default muon)")
    parser.add_argument("--lr", type=float, default=7e-4, metavar="LR", help="highest learning rate, relative (default 0.0007)")
    parser.add_argument("--window", type=int, default=512, metavar="N", help="tokens of a window (default 512)")
    parser.add_argument("--sequences", type=int, default=2, metavar="N", help="windows of a step (default 2)")
    parser.add_argument(
        "--hidden", type=float, default=0.0, metavar="W", help="weight of the distance of hidden states (default 0)"
    )
    parser.add_argument("--learn-scale", action="store_true", help="learn the scales of blocks (default: the best for the weights)")
    parser.add_argument(
        "--train",
        default="",
        metavar="PARTS",
        help="also train these: of router,norms,attention,embedding (default: experts alone)",
    )
    parser.add_argument("--bf16", action="store_true", help="BF16 matrix products, for a processor or GPU that has them")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch on a CPU (default 1)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where torch computes (default cpu)")
    parser.add_argument("--measure-seconds", type=float, default=300.0, metavar="S", help="between measurements (default 300)")
    parser.set_defaults(run_step=_run)
    return parser


def _run(args: argparse.Namespace) -> int:
    from ..train import import_torch

    torch = import_torch()
    from ..train.qat import QatOptions, QatTrainer

    torch.set_num_threads(args.threads)
    names = (
        "steps",
        "minutes",
        "seed",
        "optimizer",
        "lr",
        "window",
        "sequences",
        "hidden",
        "learn_scale",
        "device",
        "bf16",
        "measure_seconds",
    )
    parts = tuple(word.strip() for word in args.train.split(",") if word.strip())
    options = QatOptions(train=parts, **{name: getattr(args, name) for name in names})
    trainer = QatTrainer(args.source, args.data, args.out, options, start=args.start, held_out=args.held_out)
    folder = trainer.run()
    print(f"{trainer.tokens} tokens in {trainer.seconds / 60:.1f} minutes; model in {folder}")
    return 0
