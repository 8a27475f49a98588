"""Made models that are kept, so that measuring one again does not make it again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..display import size
from ..hardware import available_memory
from ..make import make

__all__ = ["made_folder", "made_home"]


def made_home() -> Path:
    """Where made models are kept; it may be deleted at any time, and need not exist."""
    return Path(tempfile.gettempdir()) / "mimo-ultraspeed-bench"


def made_folder(shape: str, overrides: Mapping[str, Any] | None = None, *, progress: bool = True) -> Path:
    """The checkpoint of a shape of `mimo-ultraspeed make`, with fields of config.json that differ; made on first use.

    Raises ValueError for an unknown shape or field, MemoryError for a model larger than the memory that is free, OSError for a
    full disk.
    """
    home = made_home()
    changes = [f"{key}={value}" for key, value in sorted((overrides or {}).items())]
    folder = home / ",".join([shape, *changes]).replace("/", "_").replace(" ", "")
    if (folder / "config.json").exists():  # written last
        return folder
    home.mkdir(parents=True, exist_ok=True)
    _check_memory(shape, overrides, home)
    # Made beside its place and moved there, so that nobody meets half a model.
    partial = Path(tempfile.mkdtemp(prefix=f".{shape}-", dir=home))
    try:
        make(partial, shape, overrides=overrides, progress=progress)
        shutil.rmtree(folder, ignore_errors=True)
        return partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_memory(shape: str, overrides: Mapping[str, Any] | None, home: Path) -> None:
    free = available_memory()
    with tempfile.TemporaryDirectory(dir=home) as folder:
        headers = Checkpoint.open(make(Path(folder) / "headers", shape, overrides=overrides, headers_only=True, progress=False))
        needed = sum(row.bytes for row in headers.table())
    if free is not None and needed > free:
        raise MemoryError(f"the shape {shape!r} needs {size(needed)} of memory, and {size(free)} are free; fewer layers need less")
