"""Prompt lookup against its definition, written out."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_ultraspeed import _probe

LEAST, MOST, LONGEST = 2, 4, 32


def by_hand(tokens: list[int], n: int) -> tuple[int, int, list[int]]:
    """The latest earlier place of the longest suffix of 4, 3 or 2 tokens, how far back it agrees, and what followed."""
    count = len(tokens)
    for size in range(MOST, LEAST - 1, -1):
        for at in range(count - 1, size - 1, -1):
            if tokens[at - size : at] == tokens[count - size :]:
                length = 0
                while length < min(at, LONGEST) and tokens[at - 1 - length] == tokens[count - 1 - length]:
                    length += 1
                text = list(tokens)
                for k in range(n):
                    text.append(text[at + k])
                return length, at, text[count:]
    return 0, 0, []


@pytest.mark.parametrize("vocab", [2, 3, 8, 40])
def test_matches_are_those_of_the_definition(vocab: int) -> None:
    draw = np.random.default_rng(vocab)
    tokens = draw.integers(0, vocab, 120).tolist()
    tokens[60:90] = tokens[10:40]
    exact = 0
    for (length, at, drafts), known in zip(_probe.look_up(tokens, list(range(1, 121)), 7), range(1, 121), strict=True):
        want_length, want_at, want = by_hand(tokens[:known], 7)
        if want_length == 0 or length == 0:
            assert (length, drafts) == (
                want_length,
                want,
            ) or length < want_length  # a forgotten place costs a match, never makes one
        if length > 0:
            assert tokens[at - length : at] == tokens[known - length : known] and at < known
            if at == want_at:
                assert (length, drafts) == (want_length, want)
        exact += at == want_at
    assert exact > 110  # of 120: few places are forgotten


def test_few_matches_are_forgotten() -> None:
    tokens = np.random.default_rng(0).integers(0, 30, 2000).tolist()
    known = list(range(500, 2001, 3))
    found = _probe.look_up(tokens, known, 4)
    wanted = [by_hand(tokens[:n], 4) for n in known]
    same = sum(at == want[1] for (_, at, _), want in zip(found, wanted, strict=True))
    assert same > 0.6 * len(known)


def test_a_repetition_goes_on() -> None:
    [(length, _, drafts)] = _probe.look_up([9, 1, 2, 3, 1, 2, 3, 1, 2], [9], 8)
    assert length >= 4 and drafts == [3, 1, 2, 3, 1, 2, 3, 1]
    assert _probe.look_up([5, 5, 5, 5], [4], 3)[0][2] == [5, 5, 5]


def test_the_sequence_may_grow_in_leaps() -> None:
    tokens = np.random.default_rng(1).integers(0, 5, 300).tolist()
    assert _probe.look_up(tokens, [300], 5)[0] == _probe.look_up(tokens, [1, 2, 50, 51, 299, 300], 5)[-1]


def test_short_sequences_have_no_match() -> None:
    assert [found[0] for found in _probe.look_up([7, 7, 7], [1, 2], 3)] == [0, 0]
    assert _probe.look_up([7, 7, 7], [3], 3)[0][0] == 2
