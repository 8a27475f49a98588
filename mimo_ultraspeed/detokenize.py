"""Text from token ids as they arrive: never half a character, never the beginning of a stop string that may yet be completed."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["TextStream"]

MAX_STOPS = 64
MAX_STOP_CHARS = 1024


class _StopMatcher:
    """Follows one stop string through a text, character by character (Knuth, Morris, Pratt), at constant amortised cost."""

    __slots__ = ("borders", "length", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0  # how much of `stop` the text so far ends with
        self.borders = [0] * (len(stop) + 1)  # borders[n]: longest proper prefix of stop[:n] that also ends it
        border = 0
        for at in range(1, len(stop)):
            while border and stop[at] != stop[border]:
                border = self.borders[border]
            border += stop[at] == stop[border]
            self.borders[at + 1] = border

    def step(self, char: str) -> bool:
        """Takes the next character; true when the text now ends with the whole stop string."""
        stop, length = self.stop, self.length
        while length and stop[length] != char:
            length = self.borders[length]
        self.length = length + 1 if stop[length] == char else 0
        return self.length == len(stop)


class TextStream:
    """Turns ids into text piece by piece, and ends at a stop string.

    The pieces of `feed` and `finish` together equal `tokenizer.decode` of all ids fed, cut before the stop string. A character is
    given out once all its bytes are there; bytes that can no longer become a character give U+FFFD at once. Text that may be the
    beginning of a stop string is held back until it is decided. Of several stop strings the one completed first counts, of two
    completed by the same character the longer; so the result does not depend on how the ids were grouped. The cost per token does
    not grow with the text.

    Attributes: `stopped`, the stop string found, or None; `tokens_used`, how many of the fed ids were used: all of them, or up to
    and including the one that completed the stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        """ValueError for an empty or overlong stop string, or more than 64 of them; TypeError for one that is not text."""
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if len(stops) > MAX_STOPS:
            raise ValueError(f"stop: {len(stops)} stop strings, at most {MAX_STOPS} are accepted")
        for at, text in enumerate(stops):
            if not isinstance(text, str):
                raise TypeError(f"stop[{at}]: expected str, found {type(text).__name__}")
            if not 0 < len(text) <= MAX_STOP_CHARS:
                raise ValueError(f"stop[{at}]: {len(text)} characters, expected 1..{MAX_STOP_CHARS}")
        self.stopped: str | None = None
        self.tokens_used = 0
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._matchers = [_StopMatcher(text) for text in dict.fromkeys(stops)]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._blanks_to_strip = tokenizer.leading_blanks
        self._held = ""
        self._finished = False

    def feed(self, ids: Iterable[int]) -> str:
        """The text that the next ids make safe to show; empty once a stop string was found. ValueError after `finish`."""
        if self._finished:
            raise ValueError("feed after finish: make a new TextStream for another text")
        shown: list[str] = []
        for number in ids:
            if self.stopped is not None:
                break
            data = self._tokenizer.token_bytes(index(number), skip_special_tokens=self._skip_special)
            self.tokens_used += 1
            shown.append(self._accept(self._decoder.decode(self._strip(data))))
        return "".join(shown)

    def finish(self) -> str:
        """The text still held back, with U+FFFD for an unfinished character. A second call returns nothing."""
        if self._finished:
            return ""
        self._finished = True
        if self.stopped is not None:
            return ""
        shown = self._accept(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return shown + held

    def _strip(self, data: bytes) -> bytes:
        while self._blanks_to_strip and data:
            if not data.startswith(b" "):
                self._blanks_to_strip = 0
                break
            data = data[1:]
            self._blanks_to_strip -= 1
        return data

    def _accept(self, text: str) -> str:
        """Moves new characters through the stop matchers; returns what can no longer be part of a stop string."""
        if not self._matchers:
            return text
        pending = self._held + text
        for at, char in enumerate(text):
            found = [matcher.stop for matcher in self._matchers if matcher.step(char)]
            if found:
                self.stopped = max(found, key=len)
                self._held = ""
                return pending[: len(pending) - len(text) + at + 1 - len(self.stopped)]
        keep = max(matcher.length for matcher in self._matchers)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]
