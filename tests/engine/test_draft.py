"""The drafter against its oracle: every switch, every path by which its context can come about, and its independence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_reference import draft_reference, draft_settings, draft_tensors
from numpy.typing import NDArray
from reference import read_config, reference_forward, reference_tensors

import mimo_ultraspeed as mu
from mimo_ultraspeed import _core, _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import Drafter, open_drafter
from mimo_ultraspeed.make import make

TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, 512, 90)]

# the window of 24 is smaller than the context; 20 wide heads of 12 rotated dims are no whole octets or blocks
CASES: dict[str, dict[str, Any]] = {
    "published": {"window": 24},
    "flat_fp8": {"spelling": "flat", "weights": "fp8", "window": 24, "mask": "tensor", "prefix": "model."},
    "mxfp4_full": {"weights": "mxfp4", "window": 0, "block": 5, "rotary": 1.0},
    "odd": {"head_dim": 24, "rotary": 0.5, "kv_heads": 1, "heads": 3, "sinks": False, "window": 300, "layers": 3},
    "no_norm": {"qk_norm": False, "window": 2, "block": 16, "taps": [3], "kv_heads": 8},
    "restricted": {"vocab": 100, "markov_rank": 8, "window": 24},
}


@dataclass(frozen=True)
class Case:
    path: Path
    drafter: Drafter
    checkpoint: Checkpoint
    target: dict[str, NDArray[np.float32]]
    hidden: NDArray[np.float32]
    weights: dict[str, NDArray[Any]]
    settings: dict[str, Any]

    def reference(self, anchor: int, **changes: Any) -> NDArray[np.float32]:
        """[width - 1, V'] of a block behind TOKENS[: anchor + 1]."""
        options = {key: changes.pop(key) for key in ("width", "begin") if key in changes}
        return draft_reference(self.weights, self.settings | changes, self.target, self.hidden, TOKENS, anchor, **options)


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp(request.param) / "model", CASES[request.param])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("one") / "model", CASES["published"])


def make_case(path: Path, options: dict[str, Any]) -> Case:
    make(path, draft=options, progress=False)
    target = reference_tensors(path)
    hidden = reference_forward(target, read_config(path), TOKENS)[1]
    checkpoint = Checkpoint.open(path)
    drafter = open_drafter("auto", checkpoint)
    assert drafter is not None
    folder = path / "dflash"
    return Case(path, drafter, checkpoint, target, hidden, draft_tensors(folder), draft_settings(folder))


def engine_of(case: Case, draft: mu.Draft | None = None, **options: Any) -> Any:
    drafter = case.drafter if draft is None else open_drafter(draft, case.checkpoint)
    assert drafter is not None
    config, tensors, files = case.checkpoint.core_arguments()
    files = files + [str(path) for path in drafter.files]
    engine = _probe.Engine(config, tensors, files, draft=drafter.to_core(), **({"threads": 2, "precision": "exact"} | options))
    engine.load()
    return engine


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32], limit: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= limit * np.abs(expected).max()


def without_bias(case: Case, found: NDArray[np.float32], anchor: int) -> NDArray[np.float32]:
    """Takes the Markov head's bias off the greedy chain of a block [B-1, V']."""
    if "markov.w1.weight" not in case.weights:
        return found
    ids = (case.weights["d2t"] + np.arange(len(case.weights["d2t"]))).tolist() if "d2t" in case.weights else None
    token, out = TOKENS[anchor], []
    for row in found:
        index = ids.index(token) if ids is not None and token in ids else (token if ids is None else None)
        bias = 0.0 if index is None else case.weights["markov.w2.weight"] @ case.weights["markov.w1.weight"][index]
        out.append(row - bias)
        token = int(row.argmax()) if ids is None else ids[int(row.argmax())]
    return np.array(out, np.float32)


