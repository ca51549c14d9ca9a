"""Several judges' scores as one, and how far they are apart."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rlhf_kit.objectives.shapes import check_rank, real

Combination = Literal["mean", "min", "variance"]
VARIANCE_COEF = 0.1  # mild: two judges who are two points apart cost a tenth of a point


def combine(scores: Tensor, how: Combination, *, variance_coef: float = VARIANCE_COEF) -> Tensor:
    """One score an answer from those of M judges, (B,).

    `mean`: the mean. `min`: the lowest, worst-case optimisation. `variance`: `mean - variance_coef * variance` with the
    variance over M and not M - 1, uncertainty-weighted optimisation. Source: Coste et al. 2023, "Reward Model Ensembles
    Help Mitigate Overoptimization", section 3.

    Args:
        scores: (M, B), M at least 1.
        variance_coef: a price in 1 / score, since a variance is in squares of it.
    Raises:
        ValueError: another rank, no judge, another `how`, a coefficient below 0.
    """
    check_rank(2, scores=scores)
    if not len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected at least one judge")
    if variance_coef < 0.0:
        raise ValueError(f"variance_coef is {variance_coef}, expected at least 0")
    scores = real(scores)
    if how == "mean":
        return scores.mean(0)
    if how == "min":
        return scores.amin(0)
    if how == "variance":
        return scores.mean(0) - variance_coef * scores.var(0, correction=0)
    raise ValueError(f"how is {how!r}, expected 'mean', 'min' or 'variance'")


def score_spread(scores: Tensor) -> Tensor:
    """How far M judges are apart on each answer: their standard deviation (over M - 1), (B,).

    Args:
        scores: (M, B), M at least 2.
    Raises:
        ValueError: another rank, fewer than two judges.
    """
    check_rank(2, scores=scores)
    if len(scores) < 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected at least two judges: one cannot disagree")
    return real(scores).std(0)
