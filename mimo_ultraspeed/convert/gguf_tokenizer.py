"""Rebuilds tokenizer.json and tokenizer_config.json from the metadata of a GGUF file.

The file names its way of cutting text into words in `tokenizer.ggml.pre`; the table below holds those that are reproduced exactly.
Vocabularies of the kind `llama` (SentencePiece) are refused: their scores do not give back the order of merges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import TokenizerError
from ..tokenizer_rules import PATTERNS

__all__ = ["end_token_ids", "tokenizer_files"]

_CONTROL, _USER_DEFINED = 3, 4
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(whose: str) -> dict[str, Any]:
    pattern = next(text for text, owner in PATTERNS.items() if owner == whose)
    splits = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [splits, _byte_level(use_regex=False)]}


def _digits_then_gpt2() -> dict[str, Any]:
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, _byte_level(use_regex=True)]}


# tokenizer.ggml.pre -> (pre-tokenizer, Unicode normalisation, whole words skip the merges, BOS unless the file says otherwise)
_KINDS: dict[str, tuple[Callable[[], dict[str, Any]], str | None, bool, bool]] = {
    "gpt-2": (lambda: _byte_level(use_regex=True), None, False, False),
    "smollm": (_digits_then_gpt2, None, False, False),
    "llama-bpe": (lambda: _split("Llama-3"), None, True, True),
    "qwen2": (lambda: _split("Qwen2"), "NFC", False, False),
}


def tokenizer_files(metadata: Mapping[str, Any], source: str, max_positions: int) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json as objects. Raises TokenizerError naming the key that does not fit."""
    _expect(metadata, "tokenizer.ggml.model", ("gpt2",), source)
    kind = _expect(metadata, "tokenizer.ggml.pre", tuple(_KINDS), source)
    pre_tokenizer, normalization, ignore_merges, bos_by_default = _KINDS[kind]
    tokens = _strings(metadata, "tokenizer.ggml.tokens", source)
    merges = [_pair(merge, source) for merge in _strings(metadata, "tokenizer.ggml.merges", source)]
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens):
        raise TokenizerError(f"{source}: tokenizer.ggml.token_type: expected {len(tokens)} entries, found {len(types)}")
    vocab = {token: number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise TokenizerError(
            f"{source}: tokenizer.ggml.tokens: expected different tokens, found {len(tokens) - len(vocab)} repeated"
        )
    added = [_added(number, tokens[number], kind) for number, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", bos_by_default))
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": normalization} if normalization else None,
        "pre_tokenizer": pre_tokenizer(),
        "post_processor": _begin_with(metadata, tokens, source) if add_bos else None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return {"tokenizer.json": definition, "tokenizer_config.json": _config(metadata, tokens, max_positions, add_bos)}


def end_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end an answer: those the file names, then control tokens that end a turn or a document by convention."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    types = metadata.get("tokenizer.ggml.token_type") or []
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = [int(number) for number in named if number is not None and 0 <= int(number) < len(tokens)]
    ids += [number for number, (token, kind) in enumerate(zip(tokens, types, strict=False)) if kind == _CONTROL and token in _ENDS]
    return tuple(dict.fromkeys(ids))


def _expect(metadata: Mapping[str, Any], key: str, known: Sequence[str], source: str) -> str:
    value = metadata.get(key)
    if value not in known:
        found = "nothing" if value is None else repr(value)
        raise TokenizerError(f"{source}: {key}: expected {' or '.join(map(repr, known))}, found {found:.80}")
    return str(value)


def _strings(metadata: Mapping[str, Any], key: str, source: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise TokenizerError(
            f"{source}: {key}: expected a list of strings, found {'nothing' if value is None else type(value).__name__}"
        )
    return value


def _pair(merge: str, source: str) -> list[str]:
    parts = merge.split(" ")
    if len(parts) != 2:
        raise TokenizerError(f"{source}: tokenizer.ggml.merges: expected two tokens and a blank between them, found {merge!r:.80}")
    return parts


def _added(number: int, content: str, kind: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **flags, "special": kind == _CONTROL}


def _begin_with(metadata: Mapping[str, Any], tokens: Sequence[str], source: str) -> dict[str, Any]:
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is None or not 0 <= int(bos) < len(tokens):
        raise TokenizerError(f"{source}: tokenizer.ggml.bos_token_id: expected an id below {len(tokens)}, found {bos}")
    token = tokens[int(bos)]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [int(bos)], "tokens": [token]}},
    }


def _config(metadata: Mapping[str, Any], tokens: Sequence[str], max_positions: int, add_bos: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and 0 <= int(number) < len(tokens):
            config[f"{name}_token"] = tokens[int(number)]
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return config
