"""`convert`: a Llama-family model as a MiMo-V2 checkpoint, or the experts of one in MXFP4."""

from __future__ import annotations

import argparse

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed convert SmolLM2-135M-Instruct.Q4_1.gguf ./smollm2 --experts 8
  mimo-ultraspeed convert SmolLM2-135M-Instruct.Q4_1.gguf ./smollm2-calibrated --experts 8 --calibrate text.txt answers.jsonl
  mimo-ultraspeed convert ./TinyLlama-1.1B ./tinyllama
  mimo-ultraspeed convert ./MiMo-V2-BF16 ./MiMo-V2-MXFP4 --calibrate answers.jsonl
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "convert",
        help="turn a Llama-family model into a checkpoint, or experts into MXFP4",
        description="Converts a Llama-family GGUF file or Hugging Face folder into a MiMo-V2 checkpoint, or rounds a MiMo-V2 "
        "checkpoint's experts to MXFP4.",
        epilog=_EPILOG,
    )
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file, a Hugging Face folder, or a MiMo-V2 checkpoint")
    parser.add_argument("dest", metavar="DEST", help="a new or empty folder")
    parser.add_argument(
        "--experts", type=int, metavar="N", help="split each MLP into N MXFP4 experts, all chosen (default: keep it dense)"
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        metavar="FILE",
        help="texts or .jsonl on which experts are rounded for the outputs they have there (default: to the nearest value)",
    )
    parser.add_argument("--calibration-tokens", type=int, default=24576, metavar="N", help="tokens of them (default: 24576)")
    parser.add_argument("--rounding", metavar="FILE", help="round experts as this file says (`write_delta` makes it)")
    parser.add_argument(
        "--unrounded", action="store_true", help="leave the experts that --experts makes in --dtype, as `train qat` takes them"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of matrices that are not MXFP4")
    return parser


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint."""
    from ..convert import convert

    options = {name: getattr(args, name) for name in ("experts", "dtype", "calibrate", "calibration_tokens", "rounding")}
    print(convert(args.source, args.dest, mxfp4=not args.unrounded, **options))
    return 0