def test_a_profile_counts_the_drafter_apart(case: Case) -> None:
    engine = engine_of(case)
    assert "draft" in engine.profile(True)
    job = engine.submit(TOKENS, max_new_tokens=20, speculative=True, width=4, lookup=False, temperature=0.0)
    while job.next() is not None:
        pass
    target = engine.profile(False)
    drafter, config = target["draft"], case.checkpoint.config
    rounds = sum(1 for count in job.stats()["rounds"]["drafted"] if count > 0)
    assert (drafter["steps"], drafter["rows"]) == (rounds, rounds * case.drafter.block_size)
    ops = drafter["ops"]
    assert ops["head"]["calls"] == ops["draft_embed"]["calls"] == rounds > 3
    assert set(target["ops"]).isdisjoint({"draft_fuse", "draft_kv", "draft_embed"})
    assert target["ops"]["qkv"]["calls"] == target["steps"] * config.num_hidden_layers
    fused, rest = divmod(ops["draft_fuse"]["macs"], len(case.drafter.taps) * config.hidden_size**2)
    assert rest == 0 and len(TOKENS) - 1 <= fused < len(TOKENS) + 20  # every position before the last anchor, once
    assert all(op["bytes"] > 0 for name, op in ops.items() if name != "draft_embed")
    engine.close()


# ---- the mathematics ----


@pytest.mark.parametrize("anchor", [0, 1, 23, 24, 60, 89])
def test_a_block_is_that_of_the_oracle(case: Case, anchor: int) -> None:
    engine = engine_of(case)
    found = without_bias(case, engine.draft_logits(TOKENS, [anchor]), anchor)
    assert_close(found, case.reference(anchor))


def test_fast_is_near_exact(case: Case) -> None:
    exact, fast = (engine_of(case, precision=precision).draft_logits(TOKENS, [60]) for precision in ("exact", "fast"))
    difference = without_bias(case, fast, 60) - without_bias(case, exact, 60)
    assert np.sqrt((difference**2).mean()) < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("draft", "changes"),
    [
        (mu.Draft(rope_theta=5e6), {"theta": 5e6}),
        (mu.Draft(rotary_dim=32), {"rotary": 32}),
        (mu.Draft(rotary_dim=0), {"rotary": 0}),
        (mu.Draft(value_scale=1.0), {"value_scale": 1.0}),
        (mu.Draft(causal=True), {"causal": True}),
        (mu.Draft(window=9), {"window": 9}),
        (mu.Draft(window=0), {"window": None}),
        (mu.Draft(window_rule="anchor"), {"rule": "anchor"}),
        (mu.Draft(tap_shift=-1), {"taps": [0, 0, 2]}),
        (mu.Draft(tap_shift=1), {"taps": [1, 2, 3]}),
    ],
    ids=lambda value: ",".join(value.switches()) if isinstance(value, mu.Draft) else "",
)
def test_switches(published: Case, draft: mu.Draft, changes: dict[str, Any]) -> None:
    found = engine_of(published, draft).draft_logits(TOKENS, [60])
    assert_close(found, published.reference(60, **changes))
    plain = published.reference(60)
    assert np.abs(found - plain).max() > 1e-3 * np.abs(plain).max()


def test_the_switches_of_weights(published: Case) -> None:
    bare = {name: value for name, value in published.weights.items() if "sink" not in name}
    found = engine_of(published, mu.Draft(sinks=False)).draft_logits(TOKENS, [60])
    arguments = (published.settings, published.target, published.hidden, TOKENS, 60)
    assert_close(found, draft_reference(bare, *arguments))
    own = published.weights | {"mask_embedding": published.target["model.embed_tokens.weight"][511]}
    found = engine_of(published, mu.Draft(mask_embedding=False)).draft_logits(TOKENS, [60])
    assert_close(found, draft_reference(own, *arguments))


def test_many_anchors_are_each_as_if_alone(case: Case) -> None:
    engine = engine_of(case)
    anchors = [0, 3, 4, 24, 40, 89]
    together = engine.draft_logits(TOKENS, anchors)
    alone = np.concatenate([engine.draft_logits(TOKENS[: anchor + 1], [anchor]) for anchor in anchors])
    np.testing.assert_array_equal(together, alone)


def test_the_markov_head(tmp_path: Path) -> None:
    case = make_case(tmp_path / "model", CASES["restricted"])
    engine = engine_of(case)
    caches = _probe.draft_caches(engine, 1, 16)
    ids = case.weights["d2t"] + np.arange(100)
    for index in (0, 57, 99):
        expected = case.weights["markov.w2.weight"] @ case.weights["markov.w1.weight"][index]
        assert_close(_probe.draft_bias(caches, int(ids[index]))[:100], expected, 1e-5)
    outside = next(token for token in range(512) if token not in ids)
    assert not _probe.draft_bias(caches, outside).any()


