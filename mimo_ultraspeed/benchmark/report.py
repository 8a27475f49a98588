"""A result as plain text that fits a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from ..display import size
from .figures import Breakdown, Figure, breakdown, figures, middle_profile, widths
from .result import BenchResult, Run

__all__ = ["report"]


def report(result: BenchResult) -> str:
    """All runs; for several of them, the figures of each number of threads side by side at the end."""
    lines = list(_head(result))
    for run in result.runs:
        lines += ["", *_run(result, run)]
    if len(result.runs) > 1:
        lines += ["", *_sweep(result.runs)]
    if result.interrupted:
        lines += ["", "interrupted: what was complete by then"]
    return "\n".join(line.rstrip() for line in lines)


def _head(result: BenchResult) -> Iterator[str]:
    model, settings, machine = result.model, result.settings, result.machine
    experts = f", {model['experts_per_token']} of {model['experts']} experts" if model["experts"] else ""
    yield f"{model['name']}: {model['layers']} layers, hidden {model['hidden']}{experts}, {settings['precision']}"
    name = machine["processor"].split(":")[0]
    start, end = machine["load_average"]
    load = f", load average {start:.1f}" + (f" to {end:.1f}" if end is not None else "") if start is not None else ""
    nodes = f", {machine['memory_nodes']} memory nodes" if machine["memory_nodes"] > 1 else ""
    yield f"{name}, {machine['cores']} cores{nodes}{load}"
    yield f"version {result.version}" + (f", commit {result.commit}" if result.commit else "")


def _run(result: BenchResult, run: Run) -> Iterator[str]:
    found, memory = figures(run), run.memory
    yield f"{run.threads} {'thread' if run.threads == 1 else 'threads'}, {run.backend}"
    seconds, packed = run.load["seconds"], run.load["bytes"]
    if seconds > 0:
        yield f"  load      {seconds:.2f} s, {packed / seconds / 1e9:.2f} GB/s of {size(int(packed))} packed"
    peak = f", process peak {size(memory['process_peak'])}" if "process_peak" in memory else ""
    yield f"  memory    {size(memory['total'])}{peak}"
    fixed = f" and {size(memory['kv_fixed'])}" if memory["kv_fixed"] else ""
    yield f"  KV        {size(memory['kv_per_position'])} per position{fixed} per sequence"
    yield f"  read      {memory['read_per_token'] / 1e6:.1f} MB of weights per token"
    yield ""
    yield f"{'':24}{'median':>9}{'min':>9}{'max':>9}"
    for name, label in _works(result, found):
        yield _figure_line(label, found[name]) + _shares(found[name])
    if ws := widths(run):
        yield ""
        yield from _steps(found, ws)
    for name in found:
        if name.startswith("draft "):
            yield ""
            yield _figure_line(f"drafting {int(name[6:]) - 1} tokens", found[name]) + _pays(found[name])
    for name, profiles in run.profiles.items():
        yield ""
        yield from _profile(name, breakdown(middle_profile(profiles), run.threads), found.get("int8_peak"))


def _works(result: BenchResult, found: dict[str, Figure]) -> Iterator[tuple[str, str]]:
    for name in found:
        if name == "decode":
            yield name, "decode"
        elif name.startswith("prefill "):
            yield name, f"prompt of {name[8:]}"
        elif name == "batch":
            yield name, f"{result.settings['batch']} at once"
    for name, label in (("read_bandwidth", "read bandwidth"), ("int8_peak", "int8 peak")):
        if name in found:
            yield name, label


def _figure_line(label: str, figure: Figure) -> str:
    text = f"{label}, {figure.unit}"
    return f"{text:<24}{_number(figure.median)}{_number(figure.low)}{_number(figure.high)}"


def _shares(figure: Figure) -> str:
    if figure.of_read is not None:
        return f"   {100 * figure.of_read:.0f}% of read bandwidth"
    if figure.of_int8 is not None:
        return f"   {100 * figure.of_int8:.0f}% of int8 peak"
    if figure.ratio is not None:
        return f"   {figure.ratio:.1f} x one alone"
    return ""


def _pays(draft: Figure) -> str:
    return f"   pays above {draft.ratio:.1f} a round" if draft.ratio is not None else ""


def _number(value: float) -> str:
    return f"{value:9.1f}" if abs(value) < 1e4 else f"{value:9.0f}"


def _median(figure: Figure | None) -> str:
    if figure is None:
        return f"{'-':>9}"
    return f"{figure.median:9.2f}" if figure.unit == "ms" else _number(figure.median)


def _steps(found: dict[str, Figure], ws: list[int]) -> Iterator[str]:
    yield f"{'rows of a step':<16}{'ms':>8}{'min':>8}{'max':>8}{'x 1 row':>9}{'rows/s':>9}{'of read':>9}"
    for width in ws:
        figure = found[f"step {width}"]
        times = f"{figure.ratio:9.2f}" if figure.ratio is not None else f"{'':9}"
        read = f"{100 * figure.of_read:8.0f}%" if figure.of_read is not None else ""
        yield (
            f"{width:<16}{figure.median:8.2f}{figure.low:8.2f}{figure.high:8.2f}{times}{_number(1e3 * width / figure.median)}{read}"
        )


_TITLES = {
    "decode": "decoding one token",
    "step": "a step of {} rows",
    "prefill": "a prompt of {}",
    "draft": "a drafted block of {}",
}


def _profile(name: str, parts: Breakdown, int8: Figure | None) -> Iterator[str]:
    kind, _, number = name.partition(" ")
    title = _TITLES[kind].format(number) + (", per step" if kind == "prefill" else "")
    yield f"{title}: {1e3 * parts.seconds:.2f} ms"
    yield f"  {'':13}{'us':>9}{'share':>7}{'wait':>6}{'GB/s':>7}{'of read':>8}{'GMAC/s':>8}{'of int8':>8}"
    for op in parts.ops:
        read = f"{100 * op.read_rate / parts.read_bandwidth:7.0f}%" if parts.read_bandwidth else f"{'':8}"
        mac = f"{100 * op.mac_rate / 1e9 / int8.median:7.0f}%" if int8 is not None else ""
        yield (
            f"  {op.name:<13}{1e6 * op.seconds:9.1f}{100 * op.share:6.1f}%{100 * op.waiting:5.0f}%"
            f"{op.read_rate / 1e9:7.1f}{read}{op.mac_rate / 1e9:8.1f}{mac}"
        )
    split = f"at barriers {100 * parts.waiting:.1f}%"
    if kind == "decode":
        split += f", between steps {100 * parts.between:.1f}%"
    yield f"  outside kernels {1e6 * parts.outside * parts.seconds:6.1f}{100 * parts.outside:6.1f}%   {split}"


def _sweep(runs: list[Run]) -> Iterator[str]:
    by_run = [figures(run) for run in runs]
    yield f"{'medians':<24}" + "".join(f"{f'{run.threads} thr':>9}" for run in runs)
    for name in by_run[0]:
        if name in ("read_bandwidth", "int8_peak"):
            continue
        label = f"{name.replace('prefill', 'prompt of')}, {by_run[0][name].unit}"
        yield f"{label:<24}" + "".join(_median(found.get(name)) for found in by_run)
