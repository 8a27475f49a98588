"""Runs with a model that answers at once: what is asked in which order, resuming, interrupts, shards, figures."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mimo_ultraspeed.evaluate import Evaluation, acceptance, merge
from mimo_ultraspeed.evaluate.run import Settings, variants

SHORT = {"max_new_tokens": 30, "progress": False, "scenarios": ()}


def comparable(result: Evaluation) -> dict[str, Any]:
    data = copy.deepcopy(result.data)
    return {name: value for name, value in data.items() if name not in ("machine", "software")}


def test_what_is_measured(fake_model: Any, prompt_file: Path) -> None:
    model = fake_model()
    result = acceptance(model, prompts=[prompt_file], modes=("drafter", "both"), width=5, **SHORT)
    assert result.complete
    rows = result.figures["mine"]
    assert list(rows) == [
        "drafter T=0", "both T=0", "drafter coupled T=1", "drafter argmax T=1", "both coupled T=1", "both argmax T=1",
    ]  # fmt: skip
    assert {one["requests"] for one in rows.values()} == {8}
    assert all(one["same_as_plain"] == 8 for one in rows.values())
    one = rows["both T=0"]
    assert one["break_even"] == pytest.approx(1.4) and one["draft_seconds"] == pytest.approx(0.002)
    assert one["speed_up"] == pytest.approx(one["acceptance_length"] / one["break_even"])
    assert one["lookup_share"] == 1 and rows["drafter T=0"]["lookup_share"] == 0
    assert one["drafts_per_round"] == 4 and len(one["conditional_rate"]) == 7
    assert {options["width"] for _, options in model.calls if options["speculative"]} == {5}
    told = result.table()
    for part in ("drafter argmax T=1", "speed-up", "break-even", "width 5", "8/8"):
        assert part in told


def test_plain_and_speculative_take_turns_on_the_same_prompt(fake_model: Any, prompt_file: Path) -> None:
    model = fake_model()
    acceptance(model, prompts=[prompt_file], modes=("drafter",), temperatures=(0.7,), verify=("coupled",), **SHORT)
    pairs = list(zip(model.calls[::2], model.calls[1::2], strict=True))
    first = []
    for (prompt, options), (other, others) in pairs:
        assert prompt == other and options["seed"] == others["seed"]
        assert {options["speculative"], others["speculative"]} == {True, False}
        first.append(options["speculative"])
    assert first == [False, True, False, False, True, False, True, False]  # neither always goes first
    assert len({options["seed"] for _, options in model.calls}) == 8
    turns = next(prompt for prompt, _ in model.calls if len(prompt) == 5)
    assert [message["role"] for message in turns] == ["user", "assistant", "user", "assistant", "user"]


def test_groups_and_variants() -> None:
    settings = Settings(modes=("drafter", "lookup", "both"), verify=("coupled", "rejection"), simulate_acceptance=3.0)
    named = {t: [v.name for v in variants(settings, "drafter", t)] for t in (0.0, 1.0)}
    assert named[0.0] == ["plain", "drafter", "both"]
    assert named[1.0] == ["plain", "drafter coupled", "drafter rejection", "both coupled", "both rejection"]
    lookup = variants(settings, "lookup", 1.0)
    assert [v.name for v in lookup] == ["plain", "lookup"]
    assert dict(lookup[1].options) == {"speculative": True, "simulate_acceptance": 3.0, "lookup": True, "verify": "coupled"}
    assert dict(variants(settings, "drafter", 0.0)[1].options)["lookup"] is False
    argmax = variants(Settings(modes=("drafter",), verify=("argmax",)), "drafter", 1.0)[1]
    assert dict(argmax.options) == {"speculative": True, "lookup": False, "verify": "coupled", "argmax_drafts": True}


def test_lookup_alone_runs_without_a_drafter(fake_model: Any, prompt_file: Path) -> None:
    result = acceptance(fake_model(draft=False), prompts=[prompt_file], modes=("lookup",), temperatures=(0.0,), **SHORT)
    assert result.complete and list(result.figures["mine"]) == ["lookup T=0"]
    with pytest.raises(ValueError, match="no drafter"):
        acceptance(fake_model(draft=False), prompts=[prompt_file], modes=("both",), **SHORT)


def test_an_interrupt_keeps_what_is_done_and_resume_goes_on(fake_model: Any, prompt_file: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "run.json", []
    options = {"prompts": [prompt_file], "modes": ("drafter",), "out": out, **SHORT}
    part = acceptance(fake_model(stop_after=11), on_interrupt=lambda: told.append(1), **options)
    assert told == [1] and not part.complete and len(part.data["answers"]) == 11
    assert "INCOMPLETE: 11 of" in part.table() and Evaluation.load(out).data == part.data
    journal = Path(f"{out}.journal")
    with journal.open("a") as file:
        file.write('{"group": "dra')  # what a kill in the middle of a write leaves
    with pytest.raises(FileExistsError):
        acceptance(fake_model(), **options)
    with pytest.raises(ValueError, match=r"settings: expected .*found"):
        acceptance(fake_model(), resume=True, **(options | {"max_new_tokens": 31}))
    model = fake_model()
    whole = acceptance(model, resume=True, **options)
    assert whole.complete and not journal.exists()
    assert len(model.calls) == whole.data["answers_expected"] - 11
    assert comparable(whole) == comparable(acceptance(fake_model(), **(options | {"out": None})))
    assert acceptance(fake_model(stop_after=0), resume=True, **options).data == whole.data  # nothing is left to do


def test_an_interrupt_is_raised_when_nobody_asked(fake_model: Any, prompt_file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        acceptance(fake_model(stop_after=3), prompts=[prompt_file], modes=("drafter",), out=tmp_path / "run.json", **SHORT)
    assert (tmp_path / "run.json.journal").read_text().count("\n") == 4


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shards_merge_into_the_same_result(fake_model: Any, prompt_file: Path, tmp_path: Path, parts: int) -> None:
    options = {"prompts": [prompt_file], "modes": ("drafter", "both"), **(SHORT | {"scenarios": ("math",)}), "limit": 3}
    whole = acceptance(fake_model(), **options)
    files = []
    for number in range(1, parts + 1):
        files.append(tmp_path / f"{number}.json")
        part = acceptance(fake_model(), shard=(number, parts), out=files[-1], **options)
        assert part.complete
    assert comparable(merge(files[::-1])) == comparable(whole)
    if parts == 3:
        assert not merge(files[:2]).complete
        with pytest.raises(ValueError, match="in another result too"):
            merge([files[0], *files])
        other = acceptance(fake_model(), **(options | {"seed": 1}))
        with pytest.raises(ValueError, match="result 2: settings"):
            merge([whole, other])


def test_a_prompt_that_does_not_fit_is_left_out_and_counted(fake_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"turns": ["a"]}) + "\n" + json.dumps({"turns": ["b" * 5000]}) + "\n")
    result = acceptance(fake_model(), prompts=[path], modes=("drafter",), temperatures=(0.0,), **SHORT)
    assert result.complete and result.figures["long"]["drafter T=0"]["requests"] == 1
    assert "2 answers left out" in result.table()


def test_rejection_is_not_the_plain_text(fake_model: Any, prompt_file: Path) -> None:
    result = acceptance(
        fake_model(), prompts=[prompt_file], modes=("drafter",), temperatures=(1.0,), verify=("rejection",), **SHORT
    )
    assert result.figures["mine"]["drafter T=1"]["same_as_plain"] == 0


def test_plot(fake_model: Any, prompt_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="not run: matplotlib is not installed")
    result = acceptance(fake_model(), prompts=[prompt_file], modes=("drafter",), **(SHORT | {"scenarios": ("math",)}), limit=2)
    figure = result.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[:4] == b"\x89PNG"
    assert len(figure.axes) == 3
    assert "<pre>" in result._repr_html_()


@pytest.mark.parametrize(
    "wrong",
    [
        {"modes": ()}, {"modes": ("draft",)}, {"modes": ("both", "both")}, {"verify": ("exact",)}, {"temperatures": ()},
        {"temperatures": (-1.0,)}, {"temperatures": (1.0, 1.0)}, {"limit": 0}, {"width": 0}, {"max_new_tokens": 0},
    ],
)  # fmt: skip
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_wrong_calls(fake_model: Any, prompt_file: Path) -> None:
    with pytest.raises(TypeError, match="either settings or its fields"):
        acceptance(fake_model(), settings=Settings(), limit=3)
    with pytest.raises(ValueError, match="shard: expected i/n"):
        acceptance(fake_model(), shard=(3, 2))
    with pytest.raises(ValueError, match="at least one result"):
        merge([])
    with pytest.raises(ValueError, match="expected a result"):
        Evaluation.load(prompt_file)
