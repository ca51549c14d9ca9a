"""Several votes to one outcome."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from annotate.aggregate import Outcome, outcomes, settle_pair
from annotate.standing import Answer, Judged, Vote


def vote(kind: str, strength: int = 0, ranking: list[int] | None = None) -> Vote:
    return Vote("ada", kind, strength, ranking, (), {}, False, None, (0, 1), 1, 0.0)


def found(size: int = 2, decision: object = None) -> Judged:
    answers = [Answer(f"answer {number}", "", "", {}, None) for number in range(size)]
    kind = "pair" if size == 2 else "rank"
    return Judged(1, "h", "p", kind, "queue", "done", None, None, "", [], answers, [], decision)


@pytest.mark.parametrize(
    ("strengths", "mean", "majority"),
    [
        ([2], (1, 2.0), (1, 2.0)),
        ([-3], (-1, 3.0), (-1, 3.0)),
        ([0], (0, 0.0), (0, 0.0)),
        ([1, 1, -3], (-1, 1 / 3), (1, 1.0)),  # one strong vote against two weak ones
        ([2, -2], (0, 0.0), (0, 0.0)),
        ([3, 0, 0], (1, 1.0), (0, 0.0)),
        ([3, 0], (1, 1.5), (0, 0.0)),
        ([-1, -2, 0, 3], (0, 0.0), (-1, 1.5)),
    ],
)
def test_the_mean_weighs_strength_and_the_majority_counts_heads(strengths, mean, majority):
    assert settle_pair(strengths, "mean") == pytest.approx(mean, rel=1e-15)
    assert settle_pair(strengths, "majority") == pytest.approx(majority, rel=1e-15)
    for rule, (side, margin) in (("mean", mean), ("majority", majority)):
        assert settle_pair([-s for s in strengths], rule) == pytest.approx((-side, margin), rel=1e-15)


def test_both_bad_needs_more_than_half_and_counts_as_neither_before_that():
    two = [vote("both_bad"), vote("both_bad"), vote("preference", 3)]
    assert outcomes(found(), two, "mean") == [Outcome("both_bad", 0, 1, 0.0)]
    assert outcomes(found(), two[1:], "mean") == [Outcome("preference", 0, 1, 1.5)]


def test_the_worse_side_of_a_negative_strength_is_the_first():
    assert outcomes(found(), [vote("preference", -2)], "mean") == [Outcome("preference", 1, 0, 2.0)]


def test_a_decision_counts_instead_of_all_votes():
    decision = SimpleNamespace(kind="preference", strength=-1, ranking=None)
    assert outcomes(found(decision=decision), [vote("preference", 3)] * 5, "mean") == [Outcome("preference", 1, 0, 1.0)]
    ranked = SimpleNamespace(kind="rank", strength=None, ranking=[2, 1, 2])
    assert outcomes(found(3, ranked), [vote("rank", ranking=[1, 2, 3])], "majority") == [
        Outcome("preference", 1, 0, 1.0),
        Outcome("tie", 0, 2, 0.0),
        Outcome("preference", 1, 2, 1.0),
    ]


def test_rankings_are_settled_pair_by_pair():
    votes = [vote("rank", ranking=ranking) for ranking in ([1, 2, 3], [1, 3, 2], [2, 1, 3])]
    assert outcomes(found(3), votes, "mean") == [
        Outcome("preference", 0, 1, pytest.approx(1 / 3, rel=1e-15)),
        Outcome("preference", 0, 2, 1.0),
        Outcome("preference", 1, 2, pytest.approx(1 / 3, rel=1e-15)),
    ]
