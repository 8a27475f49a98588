"""The command `train`, from prompts to figures, and what it says when something is missing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mimo_ultraspeed.__main__ import main

Run = Callable[..., subprocess.CompletedProcess[str]]
WITHOUT = "import sys; sys.modules[{0!r}] = None; from mimo_ultraspeed.__main__ import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"Say {number}."], "scenario": "math"}) + "\n" for number in range(4)))
    return path


def test_from_prompts_to_figures(tiny_path: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch", reason="not run: torch is not installed")
    from mimo_ultraspeed.train.trainer import CHECKPOINT, load_training

    before = torch.get_num_threads()
    model = ["--model", str(tiny_path), "--threads", "1"]
    data, run, drafter, figures = (str(tmp_path / name) for name in ("data", "run", "drafter", "figures.json"))
    try:
        assert main(["train", "data", str(prompts), "--out", data, "--tokens", "200", "--max-new-tokens", "12", *model]) == 0
        assert "answer tokens in" in capsys.readouterr().out
        settings = ["--steps", "10", "--anchors", "4", "--taps", "0,3", "--markov-rank", "4"]
        assert main(["train", "drafter", "--data", data, "--out", run, *settings, *model]) == 0
        assert "anchors in" in capsys.readouterr().out
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "run" / "log.csv").exists()
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert not (tmp_path / "run" / "log.png").exists()
    else:
        assert (tmp_path / "run" / "log.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["train", "export", run, drafter]) == 0
    assert sorted(path.name for path in Path(drafter).iterdir()) == ["config.json", "model.safetensors"]
    assert main(["train", "export", run, drafter]) == 1
    assert "expected no drafter there" in capsys.readouterr().err
    for what in (drafter, run):
        command = ["train", "measure", what, str(prompts), "--limit", "2", "--max-new-tokens", "20", "--json", figures, *model]
        assert main(command) == 0
        head, line = capsys.readouterr().out.splitlines()
        assert head.split()[:4] == ["prompts", "drafter", "lookup", "both"] and line.split()[:2] == ["prompts", "2"]
        found = json.loads(Path(figures).read_text())["prompts"]
        assert set(found) == {"drafter", "lookup", "both"} and found["drafter"]["tau"] >= 1
        assert len(found["drafter"]["rounds"]) == 2
        further = ["train", "drafter", "--data", data, "--out", f"{what}-on", "--start", what, "--steps", "1", "--bf16", *model]
        try:
            assert main(further) == 0
        finally:
            torch.set_num_threads(before)
        assert "anchors in" in capsys.readouterr().out
        assert load_training(Path(f"{what}-on") / CHECKPOINT)["options"]["bf16"]


@pytest.mark.parametrize(
    "step",
    ["drafter --data d --out o --steps 1", "export run dest", "measure drafter prompts.jsonl", "qat s --data d --out o --steps 1"],
)
def test_without_torch_the_extra_is_named(run_python: Run, step: str) -> None:
    done = run_python("-c", WITHOUT.format("torch"), "train", *step.split())
    assert done.returncode == 1
    assert done.stderr == "error: training needs torch: pip install mimo-ultraspeed[train]\n"


def test_data_needs_no_torch(run_python: Run, tiny_path: Path, prompts: Path, tmp_path: Path) -> None:
    command = ["train", "data", str(prompts), "--out", str(tmp_path / "data"), "--tokens", "5", "--max-new-tokens", "3"]
    done = run_python("-c", WITHOUT.format("torch"), *command, "--model", str(tiny_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_name_what_was_expected(tiny_path: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(tiny_path)]
    assert main(["train", "data", str(prompts), "--out", str(tmp_path / "d"), "--exclude", str(prompts), *model]) == 1
    assert "a prompt is also in an evaluation set" in capsys.readouterr().err
    assert main(["train", "data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "d"), *model]) == 1
    assert "none.jsonl" in capsys.readouterr().err
    for words in (["train"], ["train", "drafter", "--data", "d", "--out", "o"], ["train", "export"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    capsys.readouterr()
    pytest.importorskip("torch", reason="not run: torch is not installed")
    assert main(["train", "export", str(tmp_path), str(tmp_path / "dest")]) == 1
    assert "training.pt: expected the checkpoint of a run, found none" in capsys.readouterr().err
    assert main(["train", "export", str(prompts), str(tmp_path / "dest")]) == 1
    assert "prompts.jsonl: expected the checkpoint of a run of `train drafter`, found" in capsys.readouterr().err
    assert main(["train", "measure", str(tiny_path), str(prompts)]) == 1
    assert "config.json: expected what `train export` writes, found no" in capsys.readouterr().err
    command = ["train", "drafter", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--steps", "1", *model]
    asked = ["train", "data", str(prompts), "--out", str(tmp_path / "d"), "--templates", "2", *model]
    assert main(asked) == 1
    assert "templates: expected a share from 0 to 1, found 2.0" in capsys.readouterr().err
    assert main([*command, "--start", str(tmp_path / "none")]) == 1
    assert "none: expected the folder of a drafter or of a run, found neither" in capsys.readouterr().err
    assert main([*command, "--loss", "mse"]) == 1
    assert "loss: expected ce, kl, tv, found 'mse'" in capsys.readouterr().err
    assert main([*command, "--taps", "0,x"]) == 1
    assert "taps: expected" in capsys.readouterr().err
    assert main([*command, "--taps", "0,9"]) == 1
    assert "taps: expected" in capsys.readouterr().err
    assert main([*command, "--anchors", "0"]) == 1
    assert "anchors: expected more than 0, found 0" in capsys.readouterr().err
    assert main([*command, "--taps", "0,3"]) == 1
    assert "expected answers to train on, found none" in capsys.readouterr().err
    assert not (tmp_path / "o").exists() and not (tmp_path / "taps").exists()
