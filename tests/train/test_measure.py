"""Rounds replayed over known answers, by hand and beside the engine's own rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train.export import export_drafter, load_drafter, load_run  # noqa: E402
from mimo_ultraspeed.train.measure import Measured, answer_greedily, drafts, lookup, measure, rounds  # noqa: E402
from mimo_ultraspeed.train.target import TargetWeights  # noqa: E402
from mimo_ultraspeed.train.trainer import CHECKPOINT, Trainer, TrainOptions  # noqa: E402


def test_lookup_takes_the_latest_occurrence_of_the_longest_gram() -> None:
    #         0  1  2  3  4  5  6  7  8  9 10
    tokens = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert lookup(tokens, 10, 4) == (3, [4, 9, 2, 3])
    assert lookup(tokens, 10, 2) == (3, [4, 9])
    assert lookup(tokens[1:], 9, 3) == (2, [5, 1, 2])
    assert lookup(tokens, 7, 3) == (0, [])
    # What comes after the anchor is not known: from there on the text goes on as it did.
    assert lookup([*tokens, 8], 10, 9) == (3, [4, 9, 2, 3, 5, 1, 2, 3, 4])
    assert lookup([7, 7, 7], 2, 5) == (2, [7] * 5)


def test_rounds_by_hand() -> None:
    record = {"prompt": [1, 2, 3, 4, 5, 6], "answer": [1, 2, 3, 4, 5, 6, 9, 8, 1, 2]}
    answer = record["answer"]
    drafted = np.full((9, 2), 99)
    for anchor, right in ((0, 2), (4, 2), (7, 1)):
        drafted[anchor, :right] = answer[anchor + 1 : anchor + 1 + right]
    # Blocks of 3: at 0 two come true, at 3 none, at 4 two, at 7 one.
    assert rounds(record, drafted, "drafter", 3) == [2, 0, 2, 1]
    # Lookup: nothing at the first token; "1 2" was followed by 3 4, then "2 3 4 5" by 6 1, of which one comes true.
    assert rounds(record, drafted, "lookup", 3) == [0, 2, 1, 0, 0]
    # Both: the drafter's two at the first token, lookup's two after "1 2 3 4"; then there is nothing to look up.
    assert rounds(record, drafted, "both", 3) == [2, 2, 0, 1]
    # A match of two tokens, "1 2", needs the drafter's word, which at 1 is another.
    drafted[0] = 99
    assert rounds(record, drafted, "both", 3) == [0, 0, 2, 0, 0, 1]
    drafted[1, 0] = 3
    assert rounds(record, drafted, "both", 3) == [0, 2, 1, 0, 1]


def test_figures_of_a_method() -> None:
    one = Measured(np.array([6, 3]), np.array([2, 3]), reached=np.array([5, 2]), accepted=np.array([2, 0]))
    assert one.tau == 9 / 5
    assert one.conditional() == [0.4, 0.0]
    low, high = one.interval()
    assert low == 1.0 and high == 3.0
    assert one.interval() == (low, high)


def test_replayed_rounds_are_those_of_the_engine(
    tiny_path: Path, tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any
) -> None:
    options = TrainOptions(steps=60, sequences=2, anchors=32, lengths=(4,), short=0.0, lr=4e-3)
    before = torch.get_num_threads()
    Trainer(tiny_model, answers_folder, tmp_path / "run", options, config=drafter_config).run(progress=False)
    folder = export_drafter(load_run(tmp_path / "run" / CHECKPOINT, averaged=False), tmp_path / "drafter")
    torch.set_num_threads(before)
    trained, size = load_drafter(folder), drafter_config.block_size
    with mu.Model.from_pretrained(tiny_path, draft=folder, precision="exact", threads=1, progress=False) as model:
        records = answer_greedily(model, ["One.", "Two, three.", "Four?", "Five and six."], 40)
        weights, accepted = TargetWeights(model.checkpoint), 0
        for record in records:
            replayed = rounds(record, drafts(trained, model, weights, record), "drafter", size)
            result = model.generate([record["prompt"]], max_new_tokens=40, temperature=0.0, width=size, lookup=False)[0]
            assert result.token_ids == record["answer"]
            # Rounds whose block would not have fit are not replayed.
            assert result.stats.rounds["accepted"][: len(replayed)] == replayed
            accepted += sum(replayed)
        assert accepted > 0
        found = measure(trained, model, records)
    assert found["drafter"].tau == (found["drafter"].rounds.sum() + accepted) / found["drafter"].rounds.sum()
    assert set(found) == {"drafter", "lookup", "both"}
