"""The tape as text: a changed model, or a changed plan of it, shows up as a difference to a golden file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("shape", ["tiny", "flash", "v2.5", "pro"])
def test_dump(shape: str, tmp_path: Path) -> None:
    path = make(tmp_path / "model", shape=shape, headers_only=True, progress=False)
    engine = _probe.Engine(*Checkpoint.open(path).core_arguments(), threads=1)
    text = engine.plan(8)
    golden = GOLDEN / f"{shape}.txt"
    if os.environ.get("MIMO_WRITE_GOLDENS") == "1":
        golden.write_text(text)
    assert text == golden.read_text()
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("shape", ["tiny", "pro"])
def test_dump_of_a_drafter(shape: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path / "model", shape=shape, draft=True, headers_only=True, progress=False))
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    config, tensors, files = checkpoint.core_arguments()
    files += [str(path) for path in drafter.files]
    text = _probe.Engine(config, tensors, files, threads=1, draft=drafter.to_core()).plan(8, draft=True)
    golden = GOLDEN / f"{shape}_draft.txt"
    if os.environ.get("MIMO_WRITE_GOLDENS") == "1":
        golden.write_text(text)
    assert text == golden.read_text()


def test_rows_are_checked(tmp_path: Path) -> None:
    engine = _probe.Engine(*Checkpoint.open(make(tmp_path / "model", progress=False)).core_arguments(), threads=1)
    with pytest.raises(ValueError, match="rows: expected 1 to 128, found 0"):
        engine.plan(0)
