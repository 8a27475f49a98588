"""Queues of tile tasks: run in random legal orders by a simulator that knows from the tape alone what must be read and written.

The simulator (csrc/python/probe_queue.c) moves loaders, copies and compute roles of all SMs in a drawn order. It stops at a
deadlock, a cell read before it was written or overwritten before it was read, a tile written twice or not at all, a page that
is not the one asked for, and a counter that is passed before all that it stands for is done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

TASK = np.dtype(
    [(name, np.uint8) for name in ("kind", "tape", "op_code", "wait_back")]
    + [
        ("op", np.uint16),
        ("layer", np.uint16),
        ("first", np.uint32),
        ("count", np.uint32),
        ("split", np.uint16),
        ("splits", np.uint16),
    ]
    + [("k_first", np.uint32), ("k_count", np.uint32), ("tile_rows", np.uint16), ("tile_pages", np.uint16)]
    + [(name, np.uint32) for name in ("page", "pages", "page_bytes", "expert_pages")]
    + [(name, np.uint16) for name in ("k_page", "ahead", "signal", "wait", "load_wait", "load_wait_count")]
    + [(name, np.uint32) for name in ("wait_count", "join", "joins")]
)
assert TASK.itemsize == 72
KINDS = (
    "EMBED", "PROJECT", "REDUCE", "HEADS", "ATTEND", "MERGE", "CHOOSE", "EXPERT_UP", "EXPERT_DOWN", "DENSE_UP", "DRAFT_BIAS",
    "SCAN", "COLLECT", "CUT", "SAMPLE", "PICK", "ACCEPT", "PROPOSE",
)  # fmt: skip
SUMS = ("REDUCE", "HEADS", "CHOOSE")
JOINS = (*SUMS, "PICK", "ACCEPT", "PROPOSE")
TASKS = tuple(kind for kind in KINDS if kind not in JOINS)
NO_COUNTER = 0xFFFF
H200 = {"sms": 132, "shared": 232448, "l2": 50 << 20}
# smollm2-135m as MiMo has it.
SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "swa_num_attention_heads": 9, "num_key_value_heads": 3,
    "swa_num_key_value_heads": 3, "head_dim": 64, "v_head_dim": 64, "swa_head_dim": 64, "swa_v_head_dim": 64,
    "partial_rotary_factor": 1.0, "intermediate_size": 1536, "moe_intermediate_size": 192, "n_routed_experts": 8,
    "num_experts_per_tok": 8, "vocab_size": 49152, "hybrid_layer_pattern": [0] * 30, "moe_layer_freq": [1] * 30,
    "tie_word_embeddings": True,
}  # fmt: skip
PRO = {"num_hidden_layers": 3, "hybrid_layer_pattern": [0, 1, 0], "moe_layer_freq": [0, 1, 1]}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"draft": True},
    "plain": {},
    "markov": {"draft": {"markov_rank": 8, "vocab": 304}},
    "smollm2": {"draft": True, "overrides": SMOLLM2},
    "pro": {"shape": "pro", "draft": True, "overrides": PRO},
    "deep": {"shape": "pro", "draft": True, "overrides": {"n_routed_experts": 16}},
}


def open_engine(folder: Path, **options: Any) -> Any:
    checkpoint = Checkpoint.open(make(folder, **({"weights": "mxfp4"} | options), headers_only=True, progress=False))
    config, tensors, files = checkpoint.core_arguments()
    drafter = open_drafter("auto", checkpoint) if options.get("draft") else None
    if drafter is not None:
        files += [str(path) for path in drafter.files]
    return _probe.Engine(config, tensors, files, threads=1, draft=drafter.to_core() if drafter else None)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = open_engine(tmp_path_factory.mktemp("models") / "model", **MODELS[name])
        return made[name]

    return get


class Queues:
    """The queues of one engine's model, with tasks and joins that a test may change."""

    def __init__(
        self, engine: Any, sms: int, shared: int = H200["shared"], l2: int = H200["l2"], world: int = 1, e4m3: bool = False
    ) -> None:
        self.handle = _probe.lower(engine, sms, shared, l2, world, e4m3)
        self.tables = _probe.queue_tables(self.handle)
        self.tasks: NDArray[Any] = self.tables["tasks"].view(TASK)
        self.joins: NDArray[Any] = self.tables["joins"].view(TASK)
        self.begin: NDArray[np.uint32] = self.tables["begin"]

    def run(
        self, orders: int = 10, steps: int = 3, seed: int = 0, first_step: int = 0, bug: str = ""
    ) -> tuple[str | None, int, int, int]:
        tasks, joins = (np.ascontiguousarray(records).view(np.uint8) for records in (self.tasks, self.joins))
        result: tuple[str | None, int, int, int] = _probe.queue_run(
            self.handle, tasks, self.begin, joins, seed, orders, steps, first_step, bug
        )
        return result

    def fault(self, orders: int = 10, **options: Any) -> str:
        """What the simulator says of wrong queues; empty if it finds nothing."""
        return self.run(orders, **options)[0] or ""

    def of(self, kind: str, tape: int | None = None) -> NDArray[np.intp]:
        """Numbers of the tasks, or joins, of a kind."""
        records = self.joins if kind in JOINS else self.tasks
        chosen = records["kind"] == KINDS.index(kind)
        return np.flatnonzero(chosen if tape is None else chosen & (records["tape"] == tape))

    def signals(self) -> NDArray[np.intp]:
        """What each stage's counter grows by in a step."""
        alone = self.tasks["signal"][self.tasks["joins"] == 0]
        return np.bincount(np.concatenate([alone, self.joins["signal"]]), minlength=self.tables["counters"])

    def sm(self, task: int) -> int:
        return int(np.searchsorted(self.begin, task, side="right")) - 1

    def remove(self, task: int) -> None:
        """Takes a task out of its queue."""
        self.begin = self.begin.copy()
        self.begin[self.sm(task) + 1 :] -= 1
        self.tasks = np.delete(self.tasks, task)


