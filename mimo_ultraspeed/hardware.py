"""Which backends of this build run on this machine, and why the others do not."""

from __future__ import annotations

import html
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Backend",
    "Backends",
    "available_memory",
    "backends",
    "cores",
    "memory_limit",
    "memory_nodes",
    "processor",
    "processor_name",
    "worker_nodes",
]

_FEATURES = (
    "sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16 amx_int8 asimd asimddp i8mm sve"
)


@dataclass(frozen=True)
class Backend:
    """One way to run a model."""

    name: str
    """"cpu" with the kernels' variant after a colon ("cpu:avx2"), or "cuda"."""
    on: bool
    """It runs here."""
    chosen: bool
    """A model opened now uses it."""
    reason: str
    """Why it is off, or what it is."""


class Backends(dict[str, Backend]):
    """Backends by name; shows itself as a table."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{b.name:<{width}}  {'on ' if b.on else 'off'}  {b.reason}" for b in self.values())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(b.name)}</th><td>{'on' if b.on else 'off'}</td><td>{html.escape(b.reason)}</td></tr>"
            for b in self.values()
        )
        return f"<table>{rows}</table>"


def backends() -> Backends:
    """Every backend by name, the off ones with the reason.

    MIMO_CPU names the CPU kernels to use; without it the fastest that run here are chosen. Raises ImportError when the C core
    cannot be loaded.
    """
    from ._core import cpu_variants
    from .cuda import built, why_cuda_is_off

    found = cpu_variants()
    wanted = os.environ.get("MIMO_CPU")
    running = [name for name, reason in found.items() if reason is None]
    chosen = wanted if wanted else running[-1]  # worst first
    table = Backends()
    for name, reason in found.items():
        told = reason or ("portable C, the reference" if name == "ref" else "SIMD kernels")
        if reason is None and name == chosen:
            told += ", chosen by MIMO_CPU" if wanted else ", chosen"
        table[f"cpu:{name}"] = Backend(f"cpu:{name}", reason is None, reason is None and name == chosen, told)
    off = why_cuda_is_off()
    told = off or f"for {', '.join(built()['archs'])}; never run on a GPU before, so device='auto' does not choose it"
    table["cuda"] = Backend("cuda", off is None, False, told)
    return table


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes this process may still take without swapping: the least of the system's and its cgroups' (v2); None where unknown.

    root: the folder that holds proc/ and sys/.
    """
    system = re.search(r"^MemAvailable: +(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    bounds = [int(system[1]) * 1024] if system else []
    bounds += _cgroup_bounds(root)
    return min(bounds) if bounds else None


def memory_limit() -> int:
    """Bytes a model may take with its caches, by MIMO_MEMORY ("6G", "800M", a number of bytes, "none") or else what is available
    less a sixteenth; 0 is no limit. ValueError for another value of MIMO_MEMORY."""
    told = os.environ.get("MIMO_MEMORY", "")
    if told == "none":
        return 0
    if not told:
        available = available_memory()
        return available - available // 16 if available is not None else 0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", told, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"MIMO_MEMORY: expected 'none' or a size such as '6G' or '800M', found {told!r}")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _cgroup_bounds(root: Path) -> Iterator[int]:
    """What each memory limit above this process leaves. Cached files count as free: the kernel drops them first."""
    found = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    top = root / "sys/fs/cgroup"
    folder = top / found[1] if found else top
    for group in (folder, *folder.parents):
        most, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
        if most.isdigit() and used.isdigit():
            files = re.findall(r"^(?:in)?active_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            yield max(0, int(most) - int(used) + sum(map(int, files)))
        if group == top:
            break


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_nodes(root: Path = Path("/")) -> list[list[int]]:
    """The cores that this process may use, by memory node (NUMA): one list a node, ascending, nodes without such cores left out.

    One list with all of them where the system tells of no nodes. root: the folder that holds sys/.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(cores()))
    nodes: list[tuple[int, list[int]]] = []
    for path in (root / "sys/devices/system/node").glob("node[0-9]*/cpulist"):
        ranges = re.findall(r"(\d+)(?:-(\d+))?", _text(path))
        listed = {core for first, last in ranges for core in range(int(first), int(last or first) + 1)}
        nodes.append((int(path.parent.name.removeprefix("node")), sorted(listed & usable)))
    return [listed for _, listed in sorted(nodes) if listed] or [sorted(usable)]


def worker_nodes() -> list[list[int]]:
    """`memory_nodes()` as the core takes them, or none where it could not tell them apart: more than 16, or than 1024 cores."""
    nodes = memory_nodes()
    return nodes if len(nodes) <= 16 and all(core < 1024 for node in nodes for core in node) else []


def processor() -> str:
    """The CPU's name, and those of its features that kernels could use where the system tells them."""
    fields = _cpuinfo()
    if not fields:
        return processor_name()
    present = set(fields.get("flags", fields.get("features", "")).split())
    return f"{processor_name()}: {' '.join(word for word in _FEATURES.split() if word in present) or 'no known features'}"


def processor_name() -> str:
    """The CPU's name; its architecture where the system tells no more."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpuinfo() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core, by lower-case name."""
    fields: dict[str, str] = {}
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    return fields
