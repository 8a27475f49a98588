"""Which code a measurement was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TypedDict

__all__ = ["Software", "software"]


class Software(TypedDict):
    """This package, ready for JSON."""

    version: str
    commit: str | None
    """Of the git checkout it runs from, 12 digits and "+" when tracked files differ from it; None outside a checkout."""


def software() -> Software:
    """Version and commit of this package."""
    from . import __version__

    return {"version": __version__, "commit": _commit()}


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
