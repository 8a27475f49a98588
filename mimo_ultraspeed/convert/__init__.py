"""Turns a Llama-family model into a MiMo-V2 checkpoint this engine runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .folder_source import FolderSource
from .gguf_source import GGUFSource
from .llama import LlamaConfig, Source
from .write import check_experts, write_checkpoint

__all__ = ["CONVERTER_VERSION", "LlamaConfig", "convert", "open_source"]

CONVERTER_VERSION = 2
"""Raised whenever a conversion of the same source writes other bytes: cached conversions of older versions are redone."""


def open_source(source: str | os.PathLike[str]) -> Source:
    """A GGUF file or a Hugging Face folder, its weights not read yet. Raises FileNotFoundError, CheckpointError."""
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a GGUF file or a Hugging Face folder, found nothing")
    return GGUFSource(path)


def convert(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    experts: int | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5 << 30,
    progress: bool = True,
) -> Path:
    """Converts a Llama-family GGUF file or Hugging Face folder into a MiMo-V2 checkpoint in the folder `dest`, and returns it.

    experts: None keeps each MLP dense; N (a power of two) splits its F hidden units into N MXFP4 experts of F/N, all of them
    chosen, which computes the same up to the rounding to 4 bits. dtype: "bfloat16" or "float32", of the matrices that are not
    experts; norms stay float32. `dest` must not exist or be empty; after an error nothing of it is left.

    Raises CheckpointError or TokenizerError naming what makes the source something other than a plain Llama (no biases, no
    rotary scaling, no sliding window, no q/k norms), ValueError for options that do not fit it, FileExistsError, OSError.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype: expected 'bfloat16' or 'float32', found {dtype!r}")
    model = open_source(source)
    if experts is not None:
        check_experts(model.config, experts)
    folder = Path(dest).expanduser()
    existed = folder.is_dir()
    if folder.exists() and (not existed or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or empty folder, found one with files" if existed else f"{folder}: a file")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_checkpoint(model, folder, experts=experts, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress)
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
