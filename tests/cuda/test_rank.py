"""One rank of several with weights made up: sizes, values, drawn experts, times and stamps, over a made-up driver."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import engine_arguments, raises
from numpy.typing import NDArray

from mimo_ultraspeed import _probe
from mimo_ultraspeed.errors import EngineError
from mimo_ultraspeed.make import make

pytestmark = pytest.mark.skipif(not hasattr(_probe, "cuda_fake"), reason="not run: no C++ compiler when the package was built")

GB = 10**9
LAYERS, EXPERTS, TOP_K, ROWS = 4, 8, 2, 8  # of "tiny", whose first layer is dense


@pytest.fixture(autouse=True)
def _no_fake_is_left() -> Iterator[None]:
    yield
    _probe.cuda_fake()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = make(tmp_path_factory.mktemp("tiny") / "model", weights="mxfp4", draft=True, headers_only=True, progress=False)
    arguments, draft = engine_arguments(path)
    return _probe.Engine(*arguments, threads=1, **draft)


@pytest.fixture
def opened(engine: Any, image: str) -> Callable[..., Any]:
    def get(path: str = "plain", world: int = 2, seed: int = 1, context: int = 40, **fake: Any) -> Any:
        _probe.cuda_fake(**({"memory": GB} | fake))
        rank = _probe.Rank(engine, world=world, context=context, copied=1 << 16)
        rank.open(0, path, image, seed)
        return rank

    return get


def drawn(sets: int = 3, seed: int = 0) -> NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    keys = rng.random((sets, LAYERS, ROWS, EXPERTS))
    return np.sort(np.argsort(keys, axis=-1)[..., :TOP_K], axis=-1).astype(np.uint16)


def logits(rank: Any, rows: int) -> NDArray[np.float32]:
    rank.time_steps(rows, 1)
    return np.array(rank.read(rows)[1])


# ---- sizes ----


def test_a_rank_of_one_has_every_byte(engine: Any) -> None:
    rank = _probe.Rank(engine, world=1)
    told = dict(rank.memory(GB))
    operations = rank.operations()
    assert {row[0] for row in operations} == {0, 1}
    fixed = sum(row[3] for row in operations if not row[0])
    experts = sum(EXPERTS * row[4] for row in operations if not row[0])
    assert fixed + experts <= told["weights"] <= 1.02 * (fixed + experts) + 256 * 200
    assert told["in all"] <= told["free on the GPU"] == GB


@pytest.mark.parametrize("world", [2, 8])
def test_a_rank_has_its_part(tmp_path: Path, world: int) -> None:
    """Of dimensions that divide as V2.5-Pro's do."""
    overrides = {
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "hybrid_layer_pattern": [0, 1, 0],
        "moe_layer_freq": [0, 1, 1],
        "n_routed_experts": 8,
        "moe_intermediate_size": 1024,
        "intermediate_size": 1024,
        "num_attention_heads": 16,
        "swa_num_attention_heads": 16,
        "vocab_size": 4096,
    }
    path = make(tmp_path / "model", "pro", weights="mxfp4", overrides=overrides, draft=True, headers_only=True, progress=False)
    (config, tensors, files), draft = engine_arguments(path)
    engine = _probe.Engine(config, tensors, files, threads=1, **draft)
    operations = _probe.Rank(engine, world=world).operations()
    names = ["_proj", "lm_head", "fc.weight"]
    stored = [t for t in [*tensors, *draft["draft"]["tensors"]] if any(name in t[0] for name in names)]
    whole = sum(t[5] - t[4] for t in stored)
    found = sum(op[3] + 8 * op[4] for op in operations if op[1] != "route")
    again = sum(op[3] for op in operations if op[1] == "draft_kv")  # rows of the drafter's qkv, read once more
    head = next(op[3] for op in operations if op[1] == "head")  # that of the target, for the drafter
    assert (found - again - head) * world == pytest.approx(whole, rel=0.02)
    routers = sum(t[5] - t[4] for t in tensors if "mlp.gate.weight" in t[0])
    assert sum(op[3] for op in operations if op[1] == "route") == routers


