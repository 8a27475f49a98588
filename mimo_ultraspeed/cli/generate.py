"""`generate`: one answer, streamed to stdout."""

from __future__ import annotations

import argparse
import sys

from .arguments import add_model, add_sampling, dim, load, sampling

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed generate "Write a Python function that reverses a list."
  mimo-ultraspeed generate --temperature 0.7 --top-p 0.95 --seed 1 "Write a haiku about memory."
  git diff | mimo-ultraspeed generate --system "Summarise this diff in one sentence."
  mimo-ultraspeed generate --raw --max-new-tokens 64 "def fibonacci(n):"
The answer goes to stdout, what was applied and how long it took to stderr.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser("generate", help="answer one prompt", description="Answers one prompt.", epilog=_EPILOG)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to say to the model; - or nothing reads it from stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it stands, without the chat template")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    add_model(parser)
    add_sampling(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Streams the answer."""
    if args.raw and args.system is not None:
        raise ValueError("--system is a chat message: it has no place with --raw")
    options = sampling(args)
    options["raw"] = args.raw
    prompt = _prompt(args)
    with load(args) as model:
        chat = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
        with model.stream(prompt if args.system is None else chat, **options) as pieces:
            for piece in pieces:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
            print()
        if not args.quiet:
            print(dim(f"{pieces.options.describe()}\n{pieces.stats.line()}; {pieces.finish_reason}"), file=sys.stderr)
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None and args.prompt != "-":
        return str(args.prompt)
    if args.prompt is None and sys.stdin.isatty():
        raise ValueError("no prompt: give one, or pipe it to stdin")
    return sys.stdin.read()
