"""llama.cpp as a peer of the benchmarks: its low-level calls, without the Python sampling loop of llama-cpp-python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

__all__ = ["LlamaPeer"]


@api.llama_log_callback
def _quiet(level: int, text: bytes, user_data: object) -> None:
    if level >= 4 and os.environ.get("MIMO_BENCH_VERBOSE"):
        os.write(2, text)


class LlamaPeer:
    """A GGUF file in llama.cpp, one sequence."""

    def __init__(self, path: Path, threads: int, context: int = 1024) -> None:
        api.llama_log_set(_quiet, None)
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        self._model = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp does not load it")
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 512, 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"{path}: llama.cpp makes no context for it")
        self._batch = api.llama_batch_init(512, 0, 1)
        self.vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._position = 0

    def reset(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self._position = 0

    def step(self, tokens: Sequence[int], *, all_rows: bool = False) -> NDArray[np.float32]:
        """Runs at most 512 tokens at once; logits [T or 1, V], valid until the next step."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self._position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_rows or i == len(tokens) - 1
        if api.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama_decode of {len(tokens)} tokens at position {self._position} failed")
        self._position += len(tokens)
        rows = len(tokens) if all_rows else 1
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (rows, self.vocab))
