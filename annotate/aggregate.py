"""From what several people said of one comparison to one answer. Pure functions, canonical order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from annotate.standing import Judged, Vote

Rule = Literal["mean", "majority"]


class Outcome(NamedTuple):
    """What holds between two answers, by position: `better` than `worse` by `margin`, or a tie or both bad (margin 0).

    The margin is in steps of the scale, 1 slightly to 3 much better, the numbers that Llama 2's larger margins have, too
    (Touvron et al. 2023, table 27). By the mean it is how far the mean strength is from a tie, by majority the mean strength of
    the votes for the better answer.
    """

    kind: Literal["preference", "tie", "both_bad"]
    better: int
    worse: int
    margin: float


def settle_pair(strengths: Sequence[int], rule: Rule) -> tuple[int, float]:
    """`(side, margin)` of votes whose strength above 0 says that the first answer is better: side 1, -1, or 0 for a tie.

    Args:
        strengths: one a vote, 0 where the vote prefers neither.
        rule: `mean`: the side of the mean strength, so that one strong vote outweighs two weak ones; `majority`: the side with
            more votes than the other and than ties have.
    """
    if rule == "mean":
        total = sum(strengths)
        return (total > 0) - (total < 0), abs(total) / len(strengths)
    first, second = [s for s in strengths if s > 0], [s for s in strengths if s < 0]
    ties = len(strengths) - len(first) - len(second)
    for side, votes, others in ((1, first, second), (-1, second, first)):
        if len(votes) > len(others) and len(votes) > ties:
            return side, abs(sum(votes)) / len(votes)
    return 0, 0.0


def outcomes(found: Judged, votes: Sequence[Vote], rule: Rule) -> list[Outcome]:
    """The outcome of a pair, or those of all pairs of a ranking; an adjudicator's decision counts instead of the votes.

    A ranking says better or worse, not by how much: each vote on a pair of its answers has strength 1.
    """
    said: Sequence[Vote] = [found.decision] if found.decision is not None else votes  # type: ignore[list-item]  # kind, strength, ranking
    if found.kind == "rank":
        rankings = [vote.ranking for vote in said if vote.ranking is not None]
        return [
            _outcome([_sign(r[j] - r[i]) for r in rankings], i, j, rule) for i, j in combinations(range(len(found.answers)), 2)
        ]
    if 2 * sum(vote.kind == "both_bad" for vote in said) > len(said):
        return [Outcome("both_bad", 0, 1, 0.0)]
    return [_outcome([vote.strength for vote in said], 0, 1, rule)]


def _outcome(strengths: Sequence[int], first: int, second: int, rule: Rule) -> Outcome:
    side, margin = settle_pair(strengths, rule)
    better, worse = (first, second) if side >= 0 else (second, first)
    return Outcome("preference" if side else "tie", better, worse, margin if side else 0.0)


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
