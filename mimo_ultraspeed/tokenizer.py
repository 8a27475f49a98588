"""Text to token ids and back, and chat messages to prompts.

The work is done by the `tokenizers` library; this file decides what may reach it. A checkpoint's files are not trusted
(`tokenizer_rules` says what they may contain), and neither is the text: in it, `<|im_end|>` is seven characters of punctuation
and five letters, not the token that ends a turn.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from tokenizers import Tokenizer as _Library

from .chat import MIMO_TEMPLATE, Message, render_chat
from .errors import TemplateError, TokenizerError
from .tokenizer_rules import PieceBytes, check_definition, is_control, read_json, read_text

__all__ = ["Tokenizer"]

MAX_TEXT_BYTES = 8 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 8 << 20
MAX_TEMPLATE_BYTES = 1 << 20

_T = TypeVar("_T")


def _guarded(call: Callable[[], _T], doing: str) -> _T:
    """`call()`, with everything the library raises, its Rust panics (which are no `Exception`) too, as TokenizerError."""
    try:
        return call()
    except MemoryError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{doing}: {str(error)[:500]}") from error
        raise


def _library(definition: dict[str, Any]) -> _Library:
    """The library's tokenizer for a checked definition, with control tokens in texts left alone."""
    library = _guarded(lambda: _Library.from_str(json.dumps(definition)), "tokenizer.json")
    library.encode_special_tokens = True
    return library


