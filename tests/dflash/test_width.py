"""The choice of widths: the best ratio of expected tokens to time, found by trying all; times and trust as they are followed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mimo_ultraspeed import _probe

ROWS = 129


def expected(chance: np.ndarray, rows: int) -> float:
    return 1.0 + float(np.cumprod(chance[: rows - 1]).sum())


def seconds(draw: np.random.Generator) -> np.ndarray:
    return np.concatenate([[0.0], 1 + np.cumsum(draw.random(ROWS - 1) ** 4)])


def test_one_job_gets_the_best_width() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        time, chance, drafting = seconds(draw), draw.random(7) ** 0.3, draw.random()
        rates = [expected(chance, n) / (time[n] + drafting) for n in range(1, 9)]
        [rows], gain = _probe.widths(chance[None], [1], 0, 64, time, drafting)
        assert rates[rows - 1] == pytest.approx(max(rates), rel=1e-6)
        assert gain == pytest.approx(max(rates) * time[1], rel=1e-6)


def test_several_jobs_share_a_step() -> None:
    draw = np.random.default_rng(1)
    for _ in range(40):
        time, chance, others = seconds(draw), draw.random((3, 3)) ** 0.3, int(draw.integers(0, 20))
        most = max(
            sum(expected(chance[i], n) for i, n in enumerate(rows)) / time[others + sum(rows)]
            for rows in itertools.product(range(1, 5), repeat=3)
        )
        rows, gain = _probe.widths(chance, [1, 1, 1], others, 64, time, 0.0)
        rate = sum(expected(chance[i], n) for i, n in enumerate(rows)) / time[others + sum(rows)]
        assert rate == pytest.approx(most, rel=1e-6)
        assert gain == pytest.approx(rate * time[others + 3] / 3, rel=1e-6)


def test_room_and_fixed_widths_are_kept() -> None:
    flat = np.ones(ROWS)
    rows, _ = _probe.widths(np.full((4, 7), 0.9), [1, 1, 1, 1], 0, 10, flat, 0.0)
    assert sum(rows) == 10
    rows, _ = _probe.widths(np.full((2, 7), 0.0), [5, 1], 0, 64, flat, 0.0)
    assert rows == [5, 1]


def test_nothing_is_verified_where_rows_cost_as_much_together() -> None:
    rows, gain = _probe.widths(np.full((1, 7), 0.95), [1], 0, 64, np.arange(ROWS, dtype=float), 0.0)
    assert rows == [1] and gain == pytest.approx(1.0)


def test_times_between_measurements() -> None:
    measured = np.zeros(ROWS)
    measured[[1, 4, 8]] = 1.0, 4.0, 3.9
    times = _probe.step_times(measured, np.zeros((0, 2)))
    assert times[1:9].tolist() == [1, 2, 3, 4, 4, 4, 4, 4]  # a larger step is never thought quicker
    assert (np.diff(times[1:]) >= 0).all() and times[128] == pytest.approx(4.0)
    unknown = _probe.step_times(np.zeros(ROWS), np.zeros((0, 2)))
    assert unknown[8] == pytest.approx(8 * unknown[1])  # without times nothing pays


def test_times_follow_the_machine() -> None:
    measured = np.zeros(ROWS)
    measured[[1, 8]] = 1.0, 2.0
    slower = _probe.step_times(measured, np.array([[1, 3.0]] * 200))
    assert slower[1] == pytest.approx(3.0, rel=0.01) and slower[8] > 3.0
    shocked = _probe.step_times(measured, np.array([[1, 1000.0]]))
    assert shocked[1] < 1.2
    wide = _probe.step_times(measured, np.array([[8, 6.0]] * 100 + [[1, 1.0]] * 100))
    assert wide[1] == pytest.approx(1.0, rel=0.05) and wide[8] > 2.5 * wide[1]


def test_trust_becomes_the_frequency() -> None:
    draw = np.random.default_rng(2)
    rounds = 3000
    grades = draw.integers(0, 8, (rounds, 3)).astype(np.uint8)
    true = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.95])
    right = draw.random((rounds, 3)) < true[grades]
    tokens = draw.integers(0, 100, (rounds, 4)).astype(np.uint32)
    drafts = np.where(right, tokens[:, :3], tokens[:, :3] + 1).astype(np.uint32)
    rates = _probe.trust(0, grades, drafts, tokens)
    assert np.abs(rates[0] - true).max() < 0.1
    assert (np.diff(rates, axis=1) >= 0).all()


def test_trust_counts_a_slot_only_after_right_ones() -> None:
    grades = np.full((200, 2), 4, np.uint8)
    tokens = np.zeros((200, 3), np.uint32)
    drafts = np.stack([np.ones(200), np.zeros(200)], axis=1).astype(np.uint32)  # the first is always wrong
    before = _probe.trust(0, grades[:0], drafts[:0], tokens[:0])
    rates = _probe.trust(0, grades, drafts, tokens)
    assert rates[0, 4] < 0.05
    assert rates[1].tolist() == before[1].tolist()


def trust_of(outcomes: list[tuple[int, bool]]) -> np.ndarray:
    """Rates [8] of slot 0 after drafts of these grades, right or wrong."""
    grades = np.array([[grade] for grade, _ in outcomes], np.uint8)
    drafts = np.array([[1 - right] for _, right in outcomes], np.uint32)
    rates: np.ndarray = _probe.trust(0, grades, drafts, np.zeros((len(outcomes), 2), np.uint32))[0]
    return rates


def test_more_confidence_is_never_less_trust() -> None:
    rates = trust_of([(2, True), (6, False)] * 150)  # a drafter that is sure when it errs
    assert (np.diff(rates) >= 0).all()
    assert rates[2:7].tolist() == pytest.approx([0.5] * 5, abs=0.1)


def test_trust_forgets() -> None:
    rates = trust_of([(4, True)] * 3000 + [(4, False)] * 600)
    assert rates[4] < 0.4


def test_drafting_that_does_not_pay_is_tried_ever_more_rarely() -> None:
    tried = np.flatnonzero(_probe.patience(np.full(300, 0.5)))
    assert (np.diff(tried) - 1).tolist()[:7] == [1, 3, 7, 15, 31, 32, 32]
    assert all(_probe.patience(np.full(50, 1.01)))
    gains = np.full(300, 0.5)
    gains[tried[4]] = 1.2  # it paid once, by much
    assert _probe.patience(gains)[tried[4] + 1]


def test_a_time_that_was_held_up_counts_little() -> None:
    assert _probe.usual_time(np.array([17.0, 16.5, 16.0, 100.0, 1.0])) == [17.0, 16.5, 16.0, 17.0, 16.0]
    draw = np.random.default_rng(0).permutation([*[1.0] * 300, *[2.0] * 150, *[50.0] * 50])
    assert _probe.usual_time(draw)[-1] < 1.3
    assert _probe.usual_time(np.array([1.0, *[2.0] * 50]))[-1] == 2.0
