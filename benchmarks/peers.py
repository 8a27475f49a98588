"""One model in our engine and in others, in one alternating run.

    pip install gguf llama-cpp-python     # and torch, transformers, accelerate for --peers llama,transformers
    python benchmarks/peers.py [--model smollm2-135m | --shape nano | --shape medium] [--work decode,prefill] [--rounds 5]
                               [--threads 2] [--json FILE]

Every engine lives in a process of its own and they take turns at each kind of work, after which this process probes the
machine's read bandwidth, in the same seconds. Figures are medians over rounds; ratios are medians of the ratios of neighbouring
runs. The embedded default is the GGUF file it was converted from (4 to 8 bits a weight; ours is the converted checkpoint);
transformers runs that file dequantised to float32. A shape is a made checkpoint (MXFP4 experts) and the GGUF file written from
it (gguf_write.py: the same MXFP4 experts, Q8_0 else, which is what our fast mode packs too); both are kept in a temporary folder.

  decode      128 tokens, greedy, after a prompt of 32; the first is not counted
  step 1      logits of 96 tokens, one row a step; of ours as many steps after 48 tokens
  step 8      the same, eight rows a step: what verifying a drafted block costs
  prefill     a prompt of 512, to its first token
  16 at once  the work of `decode` 16 times over, together: prompts of 32, answers of 128; counted from when all have a first token
  long prompt, long decode, long step 8   only when asked for, beside llama.cpp: a prompt of 4096; 32 tokens after it; logits of
              four steps of eight rows after it
  outside     ours alone: the share of decoding that is not spent in kernels, but at barriers and between steps

"of read": bytes of weights that a step touches / its time / bandwidth read on as many threads in the same round. A step of 8 of
a mixture touches the union of its rows' experts, which our engine counts; peers are taken to touch the same. "of int8": products
of weights and activations / time / the machine's rate of int8 products.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from decode import fetch_gguf

from mimo_ultraspeed.checkpoint import Checkpoint

PROMPT, ANSWER, SHORT, LONG, BATCH = 32, 128, 96, 512, 16
LONGEST, LONG_ANSWER, LONG_STEPS = 4096, 32, 4
WORK = ("decode", "step 1", "step 8", "prefill", "16 at once")
LONG_WORK = ("long prompt", "long decode", "long step 8")
STEPS = {"decode": ANSWER - 1, "step 1": SHORT, "step 8": SHORT // 8, "prefill": 1, "16 at once": ANSWER - 1}
STEPS |= {"long prompt": 1, "long decode": LONG_ANSWER - 1, "long step 8": LONG_STEPS}
TOKENS = {"decode": 1, "step 1": 1, "step 8": 8, "prefill": LONG, "16 at once": BATCH}  # of one step
TOKENS |= {"long prompt": LONGEST, "long decode": 1, "long step 8": 8}
CONTEXT = LONGEST + 512
PROBE_BYTES, PROBE_SECONDS = 1 << 30, 0.3


def prompt(length: int, salt: int, vocab: int) -> list[int]:
    """Another beginning each time, so that no engine finds its own cache of the last run."""
    return np.random.default_rng(salt).integers(vocab // 8, vocab, length).tolist()


def batch(salt: int, vocab: int) -> list[list[int]]:
    return [prompt(PROMPT, 100_000 + BATCH * salt + i, vocab) for i in range(BATCH)]


class Engine(Protocol):
    """A model that was loaded; `seconds` is the time of all STEPS of one kind of work."""

    facts: dict[str, Any]

    def seconds(self, work: str, salt: int) -> float: ...


class Ours:
    def __init__(self, checkpoint: Path, gguf: Path, threads: int) -> None:
        from mimo_ultraspeed import _core

        opened = Checkpoint.open(checkpoint)
        self.vocab = opened.config.vocab_size
        self.engine = _core.Engine(*opened.core_arguments(), precision="fast", threads=threads, max_context=CONTEXT)
        self.engine.load()
        read = self.engine.memory()["read_per_token"]
        counts = {
            "step 8": self.count(lambda: self.engine.logits(prompt(SHORT, 0, self.vocab), step=8), STEPS["step 8"]),
            "prefill": self.count(lambda: self.seconds("prefill", salt=0), STEPS["prefill"]),
        }
        self.facts = {
            "variant": self.engine.variant,
            "bytes": {"decode": read, "step 1": read, "step 8": counts["step 8"][0]},
            "macs": {"prefill": counts["prefill"][1]},
        }

    def count(self, run: Callable[[], object], steps: int) -> tuple[float, float]:
        """Bytes and products of one of `steps` steps that run() makes, by the engine's own counters."""
        self.engine.profile(True)
        run()
        profile = self.engine.profile(False)
        totals = [sum(op[what] for op in profile["ops"].values()) for what in ("bytes", "macs")]
        return totals[0] / steps, totals[1] / steps

    def seconds(self, work: str, salt: int) -> float:
        if work in ("step 1", "step 8"):
            return float(self.engine.step_times([int(work[5:])], context=SHORT // 2, repeats=STEPS[work]).sum()) / 1e9
        if work == "16 at once":
            return self.batch(salt)
        if work == "outside":
            return self.outside(salt)
        if work == "long step 8":
            return float(self.engine.step_times([8], context=LONGEST, repeats=LONG_STEPS).sum()) / 1e9
        lengths = {"decode": PROMPT, "prefill": LONG, "long prompt": LONGEST, "long decode": LONGEST}
        tokens = prompt(lengths[work], salt, self.vocab)
        if work.endswith("decode"):
            return self.decode(tokens, STEPS[work] + 1)
        began = time.perf_counter()
        self.engine.submit(tokens, max_new_tokens=1).next()
        return time.perf_counter() - began

    def batch(self, salt: int) -> float:
        from mimo_ultraspeed.benchmark.figures import rate_together

        jobs = []
        for tokens in batch(salt, self.vocab):
            submitted = time.perf_counter()
            jobs.append((submitted, self.engine.submit(tokens, max_new_tokens=ANSWER)))
        times = [[submitted + event[1] for event in iter(job.next, None)] for submitted, job in jobs]
        return BATCH * (ANSWER - 1) / rate_together(times)

    def outside(self, salt: int) -> float:
        """A share of the time, not seconds."""
        from mimo_ultraspeed.benchmark.figures import breakdown

        tokens = prompt(PROMPT, salt, self.vocab)
        self.engine.submit(tokens, max_new_tokens=1).next()  # the prompt is kept: all steps that follow are of one row
        self.engine.profile(True)
        seconds = self.decode(tokens, ANSWER)
        profile = self.engine.profile(False)
        wall = 1e9 * seconds * profile["steps"] / (ANSWER - 1)
        return breakdown({**profile, "wall_ns": wall}, self.engine.threads).outside

    def decode(self, tokens: list[int], count: int) -> float:
        """Seconds of all tokens but the first."""
        job = self.engine.submit(tokens, max_new_tokens=count)
        job.next()
        first = time.perf_counter()
        while job.next() is not None:
            pass
        return time.perf_counter() - first


class Llama:
    def __init__(self, checkpoint: Path, gguf: Path, threads: int) -> None:
        from llama_peer import LlamaPeer

        self.peer = LlamaPeer(gguf, threads, CONTEXT)
        self.facts: dict[str, Any] = {"bytes": {}, "macs": {}}

    def seconds(self, work: str, salt: int) -> float:
        if work in LONG_WORK:
            return self.long(work, salt)
        self.peer.reset()
        if work.startswith("step"):
            tokens, width = prompt(SHORT, salt, self.peer.vocab), int(work[5:])
            began = time.perf_counter()
            for i in range(0, SHORT, width):
                self.peer.step(tokens[i : i + width], all_rows=True)
            return time.perf_counter() - began
        if work == "16 at once":
            rows = self.peer.begin_batch(batch(salt, self.peer.vocab)).argmax(-1)
            began = time.perf_counter()
            for _ in range(ANSWER - 1):
                rows = self.peer.batch_step(rows.tolist()).argmax(-1)
            return time.perf_counter() - began
        tokens = prompt(PROMPT if work == "decode" else LONG, salt, self.peer.vocab)
        began = time.perf_counter()
        token = int(self.peer.step(tokens).argmax())
        first = time.perf_counter()
        if work == "prefill":
            return first - began
        for _ in range(ANSWER - 1):
            token = int(self.peer.step([token]).argmax())
        return time.perf_counter() - first

    def long(self, work: str, salt: int) -> float:
        tokens = prompt(LONGEST, salt, self.peer.vocab)
        if work == "long prompt" or not LONGEST <= self.peer.position <= CONTEXT - 64:
            self.peer.reset()
            began = time.perf_counter()
            for i in range(0, LONGEST, LONG):
                self.peer.step(tokens[i : i + LONG])
            if work == "long prompt":
                return time.perf_counter() - began
        width = TOKENS[work]
        began = time.perf_counter()
        for i in range(STEPS[work]):
            self.peer.step(tokens[i * width : (i + 1) * width], all_rows=True)
        return time.perf_counter() - began


class Transformers:
    def __init__(self, checkpoint: Path, gguf: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
        self.vocab = int(self.model.config.vocab_size)
        self.facts: dict[str, Any] = {"bytes": {}, "macs": {}}

    def seconds(self, work: str, salt: int) -> float:
        if work == "16 at once":
            return self.answers(batch(salt, self.vocab), ANSWER)
        if work == "decode":
            return self.answers([prompt(PROMPT, salt, self.vocab)], ANSWER)
        tokens = prompt(LONG if work == "prefill" else SHORT, salt, self.vocab)
        width = int(work[5:]) if work.startswith("step") else len(tokens)
        began = time.perf_counter()
        cache: Any = None
        for i in range(0, len(tokens), width):
            rows = self.torch.tensor([tokens[i : i + width]])
            out = self.model(rows, past_key_values=cache, use_cache=True, logits_to_keep=0 if work.startswith("step") else 1)
            cache = out.past_key_values
        return time.perf_counter() - began

    def answers(self, prompts: list[list[int]], count: int) -> float:
        """Seconds of all tokens but the first of each."""
        out = self.model(self.torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        began = time.perf_counter()
        for _ in range(count - 1):
            out = self.model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - began


ENGINES: dict[str, type[Ours] | type[Llama] | type[Transformers]] = {"ours": Ours, "llama": Llama, "transformers": Transformers}


class Worker:
    """An engine in a process of its own."""

    def __init__(self, kind: str, checkpoint: Path, gguf: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--worker", kind, str(checkpoint), str(gguf), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._read()

    def seconds(self, work: str, salt: int) -> float:
        assert self.process.stdin is not None
        print(json.dumps([work, salt]), file=self.process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}")
        return json.loads(line)


def serve(kind: str, checkpoint: Path, gguf: Path, threads: int) -> None:
    engine: Engine = ENGINES[kind](checkpoint, gguf, threads)
    print(json.dumps(engine.facts), flush=True)
    for line in sys.stdin:
        work, salt = json.loads(line)
        print(json.dumps(engine.seconds(work, salt)), flush=True)


def made(shape: str) -> tuple[Path, Path]:
    """The checkpoint of that shape and its GGUF file, made on first use."""
    from gguf_write import write_gguf

    from mimo_ultraspeed.make import make

    home = Path(tempfile.gettempdir()) / "mimo-ultraspeed-bench"
    home.mkdir(exist_ok=True)
    folder, file = home / shape, home / f"{shape}.gguf"
    if not (folder / "config.json").exists():  # written last
        make(folder, shape)
    if not file.exists():
        partial = file.with_suffix(".partial")
        write_gguf(Checkpoint.open(folder), partial)
        partial.rename(file)
    return folder, file


def default(name: str) -> tuple[Path, Path]:
    from mimo_ultraspeed.default_model import ensure_default

    return ensure_default(name), Path(os.environ.get("MIMO_BENCH_GGUF") or fetch_gguf())


def measure(workers: dict[str, Worker], works: list[str], rounds: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """work -> engine -> seconds of one step, by round; "read": bytes per second beside it. "outside" -> "ours" -> shares."""
    from mimo_ultraspeed import _core

    runs: dict[str, dict[str, list[float]]] = {work: {name: [] for name in (*workers, "read")} for work in works}
    if "decode" in works:
        runs["outside"] = {"ours": []}
    for number in range(rounds + 1):
        for k, work in enumerate(works):
            found = {name: engine.seconds(work, 1 + number * len(works) + k) / STEPS[work] for name, engine in workers.items()}
            time.sleep(0.05)  # until the workers' threads sleep
            found["read"] = _core.read_bandwidth(PROBE_BYTES, threads, PROBE_SECONDS)
            if number > 0:  # the first round warms up
                for name, value in found.items():
                    runs[work][name].append(value)
        if "decode" in works and number > 0:
            runs["outside"]["ours"].append(workers["ours"].seconds("outside", 1 + (number + rounds + 1) * len(works)))
    return runs


def report(runs: dict[str, dict[str, list[float]]], facts: dict[str, Any], same_bytes: bool, int8: float | None) -> None:
    outside = runs.pop("outside", {}).get("ours")
    names = [name for name in next(iter(runs.values())) if name != "read"]
    peers = names[1:]
    print(f"{'':12}{'':14}{'tokens/s':>10}{'ms/step':>10}{'of read':>9}{'of int8':>9}{'ours is':>9}{'min':>7}{'max':>7}")
    for work, found in runs.items():
        for name in names:
            seconds = found[name]
            middle = statistics.median(seconds)
            row = f"{work if name == 'ours' else '':12}{name:14}{TOKENS[work] / middle:10.1f}{1e3 * middle:10.2f}"
            touched = facts["bytes"].get(work) if name == "ours" or (same_bytes and name == "llama") else None
            share = [touched / s / read for s, read in zip(seconds, found["read"], strict=True)] if touched else []
            row += f"{100 * statistics.median(share):8.0f}%" if share else f"{'':9}"
            macs = facts["macs"].get(work) if int8 else None
            row += f"{100 * macs / middle / int8:8.0f}%" if macs and int8 else f"{'':9}"
            if name in peers:
                ratios = [theirs / ours for theirs, ours in zip(seconds, found["ours"], strict=True)]
                row += f"{statistics.median(ratios):8.2f}x{min(ratios):7.2f}{max(ratios):7.2f}"
            print(row)
    for name in names:
        if "step 1" in runs and "step 8" in runs:
            widths = [eight / one for one, eight in zip(runs["step 1"][name], runs["step 8"][name], strict=True)]
            print(f"{name}: a step of 8 takes {statistics.median(widths):.2f} x a step of 1")
        if "decode" in runs and "16 at once" in runs:
            times = [BATCH * one / all_ for one, all_ in zip(runs["decode"][name], runs["16 at once"][name], strict=True)]
            spread = f"{min(times):.2f} to {max(times):.2f}"
            print(f"{name}: 16 at once give {statistics.median(times):.2f} x the tokens/s of one ({spread})")
    if outside:
        low, middle, high = (100 * share for share in (min(outside), statistics.median(outside), max(outside)))
        print(f"ours: {middle:.1f} % of the time of decoding is outside kernels ({low:.1f} to {high:.1f})")
    reads = sorted(value for found in runs.values() for value in found["read"])
    print(
        f"read bandwidth beside the runs: {statistics.median(reads) / 1e9:.1f} GB/s ({reads[0] / 1e9:.1f} to {reads[-1] / 1e9:.1f})"
    )
    touched = facts["bytes"]
    print(f"bytes a step touches: {touched['decode'] / 1e6:.1f} MB of 1 row, {touched['step 8'] / 1e6:.1f} MB of 8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", default="smollm2-135m", help="an embedded default model")
    what.add_argument("--shape", help="a made model: nano, medium, or any other shape of `mimo-ultraspeed make`")
    parser.add_argument("--peers", default="llama", help="comma-separated: llama, transformers (the default model only)")
    parser.add_argument("--work", default=",".join(WORK), help="comma-separated kinds of work (all but the long ones)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, checkpoint, gguf = options.worker
        serve(kind, Path(checkpoint), Path(gguf), options.threads)
        return
    peers = options.peers.split(",")
    if unknown := [name for name in peers if name not in ENGINES or name == "ours"]:
        parser.error(f"--peers: expected llama or transformers, found {unknown[0]!r}")
    works = [name.strip() for name in options.work.split(",")]
    if unknown := [name for name in works if name not in WORK + LONG_WORK]:
        parser.error(f"--work: expected some of {', '.join(WORK + LONG_WORK)}, found {unknown[0]!r}")
    if "transformers" in peers and set(works) & set(LONG_WORK):
        parser.error("--work: long contexts are measured beside llama only")
    if options.shape and "transformers" in peers:
        parser.error("--peers: transformers runs the default model only")
    folder, file = made(options.shape) if options.shape else default(options.model)
    try:
        from mimo_ultraspeed import _core

        int8: float | None = _core.int8_peak(options.threads, PROBE_SECONDS)
    except NotImplementedError:
        int8 = None
    workers = {name: Worker(name, folder, file, options.threads) for name in ("ours", *peers)}
    load = os.getloadavg()[0]
    runs = measure(workers, works, options.rounds, options.threads)
    for engine in workers.values():
        engine.close()
    facts = workers["ours"].facts
    print(
        f"{options.shape or options.model}: {options.rounds} rounds, {options.threads} threads, kernels {facts['variant']}, ",
        end="",
    )
    print(f"load average {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        options.json.write_text(json.dumps({"runs": runs, "facts": facts, "int8": int8}, indent=1))
    report(runs, facts, same_bytes=options.shape is not None, int8=int8)


if __name__ == "__main__":
    main()