def test_what_does_not_divide_is_named(engine: Any) -> None:
    assert "heads" in raises(NotImplementedError, lambda: _probe.Rank(engine, world=3))
    assert "dense_width" in raises(NotImplementedError, lambda: _probe.Rank(engine, world=4))
    assert "world" in raises(ValueError, lambda: _probe.Rank(engine, world=9))
    assert "context" in raises(ValueError, lambda: _probe.Rank(engine, context=0))
    assert "Engine" in raises(TypeError, lambda: _probe.Rank(1))


def test_what_does_not_fit_says_where_it_would_lie(engine: Any, opened: Callable[..., Any]) -> None:
    rank = _probe.Rank(engine, context=40, copied=1 << 30)
    text = raises(MemoryError, lambda: rank.memory(GB))
    assert "does not fit on the GPU" in text
    assert "left to the measurement" in text
    assert "does not fit" in raises(MemoryError, lambda: opened(memory=1 << 28))
    assert _probe.cuda_fake_stats()["live_blocks"] == 0


# ---- values ----


def test_weights_are_a_function_of_the_seed(opened: Callable[..., Any]) -> None:
    found = {}
    for name, settings in {"a": {}, "b": {"processors": 7}, "c": {"seed": 2}}.items():
        rank = opened(**settings)
        rank.draw(drawn())
        found[name] = logits(rank, 8)
        del rank
    assert np.array_equal(found["a"], found["b"]), "whatever the grid"
    assert not np.array_equal(found["a"], found["c"])


PATHS = pytest.mark.parametrize("path", ["plain", "resident", "resident-e4m3"])


@PATHS
def test_logits_are_of_order_one(opened: Callable[..., Any], path: str) -> None:
    rank = opened(path)
    rank.draw(drawn())
    found = logits(rank, 8)
    assert found.shape == (8, 256)
    assert np.isfinite(found).all()
    assert 0.3 < found.std() < 3
    assert len(np.unique(found)) > 1500


@PATHS
def test_a_rows_logits_do_not_depend_on_the_width(opened: Callable[..., Any], path: str) -> None:
    rank = opened(path)
    rank.draw(drawn())
    want = logits(rank, 8)
    for rows in range(1, 8):
        assert np.array_equal(logits(rank, rows), want[:rows]), rows


# ---- experts ----


@PATHS
def test_steps_choose_what_was_drawn(opened: Callable[..., Any], path: str) -> None:
    rank = opened(path)
    experts = drawn(sets=5)
    rank.draw(experts)
    for run in range(1, 8):
        for rows in (1, 3, 8):
            rank.time_steps(rows, run)
            chosen, _ = rank.read(rows)
            np.testing.assert_array_equal(chosen, experts[(run - 1) % 5, LAYERS - 1, :rows])
    rank.draw(drawn(sets=1, seed=3))
    rank.time_steps(8, 2)
    np.testing.assert_array_equal(rank.read(8)[0], drawn(sets=1, seed=3)[0, LAYERS - 1])


def test_experts_that_are_not_drawn_are_the_routers_own(opened: Callable[..., Any]) -> None:
    """The weights of drawn experts come from the router's logits too: other experts, other logits."""
    rank = opened()
    own = logits(rank, 8)
    rank.draw(drawn())
    assert not np.array_equal(logits(rank, 8), own)


def test_wrong_draws_are_refused(opened: Callable[..., Any]) -> None:
    rank = opened()
    assert "[sets, 4, 8, 2]" in raises(ValueError, lambda: rank.draw(drawn()[:, :2]))


# ---- times ----


@PATHS
def test_times(opened: Callable[..., Any], path: str) -> None:
    rank = opened(path)
    rank.draw(drawn())
    for seconds, count in ((rank.time_copies(16), 16), (rank.time_steps(1, 3), 3), (rank.time_drafts(8, 8), 8)):
        assert seconds.shape == (count,)
        assert (seconds > 0).all()
        assert (seconds < 60).all()
    for call in (lambda: rank.time_steps(9, 1), lambda: rank.time_steps(1, 17), lambda: rank.time_drafts(8, 9)):
        assert "expected 1 to 8 rows" in raises(ValueError, call)


