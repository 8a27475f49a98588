"""What a tokenizer.json may contain, and how its token strings become bytes again.

The `tokenizers` library runs whatever a tokenizer.json asks for: a regular expression that needs exponential time, or that ends
in a Rust panic; a replacement that multiplies the text. `check_definition` therefore lets through only the kinds of steps and the
patterns that published models use, and returns a rebuilt definition in which nothing else is left.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TokenizerError

__all__ = ["PATTERNS", "PieceBytes", "check_definition", "is_control", "read_json", "read_text"]

MAX_ID = 1 << 24
MAX_TOKENS = 2_000_000
MAX_MERGES = 4_000_000
MAX_TOKEN_CHARS = 1024
MAX_STEPS = 16

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD_START = r"[^\r\n\p{L}\p{N}]?"

PATTERNS: dict[str, str] = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "GPT-2",
    rf"{_ENDINGS}|{_WORD_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}": "Qwen2",
    rf"{_ENDINGS}|{_WORD_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}": "Qwen3.5",
    rf"{_ENDINGS}|{_WORD_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}": "Llama-3",
    rf"{_WORD_START}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_WORD_START}{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}": "o200k",
    rf"{_WORD_START}{_UPPER}*{_LOWER}+|{_WORD_START}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}": "Tekken",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    + _TAIL: "DeepSeek-V3",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+": "DeepSeek-V3, Chinese and Japanese",
    r"\p{N}{1,3}": "digits by threes",
    r"\p{N}": "single digits",
    r"\d": "single digits",
    r"[0-9]": "single digits",
    r"[\r\n]": "line ends",
}
"""The regular expressions a Split step may use, and whose they are. Each takes linear time per match on any text."""

_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Prepend", "Replace"}
_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Metaspace", "WhitespaceSplit", "Punctuation"}
_POST_PROCESSORS = {"ByteLevel", "TemplateProcessing"}
_DECODERS = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}


def read_text(path: Path, limit: int) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes. FileNotFoundError if missing, else TokenizerError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not block the load
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TokenizerError(f"{path}: expected a regular file, found a folder, pipe or device")
        if status.st_size > limit:
            raise TokenizerError(f"{path}: {status.st_size} bytes, at most {limit} are accepted")
        data = bytearray()
        while len(data) <= limit and (piece := os.read(descriptor, min(1 << 24, limit + 1 - len(data)))):
            data += piece
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise TokenizerError(f"{path}: grew beyond {limit} bytes while it was read")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError if missing, TokenizerError if it is no JSON object or nests too deeply."""
    text = read_text(path, limit)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def is_control(content: str, special: bool) -> bool:
    """Whether an added token steers the model (`<|im_end|>`, `<think>`, `[INST]`) rather than being text (a run of blanks)."""
    return special or (len(content) > 2 and content[0] in "<[" and content[-1] in ">]")


