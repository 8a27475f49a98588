"""The resident engine's loop with host threads as CTAs: the CPU engine's tokens, whatever the CTAs, the launches and the drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import markov_tables, matched
from numpy.typing import NDArray

from mimo_ultraspeed import _probe
from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.drafter import open_drafter
from mimo_ultraspeed.make import make

WHY = "not run: no C++ compiler when the package was built, or no fused multiply-add"
pytestmark = pytest.mark.skipif(not hasattr(_probe, "machine_open"), reason=WHY)

PROMPT = np.random.default_rng(3).integers(0, 512, 21).astype(np.uint32)
NO_STOP = (1 << 32) - 1
SHARED = 228 << 10


class Machine:
    """A made checkpoint in the CPU engine and in the resident engine on the host."""

    def __init__(self, path: Path, ctas: int = 3, shared: int = SHARED, **recipe: Any) -> None:
        """recipe: of a checkpoint that is not there yet."""
        if not path.exists():
            make(path, progress=False, **recipe)
        checkpoint = Checkpoint.open(path)
        config, tensors, files = checkpoint.core_arguments()
        drafter = open_drafter("auto", checkpoint) if (path / "dflash").exists() else None
        draft, self.drafted = {}, None if drafter is None else drafter.target_ids
        if drafter is not None:
            files, draft = files + [str(file) for file in drafter.files], {"draft": drafter.to_core()}
        self.engine = _probe.Engine(config, tensors, files, threads=1, precision="exact", **draft)
        self.bodies = _probe.cuda_open(self.engine, True, 512)
        self.engine.load()
        self.open(ctas, shared)

    def open(self, ctas: int, shared: int = SHARED) -> dict[str, int]:
        self.shape: dict[str, int] = _probe.machine_open(self.bodies, ctas, shared)
        return self.shape

    def run(
        self,
        prompt: NDArray[np.uint32] = PROMPT,
        new: int = 40,
        *,
        width: int = 8,
        temperature: float = 0.0,
        seed: int = 0,
        rounds: int = 1000,
        stop: int = NO_STOP,
        script: list[int] | None = None,
        lookup: bool = False,
    ) -> dict[str, Any]:
        limit, drafts = len(prompt) + new, np.array(script or [], np.uint32)
        return dict(_probe.machine_run(self.bodies, prompt, limit, width, temperature, seed, rounds, stop, drafts, lookup))

    def drafts(self, known: NDArray[np.uint32]) -> list[int]:
        """What the CPU engine's drafter finds likeliest behind the last token."""
        best = self.engine.draft_logits(known.tolist(), [len(known) - 1]).argmax(1)
        return [int(token) for token in (best if self.drafted is None else self.drafted[best])]

    def plain(self, prompt: NDArray[np.uint32] = PROMPT, new: int = 40, temperature: float = 0.0, seed: int = 0) -> list[int]:
        """What the CPU engine's logits and sampler choose, token by token."""
        tokens = [int(token) for token in prompt]
        for _ in range(new):
            logits = np.ascontiguousarray(self.engine.logits(tokens)[-1])
            choice = _probe.sample(logits, {"temperature": temperature, "seed": seed}, len(tokens), [])
            tokens.append(int(choice[0]))
        return tokens


CASES: dict[str, dict[str, Any]] = {
    "flash-bf16": {"layout": "flash", "weights": "bf16"},
    "flash-fp8": {"layout": "flash", "weights": "fp8", "router": "bf16"},
    "flash-mxfp4": {"layout": "flash", "weights": "mxfp4"},
    "fused-fp8": {"layout": "fused", "weights": "fp8"},
    "fused-mxfp4": {"layout": "fused", "weights": "mxfp4", "router": "bf16"},
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_and_drawn_tokens_are_the_cpu_engine_s(case: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "model", seed=8, **CASES[case])
    for temperature in (0.0, 0.8):
        found = machine.run(new=24, temperature=temperature, seed=5)
        assert found["tokens"].tolist() == machine.plain(new=24, temperature=temperature, seed=5)
        assert found["rounds"] == 24


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("engine") / "model", layout="flash", weights="mxfp4", seed=9)


@pytest.mark.parametrize("ctas", [1, 2, 7])
def test_ctas_and_launches_change_no_token(machine: Machine, ctas: int) -> None:
    want = machine.plain(new=30)
    shape = machine.open(ctas)
    assert shape["tasks"] >= shape["stages"]
    assert machine.run(new=30)["tokens"].tolist() == want
    assert machine.run(new=30, rounds=1)["tokens"].tolist() == want
    assert machine.run(new=30, rounds=4)["tokens"].tolist() == want


def test_a_short_ring_and_a_long_context(machine: Machine) -> None:
    """A ring of a few pages comes round in every task; 300 positions are two chunks of the cache and splits of attention."""
    prompt = np.random.default_rng(4).integers(0, 512, 290).astype(np.uint32)
    want = machine.plain(prompt, 6)
    for ctas in (2, 6):
        assert machine.open(ctas, 90 << 10)["ring_bytes"] <= 5 * 17408
        assert machine.run(prompt, 6)["tokens"].tolist() == want


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("wrong", [1000, 7, 3, 1])
def test_drafts_change_no_token_and_no_bit(machine: Machine, wrong: int, temperature: float) -> None:
    """Scripted drafts, every `wrong`-th of them not what the model says: rounds of one to eight rows."""
    machine.open(3)
    plain = machine.run(new=32, temperature=temperature, seed=3)
    want = plain["tokens"].tolist()
    script = [(token + (i % wrong == 0)) % 512 for i, token in enumerate(want)]
    found = machine.run(new=32, temperature=temperature, seed=3, rounds=1, script=script)
    assert found["tokens"].tolist() == want
    right = sum(a == b for a, b in zip(script[len(PROMPT) :], want[len(PROMPT) :], strict=True))
    assert (found["accepted"] > 0) == (right > 0) and found["accepted"] <= right
    assert found["rounds"] + found["accepted"] == 32


