"""A rank's benchmark: how experts are drawn, arithmetic of its figures, and all of it over a made-up driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _probe
from mimo_ultraspeed.benchmark import rank as module
from mimo_ultraspeed.benchmark.rank import bench_rank
from mimo_ultraspeed.benchmark.rank_result import Operation, Profile, RankResult, Trace
from mimo_ultraspeed.benchmark.routing import Routing, distinct
from mimo_ultraspeed.benchmark.step_model import union
from mimo_ultraspeed.cli import main
from mimo_ultraspeed.errors import EngineError

# ---- routing ----


@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
def test_drawn_experts(overlap: float) -> None:
    chosen = Routing(overlap).draw(np.random.default_rng(0), 4000, 8, 64, 4)
    assert chosen.shape == (4000, 8, 4)
    assert (np.diff(chosen.astype(int), axis=-1) > 0).all(), "those of a row are distinct and ascending"
    counts = np.bincount(chosen[:, 0].reshape(-1), minlength=64)
    assert counts.min() > 180 and counts.max() < 320, "of 250 each"
    kept = (chosen[:, 1:, :, None] == chosen[:, :-1, None, :]).any(axis=-1).mean()
    # What is drawn anew is a kept one by chance now and then.
    assert overlap <= kept < overlap + (1 - overlap) * 0.08 + 1e-9
    assert distinct(chosen).mean() == pytest.approx(union(64, 4, 8, overlap), rel=0.03)


def test_all_experts_can_be_drawn() -> None:
    chosen = Routing(0.5).draw(np.random.default_rng(0), 3, 2, 4, 4)
    np.testing.assert_array_equal(chosen, np.broadcast_to(np.arange(4), (3, 2, 4)))
    assert distinct(chosen).tolist() == [4, 4, 4]


def test_routing_in_words() -> None:
    assert Routing.parse("uniform") == Routing() == Routing.parse("overlap=0")
    assert Routing.parse("overlap=0.4").overlap == 0.4
    assert [str(Routing(x)) for x in (0.0, 0.4)] == ["uniform", "overlap=0.4"]
    for text in ("", "overlap", "overlap=", "overlap=2", "overlap=-0.1", "zipf=1"):
        with pytest.raises(ValueError, match=r"expected 'uniform' or 'overlap=P'"):
            Routing.parse(text)


# ---- arithmetic ----


def test_bytes_of_an_operation() -> None:
    assert Operation(0, "expert_up", 3, 10, 7, 0, 0).bytes(8, 100, 2.5) == 10 + 7 * 2.5
    assert Operation(0, "attention", 3, 0, 0, 4, 0).bytes(8, 100, 0) == 4 * 108
    assert Operation(0, "attention", 3, 0, 0, 4, 16).bytes(8, 100, 0) == 4 * (15 + 8)
    assert Operation(0, "attention", 3, 0, 0, 4, 1000).bytes(1, 100, 0) == 4 * 101


def test_a_profile_of_stamps() -> None:
    """Two multiprocessors: qkv with three CTAs, then two launches of attention."""
    launches = [("qkv", "qkv", 0, 3, 0), ("attend_chunks", "attention", 0, 2, 3), ("attend_merge", "attention", 0, 1, 5)]
    stamps = np.array(
        [[1000, 1100, 0], [1000, 1050, 1], [1040, 1080, 1], [1110, 1150, 0], [1110, 1130, 1], [1160, 1200, 0]], np.uint64
    )
    profile = Profile.of(Trace(launches, stamps), {("qkv", 0): 640.0, ("attention", 0): 10.0})
    assert profile.seconds == pytest.approx(200e-9)
    qkv, attention = profile.phases
    assert (qkv.name, qkv.launches, qkv.bytes) == ("qkv", 1, 640.0)
    assert (qkv.seconds, qkv.gap) == pytest.approx((100e-9, 0.0))
    assert qkv.busy == pytest.approx((100 + 80) / 200)
    assert (attention.launches, attention.bytes) == (2, 10.0)
    assert (attention.seconds, attention.gap) == pytest.approx((80e-9, 20e-9))
    assert attention.busy == pytest.approx((40 + 20 + 40) / 160)
    assert profile.sm_busy == pytest.approx(((100 + 40 + 40) / 200, (80 + 20) / 200))
    assert profile.tick == 10


# ---- plans ----


@pytest.fixture(scope="module")
def plan() -> RankResult:
    return bench_rank("tiny", world=2, plan_only=True, context=100, routing="overlap=0.5", progress=False)


def test_a_plan(plan: RankResult) -> None:
    assert not plan.samples
    assert dict(plan.memory["plain"])["weights"] > 0
    text = str(plan)
    for part in ("rank 0 of 2 of tiny", "not measured", "overlap=0.5", "keys and values", "step 8", "not measured: tokens a round"):
        assert part in text
    assert "ms measured" not in text
    assert plan.step_bytes(8) > plan.step_bytes(1)
    assert plan.expected_experts(8) == union(8, 2, 8, 0.5)
    assert json.loads(json.dumps(plan.to_dict()))["settings"]["routing"] == "overlap=0.5"
    with pytest.raises(ValueError, match="a timeline needs a measurement"):
        plan.plot()


def test_exchanges_between_ranks(plan: RankResult) -> None:
    # embedding, two a layer, head; the drafter also its fc
    assert plan.exchanges(False) == 1 + 2 * 4 + 1
    layers = 1 + max(op.layer for op in plan.operations if op.draft)
    assert plan.exchanges(True) == 2 + 2 * layers + 1
    alone = bench_rank("tiny", world=1, plan_only=True, progress=False)
    assert alone.exchanges(False) == alone.exchanges(True) == 0


def test_projections(plan: RankResult) -> None:
    plan = RankResult(**{name: getattr(plan, name) for name in plan.__dataclass_fields__} | {"samples": {}})
    assert [p.path for p in plan.projections()] == [None, None]
    plan.samples = {
        "plain": {"step 1": [2e-3], "step 8": [4e-3, 6e-3], "draft": [1e-3]},
        "resident": {"step 1": [1e-3], "step 8": [4e-3]},
    }
    assert plan.ratio("step 1") == 2
    assert plan.ratio("draft") is None
    assert [(p.width, p.path) for p in plan.projections() if p.path] == [(1, "plain"), (1, "resident"), (8, "plain")]
    one, eight = (p for p in plan.projections() if p.path == "plain")
    assert one.speeds == ((1.0, pytest.approx(1 / (2e-3 + 10 * 4.5e-6))),)
    count = plan.exchanges(False) + plan.exchanges(True)
    assert (eight.exchanges, eight.communication) == (count, pytest.approx(count * 4.5e-6))
    assert eight.speeds[0] == (6.30, pytest.approx(6.30 / (6e-3 + count * 4.5e-6)))


def test_what_is_asked_for_is_checked() -> None:
    for wrong, text in (
        ({"world": 0}, "world: expected 1 to 8"),
        ({"world": 2, "rank": 2}, "rank: expected 0 to 1"),
        ({"widths": [9]}, "widths: expected numbers from 1 to 8"),
        ({"widths": []}, "widths"),
        ({"rounds": 0}, "rounds"),
        ({"gpu": "H999"}, "gpu: expected H100"),
        ({"routing": "zipf"}, "routing"),
        ({"device": "cpu", "plan_only": False}, "device: expected 'cuda'"),
        ({"world": 2, "context": 0}, "context: expected 1 to"),
    ):
        with pytest.raises(ValueError, match=text):
            bench_rank("tiny", **{"plan_only": True, "progress": False} | wrong)  # type: ignore[arg-type]


def test_too_large_is_one_error_with_the_table() -> None:
    with pytest.raises(MemoryError, match=r"does not fit on the GPU\n[\s\S]*MB  weights[\s\S]*free on the GPU"):
        bench_rank("tiny", world=1, plan_only=True, copied=90 * 10**9, progress=False)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "why_cuda_is_off", lambda: "no driver of an NVIDIA GPU here")
    with pytest.raises(NotImplementedError, match=r"CUDA is off: no driver of an NVIDIA GPU here\. A plan .*--plan-only"):
        bench_rank("tiny", world=2, progress=False)
    assert main(["bench", "--shape", "tiny", "--world", "2", "--device", "cuda"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ---- measured, on a driver made up ----


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    if not hasattr(_probe, "cuda_fake"):
        pytest.skip("not run: no C++ compiler when the package was built")
    image = tmp_path / "plain.fatbin"
    image.write_bytes(b"kernels")
    monkeypatch.setattr(module, "core", _probe)
    monkeypatch.setattr(module, "why_cuda_is_off", lambda: None)
    monkeypatch.setattr(module, "cuda_device", lambda device: 0)
    monkeypatch.setattr(module, "cuda_image", lambda path: image)
    monkeypatch.setattr(module, "_COPIED", 1 << 16)
    _probe.cuda_fake(memory=10**9)
    yield
    _probe.cuda_fake()


@pytest.mark.usefixtures("gpu")
def test_a_measurement(tmp_path: Path) -> None:
    result = bench_rank("tiny", world=2, context=100, rounds=2, widths=[1, 8], copied=1 << 16, progress=False)
    assert list(result.samples) == ["plain", "resident"]
    for path, samples in result.samples.items():
        assert {name: len(values) for name, values in samples.items()} == {
            "copy": 32, "step 1": 32, "bytes 1": 32, "step 8": 32, "bytes 8": 32, "draft": 16,
        }  # fmt: skip
        assert set(samples["bytes 1"]) == {result.step_bytes(1)}, "a row chooses as many experts as any other"
        assert np.mean(samples["bytes 8"]) == pytest.approx(result.step_bytes(8), rel=0.05)
        rates = np.array(samples["bytes 8"]) / np.array(samples["step 8"])
        assert result.rate(path, "step 8") == pytest.approx(np.median(rates))
        assert result.fraction(path, "draft") == pytest.approx((result.rate(path, "draft") or 0) / np.median(samples["copy"]))
    assert set(result.profiles) == {f"{name}, {path}" for name in ("step 1", "step 8", "draft") for path in result.samples}
    for path, samples in result.samples.items():
        phases = {phase.name: phase for phase in result.profiles[f"step 8, {path}"].phases}
        assert set(phases) == {op.name for op in result.operations if not op.draft}
        assert sum(phase.bytes for phase in phases.values()) in samples["bytes 8"]
    text = str(result)
    for part in (
        "measured on a GPU made up by a test",
        "copy bandwidth",
        "ms measured (resident) + 10 exchanges of 4.5 us",
        "SMs busy",
    ):
        assert part in text
    assert "(not measured: tokens a round / (time + communication))" in text
    result.write_json(tmp_path / "rank.json")
    read = json.loads((tmp_path / "rank.json").read_text())
    assert read["machine"]["gpu"] == "a GPU made up by a test"
    assert read["memory"]["resident"]["weights"] > 0
    assert read["figures"]["plain"]["step 8"]["rate"] == result.rate("plain", "step 8")
    assert read["ratios"]["step 8"] == result.ratio("step 8")
    assert _probe.cuda_fake_stats()["live_blocks"] == 0


@pytest.mark.usefixtures("gpu")
def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"world": 2, "context": 9, "rounds": 1, "widths": [1], "copied": 1 << 12, "progress": False}
    assert list(bench_rank("tiny", paths=["resident"], **settings).samples) == ["resident"]
    both = bench_rank("tiny", paths=["plain", "resident-e4m3"], **settings)
    ratio = both.ratio("step 1", "resident-e4m3")
    assert ratio and f"{ratio:.2f}" in next(line for line in str(both).splitlines() if line.startswith("step 1, resident-e4m3"))
    assert "ms measured (resident-e4m3)" in str(both) and both.ratio("step 1") is None
    for wrong, text in ((["other"], "'plain' or 'resident' or 'resident-e4m3'"), ([], "at least one")):
        with pytest.raises(ValueError, match=text):
            bench_rank("tiny", paths=wrong, **settings)
    monkeypatch.setattr(module, "cuda_image", lambda path: tmp_path / ("plain.fatbin" if path == "plain" else "none"))
    assert list(bench_rank("tiny", **settings).samples) == ["plain"]
    with pytest.raises(NotImplementedError, match="was not built"):
        bench_rank("tiny", paths=["resident"], **settings)


@pytest.mark.usefixtures("gpu")
def test_a_timeline(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="not run: no matplotlib")
    result = bench_rank("tiny", world=2, context=9, rounds=1, widths=[2], copied=1 << 16, progress=False)
    result.plot(tmp_path / "rank.png")
    assert (tmp_path / "rank.png").stat().st_size > 5000


@pytest.mark.usefixtures("gpu")
def test_another_choice_than_drawn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        """A rank that does not hear what was drawn."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            self.rank = _probe.Rank(*args, **settings)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.rank, name)

        def draw(self, experts: Any) -> None:
            pass

    class Core:
        Engine, Rank = _probe.Engine, Deaf

    monkeypatch.setattr(module, "core", Core)
    with pytest.raises(EngineError, match="chose other experts than were drawn"):
        bench_rank("tiny", world=2, context=9, copied=1 << 16, progress=False)


