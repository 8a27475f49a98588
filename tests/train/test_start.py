"""What a drafter starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mimo_ultraspeed.checkpoint import Checkpoint
from mimo_ultraspeed.errors import CheckpointError
from mimo_ultraspeed.make import make

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train.start import (  # noqa: E402
    default_config,
    default_taps,
    frequent_tokens,
    starting_parameters,
    tap_rms,
)
from mimo_ultraspeed.train.target import TargetWeights  # noqa: E402

ALL_EXPERTS = {"num_experts_per_tok": 8}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small target with q, k and v apart."""
    path = tmp_path_factory.mktemp("split") / "model"
    return Checkpoint.open(make(path, layout="flash", weights="bf16", overrides=ALL_EXPERTS, progress=False))


def test_taps_end_with_the_last_layer() -> None:
    assert default_taps(30) == (2, 9, 16, 22, 29)
    assert default_taps(4) == (2, 3)
    assert default_taps(1) == (0,)


def test_answers_count_more_than_prompts() -> None:
    pairs = [([7, 7, 7, 5, 5], [3]), ([7], [9])]
    assert frequent_tokens(pairs, 2, 20).tolist() == [3, 9]
    assert frequent_tokens(pairs, 3, 20).tolist() == [3, 7, 9]
    assert frequent_tokens(pairs, 6, 20).tolist() == [0, 1, 3, 5, 7, 9]  # filled up with the first others


def test_the_first_positions_set_no_scale() -> None:
    one, two = np.full((8, 2), 2.0, np.float16), np.full((5, 2), [4.0, 0.0], np.float16)
    one[:4] = two[:4] = 500.0
    np.testing.assert_allclose(tap_rms([one, two]), [np.sqrt((4 * 4 + 16) / 5), np.sqrt(4 * 4 / 5)], rtol=1e-6)
    with pytest.raises(ValueError, match="features: expected sequences of more than 4 positions"):
        tap_rms([one[:4]])


def test_experts_of_equal_weight_are_one_mlp(split: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = TargetWeights(split)
    assert "mlp.up_proj.weight" not in weights.layer(1)  # its router tells experts apart
    read = TargetWeights.read
    monkeypatch.setattr(TargetWeights, "read", lambda self, name: read(self, name) * (not name.endswith("mlp.gate.weight")))
    joined = {name: torch.from_numpy(value) for name, value in weights.layer(1).items()}
    x = torch.randn(3, split.config.hidden_size, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros_like(x)
    for expert in range(8):
        gate, up, down = (
            torch.from_numpy(weights.read(f"layers.1.mlp.experts.{expert}.{part}_proj.weight")) for part in ("gate", "up", "down")
        )
        expected += (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T / 8
    expected *= split.config.routed_scaling_factor if split.config.norm_topk_prob else 4 * split.config.routed_scaling_factor
    gate, up, down = (joined[f"mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    found = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_copies_where_shapes_agree(split: Checkpoint) -> None:
    config, weights = default_config(split.config, taps=(0, 3), layers=2, markov_rank=4), TargetWeights(split)
    rms = np.linspace(0.5, 2, 2 * config.hidden_size, dtype=np.float32)
    made = starting_parameters(config, weights, rms, seed=3)
    shapes = config.matrices() | config.vectors() | config.tables()
    assert {name: tuple(value.shape) for name, value in made.items()} == shapes
    # The last layer has full attention as the drafter has; the one before it slides, with more heads for keys.
    for layer, source, name in ((1, 3, "k_proj"), (1, 3, "q_proj"), (0, 2, "q_proj"), (0, 2, "o_proj")):
        full = f"self_attn.{name}.weight"
        assert np.array_equal(made[f"layers.{layer}.{full}"].numpy(), weights.layer(source)[full])
    norms = [weights.layer(source)["input_layernorm.weight"] for source in (2, 3)]
    assert np.array_equal(made["layers.0.input_layernorm.weight"].numpy(), norms[0])
    # A context row is what the last tap would be after a layer's own norm, however large its channels are.
    H = config.hidden_size
    tap = torch.randn(5, 2 * H, generator=torch.Generator().manual_seed(1)) * torch.from_numpy(rms)
    fused = torch.nn.functional.rms_norm((tap / torch.from_numpy(rms)) @ made["fc.weight"].T, (H,), made["hidden_norm.weight"])
    expected = torch.nn.functional.rms_norm(tap[:, H:], (H,), torch.from_numpy(np.mean(norms, 0)))
    assert torch.nn.functional.cosine_similarity(fused, expected).min() > 0.97
    again = starting_parameters(config, weights, rms, seed=4)
    assert not torch.equal(made["layers.0.self_attn.k_proj.weight"], again["layers.0.self_attn.k_proj.weight"])


def test_what_a_target_lacks_is_told(split: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"layers\.9\.x: the checkpoint has no such tensor"):
        TargetWeights(split).read("layers.9.x")
    stored = TargetWeights(Checkpoint.open(make(tmp_path / "fp8", layout="flash", weights="fp8", progress=False)))
    with pytest.raises(CheckpointError, match="expected BF16, F16, F32 or MXFP4, found F8_E4M3"):
        stored.layer(0)
