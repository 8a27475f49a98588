"""TextStream: the pieces add up to the plain decode, whatever the ids, the grouping and the stop strings."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from mimo_ultraspeed.detokenize import TextStream
from mimo_ultraspeed.tokenizer import Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> Tokenizer:
    """All 256 bytes as tokens, a few longer ones, one special and one shown control token."""
    tokens = [*ALPHABET, "ab", "abc", "Ġhello", "ðŁ", "ĻĤ"]
    made = Library(models.BPE({token: at for at, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|im_end|>"])
    made.add_tokens(["<think>"])
    return Tokenizer(json.loads(made.to_str()))


def byte_fallback() -> Tokenizer:
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁▁", "▁ab", "é"]
    made = Library(models.BPE({token: at for at, token in enumerate(tokens)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return Tokenizer(json.loads(made.to_str()))


TOKENIZERS = [byte_level(), byte_fallback()]
BYTES = TOKENIZERS[0]
AB = [BYTES.encode(char)[0] for char in "ab"]


def ids_of(text: str) -> list[int]:
    """One id per byte of the text."""
    return BYTES.encode(text)


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is completed first; the plainest way to say it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def groups(ids: list[int], sizes: list[int]) -> list[list[int]]:
    made, at = [], 0
    for size in sizes:
        made.append(ids[at : at + size])
        at += size
    return [*made, ids[at:]]


any_ids = st.lists(st.integers(0, 262))
utf8_ids = st.text(alphabet="aé你🙂\ufffd\U0010ffff").map(ids_of)
sizes = st.lists(st.integers(0, 4))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
@given(ids=any_ids | utf8_ids, grouping=sizes)
def test_pieces_add_up_to_decode(tokenizer: Tokenizer, skip: bool, ids: list[int], grouping: list[int]) -> None:
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    text = "".join(stream.feed(group) for group in groups(ids, grouping)) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert (stream.stopped, stream.tokens_used) == (None, len(ids))


@given(ids=st.lists(st.sampled_from([*AB, 256, 257, 261, 262]) | st.integers(0, 262)), data=st.data())
def test_stops_cut_the_text_whatever_the_grouping(ids: list[int], data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
    stream = TextStream(BYTES, stops)
    shown = ""
    for group in groups(ids, data.draw(sizes)):
        shown += stream.feed(group)
        whole = BYTES.decode(ids)
        assert cut(whole, stops)[0].startswith(shown)
    shown += stream.finish()
    expected, stop = cut(BYTES.decode(ids), stops)
    assert (shown, stream.stopped) == (expected, stop)
    if stop is not None:  # the id that completed it is the last one used
        before = TextStream(BYTES, stops)
        before.feed(ids[: stream.tokens_used - 1])
        assert before.stopped is None
        before.feed([ids[stream.tokens_used - 1]])
        assert before.stopped == stop


@given(utf8_ids)
@example(ids_of("🙂"))
def test_text_is_shown_at_once_and_never_half_a_character(ids: list[int]) -> None:
    stream = TextStream(BYTES)
    shown = ""
    for at, number in enumerate(ids):
        shown += stream.feed([number])
        data = b"".join(BYTES.token_bytes(one) for one in ids[: at + 1])
        assert shown == data.decode(errors="ignore")  # all complete characters, no more


def test_a_multi_token_emoji_waits_for_its_last_token() -> None:
    stream = TextStream(BYTES)
    assert [stream.feed([number]) for number in (259, 260)] == ["", "🙂"]


def test_bytes_that_cannot_become_a_character_are_replaced_at_once() -> None:
    first, bad = (ALPHABET.index(char) for char in ("ð", "a"))
    stream = TextStream(BYTES)
    assert stream.feed([first]) == ""
    assert stream.feed([bad]) == "\ufffda"
    assert stream.feed([first]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    with pytest.raises(ValueError, match="after finish"):
        stream.feed([bad])


def test_a_possible_stop_is_held_back_and_released() -> None:
    stream = TextStream(BYTES, stop="aab")
    a, b = AB
    assert [stream.feed([number]) for number in (a, a, a, b)] == ["", "", "a", ""]
    assert (stream.stopped, stream.tokens_used) == ("aab", 4)
    assert stream.feed([a, b]) == "" and stream.tokens_used == 4
    assert stream.finish() == ""
    stream = TextStream(BYTES, stop=["aab"])
    assert stream.feed([a, a]) + "|" + stream.finish() == "|aa"


def test_an_unfinished_character_can_complete_a_stop_at_the_end() -> None:
    stream = TextStream(BYTES, stop=["\ufffd"])
    assert stream.feed([AB[0], ALPHABET.index("ð")]) == "a"
    assert stream.finish() == ""
    assert stream.stopped == "\ufffd"


@pytest.mark.parametrize(
    ("stop", "error", "message"),
    [
        ("", ValueError, r"stop\[0\]: 0 characters"),
        (["a", ""], ValueError, r"stop\[1\]: 0 characters"),
        (["a" * 1025], ValueError, "1025 characters"),
        (["a"] * 65, ValueError, "65 stop strings"),
        ([b"a"], TypeError, "expected str, found bytes"),
    ],
)
def test_stops_that_are_refused(stop: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TextStream(BYTES, stop)
