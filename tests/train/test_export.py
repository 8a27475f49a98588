"""A drafter as files, and the engine's arithmetic beside torch's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_ultraspeed as mu

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.errors import CheckpointError  # noqa: E402
from mimo_ultraspeed.train.drafter import Block, Trained, context, hidden, markov_bias  # noqa: E402
from mimo_ultraspeed.train.export import export_drafter, load_drafter, load_run  # noqa: E402
from mimo_ultraspeed.train.target import TargetWeights  # noqa: E402
from mimo_ultraspeed.train.trainer import CHECKPOINT, Trainer, TrainOptions, load_training  # noqa: E402


@pytest.fixture
def drafter(drafter_config: Any) -> Trained:
    """Random numbers, large enough that every part matters."""
    draw = torch.Generator().manual_seed(5)
    parameters = {name: torch.randn(shape, generator=draw) / shape[1] ** 0.5 for name, shape in drafter_config.matrices().items()}
    for name, shape in drafter_config.vectors().items():
        parameters[name] = torch.randn(shape, generator=draw) * 0.2 + (0.0 if "sink" in name or "mask" in name else 1.0)
    parameters |= {name: torch.randn(shape, generator=draw) for name, shape in drafter_config.tables().items()}
    ids = np.random.default_rng(5).permutation(drafter_config.vocab_size)[: drafter_config.head_size]
    return Trained(drafter_config, parameters, np.sort(ids).astype(np.int64))


def torch_logits(trained: Trained, model: mu.Model, ids: list[int]) -> np.ndarray:
    """[B - 1, V'] of a block after the last of `ids`, the bias of a slot following the likeliest token of the slot before."""
    weights, at = TargetWeights(model.checkpoint), len(ids) - 1
    states = model.hidden_states(ids, trained.config.taps)
    taps = torch.from_numpy(states.transpose(1, 0, 2).reshape(len(ids), -1).copy())
    places = {int(token): place for place, token in enumerate(trained.head_ids)}
    known = context(trained.parameters, trained.config, taps[:at])
    block = Block(torch.from_numpy(weights.embedding()[[ids[-1]]]), torch.tensor([at]), trained.config.block_size)
    plain = hidden(trained.parameters, trained.config, known, block)[0] @ torch.from_numpy(weights.head()[trained.head_ids]).T
    rows, previous = [], torch.tensor(places.get(ids[-1], -1))
    for row in plain:
        bias = markov_bias(trained.parameters, previous)
        rows.append(row if bias is None else row + bias)
        previous = rows[-1].argmax()
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_files_hold_what_was_trained(drafter: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.chdir(tmp_path)
    back = load_drafter(export_drafter(drafter, "drafter", weights=weights))
    assert back.config == drafter.config
    assert np.array_equal(back.head_ids, drafter.head_ids)
    assert back.parameters.keys() == drafter.parameters.keys()
    for name, value in drafter.parameters.items():
        found = back.parameters[name]
        if value.ndim == 1 and name != "mask_embedding":
            assert torch.equal(found, value), name
        elif weights == "bf16" or not name.startswith("layers."):
            assert torch.equal(found, value.bfloat16().float()), name
        else:
            # E4M3 has three bits behind the point, and subnormals of 2^-9 where the tile's largest is 448.
            error = (found - value).abs()
            assert (error <= value.abs() / 16 + value.abs().max() / 448 * 2**-10).all(), name
            assert error.max() > 0
    again = export_drafter(back, tmp_path / "again", weights=weights)
    files = ("model.safetensors", "config.json")
    assert all((again / name).read_bytes() == (tmp_path / "drafter" / name).read_bytes() for name in files)
    with pytest.raises(FileExistsError, match=r"model\.safetensors: expected no drafter there"):
        export_drafter(drafter, tmp_path / "drafter")


@pytest.mark.parametrize("changes", [{}, {"markov_rank": 0, "sinks": False}], ids=["all", "plain"])
def test_the_engine_drafts_what_torch_does(tiny_path: Path, drafter: Trained, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(drafter.config, **changes)
    names = config.matrices().keys() | config.vectors().keys() | config.tables().keys()
    drafter = Trained(config, {name: value for name, value in drafter.parameters.items() if name in names}, drafter.head_ids)
    folder = export_drafter(drafter, tmp_path / "drafter")
    stored = load_drafter(folder)
    draw = np.random.default_rng(1)
    with mu.Model.from_pretrained(tiny_path, draft=folder, precision="exact", threads=1, progress=False) as model:
        assert model.draft is not None and model.draft.taps == config.taps
        outside = next(token for token in range(512) if token not in set(drafter.head_ids.tolist()))
        for ids in (draw.integers(0, 512, 5), draw.integers(0, 512, 60), [*draw.integers(0, 512, 30), outside]):
            ids = [int(token) for token in ids]
            found, expected = model.draft_logits(ids), torch_logits(stored, model, ids)
            others = np.setdiff1d(np.arange(512), stored.head_ids)
            assert np.isneginf(found[:, others]).all()
            found = found[:, stored.head_ids]
            np.testing.assert_allclose(found, expected, atol=3e-4 * np.abs(expected).max())
            if config.markov_rank:
                plain = Trained(dataclasses.replace(config, markov_rank=0), {
                    name: value for name, value in stored.parameters.items() if "markov" not in name
                }, stored.head_ids)  # fmt: skip
                assert np.abs(expected - torch_logits(plain, model, ids)).max() > 0.1


def test_a_run_is_exported_with_its_scales_and_its_average(
    tiny_model: mu.Model, answers_folder: Path, tmp_path: Path, drafter_config: Any
) -> None:
    options = TrainOptions(steps=2, sequences=1, anchors=4)
    trainer = Trainer(tiny_model, answers_folder, tmp_path, options, config=drafter_config, cache=answers_folder / "taps")
    trainer.run(progress=False)
    state = load_training(tmp_path / CHECKPOINT)
    averaged, last = load_run(tmp_path / CHECKPOINT), load_run(tmp_path / CHECKPOINT, averaged=False)
    assert averaged.config == last.config == drafter_config
    assert np.array_equal(averaged.head_ids, trainer.head_ids)
    assert torch.equal(averaged.parameters["norm.weight"], state["ema"]["norm.weight"])
    assert torch.equal(last.parameters["norm.weight"], state["parameters"]["norm.weight"])
    assert not torch.equal(averaged.parameters["norm.weight"], last.parameters["norm.weight"])
    taps = torch.randn(7, len(state["tap_rms"]))
    scaled = (taps / state["tap_rms"]) @ state["parameters"]["fc.weight"].T
    assert (taps @ last.parameters["fc.weight"].T - scaled).abs().max() < 1e-4 * scaled.abs().max()


def test_other_drafters_are_refused(drafter: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: expected fp8 or bf16, found 'int4'"):
        export_drafter(drafter, tmp_path / "a", weights="int4")
    from mimo_ultraspeed.make import make

    made = make(tmp_path / "model", "tiny", draft={}, progress=False) / "dflash"
    with pytest.raises((CheckpointError, OSError)):
        load_drafter(made)
