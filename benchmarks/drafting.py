"""Drafting beside plain decoding, ours and llama.cpp's, prompt by prompt in turns, on the built-in model.

    pip install llama-cpp-python
    python benchmarks/drafting.py [--scenario coding] [--limit 8] [--tokens 128] [--threads 2] [--json FILE]

Greedy answers to prompts of one of the package's scenarios. Ours: drafting (the shipped drafter and prompt lookup, at the width
that cost chooses: the default), and plainly; both must give the same tokens. llama.cpp reads the GGUF file that ours was converted
from and decodes as many tokens of its own. Prompts and first tokens are not counted. Each engine has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from decode import fetch_gguf

from mimo_ultraspeed.evaluate.scenarios import SCENARIOS, load_prompts

WARM_UP = "Write a haiku about memory."
ENGINES = ("drafting", "plain", "llama")
_engine: Any = None
"""Of a worker process."""


def load_ours(threads: int) -> None:
    import mimo_ultraspeed as mu

    global _engine
    _engine = mu.Model.from_pretrained("smollm2-135m", threads=threads, progress=False)


def load_llama(path: Path, threads: int) -> None:
    from llama_peer import LlamaPeer

    global _engine
    _engine = LlamaPeer(path, threads)


def run_ours(text: str, tokens: int, drafting: bool) -> dict[str, Any]:
    result = _engine.generate(text, max_new_tokens=tokens, temperature=0, speculative=drafting)
    rounds = len(result.stats.rounds["width"]) if drafting else len(result.token_ids) - 1
    return {
        "prompt": result.prompt_token_ids,
        "answer": result.token_ids,
        "seconds": result.stats.decode_seconds,
        "rounds": rounds,
    }


def run_llama(prompt: list[int], tokens: int) -> dict[str, Any]:
    """Goes on after an end of its own, so that both decode as many tokens."""
    _engine.reset()
    token = int(_engine.step(prompt).argmax())
    began = time.perf_counter()
    for _ in range(tokens - 1):
        token = int(_engine.step([token]).argmax())
    return {"seconds": time.perf_counter() - began}


def measure(ours: ProcessPoolExecutor, llama: ProcessPoolExecutor, prompts: list[str], tokens: int) -> list[dict[str, Any]]:
    found = []
    for text in [WARM_UP, *prompts]:
        plain = ours.submit(run_ours, text, tokens, False).result()
        drafting = ours.submit(run_ours, text, tokens, True).result()
        if plain["answer"] != drafting["answer"]:
            raise SystemExit(f"drafting changed the answer to {text[:60]!r}")
        count = len(plain["answer"])
        if count > 1:
            peer = llama.submit(run_llama, plain["prompt"], count).result()
            rounds = drafting["rounds"]
            found.append(
                {"tokens": count - 1, "rounds": rounds}
                | {name: run["seconds"] for name, run in zip(ENGINES, (drafting, plain, peer), strict=True)}
            )
    return found[1:]


def report(found: list[dict[str, Any]], load: float) -> None:
    tokens = sum(one["tokens"] for one in found)
    print(f"{len(found)} prompts, {tokens} tokens, load average {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end")
    print(f"{tokens / sum(one['rounds'] for one in found):.2f} tokens a round; the same answers with drafts and without")
    for name in ENGINES:
        print(f"{name:10}{tokens / sum(one[name] for one in found):8.1f} tokens/s")
    for name in ENGINES[1:]:
        ratios = sorted(one[name] / one["drafting"] for one in found)
        pooled = sum(one[name] for one in found) / sum(one["drafting"] for one in found)
        print(
            f"drafting is {pooled:.2f} x {name} over all prompts; by prompt: median {statistics.median(ratios):.2f}, "
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="coding", choices=SCENARIOS)
    parser.add_argument("--limit", type=int, default=8, help="prompts")
    parser.add_argument("--tokens", type=int, default=128, help="most of an answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every single figure here")
    options = parser.parse_args()
    prompts = [item.turns[0] for item in load_prompts((options.scenario,))[0].items[: options.limit]]
    gguf = Path(os.environ.get("MIMO_BENCH_GGUF") or fetch_gguf())
    spawn, load = multiprocessing.get_context("spawn"), os.getloadavg()[0]
    with (
        ProcessPoolExecutor(1, spawn, load_ours, (options.threads,)) as ours,
        ProcessPoolExecutor(1, spawn, load_llama, (gguf, options.threads)) as llama,
    ):
        found = measure(ours, llama, prompts, options.tokens)
    report(found, load)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
