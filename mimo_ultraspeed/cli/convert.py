"""`convert`: a Llama-family model as a MiMo-V2 checkpoint."""

from __future__ import annotations

import argparse

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed convert SmolLM2-135M-Instruct.Q4_1.gguf ./smollm2 --experts 8
  mimo-ultraspeed convert ./TinyLlama-1.1B ./tinyllama
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "convert",
        help="turn a Llama-family model into a checkpoint",
        description="Converts a Llama-family GGUF file or Hugging Face folder into a MiMo-V2 checkpoint.",
        epilog=_EPILOG,
    )
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file or a Hugging Face folder")
    parser.add_argument("dest", metavar="DEST", help="a new or empty folder")
    parser.add_argument(
        "--experts", type=int, metavar="N", help="split each MLP into N MXFP4 experts, all chosen (default: keep it dense)"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of matrices that are not experts")
    return parser


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint."""
    from ..convert import convert

    print(convert(args.source, args.dest, experts=args.experts, dtype=args.dtype))
    return 0
