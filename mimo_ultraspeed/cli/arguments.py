"""Arguments and habits that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..options import RULES, GenerationDefaults, GenerationOptions

if TYPE_CHECKING:
    from ..model import Model
    from ..options import GenerationArguments

__all__ = ["DEFAULT_MODEL", "add_model", "add_running", "add_sampling", "check_output", "dim", "load", "running", "sampling"]

DEFAULT_MODEL = "smollm2-135m"
_SAMPLING = (
    ("max_new_tokens", int, "N", "most tokens of an answer (default 2048, or the rest of the context)"),
    ("temperature", float, "T", "0 is greedy (default: generation_config.json's, else greedy)"),
    ("top_k", int, "K", "only the K most likely tokens"),
    ("top_p", float, "P", "only the most likely tokens that together have probability P"),
    ("min_p", float, "P", "only tokens at least P times as likely as the most likely one"),
    ("repetition_penalty", float, "R", "above 1 discourages tokens that were there already"),
    ("seed", int, "SEED", "repeats an answer (default: a fresh one, shown at the end)"),
)
_SPECULATIVE = ("speculative", "lookup", "width", "verify", "simulate_acceptance")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is run."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="MODEL", help=f"{DEFAULT_MODEL} (the default), a checkpoint's folder, or a hub id"
    )
    add_running(parser, group)


def add_running(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup | None = None) -> None:
    """How a model is run. group: of `parser`, None for one of its own."""
    group = group or parser.add_argument_group("model")
    group.add_argument("--precision", choices=("fast", "exact"), default="fast", help="8-bit (default) or float32 activations")
    group.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per available core)")
    group.add_argument("--pin", action="store_true", help="keep each worker thread on one core")
    group.add_argument("--max-context", type=int, metavar="N", help="positions of prompt and answer (default: the model's limit)")
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen, and where an answer ends."""
    group = parser.add_argument_group("answer")
    for name, kind, metavar, text in _SAMPLING:
        flags = [f"--{name.replace('_', '-')}", *(["--max-tokens"] if name == "max_new_tokens" else [])]
        group.add_argument(*flags, dest=name, type=kind, metavar=metavar, help=text)
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends the answer; may be given several times")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after an end token")
    group.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction, default=None, help="let the model think first, if its template can"
    )
    _add_speculative(parser)


def _add_speculative(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speculative decoding (changes the speed, not the answer)")
    flag = argparse.BooleanOptionalAction
    group.add_argument(
        "--speculative",
        action=flag,
        default=None,
        help="decode with drafts (default: on)",
    )
    group.add_argument("--lookup", action=flag, default=None, help="draft what followed earlier in prompt or answer (default: on)")
    group.add_argument("--width", type=int, metavar="N", help="tokens of a round, the last known one included (default: what pays)")
    group.add_argument("--verify", choices=RULES, help="coupled (default) or rejection, which keeps the law of answers only")
    group.add_argument(
        "--simulate-acceptance",
        type=float,
        metavar="L",
        help="for benchmarks: rounds of L tokens in the mean, whatever the drafter",
    )


def sampling(args: argparse.Namespace) -> GenerationArguments:
    """The options given on the command line, checked as `GenerationOptions.resolve` does, before anything is loaded."""
    names = [name for name, *_ in _SAMPLING] + ["stop", "ignore_eos", *_SPECULATIVE]
    options: dict[str, Any] = {name: getattr(args, name) for name in names} | {"enable_thinking": args.thinking}
    given: Any = {name: value for name, value in options.items() if value is not None}
    GenerationOptions.resolve(given, GenerationDefaults())
    return given  # type: ignore[no-any-return]


def running(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_running` asked for, as `Model.from_pretrained` takes it."""
    return {name: getattr(args, name) for name in ("device", "precision", "threads", "max_context", "pin", "revision")}


def load(args: argparse.Namespace) -> Model:
    """The model the arguments name."""
    from ..model import Model

    return Model.from_pretrained(args.model, **running(args))


def check_output(path: str | os.PathLike[str] | None) -> None:
    """Before minutes of measuring, not after: FileNotFoundError without the folder of a file, IsADirectoryError for a folder."""
    if path is not None and Path(path).is_dir():
        raise IsADirectoryError(f"{path}: expected the name of a file, found a folder")
    if path is not None and not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that is there, found no {Path(path).parent}")


def dim(text: str, stream: IO[str] | None = None) -> str:
    """Grey on a terminal, unless NO_COLOR is set. stream: where it goes, stderr by default."""
    is_terminal = (sys.stderr if stream is None else stream).isatty()
    return f"\x1b[2m{text}\x1b[0m" if is_terminal and not os.environ.get("NO_COLOR") else text