def check_definition(definition: dict[str, Any]) -> dict[str, Any]:
    """The parsed tokenizer.json, rebuilt from the parts that are known. TokenizerError names the first part that is not.

    Truncation and padding are dropped: they would silently cut or lengthen prompts.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(definition.get("added_tokens") or []),
        "normalizer": _steps(definition.get("normalizer"), "normalizer", "normalizers", _NORMALIZERS),
        "pre_tokenizer": _steps(definition.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
        "post_processor": _steps(definition.get("post_processor"), "post_processor", "processors", _POST_PROCESSORS),
        "decoder": _steps(definition.get("decoder"), "decoder", "decoders", _DECODERS),
        "model": _model(definition.get("model")),
    }


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TokenizerError(f"tokenizer.json: {where}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _text(value: Any, where: str, limit: int = MAX_TOKEN_CHARS) -> str:
    text: str = _expect(value, str, where)
    if len(text) > limit:
        raise TokenizerError(f"tokenizer.json: {where}: {len(text)} characters, at most {limit} are accepted")
    return text


def _id(value: Any, where: str) -> int:
    number: int = _expect(value, int, where)
    if not 0 <= number < MAX_ID:
        raise TokenizerError(f"tokenizer.json: {where}: id {number} is outside 0..{MAX_ID - 1}")
    return number


def _added_tokens(tokens: Any) -> list[dict[str, Any]]:
    if len(_expect(tokens, list, "added_tokens")) > MAX_TOKENS:
        raise TokenizerError(f"tokenizer.json: added_tokens: {len(tokens)} entries, at most {MAX_TOKENS} are accepted")
    rebuilt = []
    for at, token in enumerate(tokens):
        where = f"added_tokens[{at}]"
        _expect(token, dict, where)
        content = _text(token.get("content"), f"{where}.content")
        if not content:
            raise TokenizerError(f"tokenizer.json: {where}.content is empty")
        flags = {
            name: _expect(token.get(name, False), bool, f"{where}.{name}")
            for name in ("single_word", "lstrip", "rstrip", "special")
        }
        normalized = _expect(token.get("normalized", not flags["special"]), bool, f"{where}.normalized")
        rebuilt.append({"id": _id(token.get("id"), f"{where}.id"), "content": content, "normalized": normalized, **flags})
    return rebuilt


def _model(model: Any) -> dict[str, Any]:
    _expect(model, dict, "model")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise TokenizerError(f"tokenizer.json: model.type: expected 'BPE', found {kind!r}")
    if model.get("dropout"):
        raise TokenizerError("tokenizer.json: model.dropout must be 0: it makes the ids of a text random")
    vocab: dict[str, Any] = _expect(model.get("vocab"), dict, "model.vocab")
    merges: list[Any] = _expect(model.get("merges"), list, "model.merges")
    if not 0 < len(vocab) <= MAX_TOKENS or len(merges) > MAX_MERGES:
        raise TokenizerError(
            f"tokenizer.json: {len(vocab)} tokens and {len(merges)} merges, expected 1..{MAX_TOKENS} and at most {MAX_MERGES}"
        )
    for token, number in vocab.items():
        _text(token, "model.vocab")
        _id(number, f"model.vocab[{token!r}]")
    if len(set(vocab.values())) != len(vocab):
        raise TokenizerError("tokenizer.json: model.vocab gives one id to several tokens")
    for at, merge in enumerate(merges):
        pair = isinstance(merge, str) or (
            isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge)
        )
        if not pair:
            raise TokenizerError(f"tokenizer.json: model.merges[{at}]: expected two strings, found {str(merge)[:80]!r}")
    affixes = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    flags = ("fuse_unk", "byte_fallback", "ignore_merges")
    return {
        "type": "BPE",
        "dropout": None,
        **{name: None if model.get(name) is None else _text(model[name], f"model.{name}", 64) for name in affixes},
        **{name: _expect(model.get(name) or False, bool, f"model.{name}") for name in flags},
        "vocab": vocab,
        "merges": merges,
    }


def _steps(step: Any, where: str, children: str, allowed: set[str]) -> dict[str, Any] | None:
    """One step, or a Sequence of steps, after a look at each; `children` is the key that holds a Sequence's steps."""
    if step is None:
        return None
    kind = _expect(step, dict, where).get("type")
    if kind != "Sequence":
        return _step(step, where, allowed)
    parts: list[Any] = _expect(step.get(children), list, f"{where}.{children}")
    if len(parts) > MAX_STEPS:
        raise TokenizerError(f"tokenizer.json: {where}: {len(parts)} steps, at most {MAX_STEPS} are accepted")
    return {"type": "Sequence", children: [_step(part, f"{where}.{children}[{at}]", allowed) for at, part in enumerate(parts)]}


def _step(step: Any, where: str, allowed: set[str]) -> dict[str, Any]:
    kind = _expect(step, dict, where).get("type")
    if not isinstance(kind, str) or kind not in allowed:
        raise TokenizerError(
            f"tokenizer.json: {where}: kind {str(kind)[:80]!r} is not supported; known: {', '.join(sorted(allowed))}"
        )
    checked: dict[str, Any] = dict(step)
    if kind == "Split":
        _split(step, where)
    elif kind == "Replace":
        _replace(step, where)
    elif kind == "Prepend":
        _text(step.get("prepend"), f"{where}.prepend", 1)
    elif kind == "Metaspace" and len(_text(step.get("replacement"), f"{where}.replacement", 1)) != 1:
        raise TokenizerError(f"tokenizer.json: {where}.replacement: expected one character, found none")
    elif kind == "TemplateProcessing":
        _template_processing(step, where)
    return checked


