"""What a measurement was made on: machine, build, model."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["machine", "model_identity", "software"]


def machine() -> dict[str, Any]:
    """CPU, cores and system, ready for JSON."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown"
    )


def software() -> dict[str, Any]:
    """Version of the package, and the commit of the checkout it runs from (null outside one; "+" after it when files differ)."""
    from .. import __version__

    return {"version": __version__, "commit": _commit()}


def _commit() -> str | None:
    folder = Path(__file__).resolve().parents[2]
    try:
        told = [
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (["rev-parse", "--show-toplevel"], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    top, head, changed = told
    return None if Path(top).resolve() != folder else head + ("+" if changed else "")


def model_identity(model: Model) -> dict[str, Any]:
    """Which model, drafter and kernels, ready for JSON."""
    drafter = model.draft
    draft = None
    if drafter is not None:
        draft = {"name": drafter.folder.name, "block_size": drafter.block_size, "taps": list(drafter.taps)}
        draft |= {"parameters": drafter.parameters, "switches": drafter.options.switches()}
    return {
        "name": model.checkpoint.folder.name,
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
        "draft": draft,
        "precision": model.precision,
        "backend": model.backend,
        "threads": model.threads,
    }