def test_logits_are_the_same_bits_at_every_width(machine: Machine) -> None:
    machine.open(3)
    tokens = machine.run(new=11, width=1)["tokens"]
    first = len(tokens) - 8  # three steps of eight rows read what is before; then come this token and seven drafts
    assert first == 24
    singles = [machine.run(tokens[: n + 1], 1)["logits"][n % 8] for n in range(first, len(tokens))]
    drafted = machine.run(tokens[:first], 9, rounds=1, script=tokens.tolist())
    assert drafted["rounds"] == 2 and drafted["accepted"] == 7
    for t in range(8):
        np.testing.assert_array_equal(drafted["logits"][t].view(np.uint32), singles[t].view(np.uint32))


def test_a_stop_id_ends_the_text(machine: Machine) -> None:
    machine.open(2)
    tokens = machine.run(new=30)["tokens"].tolist()
    stop = tokens[len(PROMPT) + 9]
    found = machine.run(new=30, stop=stop)["tokens"].tolist()
    assert found == tokens[: tokens.index(stop, len(PROMPT)) + 1]


def test_a_signal_that_never_comes_is_an_error_that_says_who_waits(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "model", layout="flash", weights="bf16", seed=1)
    _probe.machine_break(machine.bodies, machine.shape["tasks"] // 2, 300)
    with pytest.raises(
        RuntimeError, match=r"lost: compute role of CTA \d+ waited too long in round 0: stage \d+ \(.+\) has \d+ of \d+"
    ):
        machine.run(new=2)


DRAFTERS: list[dict[str, Any]] = [
    {"window": 24},
    {"weights": "fp8", "spelling": "flat", "mask": "tensor"},
    {"weights": "mxfp4", "block": 5},
    {"vocab": 100},
    {"markov_rank": 8},
    {"vocab": 300, "markov_rank": 4, "weights": "fp8"},
]


@pytest.mark.parametrize("options", DRAFTERS, ids=lambda options: "-".join(map(str, options)))
def test_a_drafter_changes_no_token(options: dict[str, Any], tmp_path: Path) -> None:
    machine = Machine(tmp_path / "model", draft=options, seed=2)
    for temperature in (0.0, 1.0):
        found = machine.run(new=24, temperature=temperature, seed=4)
        assert found["tokens"].tolist() == machine.plain(new=24, temperature=temperature, seed=4)
        assert found["rounds"] + found["accepted"] == 24


@pytest.mark.parametrize("options", DRAFTERS, ids=lambda options: "-".join(map(str, options)))
def test_drafts_are_the_cpu_engine_s(options: dict[str, Any], tmp_path: Path) -> None:
    make(tmp_path / "model", draft=options, seed=2, progress=False)
    if "markov_rank" in options:
        for table in markov_tables(tmp_path / "model"):
            table += 6 << 7  # the exponents: biases times 2^12 decide about drafts
    machine = Machine(tmp_path / "model")
    for ctas, new in ((3, 16), (16, 19)):  # with 16 the drafter's vocabulary is shared out
        machine.open(ctas)
        found = machine.run(new=new, rounds=1)
        known, drafts, _ = max(found["drafts"], key=lambda one: (len(one[1]), one[0]))
        assert drafts.tolist() == machine.drafts(found["tokens"][:known])


# ---- prompt lookup beside the drafter ----


def test_the_longest_and_latest_match_is_found() -> None:
    draw, lengths = np.random.default_rng(1), set()
    for ids in (1, 2, 5, 20):
        for count in [*range(1, 40), 300, 1000]:
            text = draw.integers(0, ids, count).astype(np.uint32)
            found = _probe.machine_look_up(text)
            assert found == matched(text.tolist()), text
            lengths.add(found[0])
    assert lengths == {0, 2, 3, 4}


def test_a_match_is_not_looked_for_beyond_its_reach() -> None:
    reach = 1 << 15
    text = np.arange(reach + 100, dtype=np.uint32)
    for at in (100, 99):  # the first place within reach, and the last one beyond it
        text[-3:] = text[at - 3 : at]
        assert _probe.machine_look_up(text) == ((3, at) if at == 100 else (0, 0))


def test_drafts_are_looked_up_where_a_match_is_believed(tmp_path: Path) -> None:
    """Matches of three and more, and those of two whose first token the drafter says as well."""
    machine = Machine(tmp_path / "model", overrides={"vocab_size": 12}, draft={"window": 24})  # few ids, so text comes again
    start, seen = PROMPT % 12, set()
    found = machine.run(start, 200, rounds=1, lookup=True)
    for known, drafts, looked_up in found["drafts"]:
        text, own = found["tokens"][:known].tolist(), machine.drafts(found["tokens"][:known])
        length, at = matched(text)
        followed = [text[at + i % (known - at)] for i in range(len(drafts))] if length else []
        agreed = length > 0 and followed[0] == own[0]
        assert looked_up == (length > 2 or agreed)
        assert drafts.tolist() == (followed if looked_up else own[: len(drafts)])
        seen.add((length, agreed, looked_up))
    assert {(0, False, False), (2, False, False), (2, True, True), (3, False, True)} <= seen
    for temperature in (0.0, 1.0):
        found = machine.run(start, 100, lookup=True, temperature=temperature, seed=1)
        assert found["tokens"].tolist() == machine.plain(start, 100, temperature, seed=1)