class Tokenizer:
    """A checkpoint's tokenizer: byte-level or byte-fallback BPE, its control tokens and its chat template.

    `chat_template` is the template's text: the checkpoint's own, MiMo's for a vocabulary with `<|im_start|>` and `<|im_end|>`, or
    None. Safe to use from several threads.
    """

    def __init__(
        self,
        definition: Mapping[str, Any],
        *,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """The contents of tokenizer.json, tokenizer_config.json and generation_config.json, and a template that goes before others.

        TokenizerError if the definition is damaged or asks for anything that is not known to be harmless.
        """
        checked = check_definition(dict(definition))
        config = config or {}
        self._piece_bytes = PieceBytes.from_decoder(checked["decoder"])
        added = checked["added_tokens"]
        self._added = {token["id"]: token["content"] for token in added}
        self._special = frozenset(token["id"] for token in added if token["special"])
        controls = [token for token in added if is_control(token["content"], token["special"])]
        self._controls = {token["content"]: token for token in controls}
        self._control_ids = frozenset(token["id"] for token in controls)
        ordered = sorted(self._controls, key=len, reverse=True)  # at one place the longest counts
        self._control_pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        for token in controls:
            token["special"] = True  # the library can switch off special tokens only; `<think>` usually is none
        self._first = self._inside = _library(checked)
        if marks := _first_blanks(checked["pre_tokenizer"]):
            for step in marks:
                step["prepend_scheme"] = "never"
            self._inside = _library(checked)
        for number, content in self._added.items():
            if self.token_to_id(content) != number:
                raise TokenizerError(
                    f"tokenizer.json: added token {content!r} has id {number}, but the vocabulary says {self.token_to_id(content)}"
                )
        self._size: int = self._first.get_vocab_size(with_added_tokens=True)
        self._rows: int = 1 + max([*checked["model"]["vocab"].values(), *self._added])
        self._bytes: dict[int, bytes] = {}
        self._prefix, self._suffix = self._surroundings()
        self._bos, eos = (_token_text(config.get(name), name) for name in ("bos_token", "eos_token"))
        self._eos_text = eos
        self._eos = self._eos_ids(eos, (generation_config or {}).get("eos_token_id"))
        has_chatml = "<|im_start|>" in self._controls and "<|im_end|>" in self._controls
        self.chat_template = chat_template or _config_template(config) or (MIMO_TEMPLATE if has_chatml else None)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Reads tokenizer.json and, where present, tokenizer_config.json, generation_config.json and chat_template.jinja.

        FileNotFoundError if there is no tokenizer.json; TokenizerError if a file is not regular, too large, damaged or hostile.
        """
        folder = Path(path)
        definition = read_json(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
        files: dict[str, dict[str, Any]] = {}
        for name in ("tokenizer_config", "generation_config"):
            try:
                files[name] = read_json(folder / f"{name}.json", MAX_CONFIG_BYTES)
            except FileNotFoundError:
                files[name] = {}
        try:
            template = read_text(folder / "chat_template.jinja", MAX_TEMPLATE_BYTES)
        except FileNotFoundError:
            template = None
        return cls(
            definition, config=files["tokenizer_config"], generation_config=files["generation_config"], chat_template=template
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest id. A model's embedding may have more rows, as padding, not fewer."""
        return self._rows

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: generation_config.json's, then tokenizer_config.json's eos_token; may be empty."""
        return self._eos

    @property
    def eos_token(self) -> str | None:
        """tokenizer_config.json's eos_token."""
        return self._eos_text

    @property
    def bos_token(self) -> str | None:
        """tokenizer_config.json's bos_token; MiMo has none."""
        return self._bos

    @property
    def bos_token_id(self) -> int | None:
        """The id of `bos_token`."""
        return None if self._bos is None else self.token_to_id(self._bos)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The control tokens and their ids: what only a template, or `encode(parse_special=True)`, can write."""
        return {content: token["id"] for content, token in self._controls.items()}

    @property
    def leading_blanks(self) -> int:
        """How many blanks at the start of a text `decode` removes: the ones that `encode` put there."""
        return self._piece_bytes.strip

    def encode(self, text: str, add_special_tokens: bool = False, *, parse_special: bool = False) -> list[int]:
        """The ids of a text. Control tokens written in it are ordinary characters, unless `parse_special`.

        `add_special_tokens` adds what tokenizer.json puts around a text, a BOS for instance. TokenizerError if the text is longer
        than 8 MiB of UTF-8 or no valid Unicode; TypeError if it is no str.
        """
        _check_text(text)
        ids = self._encode_parsed(text) if parse_special else self._encode_plain(text)
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; U+FFFD stands for bytes that are no UTF-8. An id without a token, a padding row, adds nothing.

        TokenizerError for a negative id.
        """
        data = b"".join(self.token_bytes(index(number), skip_special_tokens=skip_special_tokens) for number in ids)
        for _ in range(self.leading_blanks):
            data = data.removeprefix(b" ")
        return data.decode(errors="replace")

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of UTF-8 text one id stands for, which need not be whole characters; none for an id without a token."""
        if skip_special_tokens and token_id in self._special:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = (
                self._added[token_id].encode() if token_id in self._added else self._piece_bytes(self.id_to_token(token_id) or "")
            )
            if token_id < self._rows:  # what is remembered stays within the vocabulary
                self._bytes[token_id] = known
        return known

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        number: int | None = self._first.token_to_id(token)
        return number

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it, or None. TokenizerError for a negative id."""
        if token_id < 0:
            raise TokenizerError(f"token id {token_id} is negative")
        if token_id >= self._rows:
            return None
        token: str | None = self._first.id_to_token(token_id)
        return token

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        add_generation_prompt: bool = ...,
        enable_thinking: bool | None = ...,
        tokenize: Literal[False] = ...,
        chat_template: str | None = ...,
        **settings: Any,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        add_generation_prompt: bool = ...,
        enable_thinking: bool | None = ...,
        tokenize: Literal[True],
        chat_template: str | None = ...,
        **settings: Any,
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        tokenize: bool = False,
        chat_template: str | None = None,
        **settings: Any,
    ) -> str | list[int]:
        """A conversation as prompt text, or with `tokenize` as ids, in which only the template's control tokens are tokens.

        Text loses that difference, so a prompt for the model should be taken as ids. `enable_thinking` None leaves the choice to
        the template; `settings` reach it as variables; `chat_template` replaces the checkpoint's. TemplateError: see
        `chat.render_chat`.
        """
        template = chat_template or self.chat_template
        if template is None:
            raise TemplateError(
                "this checkpoint has no chat template and no <|im_start|>, <|im_end|> tokens to make one from: "
                "pass chat_template=, put a chat_template.jinja into its folder, or prompt with plain text"
            )
        if len(template) > MAX_TEMPLATE_BYTES:
            raise TemplateError(f"chat template: {len(template)} characters, at most {MAX_TEMPLATE_BYTES} are accepted")
        variables: dict[str, Any] = {**settings, "add_generation_prompt": add_generation_prompt}
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        tokens = {"bos_token": self._bos or "", "eos_token": self._eos_text or ""}
        text, guard = render_chat(template, messages, tools, self._controls, variables, tokens)
        _check_text(text)
        if not tokenize:
            return guard.show(text)
        return self._encode_parsed(text, guard.show)

    def __len__(self) -> int:
        """The number of tokens, added ones included."""
        return self._size

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, {len(self._controls)} control, eos {list(self._eos)}, {self._template_name()})"

    def _repr_html_(self) -> str:
        ends = ", ".join(f"{number} {self.id_to_token(number)}" for number in self._eos)
        rows = {
            "tokens": len(self),
            "control tokens": len(self._controls),
            "end of answer": ends,
            "chat template": self._template_name(),
        }
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(str(cell))}</td></tr>" for name, cell in rows.items())
        return f"<table><caption>Tokenizer</caption>{cells}</table>"

    def _template_name(self) -> str:
        if self.chat_template is None:
            return "no chat template"
        return "MiMo's chat template" if self.chat_template == MIMO_TEMPLATE else "own chat template"

    def _encode_plain(self, text: str, first: bool = True) -> list[int]:
        """The ids of text in which nothing is a control token. `first`: it begins the whole text (some vocabularies mark that)."""
        ids = self._library_ids(text, first)
        if self._control_pattern is None or self._control_ids.isdisjoint(ids):
            return ids
        # A vocabulary that merges up to a control token: cut each occurrence after its first character.
        cuts = [0, *(found.start() + 1 for found in self._control_pattern.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts)]
        ids = [number for at, piece in enumerate(pieces) for number in self._library_ids(piece, first and at == 0)]
        if not self._control_ids.isdisjoint(ids):
            raise TokenizerError("the text cannot be encoded: this vocabulary has no other form for a control token written in it")
        return ids

    def _library_ids(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        library = self._first if first else self._inside
        return _guarded(lambda: list(library.encode(text, add_special_tokens=False).ids), f"text of {len(text)} characters")

    def _encode_parsed(self, text: str, show: Callable[[str], str] = str) -> list[int]:
        """The ids of text whose control tokens are meant; `show` is applied to the parts between them."""
        if self._control_pattern is None:
            return self._encode_plain(show(text))
        ids: list[int] = []
        start, strip_next = 0, False
        for found in [*self._control_pattern.finditer(text), None]:
            part = text[start : found.start()] if found else text[start:]
            token = self._controls[found.group()] if found else None
            if strip_next:
                part = part.lstrip()
            if token is not None and token["lstrip"]:
                part = part.rstrip()
            part = show(part)
            ids += self._encode_plain(part, start == 0)
            if found and token is not None:
                ids.append(token["id"])
                start, strip_next = found.end(), token["rstrip"]
        return ids

    def _surroundings(self) -> tuple[list[int], list[int]]:
        """What tokenizer.json's post-processor puts before and after a text."""
        with_tokens = _guarded(lambda: list(self._first.encode("a", add_special_tokens=True).ids), "tokenizer.json: post_processor")
        bare = self._library_ids("a", True)
        for at in range(len(with_tokens) - len(bare) + 1):
            if with_tokens[at : at + len(bare)] == bare:
                return with_tokens[:at], with_tokens[at + len(bare) :]
        raise TokenizerError("tokenizer.json: post_processor: the text itself is missing from its template")

    def _eos_ids(self, eos: str | None, listed: Any) -> tuple[int, ...]:
        ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
        for number in ids:
            if type(number) is not int or not 0 <= number < 1 << 31:
                raise TokenizerError(f"generation_config.json: eos_token_id: expected token ids, found {str(number)[:80]!r}")
        known = None if eos is None else self.token_to_id(eos)
        return tuple(dict.fromkeys([*ids, *([] if known is None else [known])]))


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text: expected str, found {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise TokenizerError(f"text: not valid Unicode at character {error.start}") from error
    if size > MAX_TEXT_BYTES:
        raise TokenizerError(f"text: {size} bytes of UTF-8, at most {MAX_TEXT_BYTES} are accepted")


def _token_text(token: Any, name: str) -> str | None:
    """A token of tokenizer_config.json, written as text or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise TokenizerError(f"tokenizer_config.json: {name}: expected text, found {type(content).__name__}")
    return content or None


def _config_template(config: Mapping[str, Any]) -> str | None:
    """tokenizer_config.json's chat template: one text, or a list of named ones of which 'default' counts."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"tokenizer_config.json: chat_template: expected text, found {type(template).__name__}")
    return template or None


def _first_blanks(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps that put a blank before the whole text only, and so not before the parts after a control token."""
    steps = [] if step is None else step.get("pretokenizers", [step])
    return [part for part in steps if part["type"] == "Metaspace" and part.get("prepend_scheme") == "first"]
