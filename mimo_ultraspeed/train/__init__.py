"""Training of drafters: the target's own answers as data, a torch model of the drafter, and its files.

Making data needs nothing beyond the package; everything else needs torch (`pip install mimo-ultraspeed[train]`).
"""

from __future__ import annotations

from typing import Any

__all__ = ["import_torch"]


def import_torch() -> Any:
    """The torch module. ImportError that says how to get it, when it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("training a drafter needs torch: pip install mimo-ultraspeed[train]") from error
    return torch
