"""Running text as windows of token ids: what a conversion is calibrated on, and what quality is measured on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .prompts import check_ids

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["read_windows"]

Ids = NDArray[np.int64]
_MOST_BYTES = 256 << 20
_PIECE = 1 << 20  # characters that are encoded at a time
_ROW = 'an object with "text", "messages", "token_ids", or "prompt" and "answer" (token ids)'


def read_windows(
    path: str | os.PathLike[str], tokenizer: Tokenizer | None, *, vocab: int, length: int, tokens: int | None = None
) -> list[Ids]:
    """Windows of at most `length` token ids from a .jsonl (one document a line) or any other file (one document).

    A line of a .jsonl is an object with "text", with "messages" (shown through the chat template), or with "token_ids" or
    "prompt" and "answer" as token ids below `vocab`. A document is cut every `length` ids; a rest of one id is left out.
    tokens: about as many as are wanted, from windows spread evenly over the file; None takes all.
    Raises OSError, and ValueError that says file and line.
    """
    source = Path(path).expanduser()
    if length < 2:
        raise ValueError(f"window: expected at least 2 tokens, found {length}")
    if tokens is not None and tokens < 2:
        raise ValueError(f"tokens: expected at least 2, found {tokens}")
    size = source.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{source}: expected at most {_MOST_BYTES >> 20} MiB of text, found {size >> 20}")
    documents = _rows(source, tokenizer, vocab) if source.suffix == ".jsonl" else [_whole(source, tokenizer)]
    windows = [ids[at : at + length] for ids in documents for at in range(0, len(ids) - 1, length)]
    if not windows:
        raise ValueError(f"{source}: expected a text of at least 2 tokens, found none")
    return windows if tokens is None else _spread(windows, tokens)


def _spread(windows: Sequence[Ids], tokens: int) -> list[Ids]:
    mean = sum(map(len, windows)) / len(windows)
    count = min(len(windows), max(1, round(tokens / mean)))
    return [windows[at] for at in np.linspace(0, len(windows) - 1, count).astype(int)]


def _whole(source: Path, tokenizer: Tokenizer | None) -> Ids:
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: expected UTF-8 text, found byte {error.object[error.start]:#04x} at {error.start}") from None
    return _encoded(text, tokenizer, str(source))


def _encoded(text: str, tokenizer: Tokenizer | None, where: str) -> Ids:
    if tokenizer is None:
        raise ValueError(f"{where}: this model has no tokenizer.json to read text with; give a .jsonl of token ids")
    ids: list[int] = []
    begin = 0
    while begin < len(text):
        end = begin + _PIECE
        cut = text.rfind("\n", begin, end) + 1 if end < len(text) else len(text)
        end = cut if cut > begin else end
        ids += tokenizer.encode(text[begin:end], add_special_tokens=begin == 0)
        begin = end
    return np.array(ids, np.int64)


def _rows(source: Path, tokenizer: Tokenizer | None, vocab: int) -> Iterator[Ids]:
    for number, line in enumerate(source.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected {_ROW}, found damage: {error}") from None
        yield _row(row, tokenizer, vocab, where)


def _row(row: Any, tokenizer: Tokenizer | None, vocab: int, where: str) -> Ids:
    if isinstance(row, dict):
        if isinstance(row.get("text"), str):
            return _encoded(row["text"], tokenizer, where)
        if "messages" in row and tokenizer is not None:
            return np.array(tokenizer.apply_chat_template(row["messages"], add_generation_prompt=False, tokenize=True), np.int64)
        ids = row.get("token_ids")
        if ids is None and isinstance(row.get("prompt"), list) and isinstance(row.get("answer"), list):
            ids = [*row["prompt"], *row["answer"]]
        if isinstance(ids, list):
            return np.array(check_ids(ids, vocab, where), np.int64)
    raise ValueError(f"{where}: expected {_ROW}, found {ascii(row)[:80]}")
