"""From what a caller calls a prompt to token ids: text, a chat, token ids, or a list of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .chat import Message
from .options import GenerationOptions

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["Chat", "Prompt", "Prompts", "check_ids", "encode_prompt", "split_prompts"]

Chat: TypeAlias = Sequence[Message]
Prompt: TypeAlias = str | Chat | Sequence[int] | NDArray[np.integer[Any]]
Prompts: TypeAlias = list[str] | tuple[str, ...] | Sequence[Chat] | Sequence[Sequence[int]] | Sequence[NDArray[np.integer[Any]]]

_KINDS = "text, a list of chat messages, token ids, or a list of these"


def split_prompts(prompt: Any) -> tuple[list[Any], bool]:
    """The prompts, and whether there was a list of them.

    A list of messages is one chat, a list of integers is one prompt; a list of anything else, or an array [N, T], is a list of
    prompts. TypeError for what is no prompt.
    """
    if isinstance(prompt, str):
        return [prompt], False
    if hasattr(prompt, "__array__"):
        array = np.asarray(prompt)
        if array.ndim == 2:
            return list(array), True
        return [array], False
    if not isinstance(prompt, list | tuple):
        raise TypeError(f"prompt: expected {_KINDS}, found {type(prompt).__name__}")
    if not prompt:
        raise ValueError("prompt: expected at least one token, message or prompt, found an empty list")
    if isinstance(prompt[0], Mapping | int | np.integer):
        return [prompt], False
    return list(prompt), True


def encode_prompt(
    prompt: Any, tokenizer: Tokenizer | None, options: GenerationOptions, vocab: int, where: str = "prompt"
) -> list[int]:
    """Token ids of one prompt. vocab: ids are below it. where: the prompt's name in messages.

    A text becomes the one user message of a chat if the tokenizer has a chat template and `options.raw` is not set.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError(f"{where}: expected some text, found an empty string")
        if tokenizer is None:
            raise _no_tokenizer(where)
        if options.raw or tokenizer.chat_template is None:
            return check_ids(tokenizer.encode(prompt, add_special_tokens=True), vocab, where)
        prompt = [{"role": "user", "content": prompt}]
    if hasattr(prompt, "__array__") or not isinstance(prompt, list | tuple) or not prompt or not isinstance(prompt[0], Mapping):
        return check_ids(prompt, vocab, where)
    if tokenizer is None:
        raise _no_tokenizer(where)
    ids = tokenizer.apply_chat_template(prompt, enable_thinking=options.enable_thinking, tokenize=True)
    return check_ids(ids, vocab, where)


def check_ids(values: Any, vocab: int, where: str = "token_ids") -> list[int]:
    """Checks ids: a non-empty list, or one-dimensional integer array, of numbers 0 to vocab - 1."""
    if isinstance(values, str) or not (hasattr(values, "__array__") or isinstance(values, Iterable)):
        raise TypeError(f"{where}: expected token ids, found {type(values).__name__}")
    listed = values if hasattr(values, "__array__") else list(values)
    try:
        array = np.asarray(listed)
    except ValueError:
        raise TypeError(f"{where}: expected a flat list of token ids, found a nested one") from None
    if array.size == 0:
        raise ValueError(f"{where}: expected at least one token, found none")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{where}: expected integers in one dimension, found {array.dtype} of shape {list(array.shape)}")
    wrong = np.flatnonzero((array < 0) | (array >= vocab))
    if wrong.size:
        at = int(wrong[0])
        raise ValueError(f"{where}: token {at}: expected an id from 0 to {vocab - 1}, found {array[at]}")
    return [int(number) for number in array]


def _no_tokenizer(where: str) -> ValueError:
    return ValueError(f"{where}: this checkpoint has no tokenizer.json to read text with; give token ids instead")
