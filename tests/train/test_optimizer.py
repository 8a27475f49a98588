"""Muon in float32 and BF16 beside torch's, and who updates what."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train.optimizer import Muon, Optimizer, orthogonalise  # noqa: E402


def test_updates_are_near_orthogonal_in_both_orientations() -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((48, 20), (20, 48), (32, 32)):
        update = torch.randn(shape, generator=draw)
        values = torch.linalg.svdvals(orthogonalise(update))
        assert values.shape == (min(shape),) and values.max() < 1.3
        assert values.quantile(0.2) > 0.6
        assert (orthogonalise(update.T) - orthogonalise(update).T).abs().max() < 1e-5


@pytest.mark.parametrize("bf16", [False, True])
def test_muon_steps_as_torch_does_but_for_rounding(bf16: bool) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("not run: this torch has no Muon")
    draw = torch.Generator().manual_seed(1)
    ours = [torch.randn(24, 40, generator=draw), torch.randn(40, 16, generator=draw)]
    theirs = [matrix.clone().requires_grad_() for matrix in ours]
    started = [matrix.clone() for matrix in ours]
    mine = Muon(ours, momentum=0.9, weight_decay=0.1, bf16=bf16)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradients = [torch.randn(matrix.shape, generator=draw) for matrix in ours]
        mine.step(gradients, 0.02)
        for matrix, gradient in zip(theirs, gradients, strict=True):
            matrix.grad = gradient.clone()
        other.step()
    for one, two, start in zip(ours, theirs, started, strict=True):
        moved = one - start
        assert one.dtype == torch.float32
        assert (one - two.detach()).norm() < 0.03 * moved.norm()  # theirs is computed in BF16


def test_only_named_matrices_are_given_to_muon() -> None:
    def parameters() -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(2)
        return {name: torch.randn(6, 6, generator=draw) for name in ("matrix", "table")}

    gradients = {name: torch.full((6, 6), 0.5) for name in ("matrix", "table")}
    moved = {}
    for kind in ("muon", "adamw"):
        held = parameters()
        Optimizer(kind, held, ["matrix"]).step(gradients, 0.1)
        moved[kind] = {name: held[name] - start for name, start in parameters().items()}
    assert torch.equal(moved["muon"]["table"], moved["adamw"]["table"])
    assert not torch.equal(moved["muon"]["matrix"], moved["adamw"]["matrix"])
    assert moved["adamw"]["matrix"].flatten().tolist() == pytest.approx([-0.1] * 36, rel=1e-4)
    with pytest.raises(ValueError, match=r"optimizer: expected adamw or muon, found 'sgd'"):
        Optimizer("sgd", parameters(), [])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_saved_optimizer_goes_on_bit_for_bit(kind: str) -> None:
    draw = torch.Generator().manual_seed(3)
    gradients = [{"matrix": torch.randn(6, 8, generator=draw), "norm": torch.randn(8, generator=draw)} for _ in range(4)]
    held = {"matrix": torch.ones(6, 8), "norm": torch.ones(8)}
    optimizer = Optimizer(kind, held, ["matrix"])
    for one in gradients[:2]:
        optimizer.step(one, 0.01)
    copied = {name: value.clone() for name, value in held.items()}
    other = Optimizer(kind, copied, ["matrix"])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in gradients[2:]:
        optimizer.step(one, 0.01)
        other.step(one, 0.01)
    assert all(torch.equal(held[name], copied[name]) for name in held)
