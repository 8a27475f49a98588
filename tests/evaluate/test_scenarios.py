"""Prompt sets: those of the package, and files."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from mimo_ultraspeed.evaluate.scenarios import PUBLISHED, SCENARIOS, PromptSet, load_prompts


def test_the_package_has_four_sets_of_enough_prompts() -> None:
    sets = load_prompts()
    assert [one.name for one in sets] == list(SCENARIOS)
    for one in sets:
        assert len(one.items) >= 24 and one.name in PUBLISHED
        assert one.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest()
        assert all(len(turn) >= 20 for item in one.items for turn in item.turns[:1])
    turns = {one.name: sum(len(item.turns) > 1 for item in one.items) for one in sets}
    assert turns["chat"] >= 8 and turns["agent"] >= 8
    texts = [turn for one in sets for item in one.items for turn in item.turns[:1]]
    assert len({re.sub(r"\W+", " ", text.lower()) for text in texts}) == len(texts)


def test_a_file_is_a_scenario_of_its_own(prompt_file: Path) -> None:
    sets = load_prompts(("math",), [prompt_file])
    assert [one.name for one in sets] == ["math", "mine"]
    assert [item.id for item in sets[1].items] == ["0", "1", "2", "3", "4"]
    assert sets[1].items[1].turns == ("two", "and then?")
    with pytest.raises(ValueError, match="two called 'mine'"):
        load_prompts((), [prompt_file, prompt_file])
    with pytest.raises(ValueError, match="found 'maths'"):
        load_prompts(("maths",))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "damage"),
        ('["a"]', "found list"),
        ('{"prompt": "a"}', "turns.*no such key"),
        ('{"turns": "a"}', "turns"),
        ('{"turns": []}', "turns"),
        ('{"turns": ["a", 3]}', "turns"),
        ('{"turns": [" "]}', "turns"),
        ('{"turns": ["a"], "id": [1]}', '"id"'),
        ('{"turns": ["a"], "id": "first"}', "line 1 again"),
        ("\udce4", "damage"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        json.dumps({"turns": ["ok"], "id": "first"}).encode() + b"\n\n" + line.encode("utf-8", "surrogateescape") + b"\n"
    )
    with pytest.raises(ValueError, match=f"p.jsonl:3: .*{told}"):
        PromptSet.read(path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="found none"):
        PromptSet.read(tmp_path / "p.jsonl")
    with pytest.raises(FileNotFoundError):
        PromptSet.read(tmp_path / "q.jsonl")
