"""Operation bodies on the host, a team of one: every slot of the tape against numpy, the whole model against the CPU engine,
and the same bits at every width and every cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_reference import draft_reference, draft_settings, draft_tensors
from numpy.typing import NDArray
from reference import read_config, reference_forward, reference_tensors, silu
from reference_slots import expert_rows, expert_weights, layer_slots

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

WHY = "not run: no C++ compiler when the package was built, or no fused multiply-add"
pytestmark = pytest.mark.skipif(not hasattr(_probe, "cuda_open"), reason=WHY)

Array = NDArray[Any]
EXACT = 1e-4  # of the largest value of a slot: what float32 sums in another order may lose
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 512, 300)]
ALL = 1 << 30

CASES: dict[str, dict[str, Any]] = {
    f"{layout}-{weights}-{router}": {"layout": layout, "weights": weights, "router": router}
    for layout, weights, router in [
        ("flash", "bf16", "f32"),
        ("flash", "fp8", "bf16"),
        ("flash", "mxfp4", "f32"),
        ("fused", "bf16", "bf16"),
        ("fused", "fp8", "f32"),
        ("fused", "mxfp4", "bf16"),
    ]
}


class Model:
    """A made checkpoint, its oracle, the CPU engine and the bodies' cache."""

    logits: Array
    hidden: Array

    def __init__(self, path: Path, exact: bool = True, **recipe: Any) -> None:
        make(path, progress=False, **recipe)
        self.path, self.config, self.tensors = path, read_config(path), reference_tensors(path)
        checkpoint = Checkpoint.open(path)
        config, tensors, files = checkpoint.core_arguments()
        drafter = open_drafter("auto", checkpoint) if recipe.get("draft") else None
        draft = {}
        if drafter is not None:
            files, draft = files + [str(file) for file in drafter.files], {"draft": drafter.to_core()}
        self.engine = _probe.Engine(config, tensors, files, threads=2, precision="exact" if exact else "fast", **draft)
        self.bodies = _probe.cuda_open(self.engine, exact, 1024)  # loading closes the files
        self.engine.load()

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    def step(
        self, tokens: list[int], position: int, *, outputs: bool = True, stop: int = ALL, tile: int = 64, split: bool = False
    ) -> dict[str, Any]:
        every = list(range(len(tokens)))
        slots = _probe.cuda_step(self.bodies, tokens, position, every if outputs else [], range(self.layers), stop, tile, split)
        return dict(slots)

    def prefill(self, tokens: list[int], widths: tuple[int, ...] = (8,), first: int = 0, **options: Any) -> tuple[Array, Array]:
        """logits [T, V] and hidden [L, T, H] of tokens from position `first` on, in steps of the widths in turn."""
        logits, hidden, at, turn = [], [], 0, 0
        while at < len(tokens):
            slots = self.step(tokens[at : at + widths[turn % len(widths)]], first + at, **options)
            logits.append(slots["logits"])
            hidden.append(slots["hidden"])
            at, turn = at + len(slots["logits"]), turn + 1
        return np.concatenate(logits), np.concatenate(hidden, axis=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its cache holds the first 300 tokens; tests write the last of them again, the same bits."""
    model = Model(tmp_path_factory.mktemp("bodies") / "model", layout="fused", weights="mxfp4", seed=5)
    model.logits, model.hidden = model.prefill(TOKENS)
    return model


def near(found: Array, want: Array, limit: float = EXACT) -> None:
    assert found.shape == want.shape
    assert np.abs(found - want).max() <= limit * np.abs(want).max()


def same_bits(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


# ---- slot by slot ----


def check_layer(model: Model, layer: int, x: Array, rows: slice, first: int) -> None:
    """Checks the slots that the operations of a layer, from operation `first` of the plan on, write for `rows`."""
    w, config, p = model.tensors, model.config, f"model.layers.{layer}.mlp."
    tokens, position, T = TOKENS[rows], rows.start, rows.stop - rows.start

    def slots(operations: int) -> dict[str, Any]:
        return model.step(tokens, position, stop=operations)

    want = layer_slots(w, config, layer, x)
    width = want["q"].shape[1] * T
    near(slots(first + 1)["q"].reshape(-1)[:width].reshape(T, -1), want["q"][rows])
    near(slots(first + 2)["a"][:, : want["a"].shape[1]], want["a"][rows])
    near(slots(first + 3)["x"], want["x"][rows])
    if config["moe_layer_freq"][layer]:
        chosen, weight = expert_weights(w, config, layer, want["m"][rows])
        routed, up = slots(first + 4), slots(first + 5)
        near(routed["m"], want["m"][rows])
        np.testing.assert_array_equal(routed["chosen"].reshape(T, -1), chosen)
        near(routed["share"].reshape(T, -1), weight)
        check_routes(routed, chosen, T)
        width = model.config["moe_intermediate_size"]
        near(up["u"][: chosen.size, :width], expert_rows(w, layer, want["m"][rows], chosen), 2 * EXACT)
    else:
        m = want["m"][rows]
        near(
            slots(first + 4)["u"][:T, : config["intermediate_size"]],
            silu(m @ w[f"{p}gate_proj.weight"].T) * (m @ w[f"{p}up_proj.weight"].T),
        )


def check_routes(routed: dict[str, Any], chosen: Array, T: int) -> None:
    """Entries by expert, then row."""
    order = np.argsort(chosen.reshape(-1), kind="stable")
    np.testing.assert_array_equal(routed["row"], order // chosen.shape[1])
    same_bits(routed["weight"], routed["share"][order])
    expert, begin = np.unique(chosen.reshape(-1)[order], return_index=True)
    np.testing.assert_array_equal(routed["expert"], expert)
    np.testing.assert_array_equal(routed["begin"], [*begin, T * chosen.shape[1]])


@pytest.mark.parametrize("case", CASES)
def test_every_slot_is_that_of_the_equations(case: str, tmp_path: Path) -> None:
    model = Model(tmp_path / "model", seed=31, **CASES[case])
    model.prefill(TOKENS[:32])
    rows = slice(32, 39)
    x = np.asarray(model.tensors["model.embed_tokens.weight"][TOKENS[: rows.stop]], np.float64)
    embedded = model.step(TOKENS[rows], rows.start, stop=1)
    np.testing.assert_array_equal(embedded["x"], x[rows].astype(np.float32))
    hidden, first = reference_forward(model.tensors, model.config, TOKENS[: rows.stop])[1], 1
    for layer in range(model.layers):
        check_layer(model, layer, x, rows, first)
        x = hidden[layer].astype(np.float64)
        first += 6 if model.config["moe_layer_freq"][layer] else 5
        near(model.step(TOKENS[rows], rows.start, stop=first)["x"], x[rows])


# ---- the whole model ----


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_that_of_the_oracle_and_of_the_cpu_engine(case: str, tmp_path: Path) -> None:
    model = Model(tmp_path / "model", seed=31, **CASES[case])
    tokens = TOKENS[:48]
    want, hidden = reference_forward(model.tensors, model.config, tokens)
    found, streams = model.prefill(tokens)
    near(found, want)
    near(streams, hidden)
    near(found, model.engine.logits(tokens))


def test_chunks_windows_and_the_ring(model: Model) -> None:
    """300 positions: full layers have two chunks, sliding ones a ring that has come round."""
    near(model.logits, model.engine.logits(TOKENS))


def test_bf16_caches_are_those_of_the_fast_cpu_engine(tmp_path: Path) -> None:
    """Keys and values rounded to BF16, all else float: within what the rounding moves."""
    model = Model(tmp_path / "model", exact=False, layout="flash", weights="bf16", seed=5)
    exact = reference_forward(model.tensors, model.config, TOKENS[:40])[0]
    found, _ = model.prefill(TOKENS[:40])
    difference = np.abs(found - exact).max(axis=1)
    assert np.median(difference) < 0.02 * np.abs(exact).max()
    assert difference.max() > 0


FIRST = 244  # the rows behind it are of two chunks


@pytest.mark.parametrize("widths", [(1,), (2,), (3, 5), (4,), (7, 1)])
def test_every_width_has_the_same_bits(model: Model, widths: tuple[int, ...]) -> None:
    narrow, streams = model.prefill(TOKENS[FIRST:272], widths, first=FIRST)
    same_bits(model.logits[FIRST:272], narrow)
    same_bits(model.hidden[:, FIRST:272], streams)


@pytest.mark.parametrize(("tile", "split"), [(1, False), (3, True), (40, False), (4096, True)])
def test_every_cut_has_the_same_bits(model: Model, tile: int, split: bool) -> None:
    found, _ = model.prefill(TOKENS[FIRST:272], tile=tile, split=split, first=FIRST)
    same_bits(model.logits[FIRST:272], found)


def test_greedy_decoding_is_the_cpu_engine_s(tmp_path: Path) -> None:
    model = Model(tmp_path / "model", layout="flash", weights="mxfp4", seed=6)
    prompt = TOKENS[:20]
    tokens = list(prompt)
    logits, _ = model.prefill(prompt)
    for _ in range(40):
        tokens.append(int(logits[-1].argmax()))
        logits = model.step([tokens[-1]], len(tokens) - 1)["logits"]
    rows = model.engine.logits(tokens)
    assert [int(row.argmax()) for row in rows[len(prompt) - 1 : -1]] == tokens[len(prompt) :]


def test_rows_without_logits(model: Model) -> None:
    slots = model.step(TOKENS[296:], 296, outputs=False)
    assert slots["logits"].shape == (0, model.config["vocab_size"])


# ---- the drafter ----

DRAFTS: dict[str, dict[str, Any]] = {
    "published": {"window": 24},
    "flat_fp8": {"spelling": "flat", "weights": "fp8", "window": 24, "mask": "tensor", "prefix": "model."},
    "mxfp4_full": {"weights": "mxfp4", "window": 0, "block": 5, "rotary": 1.0},
    "odd": {"head_dim": 24, "rotary": 0.5, "kv_heads": 1, "heads": 3, "sinks": False, "window": 300, "layers": 3},
    "no_norm": {"qk_norm": False, "window": 2, "taps": [3], "kv_heads": 8},
    "restricted": {"vocab": 100, "window": 24},
}


@pytest.mark.parametrize("case", DRAFTS)
def test_a_block_is_that_of_the_oracle(case: str, tmp_path: Path) -> None:
    model = Model(tmp_path / "model", draft=DRAFTS[case])
    folder = model.path / "dflash"
    weights, settings = draft_tensors(folder), draft_settings(folder)
    tokens = TOKENS[:90]
    hidden = reference_forward(model.tensors, model.config, tokens)[1]
    features = np.ascontiguousarray(hidden[settings["taps"]])
    width = settings["block"]
    for anchor in (0, 1, 23, 24, 60, 89):
        want = draft_reference(weights, settings, model.tensors, hidden, tokens, anchor, width=width)
        if anchor > 0:
            _probe.cuda_context(model.bodies, np.ascontiguousarray(features[:, :anchor]), 0, 64)
        found = _probe.cuda_block(model.bodies, tokens[anchor], anchor, 0, width, 64, False)
        near(found, want)
        same_bits(found, _probe.cuda_block(model.bodies, tokens[anchor], anchor, 0, width, 5, True))