# ---- steps of many sequences ----


class Rig:
    """Target and drafter on caches of one's own; sequence i holds TOKENS shifted by 10 * i."""

    def __init__(self, case: Case, count: int = 4, **options: Any) -> None:
        self.case = case
        self.engine = engine_of(case, **options)
        self.caches = _probe.draft_caches(self.engine, count, len(TOKENS) + 600)
        self.block = case.settings["block"]
        self.vocab = case.drafter.draft_vocab_size
        self.none = np.zeros((1, 0, case.hidden.shape[-1]), np.float32)

    @staticmethod
    def text(sequence: int) -> list[int]:
        return TOKENS[10 * sequence :] + TOKENS[: 10 * sequence]

    def target(self, rows: list[tuple[int, int]]) -> NDArray[np.float32]:
        """Taps of rows (sequence, position)."""
        hidden: NDArray[np.float32] = _probe.draft_target(self.caches, [(s, self.text(s)[p], p) for s, p in rows])
        return hidden

    def feed(self, sequence: int, first: int, end: int, split: int = 128) -> None:
        """Context of positions [first, end), through target and drafter, `split` rows at a time."""
        for at in range(first, end, split):
            rows = [(sequence, p) for p in range(at, min(at + split, end))]
            hidden = self.target(rows)
            self.step(hidden, [(s, i, p) for i, (s, p) in enumerate(rows)], [])

    def step(
        self, hidden: NDArray[np.float32], contexts: list[Any], blocks: list[Any], width: int = 0, slots: int = -1
    ) -> NDArray[np.float32]:
        """[blocks, slots, V']; blocks: (sequence, anchor position)."""
        width = width or self.block
        slots = width - 1 if slots < 0 else slots
        rows = [(s, self.text(s)[p], p) for s, p in blocks]
        out = _probe.draft_step(self.caches, hidden, contexts or np.zeros((0, 3), int), rows or np.zeros((0, 3), int), width, slots)
        return out[:, : self.vocab].reshape(len(blocks), slots, self.vocab)

    def draft(self, *blocks: tuple[int, int], width: int = 0, slots: int = -1) -> NDArray[np.float32]:
        return self.step(self.none, [], list(blocks), width, slots)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_row_depends_on_its_sequence_alone(case: Case, precision: str) -> None:
    wanted = []
    for sequence, anchor in ((0, 30), (1, 1), (2, 50), (3, 17)):
        rig = Rig(case, precision=precision, threads=1)
        rig.feed(sequence, 0, anchor, split=1)
        wanted.append(rig.draft((sequence, anchor))[0])

    rig = Rig(case, precision=precision, threads=3)
    rig.feed(0, 0, 20)
    rig.feed(2, 0, 47, split=7)
    rig.feed(3, 0, 17, split=5)
    rows = [(2, 47), (2, 48), (2, 49), *((0, p) for p in range(20, 30)), (1, 0)]
    hidden = rig.target(rows)
    order = [13, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2]  # contexts in another order than the target's rows
    contexts = [(rows[i][0], i, rows[i][1]) for i in order]
    found = rig.step(hidden, contexts, [(0, 30), (1, 1), (2, 50), (3, 17)])
    np.testing.assert_array_equal(found, np.array(wanted))
    again = rig.draft((3, 17), (0, 30))
    np.testing.assert_array_equal(again, np.array([wanted[3], wanted[0]]))


@pytest.mark.parametrize("variant", sorted(name for name, reason in _core.cpu_variants().items() if reason is None))
def test_all_kernels_give_the_same_bits(published: Case, variant: str) -> None:
    for precision in ("exact", "fast"):
        found = engine_of(published, precision=precision, variant=variant).draft_logits(TOKENS, [60])
        wanted = engine_of(published, precision=precision, threads=1, variant="ref").draft_logits(TOKENS, [60])
        np.testing.assert_array_equal(found, wanted)


