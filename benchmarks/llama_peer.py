"""llama.cpp as a peer of the benchmarks: its low-level calls, without the Python sampling loop of llama-cpp-python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as api
from numpy.typing import NDArray

__all__ = ["LlamaPeer"]


@api.llama_log_callback
def _quiet(level: int, text: bytes, user_data: object) -> None:
    if level >= 4 and os.environ.get("MIMO_BENCH_VERBOSE"):
        os.write(2, text)


class LlamaPeer:
    """A GGUF file in llama.cpp: one sequence, and a batch of several apart from it."""

    def __init__(self, path: Path, threads: int, context: int = 1024) -> None:
        api.llama_log_set(_quiet, None)
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        self._threads = threads
        self._model = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp does not load it")
        self._context = self._open(context, 1)
        self._many: Any = None
        self._batch = api.llama_batch_init(512, 0, 1)
        self.vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self.position = 0

    def _open(self, context: int, sequences: int) -> Any:
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context * sequences, 512, 512
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = self._threads
        opened = api.llama_init_from_model(self._model, settings)
        if not opened:
            raise RuntimeError("llama.cpp makes no context for this model")
        return opened

    def reset(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self.position = 0

    def step(self, tokens: Sequence[int], *, all_rows: bool = False) -> NDArray[np.float32]:
        """Runs at most 512 tokens at once; logits [T or 1, V], valid until the next step."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_rows or i == len(tokens) - 1
        if api.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama_decode of {len(tokens)} tokens at position {self.position} failed")
        self.position += len(tokens)
        rows = len(tokens) if all_rows else 1
        return np.ctypeslib.as_array(api.llama_get_logits(self._context), (rows, self.vocab))

    def begin_batch(self, prompts: Sequence[Sequence[int]], context: int = 256) -> NDArray[np.float32]:
        """Forgets earlier sequences and runs these prompts, at most 512 tokens in all; logits [prompts, V] after each."""
        if self._many is None:
            self._many = self._open(context, len(prompts))
        api.llama_memory_clear(api.llama_get_memory(self._many), True)
        self._ends = [0] * len(prompts)
        return self._run_batch(prompts)

    def batch_step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One more token of every sequence; logits [sequences, V], valid until the next step."""
        return self._run_batch([[token] for token in tokens])

    def _run_batch(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        batch, at = self._batch, 0
        for sequence, tokens in enumerate(rows):
            for i, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, self._ends[sequence] + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = i == len(tokens) - 1
                at += 1
            self._ends[sequence] += len(tokens)
        batch.n_tokens = at
        if api.llama_decode(self._many, batch) != 0:
            raise RuntimeError(f"llama_decode of {at} tokens of {len(rows)} sequences failed")
        return np.ctypeslib.as_array(api.llama_get_logits(self._many), (len(rows), self.vocab))
