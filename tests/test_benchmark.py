"""`bench`: arithmetic on made-up samples, and a tiny model measured by function and by command. No figure is asserted."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed.__main__ import main
from mimo_ultraspeed.benchmark import made, measure
from mimo_ultraspeed.benchmark.figures import breakdown, figures, middle_profile, rate_together, widths
from mimo_ultraspeed.benchmark.result import BenchResult, Run
from mimo_ultraspeed.benchmark.settings import Settings
from mimo_ultraspeed.make import make

SMALL: dict[str, Any] = {"prompt_tokens": (8, 40), "new_tokens": 6, "widths": (1, 2, 8), "batch": 3, "rounds": 2, "progress": False}
WORDS = ["--prompt-tokens", "8,40", "--new-tokens", "6", "--widths", "1..3,8", "--batch", "3", "--rounds", "2", "--threads", "2"]


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "_PROBE_SECONDS", 0.002)


def op(busy: int, wait: int, bytes_read: int = 0, macs: int = 0) -> dict[str, int]:
    return {"calls": 1, "busy_ns": busy, "wait_ns": wait, "wall_ns": 0, "bytes": bytes_read, "macs": macs}


def profile(scale: int = 1, wall: int | None = 1_250_000) -> dict[str, Any]:
    """Ten steps of two threads: 100 us a step inside the engine, 80 of them in kernels."""
    ops = {
        "head": op(busy=400_000 * scale, wait=0, bytes_read=2_000_000, macs=4_000_000),
        "qkv": op(busy=1_200_000 * scale, wait=400_000 * scale, bytes_read=8_000_000),
    }
    out = {"steps": 10, "rows": 10, "total_ns": 1_000_000 * scale, "read_bandwidth": 20e9, "ops": ops}
    return out if wall is None else out | {"wall_ns": wall * scale}


def made_up() -> Run:
    return Run(
        threads=2,
        backend="cpu:avx2",
        load={"seconds": 0.5, "bytes": 2 * 10**9},
        memory={"total": 1 << 30, "kv_per_position": 1024, "kv_fixed": 0, "read_per_token": 100_000_000, "process_peak": 2 << 30},
        samples={
            "read_bandwidth": [20e9, 25e9, 40e9],
            "int8_peak": [100e9, 100e9, 100e9],
            "decode": [0.01, 0.02, 0.005],
            "prefill 100": [0.5, 0.25, 1.0],
            "step 1": [0.01, 0.02, 0.01],
            "step 8": [0.02, 0.02, 0.03],
            "batch": [500.0, 500.0, 400.0],
            "batch seconds": [1.0, 1.0, 1.0],
        },
        profiles={"decode": [profile()], "prefill 100": [{**profile(wall=None), "steps": 1}], "step 8": [profile(wall=None)]},
    )


def test_figures_are_medians_and_ratios_of_the_same_round() -> None:
    found = figures(made_up())
    decode = found["decode"]
    assert (decode.unit, decode.median, decode.low, decode.high, decode.count) == ("tokens/s", 100.0, 50.0, 200.0, 3)
    assert decode.of_read == pytest.approx(0.5)  # 0.5, 0.2 and 0.5
    prefill = found["prefill 100"]
    assert (prefill.median, prefill.low, prefill.high) == (200.0, 100.0, 400.0)
    assert prefill.of_int8 == pytest.approx(4_000_000 / 0.5 / 100e9)
    assert found["step 8"].ratio == 2.0  # 2, 1 and 3
    assert found["step 8"].of_read == pytest.approx(1_000_000 / 0.02 / 25e9)  # 10 MB in the profile's ten steps
    assert found["step 1"].of_read is None and found["step 1"].ratio == 1.0
    assert (found["batch"].median, found["batch"].ratio) == (500.0, 5.0)  # 5, 10 and 2 times
    assert (found["read_bandwidth"].median, found["int8_peak"].median) == (25.0, 100.0)
    assert "batch seconds" not in found
    assert widths(made_up()) == [1, 8]


def test_answers_together_are_timed_while_all_of_them_are_decoded() -> None:
    early, late = [1.0, 3.0, 3.5, 4.0, 4.5, 5.0], [3.0, 3.5, 4.0, 4.5, 5.0, 5.5]  # from 1 to 3 the second's prompt is computed
    assert rate_together([early, late]) == 4.0  # four tokens of each from 3 to 5
    assert rate_together([early]) == 5 / 4
    assert rate_together([[1.0, 2.0], [4.0, 5.0]]) == 3 / 4  # never together: all but the first, from 1 to 5


def test_a_drafted_block_pays_from_the_cost_of_its_round() -> None:
    run = made_up()
    run.samples["draft 8"] = [0.004, 0.005, 0.009]
    draft = figures(run)["draft 8"]
    assert (draft.unit, draft.median, draft.low) == ("ms", 5.0, 4.0)
    assert draft.ratio == pytest.approx((0.005 + 0.02) / 0.01)
    told = str(result_of(run))
    assert "drafting 7 tokens, ms         5.0      4.0      9.0   pays above 2.5 a round" in told
    assert max(map(len, told.splitlines())) <= 80
    del run.samples["step 8"]  # as with other widths: nothing to compare with
    assert figures(run)["draft 8"].ratio is None
    assert "pays" not in str(result_of(run))


def test_an_interrupted_round_has_figures_too() -> None:
    run = made_up()
    run.samples = {"read_bandwidth": [20e9, 20e9], "decode": [0.01]}
    run.profiles = {}
    assert figures(run)["decode"].of_read == pytest.approx(0.5)
    assert set(figures(run)) == {"read_bandwidth", "decode"}


def test_a_step_in_parts() -> None:
    parts = breakdown(profile(), threads=2)
    assert parts.seconds == pytest.approx(125e-6)
    assert (parts.kernels, parts.waiting, parts.between) == pytest.approx((0.64, 0.16, 0.2))
    assert parts.outside == pytest.approx(0.36)
    assert [line.name for line in parts.ops] == ["qkv", "head"]
    qkv, head = parts.ops
    assert (qkv.seconds, qkv.share, qkv.waiting) == pytest.approx((80e-6, 0.64, 0.25))
    assert (qkv.read_rate, head.mac_rate) == pytest.approx((10e9, 20e9))
    inside = breakdown(profile(wall=None), threads=2)
    assert (inside.seconds, inside.between) == pytest.approx((100e-6, 0.0))


def test_the_middle_profile_is_of_one_round() -> None:
    rounds = [profile(scale) for scale in (9, 2, 4, 3)]
    assert middle_profile(rounds) is rounds[3]
    assert middle_profile(rounds[:1]) is rounds[0]


def result_of(*runs: Run, **changes: Any) -> BenchResult:
    model = {"name": "made-up", "layers": 2, "hidden": 64, "vocabulary": 512, "experts": 8, "experts_per_token": 2}
    machine = {
        "processor": "Some CPU: avx2",
        "system": "x",
        "python": "3",
        "cores": 2,
        "memory_nodes": 1,
        "load_average": [0.5, 1.5],
    }
    settings = {"precision": "fast", "batch": 16}
    return BenchResult(model, settings, machine, "1.0", "abc", "2026-01-01T00:00:00+00:00", list(runs), **changes)


def test_the_report_fits_a_narrow_terminal() -> None:
    one = made_up()
    told = str(result_of(one))
    assert max(map(len, told.splitlines())) <= 80
    for part in (
        "made-up: 2 layers, hidden 64, 2 of 8 experts, fast",
        "Some CPU, 2 cores, load average 0.5 to 1.5",
        "0.50 s, 4.00 GB/s of 1.9 GiB packed",
        "process peak 2.0 GiB",
        "decode, tokens/s            100.0     50.0    200.0   50% of read bandwidth",
        "16 at once, tokens/s        500.0    400.0    500.0   5.0 x one alone",
        "decoding one token: 0.12 ms",
        "outside kernels   45.0  36.0%   at barriers 16.0%, between steps 20.0%",
    ):
        assert part in told
    assert "interrupted" not in told and "medians" not in told
    other = made_up()
    other.threads, other.samples = 4, {"decode": [0.001]}
    several = str(result_of(one, other, interrupted=True))
    assert "2 thr    4 thr" in several and several.endswith("interrupted: what was complete by then")
    assert ["step", "8,", "ms", "20.00", "-"] in [line.split() for line in several.splitlines()]


def test_a_tiny_model_is_measured(tiny_path: Path, tmp_path: Path) -> None:
    result = mu.bench(tiny_path, threads=[1, 2], **SMALL)
    assert not result.interrupted and [run.threads for run in result.runs] == [1, 2]
    result.write_json(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["schema"] == 1 and written["settings"]["threads"] == [1, 2]
    assert written["model"] == {
        "name": "model",
        "layers": 4,
        "hidden": 160,
        "vocabulary": 512,
        "experts": 8,
        "experts_per_token": 2,
    }
    for run in written["runs"]:
        assert run["backend"].startswith("cpu:") and run["load"]["seconds"] > 0
        counts = {name: len(values) for name, values in run["samples"].items() if name != "int8_peak"}
        assert counts == {
            "read_bandwidth": 2, "decode": 2, "prefill 8": 2, "prefill 40": 2, "step 1": 6, "step 2": 6, "step 8": 6,
            "batch seconds": 2, "batch": 2,
        }  # fmt: skip
        assert all(value > 0 for values in run["samples"].values() for value in values)
        rows = {name: {(p["steps"], p["rows"]) for p in profiles} for name, profiles in run["profiles"].items()}
        assert rows == {"decode": {(6, 6)}, "step 8": {(8, 64)}, "prefill 40": {(1, 40)}}
        assert all(p["wall_ns"] > 0 for p in run["profiles"]["decode"])
        assert run["figures"]["decode"]["unit"] == "tokens/s" and run["figures"]["step 8"]["ratio"] > 0
    assert "process_peak" in written["runs"][0]["memory"]
    assert max(map(len, str(result).splitlines())) <= 80


def test_answers_together_are_read_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or those that are not read would wait for room in their queues, of some three hundred tokens, and be timed waiting."""
    stream, reading, ahead = mu.Model.stream, [], []

    class Watched:
        def __init__(self, inner: Any) -> None:
            self.inner, self.read = inner, 0

        def __enter__(self) -> Watched:
            reading.append(self)
            return self

        def __exit__(self, *raised: Any) -> None:
            reading.remove(self)
            self.inner.close()

        def __iter__(self) -> Iterator[Any]:
            for piece in self.inner:
                self.read += 1
                ahead.append(self.read - min(one.read for one in reading))
                yield piece

    monkeypatch.setattr(mu.Model, "stream", lambda *args, **options: Watched(stream(*args, **options)))
    mu.bench(make(tmp_path / "model", progress=False), threads=1, **SMALL)
    assert max(ahead) == 1


