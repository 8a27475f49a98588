"""`chat`: a conversation on the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .arguments import add_model, add_sampling, dim, load, sampling

if TYPE_CHECKING:
    from ..model import Model
    from ..options import GenerationArguments

__all__ = ["add", "run"]

_HELP = "/clear forgets the conversation, /exit or end of input leaves, Ctrl-C stops an answer"
_EPILOG = f"""\
examples:
  mimo-ultraspeed chat
  mimo-ultraspeed chat --system "Answer in one sentence." --temperature 0.7
In the chat: {_HELP}.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser("chat", help="talk with a model", description="Talks with a model.", epilog=_EPILOG)
    parser.add_argument("--system", metavar="TEXT", help="a system message that stays at the beginning")
    add_model(parser)
    add_sampling(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Reads lines and answers them until /exit or the end of input."""
    options = sampling(args)
    start: list[Mapping[str, Any]] = [] if args.system is None else [{"role": "system", "content": args.system}]
    history = list(start)
    with load(args) as model:
        print(dim(f"{model!r}\n{_HELP}"), file=sys.stderr)
        while (line := _read_line()) is not None:
            command = line.strip()
            if command == "/exit":
                break
            if command == "/clear":
                history = list(start)
            elif command.startswith("/"):
                print(_HELP, file=sys.stderr)
            elif command:
                history = _turn(model, history, line, options)
    return 0


def _read_line() -> str | None:
    """The user's next line, None at the end of input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and history
    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print(f"\n{_HELP}", file=sys.stderr)


def _turn(model: Model, history: list[Mapping[str, Any]], line: str, options: GenerationArguments) -> list[Mapping[str, Any]]:
    """Answers a line; returns the conversation with both, or without them when there is no answer."""
    asked = [*history, {"role": "user", "content": line}]
    try:
        pieces = model.stream(asked, **options)
    except ValueError as error:
        print(f"error: {error}; /clear starts over", file=sys.stderr)
        return history
    said: list[str] = []
    try:
        with pieces:
            for piece in pieces:
                said.append(piece.text)
                sys.stdout.write(piece.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass  # what was said so far stays in the conversation
    print()
    print(dim(f"{pieces.stats.line()}; {pieces.finish_reason}"), file=sys.stderr)
    answer = "".join(said)
    return [*asked, _message(answer)] if answer else history


def _message(answer: str) -> Mapping[str, Any]:
    """The assistant's message; thinking is set apart, as templates leave old thoughts out of the prompt."""
    thought, mark, said = answer.partition("</think>")
    if not mark:
        return {"role": "assistant", "content": answer}
    return {"role": "assistant", "content": said.lstrip("\n"), "reasoning_content": thought.removeprefix("<think>").strip("\n")}
