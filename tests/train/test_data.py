"""Self-distillation data: what is asked, what must not be, and a folder that can always be continued."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.train.data import DataOptions, Planned, make_data, normalise, plan, read_answers, read_prompts
from mimo_ultraspeed.train.problems import problems
from mimo_ultraspeed.train.variety import chats

PROMPTS: list[dict[str, Any]] = [
    *({"scenario": "math", "turns": [f"What is {number} + 1?"]} for number in range(6)),
    *({"scenario": "chat", "turns": [f"Name a colour like {number}.", "And another?"]} for number in range(6)),
]
OPTIONS = DataOptions(seed=3, tokens=500, max_new_tokens=6, templates=0.0)


def first(count: int, options: DataOptions = OPTIONS, excluded: tuple[str, ...] = ()) -> list[Planned]:
    return list(itertools.islice(plan(PROMPTS, options, excluded), count))


def test_a_plan_is_the_same_every_time_and_goes_on_with_other_seeds_when_all_was_asked() -> None:
    planned = first(60)
    assert planned == first(60)
    assert len({one.id for one in planned}) == 60
    assert len({(one.turns[0], one.seed) for one in planned}) == 60
    assert first(60) != first(60, DataOptions(seed=4, templates=0.0))
    # 6 questions, half of them with the boxed suffix of a pass: more texts than questions, fewer than conversations.
    assert 6 < len({one.turns for one in planned if one.scenario == "math"}) <= 12


def test_scenarios_are_mixed_by_weight_and_answers_sampled_in_the_share_asked_for() -> None:
    options = DataOptions(mix={"math": 3.0, "chat": 1.0}, sampled=0.25, temperatures=(0.5, 0.9), templates=0.0)
    planned = first(400, options)
    assert Counter(one.scenario for one in planned) == {"math": 300, "chat": 100}
    temperatures = Counter(one.temperature for one in planned)
    assert set(temperatures) == {0.0, 0.5, 0.9}
    assert 0.68 < temperatures[0.0] / 400 < 0.82


def test_no_evaluation_prompt_is_asked_in_any_spelling() -> None:
    with pytest.raises(ValueError, match=r"a prompt is also in an evaluation set.*'And another\?'"):
        first(1, excluded=("and ANOTHER",))
    assert normalise("What's  2+2?\n") == normalise("what s 2 2")
    # A prompt made from a template is left out silently: it is no mistake in the files given.
    made = next(chats(OPTIONS.seed))["turns"]
    assert isinstance(made, list)
    asked = DataOptions(seed=OPTIONS.seed, templates=1.0)
    assert tuple(made) in {one.turns for one in first(40, asked)}
    assert tuple(made) not in {one.turns for one in first(40, asked, excluded=(made[0].upper(),))}


def test_problems_are_posed_but_never_those_of_an_evaluation_set_however_their_answer_is_asked_for() -> None:
    asked = DataOptions(seed=OPTIONS.seed, templates=1.0)
    posed = {normalise(one) for one in itertools.islice(problems(OPTIONS.seed), 5)}
    assert posed <= {normalise(one.turns[0]) for one in first(80, asked)}
    sums = [{"scenario": "math", "turns": [f"What is {number} + 1?"]} for number in range(3000)]
    many = list(itertools.islice(plan(sums, asked), 5000))
    assert len({one.id for one in many}) == len(many)
    assert len({one.turns for one in many if "$" in one.turns[0]}) > 1000
    boxed = [one + "\nPlease reason step by step, and put your final answer within \\boxed{}." for one in posed]
    assert posed.isdisjoint(normalise(one.turns[0]) for one in first(80, asked, excluded=boxed))


def test_a_problem_has_no_field_left_and_its_seed_makes_it() -> None:
    made = list(itertools.islice(problems(1), 2000))
    assert made == list(itertools.islice(problems(1), 2000)) != list(itertools.islice(problems(2), 2000))
    assert len(set(made)) > 1000
    for one in made:
        assert not re.search(r"<\S|\S>|\d-\d+>", one), one
        assert one.count("$") % 2 == 0, one
        assert one.count("{") == one.count("}"), one


def test_prompt_files_are_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"turns": ["a"]}\n\n{"turns": ["b", "c"], "scenario": "math"}\n')
    assert [row["turns"] for row in read_prompts(path)] == [["a"], ["b", "c"]]
    for line in ('{"turns": []}', '{"turns": "a"}', '{"turns": [""]}', "[]", "{"):
        path.write_text('{"turns": ["a"]}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"prompts\.jsonl:2: .*expected .*, found"):
            read_prompts(path)


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    records = list(read_answers(folder))
    found = {record["id"]: record for record in records}
    assert len(found) == len(records), "an answer is there twice"
    return found


def test_a_folder_that_was_stopped_is_continued_with_the_same_answers(
    tiny_model: mu.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    tokens = make_data(tiny_model, PROMPTS, whole, OPTIONS, progress=False)
    assert tokens == sum(len(record["answer"]) for record in read_answers(whole)) >= OPTIONS.tokens

    from mimo_ultraspeed.train import data

    broken, written = tmp_path / "broken", 0
    append = data._Shards.append

    def killed_at_the_twentieth(shards: Any, record: dict[str, Any]) -> None:
        nonlocal written
        written += 1
        if written > 20:
            raise KeyboardInterrupt
        append(shards, record)

    monkeypatch.setattr(data._Shards, "append", killed_at_the_twentieth)
    with pytest.raises(KeyboardInterrupt):
        make_data(tiny_model, PROMPTS, broken, OPTIONS, progress=False)
    monkeypatch.undo()
    shard = broken / "answers-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-9])  # the last line was being written
    before = by_id(broken)
    assert len(before) == 19
    assert make_data(tiny_model, PROMPTS, broken, OPTIONS, progress=False) >= OPTIONS.tokens
    after, expected = by_id(broken), by_id(whole)
    assert before.items() <= after.items()
    common = after.keys() & expected.keys()
    assert len(common) > 0.8 * len(expected)
    assert all(after[name] == expected[name] for name in common)
    # Enough is there: nothing is asked.
    size = shard.stat().st_size
    make_data(tiny_model, PROMPTS, broken, OPTIONS, progress=False)
    assert shard.stat().st_size == size


def test_an_answer_is_what_the_model_says_alone(tiny_model: mu.Model, tmp_path: Path) -> None:
    make_data(tiny_model, PROMPTS, tmp_path, OPTIONS, progress=False)
    records = list(read_answers(tmp_path))
    assert {record["temperature"] > 0 for record in records} == {True, False}
    for record in records[:4]:
        alone = tiny_model.stream(
            record["prompt"], max_new_tokens=OPTIONS.max_new_tokens, temperature=record["temperature"], seed=record["seed"]
        )
        with alone:
            for _ in alone:
                pass
        assert (alone.result.token_ids, alone.result.finish_reason) == (record["answer"], record["finish"])
    seconds = [record for record in records if record["id"].endswith("-1")]
    assert seconds and all(record["scenario"] == "chat" for record in seconds)


def test_shards_are_begun_anew_at_their_size(tiny_model: mu.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_ultraspeed.train.data._PER_SHARD", 40)
    make_data(tiny_model, PROMPTS, tmp_path, OPTIONS, progress=False)
    lines = [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("answers-*.jsonl"))]
    assert lines[0] == 40 and len(lines) == -(-sum(lines) // 40)
    assert json.loads((tmp_path / "answers-00001.jsonl").read_text().splitlines()[0])["answer"]


def test_what_cannot_be_asked_is_refused() -> None:
    for wrong in ({"tokens": 0}, {"max_new_tokens": 0}, {"sampled": 1.5}, {"templates": -0.1}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: expected"):
            DataOptions(**wrong)
    for prompts, mix in (([], {}), (PROMPTS, {"math": 0.0, "chat": 0.0})):
        with pytest.raises(ValueError, match="prompts: expected at least one"):
            next(plan(prompts, DataOptions(mix=mix)))