def test_narrow_blocks_and_first_slots(case: Case) -> None:
    rig = Rig(case)
    rig.feed(0, 0, 40)
    full = rig.draft((0, 40))[0]
    np.testing.assert_array_equal(rig.draft((0, 40), slots=2)[0], full[:2])
    for width in (2, 3, 4):
        assert_close(rig.draft((0, 40), width=width)[0], case.reference(40, width=width))
    assert rig.draft((0, 40), width=1).shape == (1, 0, rig.vocab)
    np.testing.assert_array_equal(rig.draft((0, 40))[0], full)  # what a block writes is forgotten


# ---- how context comes about and goes ----


def test_rejected_rows_leave_no_trace(case: Case) -> None:
    """A round's rows go through the target; only the accepted ones become context, and the next round writes over the others."""
    rig = Rig(case)
    rig.feed(0, 0, 30)
    position = 30
    for accepted in (0, 3, 1, 4, 2):
        rig.draft((0, position))
        drafts = [(0, p) for p in range(position, position + rig.block)]
        hidden = rig.target(drafts)
        contexts = [(0, i, p) for i, (_, p) in enumerate(drafts[: accepted + 1])]
        position += accepted + 1
        found = rig.step(hidden, contexts, [(0, position)])[0]
        assert_close(found, case.reference(position))
        assert _probe.draft_span(rig.caches, 0, position)[1] == position


def test_copies_and_cuts(case: Case) -> None:
    rig = Rig(case)
    rig.feed(0, 0, 50)
    rig.draft((0, 50))
    _probe.draft_copy(rig.caches, 1, 0, 33)
    assert _probe.draft_span(rig.caches, 1, 33) == (0, 33)
    assert _probe.draft_span(rig.caches, 1, 34) == (0, 33)
    hidden = _probe.draft_target(rig.caches, [(1, TOKENS[p], p) for p in range(33, 36)])
    rig.step(hidden, [(1, i, p) for i, p in enumerate(range(33, 36))], [])
    found = _probe.draft_step(rig.caches, rig.none, np.zeros((0, 3), int), [(1, TOKENS[36], 36)], rig.block, rig.block - 1)
    assert_close(found[:, : rig.vocab], case.reference(36))
    assert_close(rig.draft((0, 50))[0], case.reference(50))  # its source is as it was

    rig.target([(0, 20)])  # the target's row at 20 is another text's from here on
    assert _probe.draft_span(rig.caches, 0, 20) == (0, 20)
    assert _probe.draft_span(rig.caches, 0, 50) == (0, 20)
    rig.feed(0, 20, 28)
    assert_close(rig.draft((0, 28))[0], case.reference(28))


def test_a_gap_leaves_the_context_empty_or_short(case: Case) -> None:
    rig = Rig(case)
    rig.feed(0, 0, 20)
    rig.target([(0, p) for p in range(20, 30)])  # no context of these
    assert_close(rig.draft((0, 30))[0], case.reference(30, begin=30))
    hidden = rig.target([(0, p) for p in range(30, 40)])
    found = rig.step(hidden, [(0, i, p) for i, p in enumerate(range(30, 40))], [(0, 40)])[0]
    assert _probe.draft_span(rig.caches, 0, 40) == (30, 40)
    assert_close(found, case.reference(40, begin=30))


