"""Losses and the weights of slots, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: torch is not installed")

from mimo_ultraspeed.train.loss import Labels, losses, parse_mix, slot_weights  # noqa: E402

LOGITS = torch.tensor([[[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]], [[0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]])
PLACES = torch.tensor([[0, 2], [2, 1]])
VALID = torch.tensor([[True, True], [True, False]])
TARGET = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]])


def softmax(logits: object) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def value(mix: dict[str, float], weights: str = "even", places: object = PLACES) -> float:
    return float(losses(LOGITS, Labels(places, VALID, TARGET), mix, weights).loss)


def test_cross_entropy_divergence_and_variation_are_means_over_slots_that_are_there() -> None:
    p, t = softmax(LOGITS), softmax(TARGET)
    slots = [(0, 0), (0, 1), (1, 0)]
    ce = -np.mean([math.log(p[at][int(PLACES[at])]) for at in slots])
    kl = np.mean([(t[at] * np.log(t[at] / p[at])).sum() for at in slots])
    tv = np.mean([0.5 * np.abs(t[at] - p[at]).sum() for at in slots])
    assert value({"ce": 1.0}) == pytest.approx(ce, rel=1e-5)
    assert value({"kl": 1.0}) == pytest.approx(kl, rel=1e-5)
    assert value({"tv": 1.0}) == pytest.approx(tv, rel=1e-5)
    assert value({"ce": 0.5, "kl": 2.0, "tv": 3.0}) == pytest.approx(0.5 * ce + 2 * kl + 3 * tv, rel=1e-5)


def test_a_token_outside_the_head_has_no_cross_entropy_and_no_match() -> None:
    outside = torch.tensor([[0, -1], [2, 1]])
    p = softmax(LOGITS)
    assert value({"ce": 1.0}, places=outside) == pytest.approx(-(math.log(p[0, 0, 0]) + math.log(p[1, 0, 2])) / 3, rel=1e-5)
    matches = losses(LOGITS, Labels(outside, VALID, TARGET), {"ce": 1.0}).matches
    assert matches.tolist() == [[True, False], [True, False]]


def test_weights_of_slots() -> None:
    valid = torch.tensor([[True, True, True, False]])
    p = torch.tensor([[0.8, 0.4, 0.2, 0.9]])
    # p smoothed by a half: 0.9, 0.7, 0.6. Slot k: the sum of the chances that rounds get as far as j, for all j >= k.
    reach = [0.9, 0.9 * 0.7, 0.9 * 0.7 * 0.6]
    expected = [sum(reach), reach[1] + reach[2], reach[2], 0.0]
    assert slot_weights(p, valid, "dpace")[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert slot_weights(p, valid, "exp", gamma=2.0)[0].tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-1), 0], rel=1e-6)
    assert slot_weights(p, valid, "even")[0].tolist() == [1, 1, 1, 0]


def test_dpace_is_the_slope_of_the_expected_length() -> None:
    smoothed = torch.tensor([[0.7, 0.55, 0.9]], dtype=torch.float64).log().requires_grad_()
    smoothed.exp().cumprod(1).sum().backward()
    raw = 2 * smoothed.detach().exp() - 1  # what smoothing by a half makes of it is `smoothed`
    weights = slot_weights(raw, torch.ones(1, 3, dtype=torch.bool), "dpace")
    assert weights[0].tolist() == pytest.approx(smoothed.grad[0].tolist(), rel=1e-9)


def test_weights_have_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(logits, Labels(PLACES, VALID, TARGET), {"ce": 1.0}, "dpace").loss, logits)
    p = softmax(LOGITS)
    weight = slot_weights(torch.tensor([[p[0, 0, 0], p[0, 1, 2]], [p[1, 0, 2], 0.0]]), VALID, "dpace").numpy()
    one_hot = np.eye(3)[PLACES.numpy()]
    np.testing.assert_allclose(gradient.numpy(), (p - one_hot) * (weight / weight.sum())[..., None], atol=1e-6)


def test_mixes_as_text() -> None:
    assert parse_mix("ce=0.5, kl=2") == {"ce": 0.5, "kl": 2.0}
    assert parse_mix("tv") == {"tv": 1.0}
    with pytest.raises(ValueError, match=r"loss: expected ce, kl, tv, found 'mse'"):
        parse_mix("ce,mse=1")
    with pytest.raises(ValueError, match=r"loss: kl: expected a number, found 'x'"):
        parse_mix("kl=x")
    with pytest.raises(ValueError, match=r"weights: expected dpace, exp, even, found 'flat'"):
        slot_weights(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), "flat")
    with pytest.raises(ValueError, match=r"need the target's logits, found None"):
        losses(LOGITS, Labels(PLACES, VALID), {"kl": 1.0})
