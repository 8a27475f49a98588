"""MiMo-V2 language models, run by a C core at the speed that memory allows.

    import mimo_ultraspeed as mu
    model = mu.Model.from_pretrained("smollm2-135m")
    print(model.generate("What is a hash table?"))

Importing this package loads neither numpy nor the core: each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ContextOverflowError, EngineError, TemplateError, TokenizerError
from .hardware import backends

if TYPE_CHECKING:
    from .benchmark import BenchResult, bench
    from .checkpoint import Checkpoint
    from .config import ModelConfig
    from .draft import Draft, DraftConfig
    from .drafter import Drafter
    from .model import Model
    from .options import GenerationOptions
    from .result import Result, Stats, TokenLogprob
    from .stream import Piece, Stream
    from .tokenizer import Tokenizer

    __version__: str

__all__ = [
    "BenchResult",
    "Checkpoint",
    "CheckpointError",
    "ContextOverflowError",
    "Draft",
    "DraftConfig",
    "Drafter",
    "EngineError",
    "GenerationOptions",
    "Model",
    "ModelConfig",
    "Piece",
    "Result",
    "Stats",
    "Stream",
    "TemplateError",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "__version__",
    "backends",
    "bench",
]

_HOME = {
    "BenchResult": "benchmark",
    "Checkpoint": "checkpoint",
    "Draft": "draft",
    "DraftConfig": "draft",
    "Drafter": "drafter",
    "GenerationOptions": "options",
    "Model": "model",
    "ModelConfig": "config",
    "Piece": "stream",
    "Result": "result",
    "Stats": "result",
    "Stream": "stream",
    "TokenLogprob": "result",
    "Tokenizer": "tokenizer",
    "bench": "benchmark",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("mimo-ultraspeed")
        except PackageNotFoundError:  # a source tree that is not installed
            value = "0+unknown"
    elif name == "evaluate":
        value = import_module(f".{name}", __name__)
    elif name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
