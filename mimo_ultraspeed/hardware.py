"""Which backends of this build run on this machine, and why the others do not."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass

__all__ = ["Backend", "Backends", "backends"]

CUDA_OFF = "not built: this package has CPU kernels only"


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

    found = cpu_variants()
    wanted = os.environ.get("MIMO_CPU")
    running = [name for name, reason in found.items() if reason is None]
    chosen = wanted if wanted else max(running, key=("ref", "neon", "avx2", "avx512").index)
    table = Backends()
    for name, reason in found.items():
        told = reason or ("portable C, the reference" if name == "ref" else "SIMD kernels")
        if reason is None and name == chosen:
            told += ", chosen by MIMO_CPU" if wanted else ", chosen"
        table[f"cpu:{name}"] = Backend(f"cpu:{name}", reason is None, reason is None and name == chosen, told)
    table["cuda"] = Backend("cuda", False, False, CUDA_OFF)
    return table
