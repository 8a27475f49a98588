"""A model that answers."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ._core import Engine
from .batch import run_all
from .checkpoint import Checkpoint
from .config import ModelConfig
from .cuda import cuda_device, cuda_image, cuda_path
from .default_model import DEFAULT_MODELS, ensure_default, model_folder
from .detokenize import TextStream
from .display import bar, size, table
from .draft import Draft
from .drafter import Drafter, open_drafter
from .errors import EngineError
from .hardware import memory_limit, worker_nodes
from .options import MAX_ANSWERS, GenerationArguments, GenerationDefaults, GenerationOptions
from .prompts import Prompt, Prompts, check_ids, encode_prompt, split_prompts
from .result import Result
from .stream import Stream
from .tokenizer import Tokenizer

__all__ = ["Model", "open_checkpoint"]


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool | None = None, progress: bool = True
) -> Checkpoint:
    """Opens an embedded model by name (fetched and converted on first use), a folder, or a hub id. Reads no weights."""
    if isinstance(source, str) and source in DEFAULT_MODELS:
        if local_files_only and not model_folder(source).is_dir():
            raise FileNotFoundError(
                f"{model_folder(source)}: {source} has not been made yet, and local_files_only forbids fetching it"
            )
        return Checkpoint.open(ensure_default(source, progress=progress))
    try:
        return Checkpoint.open(source, revision=revision, local_files_only=local_files_only)
    except FileNotFoundError as error:
        near = difflib.get_close_matches(str(source), DEFAULT_MODELS, 1)
        if not near or Path(source).expanduser().exists():
            raise
        raise FileNotFoundError(f"{error}; did you mean {near[0]!r}?") from None


class Model:
    """A loaded model. Open one with `Model.from_pretrained`.

    Safe to use from several threads: answers asked for at the same time are decoded together, each as if it were alone. `close`, or
    leaving its `with` block, frees the weights. A forked child must open its own.
    """

    def __init__(self, checkpoint: Checkpoint, engine: Engine, tokenizer: Tokenizer | None, drafter: Drafter | None = None) -> None:
        """For `from_pretrained`: what describes the model, and an engine that has loaded it."""
        self._checkpoint = checkpoint
        self._drafter = drafter
        self._engine = engine
        self._tokenizer = tokenizer
        self._defaults = GenerationDefaults.read(checkpoint.generation)
        self._eos = tokenizer.eos_token_ids if tokenizer is not None else self._defaults.eos
        self._pid = os.getpid()
        self._closed = False
        self._load_seconds = 0.0

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str = "auto",
        draft: str | os.PathLike[str] | bool | Draft | None = "auto",
        precision: str = "fast",
        threads: int | None = None,
        max_context: int | None = None,
        pin: bool = False,
        revision: str | None = None,
        local_files_only: bool | None = None,
        progress: bool = True,
    ) -> Self:
        """Opens and loads a model.

        source: "smollm2-135m" (the embedded default, fetched and converted on first use), a checkpoint's folder, or a hub id
          ("owner/name"). revision: branch, tag or commit of a hub id. local_files_only: True fetches nothing.
        device: "auto", "cpu", "cuda" or "cuda:1" and so on, as far as `backends()` says that they are on.
        draft: "auto" (the checkpoint's own drafter in its folder `dflash/`, or the one shipped for an embedded model, if there is
          one), True for one that must be there, None or False for none, the folder of a drafter, or a `Draft` with switches.
        precision: "fast" (8-bit activations) or "exact" (float32 activations). threads: None is one per available core.
        max_context: positions of prompt and answer together; None is the model's own limit.
        pin: each worker thread stays on one core of those this process may use; for machines where nothing else runs.
          On a machine with several memory nodes (NUMA) threads stay on their node in any case, and have their share of all weights
          there.
        progress: bars on stderr, or in the notebook.
        The environment variable MIMO_CPU ("ref", "avx2", "avxvnni", "avx512", "neon") forces the kernels of one instruction set;
        MIMO_CUDA_PATH ("plain", "resident", "resident-e4m3") chooses how a GPU is used.
        Weights, workspace and KV caches may take what the machine and the process's cgroups have free, less a sixteenth;
        MIMO_MEMORY ("6G", "800M", "none") says otherwise. A model that does not fit is refused before anything is read.

        Raises OSError for missing files, CheckpointError (a ValueError) for contradicting ones, MemoryError, NotImplementedError
        for what this version does not run, ValueError for other arguments out of range.
        """
        _check_arguments(precision, threads, max_context)
        gpu = cuda_device(device)
        path = None if gpu is None else cuda_path(precision)
        checkpoint = open_checkpoint(source, revision=revision, local_files_only=local_files_only, progress=progress)
        has_tokenizer = (checkpoint.folder / "tokenizer.json").exists()
        tokenizer = Tokenizer.from_folder(checkpoint.folder) if has_tokenizer else None
        drafter = open_drafter(draft, checkpoint, shipped=source if isinstance(source, str) and source in DEFAULT_MODELS else None)
        config, tensors, files = checkpoint.core_arguments()
        engine = Engine(
            config,
            tensors,
            files + [str(path) for path in drafter.files] if drafter is not None else files,
            draft=drafter.to_core() if drafter is not None else None,
            precision=precision,
            threads=threads or 0,
            max_context=max_context or 0,
            variant=(os.environ.get("MIMO_CPU") or None) if path is None else path,
            memory_limit=memory_limit() if gpu is None or os.environ.get("MIMO_MEMORY") else 0,
            pin=pin,
            device=-1 if gpu is None else gpu,
            image=None if path is None else str(cuda_image(path)),
            nodes=worker_nodes(),
        )
        try:
            model = cls(checkpoint, engine, tokenizer, drafter)
            with bar(progress, desc="loading", unit="B", unit_scale=True, unit_divisor=1024) as shown:
                began = time.perf_counter()
                engine.load(partial(_show_load, shown))
                model._load_seconds = time.perf_counter() - began
        except BaseException:
            engine.close()
            raise
        return model

    # ---- what it is ----

    @property
    def config(self) -> ModelConfig:
        """The model's dimensions."""
        return self._checkpoint.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. ValueError when it has none."""
        if self._tokenizer is None:
            raise ValueError(f"{self._checkpoint.folder}: this checkpoint has no tokenizer.json")
        return self._tokenizer

    @property
    def draft(self) -> Drafter | None:
        """The drafter; None when there is none."""
        return self._drafter

    @property
    def checkpoint(self) -> Checkpoint:
        """The files it was loaded from."""
        return self._checkpoint

    @property
    def generation_defaults(self) -> GenerationDefaults:
        """What generation_config.json says, as far as it has an effect."""
        return self._defaults

    @property
    def max_context(self) -> int:
        """Positions of prompt and answer together."""
        return self._engine.max_context

    @property
    def threads(self) -> int:
        """Worker threads."""
        return self._engine.threads

    @property
    def precision(self) -> str:
        """ "fast" or "exact"."""
        return self._engine.precision

    @property
    def backend(self) -> str:
        """What runs it, as in `mimo_ultraspeed.backends()`: "cpu:avx2"; "cuda:plain" or "cuda:resident" on a GPU."""
        return f"{self._engine.backend}:{self._engine.variant}"

    @property
    def load_seconds(self) -> float:
        """How long it took to read and pack the weights."""
        return self._load_seconds

    def memory(self) -> dict[str, int]:
        """Bytes by use: weights, embedding, workspace, their total; kv_per_position and kv_fixed per sequence; read_per_token; and
        limit, what all of it may take (0: no limit)."""
        self._check_usable()
        return self._engine.memory()

    # ---- answers ----

    def stream(self, prompt: Prompt, **options: Unpack[GenerationArguments]) -> Stream:
        """Starts one answer and returns its pieces as they are decoded.

        prompt: text, a list of chat messages ({"role": ..., "content": ...}), or token ids (list, or integer array [T]). A text is
          sent as one user message through the model's chat template, if it has one; with `raw=True` it is continued as it stands.
        options: see `GenerationArguments`.

        Raises TypeError for an unknown option, ValueError for a value out of range or a token id outside the vocabulary,
        ContextOverflowError when the prompt leaves no room, EngineError after `close` or in a forked child.
        """
        self._check_usable()
        if "n" in options:
            raise TypeError("n: a stream is one answer; generate(..., n=...) gives several")
        resolved = GenerationOptions.resolve(options, self._defaults, eos=self._eos)
        prompts, many = split_prompts(prompt)
        if many:
            raise TypeError("prompt: a stream is one answer, found a list of prompts; generate takes several")
        return self._start(*self._encode(prompts[0], resolved, "prompt"))

    @overload
    def generate(
        self, prompt: Prompt, *, n: None = None, progress: bool = True, **options: Unpack[GenerationArguments]
    ) -> Result: ...
    @overload
    def generate(
        self, prompt: Prompt, *, n: int, progress: bool = True, **options: Unpack[GenerationArguments]
    ) -> list[Result]: ...
    @overload
    def generate(
        self, prompt: Prompts, *, n: None = None, progress: bool = True, **options: Unpack[GenerationArguments]
    ) -> list[Result]: ...
    @overload
    def generate(
        self, prompt: Prompts, *, n: int, progress: bool = True, **options: Unpack[GenerationArguments]
    ) -> list[list[Result]]: ...

    def generate(
        self, prompt: Any, *, n: int | None = None, progress: bool = True, **options: Unpack[GenerationArguments]
    ) -> Result | list[Result] | list[list[Result]]:
        """Answers a prompt, or each of a list of prompts, and returns when all is said.

        prompt: as in `stream`, or a list of such prompts. A list of messages is one chat and a list of integers is one prompt.
        n: answers per prompt, 1 to 64, which differ in their noise only. With n, also n=1, each prompt gives a list of n results.
        progress: a bar, for more than one answer.

        Returns a Result for a prompt, results in order for a list; see n. All prompts are checked before the first is decoded.
        Raises as `stream` does. An interrupt ends all answers and leaves the model usable.
        """
        self._check_usable()
        if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer)):
            raise TypeError(f"n: expected an integer from 1 to {MAX_ANSWERS}, found {n!r}")
        if n is not None and not 1 <= n <= MAX_ANSWERS:
            raise ValueError(f"n: expected an integer from 1 to {MAX_ANSWERS}, found {n}")
        answers = 1 if n is None else int(n)
        resolved = GenerationOptions.resolve(options, self._defaults, eos=self._eos, n=answers)
        prompts, many = split_prompts(prompt)
        starts: list[Callable[[], Stream]] = []
        for at, one in enumerate(prompts):
            ids, fitted = self._encode(one, resolved.fresh() if at else resolved, f"prompt[{at}]" if many else "prompt")
            starts += [partial(self._start, ids, fitted, index) for index in range(answers)]
        with bar(progress and len(starts) > 1, total=len(starts), unit="answer") as shown:
            results = run_all(starts, shown)
        if n is None:
            return results if many else results[0]
        grouped = [results[at : at + answers] for at in range(0, len(results), answers)]
        return grouped if many else grouped[0]

    # ---- numbers ----

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """[T, V] float32: the logits after each of the T token ids, from position 0.

        Raises ValueError for an id outside the vocabulary, ContextOverflowError for more than max_context of them.
        """
        self._check_usable()
        return self._engine.logits(check_ids(token_ids, self.config.vocab_size))

    def hidden_states(self, token_ids: Sequence[int] | NDArray[np.integer[Any]], layers: Sequence[int]) -> NDArray[np.float32]:
        """[len(layers), T, H] float32: the residual stream after each listed layer, counted from 0, for T token ids."""
        self._check_usable()
        count = self.config.num_hidden_layers
        for at, layer in enumerate(layers):
            if not 0 <= layer < count:
                raise ValueError(f"layers[{at}]: expected a layer from 0 to {count - 1}, found {layer}")
        return self._engine.hidden_states(check_ids(token_ids, self.config.vocab_size), [int(layer) for layer in layers])

    def draft_logits(
        self, token_ids: Sequence[int] | NDArray[np.integer[Any]], anchors: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """[B-1, V] float32: the drafter's logits of the B-1 tokens after the last of `token_ids`; -inf where it knows no token.

        The last id is the anchor and those before it are the context. anchors: positions in `token_ids`, ascending, each to be the
          anchor of a block behind it with what comes before it as context; then the shape is [len(anchors), B-1, V].
        A Markov head's bias follows the likeliest token of the slot before.

        Raises ValueError without a drafter, for an id outside the vocabulary or no id at all.
        """
        self._check_usable()
        drafter = self._drafter
        if drafter is None:
            raise ValueError("draft_logits: this model has no drafter")
        ids = check_ids(token_ids, self.config.vocab_size)
        at = [len(ids) - 1] if anchors is None else [int(anchor) for anchor in anchors]
        known = self._engine.draft_logits(ids, at)
        if drafter.target_ids is not None:
            every = np.full((len(known), self.config.vocab_size), -np.inf, np.float32)
            every[:, drafter.target_ids] = known
            known = every
        return known if anchors is None else known.reshape(len(at), drafter.block_size - 1, -1)

    # ---- end ----

    def close(self) -> None:
        """Cancels every answer and frees the weights. Idempotent; what is called after it raises EngineError."""
        self._closed = True
        if os.getpid() == self._pid:
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{name} {value}' for name, value in self._rows())})"

    def _repr_html_(self) -> str:
        stored = ((f"{row.dtype} in the files", row) for row in self._checkpoint.table())
        by_format: dict[str, int] = {}
        for name, row in stored:
            by_format[name] = by_format.get(name, 0) + row.bytes
        return table("Model", [*self._rows(), *((name, size(count)) for name, count in by_format.items())])

    def _rows(self) -> list[tuple[str, object]]:
        config = self.config
        rows: list[tuple[str, object]] = [
            ("checkpoint", self._checkpoint.folder.name),
            ("layers", config.num_hidden_layers),
            ("hidden", config.hidden_size),
            ("experts", f"{config.num_experts_per_tok} of {config.n_routed_experts}"),
            ("vocabulary", config.vocab_size),
            ("context", self.max_context),
            ("precision", self.precision),
            ("backend", self.backend),
            ("threads", self.threads),
            ("drafter", "none" if self._drafter is None else f"{self._drafter.folder.name}, block {self._drafter.block_size}"),
        ]
        return [*rows, ("state", "closed") if self._closed else ("memory", size(self._engine.memory()["total"]))]

    # ---- inside ----

    def _encode(self, prompt: Any, options: GenerationOptions, where: str) -> tuple[list[int], GenerationOptions]:
        ids = encode_prompt(prompt, self._tokenizer, options, self.config.vocab_size, where)
        if self._tokenizer is None and options.stop:
            raise ValueError("stop: needs the text of the answer, and this checkpoint has no tokenizer.json")
        options.check_block(self._engine.block)
        return ids, options.fit(len(ids), self.max_context)

    def _start(self, ids: list[int], options: GenerationOptions, index: int = 0) -> Stream:
        text = TextStream(self._tokenizer, options.stop) if self._tokenizer is not None else None
        call = options.to_core()
        if options.simulate_acceptance is not None:
            call |= {"script": self._answer(ids, index, call), "script_right": options.simulate_acceptance}
        job = self._engine.submit(ids, stream=index, **call)
        return Stream(job, ids, options, index=index, text=text)

    def _answer(self, ids: list[int], index: int, call: dict[str, Any]) -> list[int]:
        """What the call's answer will be, decoded without drafts."""
        job = self._engine.submit(ids, stream=index, **(call | {"speculative": False, "logprobs": -1}))
        said: list[int] = []
        try:
            while (event := job.next()) is not None:
                said += event[0]
        finally:
            job.cancel()
        return said

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise EngineError(f"this model belongs to process {self._pid}: a forked child cannot use it; open one after the fork")
        if self._closed:
            raise EngineError("this model is closed")


def _show_load(shown: Any, done: int, total: int) -> None:
    shown.total = total
    shown.update(done - shown.n)


def _check_arguments(precision: str, threads: int | None, max_context: int | None) -> None:
    if precision not in ("fast", "exact"):
        raise ValueError(f"precision: expected 'fast' or 'exact', found {precision!r}")
    for name, value in (("threads", threads), ("max_context", max_context)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name}: expected an integer or None, found {value!r}")
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected 1 or more, or None, found {value}")
