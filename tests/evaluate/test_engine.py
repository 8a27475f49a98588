"""Acceptance with the engine itself: a tiny target, a random drafter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.evaluate import Evaluation, acceptance
from mimo_ultraspeed.make_draft import make_draft

SMALL = {"scenarios": ("math", "chat"), "limit": 2, "max_new_tokens": 24, "progress": False, "threads": 2}


@pytest.fixture(scope="module")
def folder(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("drafted") / "model"
    shutil.copytree(tiny_path, target)
    make_draft(target / "dflash", mu.Checkpoint.open(target).config)
    return target


def answered(result: Evaluation) -> list[tuple[str, str]]:
    return [(record["variant"], record["token_ids_sha256"]) for record in result.data["answers"]]


def test_every_mode_and_verifier(folder: Path) -> None:
    verify = ("coupled", "argmax", "rejection")
    result = acceptance(folder, verify=verify, width=4, **SMALL)
    assert result.complete and len(result.figures["all"]) == 10
    for rows in result.figures.values():
        for name, one in rows.items():
            assert one["requests"] == one["same_as_plain"] or "rejection" in name
            assert one["rounds"] <= one["tokens"] <= one["rounds"] + one["speculative_decoding"]["num_accepted_draft_tokens"]
            assert one["drafts_per_round"] > 2 or "lookup" in name
            assert one["verify_seconds"] > 0
    drafter = result.data["model"]["draft"]
    assert drafter["block_size"] == 8 and str(folder.parent) not in str(result.data["model"])


def test_shards_say_the_same(folder: Path) -> None:
    options = {**SMALL, "modes": ("both",), "temperatures": (0.8,), "verify": ("coupled",)}
    whole = acceptance(folder, **options)
    parts = [acceptance(folder, shard=(number, 2), **options) for number in (1, 2)]
    assert sorted(answered(parts[0]) + answered(parts[1])) == sorted(answered(whole))


def test_a_simulated_length_is_what_rounds_give(folder: Path) -> None:
    options = {**SMALL, "max_new_tokens": 200, "modes": ("drafter",), "temperatures": (0.0,), "scenarios": ("math",)}
    result = acceptance(folder, simulate_acceptance=4.0, width=8, **options)
    one = result.figures["math"]["drafter T=0"]
    assert one["same_as_plain"] == 2
    assert one["acceptance_length"] == pytest.approx(4.0, abs=0.7)
    assert "SIMULATED" in result.table()