def test_a_rank_without_a_drafter(tmp_path: Path, image: str) -> None:
    path = make(tmp_path / "model", weights="bf16", headers_only=True, progress=False)
    arguments, _ = engine_arguments(path)
    _probe.cuda_fake(memory=GB)
    rank = _probe.Rank(_probe.Engine(*arguments, threads=1), world=2, context=9, copied=1 << 16)
    rank.open(0, "plain", image, 0)
    assert np.isfinite(logits(rank, 8)).all()
    assert "drafter" in raises(ValueError, lambda: rank.time_drafts(8, 1))


def test_a_rank_opens_again_on_another_path(opened: Callable[..., Any], image: str) -> None:
    rank = opened("resident")
    assert "open already" in raises(ValueError, lambda: rank.open(0, "plain", image, 1))
    rank.close()
    rank.close()
    assert _probe.cuda_fake_stats()["live_blocks"] == 0
    rank.open(0, "plain", image, 1)
    rank.draw(drawn())
    assert np.isfinite(logits(rank, 8)).all()
    rank.close()
    assert "'plain', 'resident' or 'resident-e4m3'" in raises(ValueError, lambda: rank.open(0, "other", image, 1))


def test_closed_ranks_say_so(engine: Any) -> None:
    rank = _probe.Rank(engine)
    for call in (lambda: rank.time_steps(1, 1), lambda: rank.trace(1, False), lambda: rank.read(1), lambda: rank.draw(drawn())):
        assert "open on a GPU" in raises(ValueError, call)


# ---- stamps ----


@PATHS
@pytest.mark.parametrize("draft", [False, True])
def test_stamps_of_every_cta(opened: Callable[..., Any], path: str, draft: bool) -> None:
    rank = opened(path)
    rank.draw(drawn())
    before = logits(rank, 8)
    launches, stamps = rank.trace(8, draft)
    assert len(stamps) == sum(ctas for *_, ctas, _ in launches)
    assert [first for *_, first in launches] == np.cumsum([0, *[ctas for *_, ctas, _ in launches]])[:-1].tolist()
    assert (stamps[:, 0] <= stamps[:, 1]).all()
    ends = [stamps[first : first + ctas, 1].max() for *_, ctas, first in launches]
    begins = [stamps[first : first + ctas, 0].min() for *_, ctas, first in launches]
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False)), "one launch, or stage, after the other"
    names = {name for _, name, *_ in launches}
    assert names >= ({"draft_fuse", "draft_kv", "draft_embed", "dense_up"} if draft else {"embed", "route", "expert_down"})
    assert {layer for *_, layer, _, _ in launches} >= {-1, 0}
    assert ("expert_up" in {kernel for kernel, *_ in launches}) == (not draft)
    assert ("project" in {kernel for kernel, *_ in launches}) == (path != "plain")
    assert np.array_equal(logits(rank, 8), before), "stamps change nothing"


# ---- failures ----


@PATHS
def test_every_call_may_fail(engine: Any, image: str, path: str) -> None:
    """Whatever call of the driver fails: an error, and nothing is left behind."""

    def work() -> None:
        rank = _probe.Rank(engine, world=2, context=9, copied=1 << 12)
        rank.open(0, path, image, 1)
        rank.draw(drawn(sets=1))
        rank.time_copies(1)
        rank.time_steps(2, 1)
        rank.time_drafts(2, 1)
        rank.trace(2, True)

    _probe.cuda_fake(memory=GB)
    work()
    calls = _probe.cuda_fake_stats()["calls"]
    step = max(1, math.isqrt(calls))
    for number in [*range(1, calls, step), *range(max(1, calls - 60), calls)]:
        for fail_result in (2, 700):
            _probe.cuda_fake(memory=GB, fail_at=number, fail_result=fail_result)
            with contextlib.suppress(EngineError, MemoryError, NotImplementedError):
                work()
            stats = _probe.cuda_fake_stats()
            assert stats["live_blocks"] == 0, number
            assert stats["live_handles"] == 0, number
