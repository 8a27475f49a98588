"""The distance that quantisation-aware training makes small: its value, and the gradient that is found beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train import distil  # noqa: E402

VOCAB, HIDDEN = 60, 8
NETWORK: Any = SimpleNamespace(last=lambda rest, stream: stream, head=lambda rest: rest["head"])


@pytest.mark.parametrize("trained_head", [False, True])
def test_value_and_gradient_are_those_of_the_formula(trained_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "_ROWS", 4)  # several parts, the last one short
    draw = torch.Generator().manual_seed(0)
    right, found, head = (torch.randn(size, generator=draw).double() for size in ((2, 5, HIDDEN), (2, 5, HIDDEN), (VOCAB, HIDDEN)))
    other = (head + 0.3 * torch.randn(head.shape, generator=draw)).requires_grad_(trained_head)
    found.requires_grad_()
    ids = torch.randint(VOCAB, (2, 5), generator=draw)
    wanted = [found, other] if trained_head else [found]

    got = distil.distance(NETWORK, ({"head": head}, [right]), ({"head": other}, [found]), ids)
    p, q = torch.log_softmax(right @ head.T, -1), torch.log_softmax(found @ other.T, -1)
    kl = (p.exp() * (p - q)).sum()
    assert got.kl.item() == pytest.approx(kl.item(), rel=1e-12)
    for mine, plain in zip(torch.autograd.grad(3 * got.kl, wanted), torch.autograd.grad(3 * kl, wanted), strict=True):
        assert torch.allclose(mine, plain, rtol=1e-9, atol=1e-12)

    nll = -q[:, :-1].gather(2, ids[:, 1:, None]).sum()
    assert (got.tokens, got.told, got.nll) == (10, 8, pytest.approx(nll.item(), rel=1e-9))
    assert got.same == int((p.argmax(2) == q.argmax(2)).sum())
