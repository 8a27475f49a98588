"""Training: drafters on the target's own answers, and experts that are to be four bits wide.

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
        raise ImportError("training needs torch: pip install mimo-ultraspeed[train]") from error
    return torch
