"""Anything that gives logits for a window of token ids: this engine, a source of `convert` run unrounded, or a peer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..model import Model
    from ..tokenizer import Tokenizer

__all__ = ["PEER", "Scorer", "open_scorer"]

PEER = "llama-cpp:"
"""Before the path of a GGUF file that llama-cpp-python is to run."""


class Scorer(Protocol):
    """A model, open."""

    @property
    def vocab(self) -> int: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[T, V] after each of the T ids, from an empty context."""


@contextmanager
def open_scorer(source: str | os.PathLike[str], *, window: int, precision: str, threads: int | None) -> Iterator[Scorer]:
    """Opens a checkpoint, a Llama-family source (as float32, `precision` does not matter), or `llama-cpp:FILE.gguf`."""
    from ..model import Model

    text = os.fspath(source)
    if text.startswith(PEER):
        yield _Peer(text.removeprefix(PEER), window, threads)
    elif _is_llama(text):
        from ..convert import convert

        with tempfile.TemporaryDirectory(prefix="mimo-ultraspeed-") as work:
            folder = convert(text, Path(work) / "model", dtype="float32", progress=False)
            with Model.from_pretrained(folder, draft=None, precision="exact", threads=threads, progress=False) as model:
                yield _Own(model)
    else:
        with Model.from_pretrained(source, draft=None, precision=precision, threads=threads, progress=False) as model:
            yield _Own(model)


def _is_llama(text: str) -> bool:
    """A GGUF file, or a folder whose config.json says `llama`."""
    path = Path(text).expanduser()
    if path.is_file():
        return True
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "llama"


class _Own:
    def __init__(self, model: Model) -> None:
        self._model = model
        self.vocab = model.config.vocab_size
        self.tokenizer = model.tokenizer if (model.checkpoint.folder / "tokenizer.json").exists() else None

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._model.logits(ids)


class _Peer:
    tokenizer = None

    def __init__(self, path: str, window: int, threads: int | None) -> None:
        try:
            from llama_cpp import Llama
        except ImportError:
            raise ImportError(f"{PEER}{path} needs `pip install llama-cpp-python`") from None
        if not Path(path).expanduser().is_file():
            raise FileNotFoundError(f"{path}: expected a GGUF file, found none")
        options: dict[str, Any] = {"n_ctx": window, "n_batch": window, "n_threads": threads, "n_threads_batch": threads}
        self._model: Any = Llama(str(Path(path).expanduser()), logits_all=True, verbose=False, **options)
        self.vocab = int(self._model.n_vocab())

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self._model.reset()
        self._model.eval([int(one) for one in ids])
        return np.array(self._model.scores[: len(ids)], np.float32)
