"""The CUDA backend as Python sees it: what was built, which GPUs are here, and whether a model may use one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["PATHS", "cuda_device", "cuda_image", "cuda_path", "why_cuda_is_off"]

_FOLDER = Path(__file__).resolve().parent / "_cuda"
_UNTESTED = "MIMO_CUDA_UNTESTED"
_PATH = "MIMO_CUDA_PATH"
PATHS = ("plain", "resident", "resident-e4m3")


def cuda_image(path: str = "plain") -> Path:
    """The file of a path's kernels, whether it was built or not."""
    return _FOLDER / f"{path.removesuffix('-e4m3')}.fatbin"


def cuda_path(precision: str) -> str:
    """The path that MIMO_CUDA_PATH names: "plain", also where it is not set, an operation a kernel; "resident", one that stays;
    "resident-e4m3", the same with gate and up of MXFP4 experts multiplied in E4M3 (sm_90a).

    ValueError for others; NotImplementedError where that path was not built, or does not have the precision.
    """
    path = os.environ.get(_PATH) or "plain"
    if path not in PATHS:
        raise ValueError(f"{_PATH}: expected 'plain', 'resident' or 'resident-e4m3', found {path!r}")
    if not cuda_image(path).exists():
        archs = ", ".join(built().get("archs", [])) or "no architecture"
        raise NotImplementedError(
            f"{_PATH}={path}: {cuda_image(path).name} was not built (built for {archs}; resident needs sm_90a or sm_100a)"
        )
    if path != "plain" and precision == "exact":
        raise NotImplementedError(
            f"precision='exact': tensor cores of {_PATH}={path} multiply rows in BF16; {_PATH}=plain multiplies in float32"
        )
    return path


def built() -> dict[str, Any]:
    """What the build says of itself: built (bool), and reason, or nvcc, version and archs."""
    try:
        told = json.loads((_FOLDER / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"built": False, "reason": "the package was built without it"}
    return told if isinstance(told, dict) else {"built": False, "reason": "build.json is damaged"}


def why_cuda_is_off() -> str | None:
    """Why no model runs on a GPU here, from what is missing first to what is missing last; None: one does.

    Opens the driver (libcuda.so.1), if the kernels were built.
    """
    from ._core import cuda_devices

    told = built()
    if not told.get("built"):
        return f"not built: {told.get('reason')}"
    try:
        names = cuda_devices()
    except NotImplementedError as error:
        return f"built for {', '.join(told['archs'])}; {str(error).removeprefix('CUDA: ')}"
    if os.environ.get(_UNTESTED) != "1":
        return f"built, and {names[0]} is here; but this backend has never run on a GPU: {_UNTESTED}=1 runs it all the same"
    return None


def cuda_device(device: str) -> int | None:
    """The number of the GPU that `device` means; None: the CPU.

    device: "auto" (the CPU, while the CUDA backend has never run on a GPU), "cpu", "cuda", or "cuda:1" and so on. ValueError for
    others; NotImplementedError where CUDA is off, with the reason.
    """
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found {device!r}")
    off = why_cuda_is_off()
    if off is not None:
        raise NotImplementedError(f"device {device!r}: CUDA is off: {off}. device='cpu' runs everywhere")
    return int(match[1] or 0)
