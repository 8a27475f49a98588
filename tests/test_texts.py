"""Texts as windows of token ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.texts import read_windows


@pytest.fixture
def tokenizer(tiny_path: Path) -> mu.Tokenizer:
    return mu.Tokenizer.from_folder(tiny_path)


def test_a_text_is_cut_into_windows(tmp_path: Path, tokenizer: mu.Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {number}\n" for number in range(40)) + "end"
    (tmp_path / "a.txt").write_text(text)
    windows = read_windows(tmp_path / "a.txt", tokenizer, vocab=512, length=50)
    assert [token for one in windows for token in one] == list(text.encode()) and {len(one) for one in windows[:-1]} == {50}
    monkeypatch.setattr("mimo_ultraspeed.texts._PIECE", 30)
    pieces = read_windows(tmp_path / "a.txt", tokenizer, vocab=512, length=50)
    assert [one.tolist() for one in pieces] == [one.tolist() for one in windows]
    few = read_windows(tmp_path / "a.txt", tokenizer, vocab=512, length=50, tokens=100)
    assert [one.tolist() for one in few] == [windows[0].tolist(), windows[-1].tolist()]


def test_a_rest_of_one_token_is_left_out(tmp_path: Path, tokenizer: mu.Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("x" * 11)
    assert [len(one) for one in read_windows(tmp_path / "a.txt", tokenizer, vocab=512, length=5)] == [5, 5]


def test_rows(tmp_path: Path, tokenizer: mu.Tokenizer) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [{"text": "abc"}, {"messages": chat}, {"token_ids": [1, 2]}, {"prompt": [3], "answer": [4, 5], "id": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = [one.tolist() for one in read_windows(tmp_path / "a.jsonl", tokenizer, vocab=512, length=1000)]
    assert found[0] == [97, 98, 99] and found[2:] == [[1, 2], [3, 4, 5]]
    assert found[1] == tokenizer.apply_chat_template(chat, add_generation_prompt=False, tokenize=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:2: expected an object with .*, found damage"),
        ('{"turns": ["x"]}', r"a\.jsonl:2: expected an object with .*turns"),
        ('{"token_ids": [600]}', r"a\.jsonl:2: token 0: expected an id from 0 to 511, found 600"),
        ("[1, 2]", r"a\.jsonl:2: expected an object with"),
    ],
)
def test_damaged_rows(tmp_path: Path, tokenizer: mu.Tokenizer, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_windows(tmp_path / "a.jsonl", tokenizer, vocab=512, length=8)


def test_wrong_files(tmp_path: Path, tokenizer: mu.Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"a\.txt: expected UTF-8 text, found byte 0xff at 2"):
        read_windows(tmp_path / "a.txt", tokenizer, vocab=512, length=8)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.txt: expected a text of at least 2 tokens"):
        read_windows(tmp_path / "b.txt", tokenizer, vocab=512, length=8)
    (tmp_path / "c.txt").write_text("abc")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json to read text with"):
        read_windows(tmp_path / "c.txt", None, vocab=512, length=8)
    with pytest.raises(ValueError, match="tokens: expected at least 2, found 1"):
        read_windows(tmp_path / "c.txt", tokenizer, vocab=512, length=8, tokens=1)
