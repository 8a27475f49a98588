"""The arithmetic of the step-time model: experts, the pipeline of memory and waits, bytes from a made shape."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_ultraspeed import _core
from mimo_ultraspeed.benchmark import step_model as model
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "step_time.py"
RANKS = 8


def test_union_of_independent_rows() -> None:
    assert model.union(384, 8, 1, 0.0) == 8
    assert model.union(384, 8, 8, 0.0) == pytest.approx(384 * (1 - (376 / 384) ** 8), rel=1e-12)
    assert model.union(384, 8, 8, 1.0) == 8
    assert model.union(8, 8, 8, 0.0) == 8


def test_union_of_overlapping_rows() -> None:
    """Against rows drawn as the model says: each choice is kept with the probability, the others are drawn anew from all."""
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(3000):
        row = rng.choice(64, 4, replace=False)
        seen = set(row.tolist())
        for _ in range(7):
            row = np.where(rng.random(4) < 0.5, row, rng.integers(0, 64, 4))
            seen |= set(row.tolist())
        sizes.append(len(seen))
    assert model.union(64, 4, 8, 0.5) == pytest.approx(np.mean(sizes), rel=0.02)


MIB = float(1 << 20)


def test_without_waits_memory_never_stops() -> None:
    loads = [(3 * MIB, 0.0, 0.0, False), (5 * MIB, 0.0, 0.0, False)]
    assert model.pipeline(loads, MIB, 2 * MIB, 0.0) == pytest.approx(8.0)


def test_a_wait_hides_behind_what_the_ring_holds() -> None:
    loads = [(4 * MIB, 0.0, 1.0, False), (4 * MIB, 2.0, 0.0, False)]  # 1 s of joins, then 2 s of waiting
    # The ring takes 2 MiB while the second stage waits 3 s, then memory stands for 1 s.
    assert model.pipeline(loads, MIB, 2 * MIB, 0.0) == pytest.approx(4 + 3 + 2)
    assert model.pipeline(loads, MIB, 4 * MIB, 0.0) == pytest.approx(8.0)
    # Next to no ring: nothing overlaps.
    assert model.pipeline(loads, MIB, 0.5 * MIB, 0.0) == pytest.approx(4 + 3 + 3.5)


def test_chosen_stages_wait_and_l2_fills_meanwhile() -> None:
    loads = [(2 * MIB, 0.0, 0.0, False), (0.0, 3.0, 1.0, False), (4 * MIB, 0.0, 0.0, True), (6 * MIB, 0.0, 0.0, False)]
    # Chosen at 6 s; 4 s of memory were free: without L2 they are lost, with it they go to the last stage.
    assert model.pipeline(loads, MIB, 8 * MIB, 0.0) == pytest.approx(6 + 4 + 6)
    assert model.pipeline(loads, MIB, 8 * MIB, 3 * MIB) == pytest.approx(6 + 4 + 3)
    assert model.pipeline(loads, MIB, 8 * MIB, 99 * MIB) == pytest.approx(6 + 4 + 2)


def test_what_stages_and_joins_cost() -> None:
    gpu, assume = model.GPUS["H200"], model.Assumptions(fraction=1.0)
    byte = 1 / gpu.bandwidth

    def time(*stages: model.Stage, rows: int = 1) -> float:
        return model.step(model.Lowered(stages, 0.0, 7680, 0), gpu, rows, False, assume).time

    def stage(kind: str, join: str = "", **fields: Any) -> model.Stage:
        return model.Stage(kind, join, "op", 0, False, **({"bytes": 0.0} | fields))

    hand_over, joined = assume.hand_over, assume.hand_over + assume.join
    assert time(stage("attend")) == pytest.approx(hand_over)
    assert time(stage("project", "heads")) == pytest.approx(joined)
    assert time(stage("project", "choose"), stage("attend")) == pytest.approx(joined + assume.choose + hand_over)
    assert time(stage("project", "reduce")) == pytest.approx(hand_over + assume.all_reduce)
    # 8 of 16 experts in 100 tiles each, dealt to 132 SMs: 7 units of the busiest, 800 / 132 of the mean.
    experts = {"experts": 16, "top_k": 8, "tiles": 100, "bytes": 1e9}
    assert time(stage("expert_up", **experts)) == pytest.approx(hand_over + 8e9 * byte * 7 * 132 / 800, rel=1e-3)


def test_bytes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    overrides = {"num_hidden_layers": 3, "hybrid_layer_pattern": [0, 1, 0], "moe_layer_freq": [0, 1, 1], "n_routed_experts": 16}
    path = make(
        tmp_path / "model", shape="pro", weights="mxfp4", overrides=overrides, draft=True, headers_only=True, progress=False
    )
    checkpoint = Checkpoint.open(path)
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    config, tensors, files = checkpoint.core_arguments()
    engine = _core.Engine(config, tensors, files + [str(p) for p in drafter.files], threads=1, draft=drafter.to_core())
    rank = model.lowered(_core.Rank(engine, world=RANKS), model.GPUS["H200"])
    stored = [t for t in [*tensors, *drafter.tensors] if len(t.shape) > 1 and "embed" not in t.name]
    routers = sum(t.end - t.begin for t in stored if "mlp.gate.weight" in t.name)
    exact = (sum(t.end - t.begin for t in stored) - routers) / RANKS + routers
    # Keys and values of the drafter's context lie a second time, in tiles of their own.
    again = sum(t.end - t.begin for t in drafter.tensors if "k_proj" in t.name or "v_proj" in t.name) / RANKS
    assert exact + again < rank.weights < 1.02 * (exact + again)

    experts = sum(t.end - t.begin for t in stored if ".experts." in t.name) / RANKS
    assume = model.Assumptions(context=1000)
    one, eight = (model.step(rank, model.GPUS["H200"], rows, False, assume) for rows in (1, 8))
    more = model.union(16, 8, 8, 0.0) - 8
    window = 7 * 2 * (192 + 128)  # eight rows see seven positions more of the sliding layer
    assert eight.bytes - one.bytes == pytest.approx(experts / 16 * more + window, rel=0.02)
    assert one.floor == one.bytes / 4.8e12
    drafting = model.step(rank, model.GPUS["H200"], 8, True, assume)
    assert drafting.bytes > eight.bytes
    assert drafting.time > drafting.floor / assume.fraction
    assert drafting.stages > eight.stages


def test_the_table_of_a_shape(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("step_time", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "step_time", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RANKS", 2)
    monkeypatch.setattr(sys, "argv", ["step_time.py", "--shapes", "tiny", "--nodes", "H200", "--overlap", "0.5"])
    module.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row.split(" | ")[3] for row in rows] == ["1", "8"]
