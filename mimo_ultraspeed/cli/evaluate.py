"""`evaluate`: what drafting gives, whether the drafter is wired right, and how good a model is against its source."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from .arguments import DEFAULT_MODEL, add_running, check_output, dim, running

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed evaluate acceptance
  mimo-ultraspeed evaluate acceptance --scenarios coding,math --temperature 0 --limit 8 --out run.json --plot run.png
  mimo-ultraspeed evaluate acceptance --scenarios "" --prompts humaneval.jsonl --modes drafter
  mimo-ultraspeed evaluate acceptance --shard 1/4 --out part1.json      (and 2/4 ... elsewhere)
  mimo-ultraspeed evaluate merge part*.json --out run.json
  mimo-ultraspeed evaluate self-check ./MiMo-V2.5-Pro-FP4-DFlash
  mimo-ultraspeed evaluate quality ./naive ./calibrated llama-cpp:source.Q4_K_M.gguf --reference source.gguf --text held-out.txt
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="measure what drafting gives, and quality",
        description="Measures speculative decoding and quality.",
        epilog=_EPILOG,
    )
    kinds = parser.add_subparsers(title="what", metavar="WHAT", dest="what", required=True)
    for words in (_add_acceptance(kinds), _add_merge(kinds), _add_self_check(kinds), _add_quality(kinds), _add_tasks(kinds)):
        words.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    return parser


def _add_acceptance(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "acceptance",
        help="tokens per round, where drafts die, speed-up over plain decoding",
        description="Answers prompts with and without drafts, in turns, and tells how many tokens a round gives and its worth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=f"{DEFAULT_MODEL} (the default), a folder, or a hub id"
    )
    parser.add_argument("--draft", default="auto", metavar="FOLDER", help="the drafter's folder (default: auto, the model's own)")
    what = parser.add_argument_group("what is answered")
    what.add_argument(
        "--scenarios",
        type=_words,
        default=("coding", "math", "agent", "chat"),
        metavar="A,B",
        help="of coding,math,agent,chat (all)",
    )
    what.add_argument(
        "--prompts",
        action="append",
        default=[],
        metavar="FILE",
        help='also a .jsonl of {"turns": [...]}; may be given several times',
    )
    what.add_argument("--limit", type=int, metavar="N", help="at most N conversations of each")
    what.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only the I-th of N parts")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--modes", type=_words, default=("drafter", "lookup", "both"), metavar="A,B", help="of drafter,lookup,both (all)"
    )
    how.add_argument(
        "--temperature", type=_numbers, default=(0.0, 1.0), metavar="T,T", help="0 is greedy (default: 0,1)", dest="temperatures"
    )
    how.add_argument(
        "--verify",
        type=_words,
        default=("coupled", "argmax"),
        metavar="A,B",
        help="of coupled,argmax,rejection, above temperature 0",
    )
    how.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of an answer (default: 256)")
    how.add_argument("--width", type=int, metavar="N", help="rows verified per round (default: by cost)")
    how.add_argument("--seed", type=int, default=0, metavar="SEED", help="of noise and of the bootstrap (default: 0)")
    how.add_argument(
        "--simulate-acceptance",
        type=float,
        metavar="L",
        help="rounds of L tokens in the mean, whatever the drafter, to time an engine",
    )
    add_running(parser)
    result = parser.add_argument_group("result")
    result.add_argument(
        "--out", metavar="FILE", help="write figures and raw rounds as JSON; answers are kept beside it as they end"
    )
    result.add_argument("--resume", action="store_true", help="go on with the run of --out that was interrupted")
    result.add_argument("--plot", metavar="FILE", help="draw the figures into a .png, .svg or .pdf (needs matplotlib)")
    return parser


def _add_merge(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "merge", help="put shards together", description="Puts the shards of an acceptance run together, as if it had been one."
    )
    parser.add_argument("results", nargs="+", metavar="FILE", help="what --out of each shard wrote")
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw the figures (needs matplotlib)")
    return parser


def _add_self_check(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "self-check",
        help="is the drafter wired as it was trained?",
        description="Scores every disputed switch of the drafter on recorded answers. The checkpoint's own setting should be "
        "first; exit status 1 when another is clearly better, or when the engine drafts as with another.",
    )
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=f"{DEFAULT_MODEL} (the default), a folder, or a hub id"
    )
    parser.add_argument("--draft", default="auto", metavar="FOLDER", help="the drafter's folder (default: auto, the model's own)")
    parser.add_argument("--prompts", metavar="FILE", help='answer the first turns of this .jsonl of {"turns": [...]}')
    parser.add_argument("--answers", type=int, default=12, metavar="N", help="how many answers (default: 12)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="most tokens of an answer (default: 128)")
    parser.add_argument("--stride", type=int, default=2, metavar="N", help="draft from every N-th token of an answer (default: 2)")
    parser.add_argument("--dump", metavar="FILE", help="score these recorded answers (.npz) instead")
    parser.add_argument("--save-dump", metavar="FILE", help="record the answers with their residual streams")
    add_running(parser)
    return parser


def _add_quality(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "quality",
        help="perplexity, KL divergence and agreement against a reference",
        description="Scores models on running text against a reference, token by token.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind = f"{DEFAULT_MODEL}, a folder or hub id, a Llama-family .gguf or folder (run unrounded), or llama-cpp:FILE.gguf"
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help=kind)
    parser.add_argument("--reference", required=True, metavar="MODEL", help="what they are compared with: the same kinds")
    parser.add_argument(
        "--text", action="append", required=True, metavar="FILE", help="a text or .jsonl; may be given several times", dest="texts"
    )
    parser.add_argument("--window", type=int, default=512, metavar="N", help="tokens of a window (default: 512)")
    parser.add_argument("--tokens", type=int, default=20_000, metavar="N", help="of each text, 0 for all (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of the bootstrap (default: 0)")
    parser.add_argument("--precision", choices=("fast", "exact"), default="fast", help="8-bit (default) or float32 activations")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads (default: one per available core)")
    parser.add_argument("--out", metavar="FILE", help="write figures and raw sums per window as JSON")
    return parser


def _add_tasks(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "tasks",
        help="right answers on GSM8K, HumanEval and MBPP",
        description="Answers problems greedily and counts the right answers. Bring the sets as they are published (.jsonl).",
    )
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=f"{DEFAULT_MODEL} (the default), a folder, or a hub id"
    )
    parser.add_argument("--gsm8k", metavar="FILE", help="exact match of the last number")
    parser.add_argument("--humaneval", metavar="FILE", help="pass@1; needs --run-code")
    parser.add_argument("--mbpp", metavar="FILE", help="pass@1; needs --run-code")
    parser.add_argument(
        "--run-code", action="store_true", help="allow to run what the model wrote: without network, files and time of its own"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N problems of each set")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="most tokens of an answer (default: 512)")
    add_running(parser)
    parser.add_argument("--out", metavar="FILE", help="write figures and answers as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs one of the evaluations and prints its table."""
    return {"acceptance": _acceptance, "merge": _merge, "self-check": _self_check, "quality": _quality, "tasks": _tasks}[args.what](
        args
    )


