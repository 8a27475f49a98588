"""The exceptions of this package that Python has no class for."""

from __future__ import annotations

__all__ = ["CheckpointError", "ContextOverflowError", "EngineError", "TemplateError", "TokenizerError"]


class CheckpointError(ValueError):
    """A checkpoint's files contradict each other, the config, or the format they claim to be in."""


class ContextOverflowError(ValueError):
    """Prompt and answer need more positions than the model's context allows."""


class EngineError(RuntimeError):
    """The engine is closed, was forked, or met a state it cannot decode from."""


class TokenizerError(ValueError):
    """A tokenizer file is damaged, hostile, or of a kind that is not supported."""


class TemplateError(ValueError):
    """A chat template failed, ran too long, or produced too much text."""