def test_a_drafter_is_measured_where_there_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "model", draft={}, progress=False)
    options = SMALL | {"batch": 0, "new_tokens": 40}
    run = mu.bench(folder, threads=2, **options).runs[0]
    assert len(run.samples["draft 8"]) == 2 and min(run.samples["draft 8"]) > 0
    for profile in run.profiles["draft 8"]:
        assert profile["steps"] > 2 and profile["rows"] == 8 * profile["steps"]
        assert set(profile["ops"]) >= {"draft_fuse", "draft_kv", "draft_embed", "attention", "dense_up", "head"}
        assert all(op["bytes"] > 0 and op["macs"] > 0 for name, op in profile["ops"].items() if name != "draft_embed")
    assert set(run.profiles["decode"][0]["ops"]).isdisjoint({"draft_fuse", "draft_kv", "draft_embed"})
    without = mu.bench(folder, draft=None, threads=2, **options).runs[0]
    assert "draft 8" not in without.samples and without.memory["weights"] < run.memory["weights"]
    assert main(["bench", str(folder), *WORDS, "--draft", "none"]) == 0
    assert "drafting" not in capsys.readouterr().out
    assert main(["bench", str(folder), *WORDS, "--new-tokens", "40"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"\ndrafting 7 tokens, ms +[\d. ]+ pays above \d\.\d a round\n", told) and "a drafted block of 8: " in told


def test_what_is_not_asked_for_is_not_measured(tiny_path: Path) -> None:
    result = mu.bench(tiny_path, prompt_tokens=8, new_tokens=4, widths=(), batch=0, rounds=50, seconds=1e-9, progress=False)
    assert set(result.runs[0].samples) - {"int8_peak"} == {"read_bandwidth", "decode", "prefill 8"}
    assert len(result.runs[0].samples["decode"]) == 1
    assert set(result.runs[0].profiles) == {"decode", "prefill 8"}
    assert "rows of a step" not in str(result)


def test_an_interrupt_keeps_what_there_is(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure._Session, "_steps", lambda session: os.kill(os.getpid(), signal.SIGINT))
    file = tmp_path / "out.json"
    assert main(["bench", str(tiny_path), *WORDS, "--json", str(file)]) == 130
    told = capsys.readouterr().out
    assert "decode, tokens/s" in told and "interrupted" in told and "rows of a step" not in told
    written = json.loads(file.read_text())
    assert written["interrupted"] and set(written["runs"][0]["samples"]) >= {"decode", "prefill 40"}


def test_an_interrupt_before_anything_was_measured_is_an_interrupt(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure._Session, "_warm_up", lambda session: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        mu.bench(tiny_path, **SMALL)


def test_the_command_prints_the_report(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_path), *WORDS]) == 0
    told = capsys.readouterr()
    for part in ("model: 4 layers", "2 threads, cpu:", "rows of a step", "outside kernels", "a prompt of 40"):
        assert part in told.out
    assert told.err == ""