def _acceptance(args: argparse.Namespace) -> int:
    from ..evaluate import Settings, acceptance

    _check_plot(args)
    if args.resume and args.out is None:
        raise ValueError("--resume needs --out, the file of the run to go on with")
    interrupted: list[bool] = []
    fields: dict[str, Any] = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
    result = acceptance(
        args.model,
        draft=args.draft,
        scenarios=args.scenarios,
        prompts=args.prompts,
        settings=Settings(**fields),
        out=args.out,
        resume=args.resume,
        shard=args.shard,
        on_interrupt=lambda: interrupted.append(True),
        **running(args),
    )
    _show(args, result)
    if interrupted and args.out is not None:
        print(dim("interrupted; the same command with --resume goes on"), file=sys.stderr)
    return 130 if interrupted else 0


def _merge(args: argparse.Namespace) -> int:
    from ..evaluate import merge

    _check_plot(args)
    result = merge(args.results)
    if args.out is not None:
        result.save(args.out)
    _show(args, result)
    return 0


def _self_check(args: argparse.Namespace) -> int:
    from ..evaluate import PromptSet, self_check
    from ..model import Model

    prompts = None
    if args.prompts is not None:
        prompts = [item.turns[0] for item in PromptSet.read(args.prompts).items[: args.answers]]
    check_output(args.save_dump)
    with Model.from_pretrained(args.model, draft=args.draft, **running(args)) as model:
        found = self_check(
            model,
            prompts,
            dump=args.dump,
            save_dump=args.save_dump,
            answers=args.answers,
            max_new_tokens=args.max_new_tokens,
            stride=args.stride,
        )
    print(found)
    return 0 if found.passed else 1


def _quality(args: argparse.Namespace) -> int:
    from ..evaluate import quality

    check_output(args.out)
    named = [re.fullmatch(r"([\w.-]+)=(.+)", model) for model in args.models]
    pairs = [(match[1], match[2]) if match else (model, model) for match, model in zip(named, args.models, strict=True)]
    models: Any = dict(pairs) if any(named) else args.models
    options = {name: getattr(args, name) for name in ("reference", "window", "precision", "threads", "seed", "out")}
    print(quality(models, args.texts, tokens=args.tokens or None, **options))
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from ..evaluate import TASKS, tasks

    check_output(args.out)
    sets = {name: getattr(args, name) for name in TASKS if getattr(args, name) is not None}
    if not sets:
        raise ValueError(f"expected at least one of {', '.join('--' + name for name in TASKS)}")
    running = {name: getattr(args, name) for name in ("device", "precision", "threads", "max_context", "revision")}
    result = tasks(
        args.model, sets, run_code=args.run_code, limit=args.limit, max_new_tokens=args.max_new_tokens, draft=None, **running
    )
    print(result)
    if args.out is not None:
        result.save(args.out)
    return 0


def _check_plot(args: argparse.Namespace) -> None:
    """Before hours of measuring, not after."""
    if args.plot is not None:
        from ..display import figure_class

        figure_class(args.plot)


def _show(args: argparse.Namespace, result: Any) -> None:
    print(result)
    if args.plot is not None and result.figures:
        result.plot(args.plot)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, found {text!r}") from None


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text!r}")
    return int(found[1]), int(found[2])
