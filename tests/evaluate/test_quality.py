"""Quality: figures against sums made by hand, tables, errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed import evaluate
from mimo_ultraspeed.__main__ import main
from mimo_ultraspeed.make import make


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model", weights="bf16", progress=False)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same draws as `source`, its experts in four bits."""
    return make(tmp_path_factory.mktemp("rounded") / "model", weights="mxfp4", progress=False)


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    (tmp_path / "prose.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5)
    rows = [{"text": "def f(x):"}, {"token_ids": [5, 6, 7]}, {"prompt": [1, 2], "answer": [3]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tmp_path / "prose.txt", tmp_path / "rows.jsonl"]


def test_figures_are_those_made_by_hand(source: Path, rounded: Path, texts: list[Path]) -> None:
    found = evaluate.quality(
        {"4 bits": rounded, "same": source}, texts, reference=source, window=64, precision="exact", threads=1, progress=False
    )
    ids = [*texts[0].read_bytes()]
    windows = [ids[at : at + 64] for at in range(0, len(ids) - 1, 64)]
    logs = {}
    for name, folder in (("reference", source), ("4 bits", rounded)):
        with mu.Model.from_pretrained(folder, precision="exact", threads=1, progress=False) as model:
            logits = np.concatenate([model.logits(one[:-1]) for one in windows]).astype(np.float64)
        logs[name] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.concatenate([one[1:] for one in windows])
    one = found.figures["prose"]["4 bits"]
    p, q = logs["reference"], logs["4 bits"]
    nll = {name: -log[np.arange(len(targets)), targets].mean() for name, log in logs.items()}
    assert one["tokens"] == len(targets) and one["windows"] == len(windows)
    assert one["perplexity"] == pytest.approx(np.exp(nll["4 bits"]), rel=1e-6)
    assert one["ratio"] == pytest.approx(np.exp(nll["4 bits"] - nll["reference"]), rel=1e-6)
    assert one["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    assert one["kl"] > 1e-4
    assert one["top1"] == (p.argmax(1) == q.argmax(1)).mean() < 1
    for name in ("perplexity", "ratio", "kl", "top1"):
        low, high = one[f"{name}_ci95"]
        assert low <= one[name] <= high and low < high
    same = found.figures["all"]["same"]
    assert (same["ratio"], same["kl"], same["top1"]) == (1.0, 0.0, 1.0)
    assert same["tokens"] == len(targets) + sum(len(one) - 1 for one in ("def f(x):", [5, 6, 7], [1, 2, 3]))


def test_command(source: Path, rounded: Path, texts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "quality.json"
    words = ["evaluate", "quality", f"four={rounded}", "--reference", str(source), "--window", "32", "--threads", "1"]
    files = [word for text in texts for word in ("--text", str(text))]
    assert main([*words, *files, "--tokens", "70", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("prose", "rows", "all", "four", "reference", "perplexity", "bootstrap over windows"))
    loaded = evaluate.Quality.load(out)
    assert str(loaded) + "\n" == told
    assert loaded.figures["prose"]["four"]["windows"] == 2
    assert {row["model"] for row in loaded.data["windows"]} == {"reference", "four"}
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a result of `evaluate quality`"):
        evaluate.Quality.load(tmp_path / "other.json")


def test_wrong_words(source: Path, texts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(models, files=texts, **options):
        return evaluate.quality(models, files, reference=source, threads=1, progress=False, **options)

    with pytest.raises(ValueError, match="models: expected different names"):
        ask([source, source])
    with pytest.raises(ValueError, match='expected another name than "reference"'):
        ask({"reference": source})
    with pytest.raises(ValueError, match="texts: expected at least one"):
        ask([source], [])
    with pytest.raises(ValueError, match="window: expected at least 2 tokens, found 1"):
        ask({"a": source}, window=1)
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: expected a GGUF file"):
        pytest.importorskip("llama_cpp", reason="not run: no llama-cpp-python")
        ask(["llama-cpp:none.gguf"])
    small = make(tmp_path / "small", overrides={"vocab_size": 300}, progress=False)
    with pytest.raises(ValueError, match="small: expected the reference's vocabulary of 512, found 300"):
        ask([small])
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError, match="pip install llama-cpp-python"):
        ask(["llama-cpp:none.gguf"])
