"""Turns a Llama-family model into a MiMo-V2 checkpoint this engine runs, and experts of a MiMo-V2 checkpoint into MXFP4."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .calibrate import DEFAULT_TOKENS, WINDOW, calibration
from .delta import Delta, write_delta
from .experts import is_mimo, round_experts
from .folder_source import FolderSource
from .gguf_source import GGUFSource
from .llama import LlamaConfig, Source
from .write import Calibrate, check_experts, write_checkpoint

__all__ = ["CONVERTER_VERSION", "LlamaConfig", "convert", "open_source", "write_delta"]

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
    calibrate: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    calibration_tokens: int = DEFAULT_TOKENS,
    rounding: str | os.PathLike[str] | None = None,
    mxfp4: bool = True,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5 << 30,
    progress: bool = True,
) -> Path:
    """Writes a MiMo-V2 checkpoint into the folder `dest` and returns it.

    source: a Llama-family GGUF file or Hugging Face folder, or the folder of a MiMo-V2 checkpoint, whose experts become MXFP4
      while the rest is copied (a drafter in `dflash/` and what is not the language model are left out).
    experts: of a Llama; None keeps each MLP dense; N (a power of two) splits its F hidden units into N MXFP4 experts of F/N, all
      of them chosen, which computes the same up to the rounding to 4 bits.
    calibrate: texts (.txt, or .jsonl as `read_windows` takes it) on which experts are rounded for the outputs they have there;
      None rounds every weight to the nearest value. calibration_tokens: about as many are used, each text's share the same.
    rounding: a file of `write_delta`: experts are rounded as it says, instead of being calibrated, and tensors that it changes
      are changed.
    mxfp4: False leaves a Llama's experts unrounded, as `train qat` takes them.
    dtype: "bfloat16" or "float32", of a Llama's matrices that are not MXFP4; norms stay float32.
    `dest` must not exist or be empty; after an error nothing of it is left.

    Raises CheckpointError or TokenizerError naming what makes the source something other than a plain Llama (no biases, no
    rotary scaling, no sliding window, no q/k norms), ValueError for options that do not fit it, FileExistsError, OSError.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype: expected 'bfloat16' or 'float32', found {dtype!r}")
    given = [calibrate] if isinstance(calibrate, str | os.PathLike) else calibrate or []
    texts = [Path(text).expanduser() for text in given]
    for text in texts:
        if not text.is_file():
            raise FileNotFoundError(f"{text}: expected a text to calibrate on, found none")
    if texts and rounding is not None:
        raise ValueError("calibrate, rounding: expected one of them at most, found both")
    if not mxfp4 and (texts or rounding is not None or experts is None):
        raise ValueError("mxfp4: expected a Llama's experts to leave unrounded, found a conversion that rounds or has none")
    make: Calibrate | None = partial(calibration, texts, WINDOW, calibration_tokens) if texts else None
    replaced: dict[str, NDArray[np.float32]] = {}
    if rounding is not None:
        stored = Delta(Path(rounding).expanduser())
        make, replaced = lambda *_: stored, stored.changed
    if is_mimo(source):
        if experts is not None:
            raise ValueError(f"experts: expected none to be asked for, as {source} has experts of its own, found {experts}")
        with _new_folder(dest) as folder:
            round_experts(
                Path(source).expanduser(),
                folder,
                calibrate=make,
                max_shard_bytes=max_shard_bytes,
                progress=progress,
                replaced=replaced,
            )
        return folder
    model = open_source(source)
    if experts is not None:
        check_experts(model.config, experts)
    elif make is not None:
        raise ValueError("calibrate: expected experts to round, found a conversion that keeps MLPs dense; give their number")
    with _new_folder(dest) as folder:
        write_checkpoint(
            model,
            folder,
            experts=experts,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            progress=progress,
            calibrate=make,
            mxfp4=mxfp4,
            replaced=replaced,
        )
    return folder


@contextmanager
def _new_folder(dest: str | os.PathLike[str]) -> Iterator[Path]:
    """`dest`, made if it is not there; after an error nothing is left in it."""
    folder = Path(dest).expanduser()
    existed = folder.is_dir()
    if folder.exists() and (not existed or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: expected a new or empty folder, found one with files" if existed else f"{folder}: a file")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