def test_the_ring_wraps(tmp_path: Path) -> None:
    """Two turns around a ring of 256 positions, windows across its seam, and a cut as far as it reaches."""
    case = make_case(tmp_path / "model", {"window": 24, "layers": 2})
    tokens = [int(token) for token in np.random.default_rng(3).integers(0, 512, 620)]
    hidden = engine_of(case).hidden_states(tokens, range(4))  # which other tests hold to the oracle
    anchors = [250, 256, 260, 279, 300, 511, 513, 530, 619]
    found = engine_of(case).draft_logits(tokens, anchors).reshape(len(anchors), -1, 512)
    for block, anchor in zip(found, anchors, strict=True):
        assert_close(block, draft_reference(case.weights, case.settings, case.target, hidden, tokens, anchor))

    engine = engine_of(case)
    caches = _probe.draft_caches(engine, 1, 640)

    def feed(first: int, end: int) -> None:
        for at in range(first, end, 100):
            rows = range(at, min(at + 100, end))
            taps = _probe.draft_target(caches, [(0, tokens[p], p) for p in rows])
            _probe.draft_step(caches, taps, [(0, i, p) for i, p in enumerate(rows)], np.zeros((0, 3), int), 8, 0)

    def draft(anchor: int) -> NDArray[np.float32]:
        none = np.zeros((1, 0, 160), np.float32)
        out: NDArray[np.float32] = _probe.draft_step(caches, none, np.zeros((0, 3), int), [(0, tokens[anchor], anchor)], 8, 7)
        return out

    feed(0, 600)
    assert _probe.draft_span(caches, 0, 600) == (600 - 256, 600)
    draft(600)
    assert _probe.draft_span(caches, 0, 600) == (608 - 256, 600)
    feed(400, 402)  # back to 400: 48 positions are left, more than the window
    wanted = draft_reference(case.weights, case.settings, case.target, hidden, tokens, 402)
    assert_close(draft(402), wanted)
    feed(360, 362)  # back to 360: what is left is shorter than the window
    assert _probe.draft_span(caches, 0, 362) == (352, 362)
    short = draft_reference(case.weights, case.settings, case.target, hidden, tokens, 362, begin=352)
    assert_close(draft(362), short)
    feed(300, 302)  # nothing of it is left
    assert _probe.draft_span(caches, 0, 302) == (300, 302)


@pytest.mark.parametrize("window", [0, 600])
def test_long_windows(tmp_path: Path, window: int) -> None:
    """Chunks of a context that several workers share give the bits that one worker gives."""
    case = make_case(tmp_path / "model", {"window": window, "layers": 2})
    tokens = [int(token) for token in np.random.default_rng(4).integers(0, 512, 780)]
    hidden = engine_of(case).hidden_states(tokens, range(4))  # which other tests hold to the oracle
    anchors = [513, 640, 779]
    found = engine_of(case, threads=3).draft_logits(tokens, anchors).reshape(len(anchors), -1, 512)
    for block, anchor in zip(found, anchors, strict=True):
        assert_close(block, draft_reference(case.weights, case.settings, case.target, hidden, tokens, anchor))
    for precision in ("exact", "fast"):
        one, three = (engine_of(case, threads=n, precision=precision).draft_logits(tokens, anchors) for n in (1, 3))
        np.testing.assert_array_equal(one, three)


# ---- what it costs, and what is refused ----


def test_memory_counts_the_drafter(published: Case) -> None:
    config, tensors, files = published.checkpoint.core_arguments()
    plain = _probe.Engine(config, tensors, files, threads=2, precision="exact").memory()
    memory = engine_of(published).memory()
    assert memory["weights"] == plain["weights"] + memory["draft_weights"]
    assert memory["draft_weights"] >= 1.99 * published.drafter.parameters
    heads, width = published.settings["kv_heads"], 32 + 32
    assert memory["kv_fixed"] - plain["kv_fixed"] == 256 * 2 * heads * width * 4
    assert memory["workspace"] > plain["workspace"]


def test_calls_are_checked(published: Case) -> None:
    engine = engine_of(published)
    with pytest.raises(ValueError, match="anchors: item 1: expected ascending positions below 4 tokens, found 4"):
        engine.draft_logits([1, 2, 3, 4], [0, 4])
    with pytest.raises(ValueError, match="anchors: item 1: expected ascending"):
        engine.draft_logits([1, 2, 3, 4], [2, 2])
    assert engine.draft_logits([1, 2], []).shape == (0, 512)
    plain = _probe.Engine(*published.checkpoint.core_arguments(), threads=1)
    plain.load()
    with pytest.raises(ValueError, match="without a drafter"):
        plain.draft_logits([1], [0])
    with pytest.raises(ValueError, match="without a drafter"):
        plain.plan(1, draft=True)


def test_steps_allocate_nothing(published: Case) -> None:
    rig = Rig(published)
    rig.feed(0, 0, 30)
    before = _probe.alloc_stats()
    rig.feed(0, 30, 40)
    rig.draft((0, 40))
    after = _probe.alloc_stats()
    assert (after["calls"], after["refused"]) == (before["calls"], before["refused"])
