"""How things look: progress bars, sizes, notebook HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

__all__ = ["bar", "paragraph", "size", "table"]


def bar(progress: bool, **settings: Any) -> Any:
    """A tqdm bar: a widget in a notebook, a line on a terminal's stderr, nothing elsewhere or without `progress`."""
    from tqdm.auto import tqdm

    # A notebook's stderr is no terminal: only the bar that writes lines there may look for one.
    is_widget = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return tqdm(disable=not progress if is_widget or not progress else None, leave=False, **settings)


def size(count: int) -> str:
    """Bytes with a binary unit: 512 B, 1.5 KiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """HTML of two columns; everything is escaped."""
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"


def paragraph(text: str, note: str) -> str:
    """HTML of a text as written, with a small line below; both are escaped."""
    return f'<div style="white-space: pre-wrap">{html.escape(text)}</div><small style="opacity: 0.6">{html.escape(note)}</small>'