def _pattern(step: dict[str, Any], where: str) -> tuple[str, str]:
    pattern = step.get("pattern")
    if isinstance(pattern, str):
        pattern = {"String": pattern}
    if not isinstance(pattern, dict) or len(pattern) != 1 or next(iter(pattern)) not in ("String", "Regex"):
        raise TokenizerError(f"tokenizer.json: {where}.pattern: expected {{'String': text}} or {{'Regex': text}}")
    ((kind, text),) = pattern.items()
    if not _text(text, f"{where}.pattern", 4096):
        raise TokenizerError(f"tokenizer.json: {where}.pattern is empty")
    return kind, text


def _split(step: dict[str, Any], where: str) -> None:
    kind, text = _pattern(step, where)
    if kind == "Regex" and text not in PATTERNS:
        raise TokenizerError(
            f"tokenizer.json: {where}: the regular expression {text[:200]!r} is not one of the published ones that are accepted "
            f"({', '.join(dict.fromkeys(PATTERNS.values()))}); an unknown one can run for ever"
        )


def _replace(step: dict[str, Any], where: str) -> None:
    kind, text = _pattern(step, where)
    if kind == "Regex":
        raise TokenizerError(
            f"tokenizer.json: {where}: a Replace step may only search for plain text, found the expression {text[:200]!r}"
        )
    _text(step.get("content"), f"{where}.content", len(text))  # longer ones in a row would multiply the text


def _template_processing(step: dict[str, Any], where: str) -> None:
    for name in ("single", "pair"):
        if len(_expect(step.get(name), list, f"{where}.{name}")) > MAX_STEPS:
            raise TokenizerError(f"tokenizer.json: {where}.{name}: more than {MAX_STEPS} pieces")
    tokens: dict[str, Any] = _expect(step.get("special_tokens"), dict, f"{where}.special_tokens")
    for name, token in tokens.items():
        ids = _expect(_expect(token, dict, f"{where}.special_tokens").get("ids"), list, f"{where}.special_tokens[{name!r}].ids")
        if len(ids) > MAX_STEPS:
            raise TokenizerError(f"tokenizer.json: {where}.special_tokens[{name!r}]: more than {MAX_STEPS} ids")


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, inverted."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


@dataclass(frozen=True)
class PieceBytes:
    """How a token's string becomes bytes of UTF-8 text: a decoder of tokenizer.json, reduced to one lookup per token.

    A text is the concatenation of its tokens' bytes, with up to `strip` blanks removed from its start, decoded as UTF-8 with
    U+FFFD for what is invalid. That form, unlike the library's, can be produced token by token.
    """

    byte_level: bool
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: int = 0

    @classmethod
    def from_decoder(cls, decoder: dict[str, Any] | None) -> PieceBytes:
        """Reads a checked decoder. TokenizerError if the steps are in an order whose meaning is not known."""
        if decoder is None:
            raise TokenizerError("tokenizer.json: decoder is missing: text cannot be rebuilt from ids")
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = [step["type"] for step in steps if step["type"] != "Fuse"]
        if kinds == ["ByteLevel"]:
            return cls(byte_level=True)
        if "ByteLevel" in kinds:
            raise TokenizerError(
                f"tokenizer.json: decoder: ByteLevel together with other steps ({', '.join(kinds)}) is not supported"
            )
        replacements: list[tuple[str, str]] = []
        strip, fused = 0, False
        for step in steps:
            fused = fused or step["type"] == "Fuse"
            if step["type"] == "Replace":
                replacements.append((_pattern(step, "decoder")[1], step["content"]))
            elif step["type"] == "Metaspace":
                replacements.append((step["replacement"], " "))
                strip = 0 if step.get("prepend_scheme", "always") == "never" or step.get("add_prefix_space") is False else 1
            elif step["type"] == "Strip":
                strip = cls._strip(step, fused)
        return cls(False, tuple(replacements), "ByteFallback" in kinds, strip)

    @staticmethod
    def _strip(step: dict[str, Any], fused: bool) -> int:
        start = step.get("start")
        if not fused or step.get("content") != " " or step.get("stop") != 0 or type(start) is not int or not 0 <= start <= 8:
            raise TokenizerError("tokenizer.json: decoder: Strip is supported only after Fuse, for blanks at the start")
        return start

    def __call__(self, token: str) -> bytes:
        """The bytes one token of the vocabulary stands for, which need not be whole characters."""
        if self.byte_level:
            try:
                return bytes([_BYTE_OF[char] for char in token])
            except KeyError:
                return token.encode()
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                return token.encode()
        return token.encode()