@pytest.mark.parametrize(
    ("model", "sms", "world", "orders"),
    [
        *(("tiny", sms, 1, 300) for sms in (1, 2, 3, 5)),
        ("tiny", 8, 2, 200),
        ("tiny", 16, 1, 200),
        ("plain", 4, 1, 400),
        ("markov", 7, 1, 200),
        ("smollm2", 132, 1, 2),
        ("smollm2", 20, 1, 4),
        ("pro", 132, 8, 2),
        ("pro", 148, 8, 1),
        ("pro", 132, 1, 1),
    ],
)
def test_random_orders(model: str, sms: int, world: int, orders: int, engines: Callable[[str], Any]) -> None:
    fault, events, pages, early = Queues(engines(model), sms, world=world).run(orders, steps=3 if model == "tiny" else 2)
    assert fault is None
    assert events > pages > early > 0


@pytest.mark.parametrize(("model", "sms", "world", "orders"), [("tiny", 3, 1, 100), ("smollm2", 20, 1, 2), ("pro", 132, 8, 1)])
def test_pages_for_e4m3(model: str, sms: int, world: int, orders: int, engines: Callable[[str], Any]) -> None:
    """Experts' gate and up are a little more, and have tiles of two units at most; all else is as it was."""
    queues, others = (Queues(engines(model), sms, world=world, e4m3=e4m3) for e4m3 in (True, False))
    up = queues.of("EXPERT_UP")
    assert len(up) and (queues.tasks["tile_rows"][up] <= 16).all()
    lines, k = (queues.tasks[name][up].astype(int) for name in ("tile_rows", "k_page"))
    assert (queues.tasks["page_bytes"][up] == -(-(lines * k * 17 // 16 + 2 * lines) // 128) * 128).all()
    rest = np.flatnonzero(queues.tasks["kind"] != KINDS.index("EXPERT_UP"))
    assert np.array_equal(queues.tasks[rest], others.tasks[rest])
    assert queues.run(orders, steps=2)[0] is None


def test_as_many_layers_as_pro(engines: Callable[[str], Any]) -> None:
    assert Queues(engines("deep"), 132, world=8).run(1, steps=2)[0] is None


@pytest.mark.parametrize("first_step", [2**32 - 2, 2**31 - 2, (2**32) // 12 - 1, (2**31) // 7 - 1])
def test_counters_wrap(first_step: int, engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("tiny"), 3)
    assert queues.run(20, steps=5, first_step=first_step)[0] is None


def test_a_comparison_that_does_not_wrap_is_caught(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("tiny"), 3)
    assert queues.fault(bug="compare") == ""
    assert "early" in queues.fault(steps=5, first_step=2**32 - 2, bug="compare")


def test_pages_that_overrun_the_ring_are_caught(engines: Callable[[str], Any]) -> None:
    assert "page" in Queues(engines("tiny"), 3).fault(bug="ring")


def test_signals_before_writes_are_caught(engines: Callable[[str], Any]) -> None:
    assert "before it was" in Queues(engines("tiny"), 3).fault(bug="signal")


@pytest.mark.parametrize("kind", TASKS)
def test_a_wait_that_is_missing_is_caught(kind: str, engines: Callable[[str], Any]) -> None:
    def fault_without_wait(task: int) -> str:
        queues = Queues(engines("markov"), 5)
        queues.tasks["wait"][task] = NO_COUNTER
        return queues.fault(100)  # what it reads may happen to be there in some orders

    queues = Queues(engines("markov"), 5)
    tapes = [tape for tape in (0, 1) if len(queues.of(kind, tape))]
    assert tapes
    for tape in tapes:
        tasks = queues.of(kind, tape)[:6]  # one may read only what its own SM wrote: then it needs no wait
        assert any(map(fault_without_wait, tasks)), f"{kind} of tape {tape}"


def test_a_loader_that_does_not_wait_for_the_router_is_caught(engines: Callable[[str], Any]) -> None:
    for kind in ("EXPERT_UP", "EXPERT_DOWN"):
        queues = Queues(engines("tiny"), 3)
        queues.tasks["load_wait"][queues.of(kind)] = NO_COUNTER
        if kind == "EXPERT_DOWN":  # behind EXPERT_UP in the same queue
            queues.tasks["load_wait"][queues.of("EXPERT_UP")] = NO_COUNTER
        assert "ROUTES" in queues.fault()


def test_steps_that_run_ahead_are_caught(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("tiny"), 3)
    first = np.flatnonzero(queues.tasks["wait_back"] == 1)
    assert {KINDS[kind] for kind in queues.tasks["kind"][first]} == {"EMBED"}
    queues.tasks["wait"][first] = NO_COUNTER
    assert queues.fault() != ""


def test_deadlocks_are_caught(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("tiny"), 3)
    queues.tasks["wait_count"][queues.of("ATTEND")[4]] += 1
    assert "deadlock" in queues.fault()

    queues = Queues(engines("tiny"), 3)
    queues.remove(int(queues.of("DENSE_UP")[1]))
    assert "deadlock" in queues.fault()

    queues = Queues(engines("tiny"), 3)
    first, then = queues.of("PROJECT")[0], queues.of("ATTEND")[0]
    assert queues.sm(first) == queues.sm(then)
    queues.tasks[[first, then]] = queues.tasks[[then, first]]
    assert "deadlock" in queues.fault()


def test_counters_passed_early_are_caught(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("tiny"), 3)
    queues.tasks["wait_count"][queues.of("SAMPLE")[0]] -= 1
    assert "early" in queues.fault(100)


@pytest.mark.parametrize("kind", JOINS)
def test_joins_that_run_early_late_or_never_are_caught(kind: str, engines: Callable[[str], Any]) -> None:
    model = "markov" if kind == "PICK" else "tiny"

    def changed(field: str, by: int, join: int) -> Queues:
        queues = Queues(engines(model), 16)
        at = queues.of(kind)[join]
        queues.joins[field][at] = int(queues.joins[field][at]) + by
        return queues

    first = Queues(engines(model), 16)
    alone = first.joins["wait_count"][first.of(kind)] == 1
    assert not alone.all(), "all of them are of one task each: there is nothing to wait for"
    join = int(np.flatnonzero(~alone)[0])
    assert "read before it was written" in changed("wait_count", -1, join).fault(100, steps=1)
    assert "deadlock" in changed("wait_count", 1, join).fault()
    assert "deadlock" in changed("wait_count", 1, int(np.flatnonzero(alone)[0]) if alone.any() else join).fault()

    # A task that does not arrive, one that arrives at another, and one that arrives elsewhere as well.
    for field, by in (("joins", -1), ("join", 1), ("joins", 1)):
        queues = Queues(engines(model), 16)
        stage = queues.joins["signal"][queues.of(kind)[0]]
        task = np.flatnonzero(queues.tasks["signal"] == stage)[0]
        queues.tasks[field][task] = int(queues.tasks[field][task]) + by
        assert queues.fault() != ""


def test_joins_are_what_their_stage_is_joined_by(engines: Callable[[str], Any]) -> None:
    """Every row of partial sums is in one join, and every task arrives at those that its rows are in; every task that tokens
    are chosen from, at the one of its rows."""
    for model, sms in (("tiny", 4), ("markov", 9), ("pro", 132)):
        queues = Queues(engines(model), sms)
        arrivals = np.zeros(len(queues.joins), int)
        for task in queues.tasks[queues.tasks["joins"] > 0]:
            own = slice(task["join"], task["join"] + task["joins"])
            joins = queues.joins[own]
            arrivals[own] += 1
            assert (joins["signal"] == task["signal"]).all()
            if KINDS[joins["kind"][0]] not in SUMS:
                assert joins[["split", "splits"]].tolist() == [(task["split"], task["splits"])]
                continue
            heads = joins["kind"] == KINDS.index("HEADS")
            first = np.where(heads, joins["k_first"], joins["first"])
            end = first + np.where(heads, joins["k_count"], joins["count"])
            assert (first[1:] == end[:-1]).all()
            assert first[0] <= task["first"] < end[0]
            assert first[-1] < task["first"] + task["count"] <= end[-1]
        assert np.array_equal(arrivals, queues.joins["wait_count"])


@pytest.mark.parametrize("kind", TASKS)
def test_a_tile_that_is_missing_or_done_twice_is_caught(kind: str, engines: Callable[[str], Any]) -> None:
    # Another tile of its stage in its place: one is done twice, one never; counts are right.
    model, sms = ("markov", 16) if kind == "DRAFT_BIAS" else ("tiny", 5)
    queues = Queues(engines(model), sms)
    task = queues.of(kind)[0]
    same = np.flatnonzero(queues.tasks["signal"] == queues.tasks["signal"][task])
    other = same[same != task][0]
    before = queues.tasks["join"][task], queues.tasks["joins"][task]
    queues.tasks[task] = queues.tasks[other]
    queues.tasks["join"][task], queues.tasks["joins"][task] = before
    fault = queues.fault()
    assert any(found in fault for found in ("written twice", "by two at once", "overwritten before it was read"))

    # Taken out, and nobody waits for it.
    queues = Queues(engines(model), sms)
    out = queues.tasks[task].copy()
    queues.joins["wait_count"][out["join"] : out["join"] + out["joins"]] -= 1
    queues.remove(int(task))
    if out["joins"] == 0:
        queues.tasks["wait_count"][queues.tasks["wait"] == out["signal"]] -= 1
        queues.tasks["load_wait_count"][queues.tasks["load_wait"] == out["signal"]] -= 1
    assert any(found in queues.fault() for found in ("read before it was written", "incomplete", "deadlock"))


@pytest.mark.parametrize("kind", ["REDUCE", "HEADS"])
def test_a_join_in_another_ones_place_is_caught(kind: str, engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("tiny"), 5)
    first, then = queues.of(kind)[:2]
    counts = queues.joins["wait_count"][first]
    queues.joins[first] = queues.joins[then]
    queues.joins["wait_count"][first] = counts
    fault = queues.fault()
    assert any(found in fault for found in ("written twice", "by two at once", "before it was"))


@pytest.mark.parametrize("which", ["tasks", "joins"])
def test_any_changed_field_is_caught(which: str, engines: Callable[[str], Any]) -> None:
    """One field of one record gets another small value, and the queues are wrong: no field is idle, unused ones are 0."""
    rng = np.random.default_rng(3)
    queues = Queues(engines("tiny"), 4)
    original = getattr(queues, which).copy()
    # A hint, and what has tests of its own. (A task may read only what its own SM wrote: not every wait is needed.)
    fields = sorted(set(TASK.names or ()) - {"ahead", "tape"} - {name for name in TASK.names or () if "wait" in name})
    missed = []
    for _ in range(500):
        field, at = str(rng.choice(fields)), int(rng.integers(len(original)))
        before = after = int(original[field][at])
        while after == before:
            after = min(int(rng.integers(0, 2 * before + 3)), 255 if field in ("kind", "op_code") else 0xFFFE)
        records = original.copy()
        records[field][at] = after
        setattr(queues, which, records)
        if queues.fault(6, steps=2) == "":
            missed.append((KINDS[original["kind"][at]], field, before, after))
    assert missed == []


@pytest.mark.parametrize(("model", "sms"), [("tiny", 4), ("plain", 3), ("markov", 9), ("pro", 132)])
def test_every_stage_waits_for_all_of_the_stage_before(model: str, sms: int, engines: Callable[[str], Any]) -> None:
    queues = Queues(engines(model), sms)
    tasks, counters, counts = queues.tasks, queues.tables["counters"], queues.signals()
    assert counts.min() > 0
    assert np.array_equal(tasks["wait"], (tasks["signal"].astype(int) - 1) % counters)
    assert np.array_equal(tasks["wait_back"], tasks["signal"] == 0)
    assert np.array_equal(tasks["wait_count"], counts[tasks["wait"]])
    experts = (tasks["kind"] == KINDS.index("EXPERT_UP")) | (tasks["kind"] == KINDS.index("EXPERT_DOWN"))
    assert np.array_equal(tasks["load_wait"] != NO_COUNTER, experts)
    routed = tasks["load_wait"][experts]
    assert set(routed) <= set(queues.joins["signal"][queues.of("CHOOSE")])
    assert (tasks["signal"][experts] - routed <= 2).all()


def bytes_by_sm(queues: Queues, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
    tasks = queues.tasks[chosen]
    owner = np.searchsorted(queues.begin, chosen, side="right") - 1
    return np.bincount(owner, tasks["pages"].astype(float) * tasks["page_bytes"], len(queues.begin) - 1).astype(np.float64)


def test_a_rank_of_pro_is_balanced(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("pro"), 132, world=8)
    static = queues.tasks["load_wait"] == NO_COUNTER
    whole = bytes_by_sm(queues, np.flatnonzero(static))
    assert whole.max() < 1.06 * whole.mean()
    for signal in np.unique(queues.tasks["signal"][static & (queues.tasks["pages"] > 0)]):
        each = bytes_by_sm(queues, np.flatnonzero(queues.tasks["signal"] == signal))
        assert each.max() <= 1.2 * each.mean() or each.max() < 2**17, KINDS[
            queues.tasks["kind"][queues.tasks["signal"] == signal][0]
        ]


def test_weights_are_not_padded_much(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("pro"), 132, world=8)
    attention = 16 * 192 + 192 + 128
    exact = {
        "qkv": attention * 6144, "out_proj": 6144 * 2048 * 2, "dense_up": 2 * 2048 * 6144, "dense_down": 6144 * 2048,
        "route": 384 * 6144 * 4, "expert_up": 512 * 6144 * 17 / 32, "expert_down": 6144 * 256 * 17 / 32, "head": 19072 * 6144 * 2,
    }  # fmt: skip
    for name, _, _, _, tiles, splits, _, _, tile_pages, page_bytes in queues.tables["shapes"]:
        if tiles:
            stored = tiles * tile_pages * page_bytes * (1 if name.startswith("expert") else splits)
            assert exact[name] <= stored < 1.05 * exact[name], name


def test_loaders_hint_the_next_layer_while_the_router_chooses(engines: Callable[[str], Any]) -> None:
    queues = Queues(engines("pro"), 132, world=8)
    hinted = 0.0
    up = queues.of("EXPERT_UP")
    for task in up[queues.tasks["layer"][up] == 1]:
        ahead = int(queues.tasks["ahead"][task])
        assert task + ahead < queues.begin[queues.sm(int(task)) + 1]
        then = queues.tasks[task + 1 : task + 1 + ahead]
        then = then[then["load_wait"] == NO_COUNTER]
        hinted += float((then["pages"].astype(float) * then["page_bytes"]).sum())
    assert 0.3 * H200["l2"] < hinted <= 0.5 * H200["l2"]


def test_lowering_is_a_function_of_its_arguments(engines: Callable[[str], Any]) -> None:
    first, again = Queues(engines("tiny"), 6), Queues(engines("tiny"), 6)
    assert first.tasks.tobytes() == again.tasks.tobytes()
    assert first.joins.tobytes() == again.joins.tobytes()
    assert first.begin.tolist() == again.begin.tolist()


def test_what_does_not_fit_is_refused(tmp_path: Path, engines: Callable[[str], Any]) -> None:
    with pytest.raises(NotImplementedError, match=r"rows of 160 elements need \d+ bytes of shared memory, a CTA may have 50000"):
        Queues(engines("tiny"), 4, shared=50000)
    with pytest.raises(NotImplementedError, match=r"config\.attention\.heads: expected a multiple of 3 for 3 ranks, found 8"):
        Queues(engines("tiny"), 4, world=3)
    with pytest.raises(ValueError, match=r"world: expected 1 to 8 ranks, found 9"):
        Queues(engines("tiny"), 4, world=9)
    with pytest.raises(ValueError, match=r"gpu\.sms: expected 1 to 65535, found 0"):
        Queues(engines("tiny"), 0)
    with pytest.raises(NotImplementedError, match=r"draft\.block: expected at most 8, found 12"):
        Queues(open_engine(tmp_path / "wide", draft={"block": 12}), 4)
    with pytest.raises(NotImplementedError, match=r"config\.experts: expected at most 512, found 600"):
        Queues(open_engine(tmp_path / "many", overrides={"n_routed_experts": 600}), 4)


def test_failed_allocations_leave_nothing(engines: Callable[[str], Any]) -> None:
    engine = engines("tiny")
    before = _probe.alloc_stats()["live_blocks"]
    for n in range(1, 20):
        _probe.alloc_fail(n)
        try:
            queues = Queues(engine, 4)
        except MemoryError:
            assert _probe.alloc_stats()["live_blocks"] == before
        else:
            assert n > 5
            del queues
            break
        finally:
            _probe.alloc_fail(0)
    assert _probe.alloc_stats()["live_blocks"] == before
