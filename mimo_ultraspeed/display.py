"""How things look: progress bars, sizes, figures, notebook HTML."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["bar", "figure_class", "paragraph", "size", "table"]

_PICTURES = (".png", ".svg", ".pdf")


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


def figure_class(path: str | os.PathLike[str] | None = None) -> Any:
    """matplotlib's Figure. path: where one will be saved. Raises ImportError without matplotlib, ValueError for a file of another
    kind than .png, .svg and .pdf, FileNotFoundError without its folder: all are better known before a measurement than after it.
    """
    if path is not None:
        target = Path(path).expanduser()
        if target.suffix.lower() not in _PICTURES:
            raise ValueError(f"{path}: expected a name that ends in {', '.join(_PICTURES)}")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{path}: expected a file in a folder that is there, found no {target.parent}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib, which is not installed: pip install 'mimo-ultraspeed[notebook]'") from None
    return Figure


def table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """HTML of two columns; everything is escaped."""
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"


def paragraph(text: str, note: str) -> str:
    """HTML of a text as written, with a small line below; both are escaped."""
    return f'<div style="white-space: pre-wrap">{html.escape(text)}</div><small style="opacity: 0.6">{html.escape(note)}</small>'