@pytest.mark.usefixtures("gpu")
def test_an_interrupt_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Session, "_traces", interrupt)
    result = bench_rank("tiny", world=2, context=9, rounds=1, copied=1 << 16, progress=False)
    assert result.interrupted
    assert "interrupted" in str(result)
    assert not result.profiles


# ---- the command ----


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    words = ["bench", "--shape", "tiny", "--world", "2", "--rank", "1", "--plan-only", "--width", "1,4", "--all-reduce", "9"]
    assert main([*words, "--gpu", "B200", "--context", "50", "--routing", "overlap=0.25", "--json", str(path)]) == 0
    assert "rank 1 of 2 of tiny" in capsys.readouterr().out
    read = json.loads(path.read_text())
    assert read["settings"]["widths"] == [1, 4]
    assert read["assumptions"]["all_reduce"] == pytest.approx(9e-6)
    assert read["assumptions"]["overlap"] == 0.25
    assert read["planned_for"] == "B200"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--rank", "0", "--shape", "tiny"], "--rank: of one of several GPUs"),
        (["--world", "2"], "--world: expected a --shape"),
        (["--world", "2", "model", "--shape", "tiny"], "--world: expected a --shape"),
        (["--world", "2", "--shape", "tiny", "--plan-only", "--plot", "a.png"], "--plot: a timeline needs"),
        (["--shape", "tiny", "--plan-only"], "--plan-only: of one of several GPUs"),
    ],
)
def test_the_commands_errors(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) != 0
    assert text in capsys.readouterr().err
