"""A stored rounding gives back the rounding, for the weights it was made of and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mimo_ultraspeed as mu
from mimo_ultraspeed._core import mxfp4_decode, mxfp4_encode
from mimo_ultraspeed.convert import convert, write_delta
from mimo_ultraspeed.convert.calibrate import Experts
from mimo_ultraspeed.convert.experts import round_experts
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import make
from mimo_ultraspeed.weights import Weights

SHAPE = {"n_routed_experts": 4, "num_hidden_layers": 3}


class Shaken:
    """Rounds what lies near the weights: near in most places, anywhere in some, nothing in a whole block."""

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)

    def dense(self, number: int, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> None:
        pass

    def layer(self, number: int, experts: Experts) -> Experts:
        return Experts(*([self.shaken(one) for one in getattr(experts, part)] for part in ("gate", "up", "down")))

    def shaken(self, weights: np.ndarray) -> np.ndarray:
        noise = self._draw.standard_normal(weights.shape) * np.abs(weights).mean()
        noise *= np.where(self._draw.random(weights.shape) < 0.02, 5, 0.1)
        moved = (weights + noise).astype(np.float32)
        moved[0, :32] = 0
        return mxfp4_decode(*mxfp4_encode(moved))


def values(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = mu.Checkpoint.open(folder)
    weights = Weights(checkpoint.tensors, checkpoint.files)
    return {name: weights[name] for name in weights if not name.endswith("_scale")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source") / "model", weights="bf16", overrides=SHAPE, progress=False)


def test_a_rounding_comes_back(source: Path, tmp_path: Path) -> None:
    rounded = tmp_path / "rounded"
    rounded.mkdir()
    round_experts(source, rounded, calibrate=lambda *_: Shaken(), max_shard_bytes=1 << 30, progress=False)
    size = write_delta(source, rounded, tmp_path / "file")
    experts = sum(one.size for name, one in values(source).items() if ".experts." in name)
    assert size == (tmp_path / "file").stat().st_size < experts / 6
    back = values(convert(source, tmp_path / "back", rounding=tmp_path / "file", progress=False))
    wanted = values(rounded)
    assert back.keys() == wanted.keys()
    assert all(np.array_equal(back[name], wanted[name]) for name in wanted)
    plain = values(convert(source, tmp_path / "plain", progress=False))
    assert not all(np.array_equal(plain[name], wanted[name]) for name in wanted)


def test_plain_rounding_costs_next_to_nothing(source: Path, tmp_path: Path) -> None:
    plain = convert(source, tmp_path / "plain", progress=False)
    assert write_delta(source, plain, tmp_path / "file") < 2000


def test_other_weights_and_other_files_are_refused(source: Path, tmp_path: Path) -> None:
    plain, file = convert(source, tmp_path / "plain", progress=False), tmp_path / "file"
    write_delta(source, plain, file)
    other = make(tmp_path / "other", weights="bf16", seed=1, overrides=SHAPE, progress=False)
    with pytest.raises(CheckpointError, match="file: expected the weights it was made of, found others"):
        convert(other, tmp_path / "out", rounding=file, progress=False)
    longer = make(tmp_path / "longer", weights="bf16", overrides=SHAPE | {"num_hidden_layers": 4}, progress=False)
    with pytest.raises(CheckpointError, match="expected"):
        convert(longer, tmp_path / "out", rounding=file, progress=False)
    with pytest.raises(CheckpointError, match="expected a rounding of"):
        write_delta(longer, plain, tmp_path / "none")
    with pytest.raises(ValueError, match="expected one of them at most, found both"):
        convert(source, tmp_path / "out", rounding=file, calibrate=file, progress=False)
    whole = file.read_bytes()
    for damage, told in ((whole[:-400], "expected"), (whole[:60] + b"xxxx" + whole[64:], "found damage"), (b"x", "something else")):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError, match=told):
            convert(source, tmp_path / "out", rounding=file, progress=False)
    assert not (tmp_path / "out").exists()
