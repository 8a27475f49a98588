"""Results as JSON files that say what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["load_document", "save_document"]


def load_document(path: str | os.PathLike[str], command: str, form: str) -> dict[str, Any]:
    """Reads a JSON object whose "format" is `form`. Raises OSError, and ValueError for another file, which names the command."""
    source = Path(path).expanduser()
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: expected a result of `{command}`, found damage: {error}") from None
    if not isinstance(data, dict) or data.get("format") != form:
        raise ValueError(f"{source}: expected a result of `{command}` ({form}), found something else")
    return data


def save_document(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Writes the JSON file, whole or not at all."""
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + ".new")
    fresh.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    fresh.replace(target)