def test_a_made_shape_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = ["bench", "--shape", "tiny", "--precision", "exact", *WORDS, "num_hidden_layers=2"]
    assert main(words) == 0
    assert "tiny,num_hidden_layers=2: 2 layers, hidden 160, 2 of 8 experts, exact" in capsys.readouterr().out
    folder = tmp_path / "mimo-ultraspeed-bench"
    assert [path.name for path in folder.iterdir()] == ["tiny,num_hidden_layers=2"]
    monkeypatch.setattr(made, "make", None)
    assert made.made_folder("tiny", {"num_hidden_layers": "2"}).parent == folder


def test_a_shape_that_does_not_fit_is_refused_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(made, "available_memory", lambda: 100_000)
    with pytest.raises(MemoryError, match=r"the shape 'tiny' needs .* and 97.7 KiB are free"):
        mu.bench(shape="tiny", progress=False)
    assert not any((tmp_path / "mimo-ultraspeed-bench").iterdir())


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"prompt_tokens": ()}, ValueError, "prompt_tokens: expected at least one number"),
        ({"prompt_tokens": (8, 0)}, ValueError, "prompt_tokens: expected an integer of 1 or more, found 0"),
        ({"new_tokens": 1}, ValueError, "new_tokens: expected an integer of 2 or more, found 1"),
        ({"widths": (1, 129)}, ValueError, "widths: expected an integer from 1 to 128, found 129"),
        ({"widths": "12"}, TypeError, "widths: expected an integer from 1 to 128, found '12'"),
        ({"threads": 0}, ValueError, "threads: expected an integer from 1 to 1024, found 0"),
        ({"batch": 33}, ValueError, "batch: expected an integer from 0 to 32, found 33"),
        ({"rounds": 0}, ValueError, "rounds: expected an integer of 1 or more, found 0"),
        ({"seconds": 0}, ValueError, "seconds: expected more than 0"),
        ({"precision": "fp4"}, ValueError, "precision: expected 'fast' or 'exact', found 'fp4'"),
        ({"shape": "tiny"}, ValueError, "expected a model or a shape, found both"),
        ({"overrides": {"hidden_size": 64}}, ValueError, "overrides: they change a shape"),
        ({"prompt_tokens": 70000}, mu.ContextOverflowError, "need 70128 positions, the model has 65536"),
    ],
)
def test_wrong_arguments(tiny_path: Path, options: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        mu.bench(tiny_path, progress=False, **options)


def test_settings_of_one_number_and_of_generators() -> None:
    settings = Settings.of(
        prompt_tokens=7, new_tokens=2, widths=(w for w in (4, 4, 2)), threads=None, precision="fast", batch=0, rounds=1, seconds=1
    )
    assert (settings.prompt_tokens, settings.widths, settings.threads) == ((7,), (4, 2), (None,))
    assert (settings.positions, settings.profiled_width) == (11, 4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["one", "two"], "expected one model, found one and two"),
        (["hidden_size=64"], "overrides: they change a shape"),
        (["--json", "nowhere/out.json"], "found no nowhere"),
        (["--plot", "out.txt"], "expected a name that ends in .png, .svg, .pdf"),
        (["--shape", "huge"], "shape must be one of tiny"),
        (["missing-model/x"], "missing-model/x"),
    ],
)
def test_errors_are_one_line(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["bench", *words]) == 1
    found = capsys.readouterr().err
    assert found.startswith("error: ") and told in found and found.count("\n") == 1


@pytest.mark.parametrize("words", [["--widths", "4..1"], ["--threads", "two"], ["--widths", "1,"], ["--rounds", "x"], ["--wrong"]])
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    assert caught.value.code == 2


def test_without_matplotlib_the_extra_is_named(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", str(tiny_path), "--plot", "out.png"]) == 1
    assert "pip install 'mimo-ultraspeed[notebook]'" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_is_written(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib", reason="not run: matplotlib is not installed")
    file = tmp_path / f"out.{ending}"
    left, right = result_of(made_up(), made_up()).plot(file).axes
    assert file.stat().st_size > 1000
    assert len(left.containers) == 2 and [t.get_text() for t in right.get_yticklabels()] == ["qkv", "between steps", "head"]
    result_of().plot(file)  # nothing measured
