"""Answers of the tiny model, and a small drafter of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mimo_ultraspeed as mu


@pytest.fixture(scope="session")
def greedy_answers(tiny_model: mu.Model) -> list[dict[str, Any]]:
    """Records as `train data` writes them."""
    results = tiny_model.generate(
        ["One.", "Two, three.", "Four?", "Five and six."], max_new_tokens=40, temperature=0.0, ignore_eos=True
    )
    return [
        {"id": f"{number}-0", "scenario": "chat", "prompt": one.prompt_token_ids, "answer": one.token_ids, "finish": "length"}
        for number, one in enumerate(results)
    ]


@pytest.fixture(scope="session")
def answers_folder(greedy_answers: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records in a folder."""
    folder = tmp_path_factory.mktemp("answers")
    lines = [json.dumps(record) for record in greedy_answers]
    (folder / "answers-00000.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def drafter_config(tiny_model: mu.Model) -> Any:
    """Of a drafter with everything that is optional: part of the vocabulary, a Markov head, sinks, a short window."""
    pytest.importorskip("torch", reason="not run: torch is not installed")
    from mimo_ultraspeed.train.start import default_config

    return default_config(
        tiny_model.config, taps=(0, 2, 3), layers=2, head_size=300, markov_rank=8, sinks=True, window=24, intermediate_size=72
    )
