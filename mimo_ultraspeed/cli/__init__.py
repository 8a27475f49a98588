"""`mimo-ultraspeed COMMAND ...`: a module per command, with `add` (its arguments) and `run` (which imports what it needs)."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from . import bench, chat, convert, doctor, evaluate, generate, info, make, train

__all__ = ["main"]

_EPILOG = """\
first steps:
  mimo-ultraspeed generate "Write a Python function that reverses a list."
  mimo-ultraspeed chat
  mimo-ultraspeed doctor

`mimo-ultraspeed COMMAND --help` explains a command. Environment: MIMO_ULTRASPEED_HOME (cache folder), MIMO_CPU (kernels by name),
HF_HOME, HF_TOKEN and HF_HUB_OFFLINE (models from the hub), NO_COLOR.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit status: 0, 1 after an error, 130 after Ctrl-C, 141 when the reader of stdout has gone.

    Raises SystemExit with 2 for wrong usage.
    """
    args = _parse(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = args.run(args)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        else:
            print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mimo-ultraspeed",
        description="Runs MiMo-V2 language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in (generate, chat, info, doctor, evaluate, make, convert, bench, train):
        command = module.add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    args, rest = parser.parse_known_args(argv)
    taken = {"make": "overrides", "bench": "words"}.get(args.command)
    if rest and taken is not None and all(make.is_override(word) for word in rest):
        getattr(args, taken).extend(rest)  # argparse takes no positional arguments after an option that follows others
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


class _Version(argparse.Action):
    """Asks for the version only when it is to be shown: the look-up is slow."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .. import __version__

        print(__version__)
        parser.exit()


def _show_warning(
    message: Warning | str, category: object, filename: str, lineno: int, file: object = None, line: str | None = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fspath(error.filename)}: {error.strerror}"  # without "[Errno 2]"
    expected = isinstance(error, ValueError | TypeError | OSError | RuntimeError | ImportError) and text
    return text if expected else f"{type(error).__name__}: {text}".removesuffix(": ")
