"""`make`: a random checkpoint of any shape."""

from __future__ import annotations

import argparse
import re

__all__ = ["add", "is_override", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed make /tmp/tiny
  mimo-ultraspeed make /tmp/wide --shape tiny hidden_size=320 num_hidden_layers=2
  mimo-ultraspeed make /tmp/drafted --draft                        a drafter beside it
  mimo-ultraspeed make /tmp/flash --shape flash --headers-only     the published layout, no space needed
KEY=VALUE are fields of config.json.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "make",
        help="write a random checkpoint",
        description="Writes a seeded random checkpoint in a published layout, for tests and measurements.",
        epilog=_EPILOG,
    )
    parser.add_argument("dest", metavar="DEST", help="a new or empty folder")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="fields of config.json that differ from the shape's"
    )
    parser.add_argument("--shape", default="tiny", metavar="SHAPE", help="tiny (default), nano, medium, flash, v2.5 or pro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("flash", "fused"), help="split q/k/v, or one qkv tensor")
    parser.add_argument("--weights", choices=("bf16", "fp8", "mxfp4"), help="how matrices are stored")
    parser.add_argument("--router", choices=("f32", "bf16"), default="f32", help="dtype of router weights")
    parser.add_argument("--mtp", action="store_true", help="add MTP tensors, which readers skip")
    parser.add_argument("--vision", action="store_true", help="add vision tensors, which readers skip")
    parser.add_argument(
        "--draft", nargs="*", metavar="KEY=VALUE", help="also a drafter in DEST/dflash: layers=2 block=8 window=64 vocab=4096 ..."
    )
    parser.add_argument("--headers-only", action="store_true", help="real headers over holes: any size in no space")
    return parser


def is_override(word: str) -> bool:
    """The word has the form KEY=VALUE."""
    return re.match(r"[A-Za-z_]\w*=", word) is not None


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint."""
    from ..make import make
    from ..make_draft import parse_options

    for word in args.overrides:
        if not is_override(word):
            raise ValueError(f"expected KEY=VALUE, found {word!r}")
    for word in args.draft or []:
        if not is_override(word):
            raise ValueError(f"--draft: expected KEY=VALUE, found {word!r}")
    folder = make(
        args.dest,
        args.shape,
        seed=args.seed,
        layout=args.layout,
        weights=args.weights,
        router=args.router,
        overrides=dict(word.split("=", 1) for word in args.overrides),
        mtp=args.mtp,
        vision=args.vision,
        draft=parse_options(args.draft) if args.draft is not None else False,
        headers_only=args.headers_only,
    )
    print(folder)
    return 0
