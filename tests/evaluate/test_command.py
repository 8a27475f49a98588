"""`mimo-ultraspeed evaluate`, with a model that answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.__main__ import main

WORDS = ["evaluate", "acceptance", "fake", "--scenarios", "", "--max-new-tokens", "20", "--temperature", "0"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, fake_model: Any) -> list[dict[str, Any]]:
    """How models were opened, instead of opening them."""
    calls: list[dict[str, Any]] = []

    def open_fake(source: str, *, draft: Any, **options: Any) -> Any:
        calls.append({"source": source, "draft": draft, **options})
        return fake_model(draft=draft is not None, stop_after=options["threads"])

    monkeypatch.setattr(mu.Model, "from_pretrained", open_fake)
    return calls


def test_acceptance_prints_a_table_and_writes_json(
    opened: list[dict[str, Any]], prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "run.json"
    assert main([*WORDS, "--prompts", str(prompt_file), "--out", str(out), "--limit", "2", "--pin"]) == 0
    assert all(call["pin"] for call in opened)
    told = capsys.readouterr().out
    assert all(part in told for part in ("mine", "drafter T=0", "lookup T=0", "both T=0", "tokens/round", "break-even"))
    assert [call["draft"] for call in opened] == ["auto", None]
    data = json.loads(out.read_text())
    assert data["complete"] and data["settings"]["limit"] == 2 and data["prompts"]["mine"]["turns"] == [1, 2]
    assert data["answers"][0]["rounds" if data["answers"][0]["variant"] != "plain" else "text"]
    assert main([*WORDS, "--prompts", str(prompt_file), "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_shards_and_merge(
    opened: list[dict[str, Any]], prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [str(tmp_path / f"{number}.json") for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        assert main([*WORDS, "--prompts", str(prompt_file), "--modes", "both", "--shard", f"{number}/2", "--out", part]) == 0
    capsys.readouterr()
    assert main(["evaluate", "merge", *parts, "--out", str(tmp_path / "all.json")]) == 0
    merged = capsys.readouterr().out
    assert main([*WORDS, "--prompts", str(prompt_file), "--modes", "both"]) == 0
    assert capsys.readouterr().out == merged


def test_an_interrupt_prints_the_table_so_far(
    opened: list[dict[str, Any]], prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "--prompts", str(prompt_file), "--modes", "drafter", "--out", str(tmp_path / "run.json")]
    assert main([*words, "--threads", "5"]) == 130
    told = capsys.readouterr()
    assert "INCOMPLETE: 5 of 16 answers" in told.out and "--resume" in told.err
    assert main([*words, "--resume"]) == 0
    assert "INCOMPLETE" not in capsys.readouterr().out


def test_without_matplotlib_the_error_comes_first(
    opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*WORDS, "--plot", "run.png"]) == 1
    assert "pip install 'mimo-ultraspeed[notebook]'" in capsys.readouterr().err and not opened


def test_wrong_words(opened: list[dict[str, Any]], tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["--modes", "draft"], "modes: expected some of drafter, lookup, both"),
        (["--scenarios", "maths"], "found 'maths'"),
        (["--resume"], "--resume needs --out"),
        (["--prompts", "/nowhere.jsonl"], "error: /nowhere.jsonl: No such file"),
        (["--scenarios", ""], "expected a scenario or a file"),
        (["--plot", "run.jpg"], "expected a name that ends in .png"),
        (["--plot", "/nowhere/run.png"], "found no /nowhere"),
    ):
        assert main(["evaluate", "acceptance", *words]) == 1
        assert told in capsys.readouterr().err
        assert not opened
    for word, told in (("--shard=3/2", "expected I/N"), ("--temperature=warm", "expected numbers with commas")):
        with pytest.raises(SystemExit):
            main(["evaluate", "acceptance", word])
        assert told in capsys.readouterr().err


def test_a_file_that_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("damage", "[]", '{"format": "mimo-ultraspeed acceptance 1"}'):
        (tmp_path / "part.json").write_text(text)
        assert main(["evaluate", "merge", str(tmp_path / "part.json")]) == 1
        assert "part.json: expected a result of `evaluate acceptance`" in capsys.readouterr().err


def test_a_model_without_a_drafter_says_so(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "acceptance", str(tiny_path), "--modes", "drafter"]) == 1
    assert "has no drafter" in capsys.readouterr().err
