"""What a measurement was made on: machine and model."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from ..hardware import cores, processor_name

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["machine", "model_identity"]


def machine() -> dict[str, Any]:
    """CPU, cores and system, ready for JSON."""
    return {
        "cpu": processor_name(),
        "cores": cores(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


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
