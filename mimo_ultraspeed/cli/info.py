"""`info`: what a model consists of and what it will need; reads headers only."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint, TableRow
    from ..config import ModelConfig
    from ..drafter import Drafter

__all__ = ["add", "run"]

_EPILOG = """\
examples:
  mimo-ultraspeed info smollm2-135m
  mimo-ultraspeed info ./MiMo-V2-Flash --plan      the operations of decoding one token
  mimo-ultraspeed info ./MiMo-V2-Flash --plan 8    the same for 8 rows at once
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = commands.add_parser(
        "info",
        help="show layers, tensors, memory and the plan of a model",
        description="Shows what a model consists of and what it needs. Reads headers only, no weights.",
        epilog=_EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="smollm2-135m, a checkpoint's folder, or a hub id")
    parser.add_argument(
        "--plan", nargs="?", type=int, const=1, metavar="ROWS", help="also the operations of a step of ROWS rows (1)"
    )
    parser.add_argument("--draft", default="auto", metavar="PATH", help="folder of a drafter (default: the checkpoint's)")
    parser.add_argument("--precision", choices=("fast", "exact"), default="fast", help="for the memory plan")
    parser.add_argument("--max-context", type=int, metavar="N", help="for the memory plan (default: the model's limit)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    from .._core import Engine
    from ..default_model import DEFAULT_MODELS
    from ..drafter import open_drafter
    from ..hardware import backends
    from ..model import open_checkpoint

    if args.max_context is not None and args.max_context < 1:
        raise ValueError(f"max_context: expected 1 or more, found {args.max_context}")
    checkpoint = open_checkpoint(args.model)
    drafter = open_drafter(args.draft, checkpoint, shipped=args.model if args.model in DEFAULT_MODELS else None)
    config, tensors, files = checkpoint.core_arguments()
    engine = Engine(
        config,
        tensors,
        files + [str(path) for path in drafter.files] if drafter is not None else files,
        precision=args.precision,
        max_context=args.max_context or 0,
        draft=drafter.to_core() if drafter is not None else None,
    )
    try:
        _print_model(checkpoint)
        if drafter is not None:
            _print_drafter(drafter)
        _print_tensors([*checkpoint.table(), *(drafter.table() if drafter is not None else [])])
        _print_memory(engine.memory(), engine.max_context, args.precision)
        print(f"\nruns on      cpu:{engine.variant}, {engine.threads} threads")
        for backend in backends().values():
            print(f"  {backend.name:<11}{'on ' if backend.on else 'off'}  {backend.reason}")
        if args.plan is not None:
            print(f"\n{engine.plan(args.plan)}", end="")
            if drafter is not None:
                print(f"\ndrafter\n{engine.plan(args.plan, draft=True)}", end="")
    finally:
        engine.close()
    return 0


def _print_model(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    layers = config.num_hidden_layers
    sliding, sparse = sum(config.hybrid_layer_pattern), sum(config.moe_layer_freq)
    rows = {
        "folder": checkpoint.folder,
        "layers": f"{layers}: {layers - sliding} full and {sliding} sliding attention, {layers - sparse} dense and {sparse} sparse",
        "hidden": config.hidden_size,
        "vocabulary": f"{config.vocab_size}{', head tied to the embedding' if config.tie_word_embeddings else ''}",
        "context": config.max_position_embeddings,
        **_kinds(config, sliding, sparse),
        "generation": ", ".join(f"{name} {value}" for name, value in sorted(checkpoint.generation.items())) or "no defaults given",
    }
    if checkpoint.skipped:
        rows["skipped"] = ", ".join(f"{count} {group} tensors" for group, count in checkpoint.skipped.items())
    for name, value in rows.items():
        print(f"{name:<13}{value}")


def _kinds(config: ModelConfig, sliding: int, sparse: int) -> dict[str, str]:
    rows = {}
    for name, attention, used in (
        ("full", config.full, sliding < config.num_hidden_layers),
        ("sliding", config.sliding, sliding > 0),
    ):
        if used:
            rows[name] = (
                f"{attention.num_heads} query heads over {attention.num_kv_heads}, {attention.head_dim} wide"
                f" ({attention.rotary_dim} rotated), values {attention.v_head_dim}"
                + (f", window {attention.window}" if attention.window else "")
                + (", sinks" if attention.sinks else "")
            )
    if sparse < config.num_hidden_layers:
        rows["dense"] = f"{config.intermediate_size} wide"
    if sparse:
        rows["experts"] = f"{config.num_experts_per_tok} of {config.n_routed_experts}, {config.moe_intermediate_size} wide"
    return rows


def _print_drafter(drafter: Drafter) -> None:
    config = drafter.config
    rows = {
        "drafter": drafter.folder,
        "block": f"{config.block_size}: the last token and {config.block_size - 1} drafts",
        "taps": f"after target layers {', '.join(map(str, drafter.taps))}",
        "layers": f"{config.num_hidden_layers}, {drafter.parameters} parameters",
        "attention": (
            f"{config.num_attention_heads} query heads over {config.num_key_value_heads}, {config.head_dim} wide"
            f" ({config.rotary_dim} rotated, base {config.rope_theta:g}), "
            + (f"window {config.window}" if config.window else "no window")
            + (", sinks" if config.sinks else "")
        ),
        "drafts": f"{drafter.draft_vocab_size} of {drafter.vocab_size} ids"
        + (f", Markov head of rank {drafter.markov_rank}" if drafter.markov_rank else ""),
        "mask from": drafter.mask_from,
    }
    print()
    for name, value in rows.items():
        print(f"{name:<13}{value}")


def _print_tensors(table: list[TableRow]) -> None:
    from ..display import size

    by_format: dict[str, list[int]] = {}
    for row in table:
        total = by_format.setdefault(row.dtype, [0, 0])
        total[0] += row.count
        total[1] += row.bytes
    width = max(len(row.name) for row in table)
    print(f"\n{'tensors':<{width}}  {'dtype':<8}{'count':>8}{'bytes':>12}")
    for row in table:
        print(f"{row.name:<{width}}  {row.dtype:<8}{row.count:>8}{size(row.bytes):>12}")
    for dtype, (count, total_bytes) in sorted(by_format.items()):
        print(f"{'all':<{width}}  {dtype:<8}{count:>8}{size(total_bytes):>12}")


def _print_memory(memory: Mapping[str, int], max_context: int, precision: str) -> None:
    from ..display import size

    sequence = memory["kv_fixed"] + max_context * memory["kv_per_position"]
    print(f"\nmemory ({precision}, at most)")
    for name, value in (
        ("weights", size(memory["weights"]) + (f", {size(memory['draft_weights'])} the drafter's" * (memory["draft_weights"] > 0))),
        ("embedding", size(memory["embedding"])),
        ("workspace", size(memory["workspace"])),
        ("together", size(memory["total"])),
        ("KV per token", f"{memory['kv_per_position']} B, and {size(memory['kv_fixed'])} per sequence for sliding windows"),
        ("KV, longest", f"{size(sequence)} for one sequence of {max_context} positions"),
        ("read", f"{size(memory['read_per_token'])} of weights per decoded token"),
    ):
        print(f"  {name:<14}{value}")
