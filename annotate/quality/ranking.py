"""Which model is better, from who beat whom: Bradley and Terry (1952) with ties (Davidson 1970) and with length held equal.

A strength is a log-odds: a model beats another one, ties aside, with `sigmoid(strength - other's strength)`. Their mean is 0.
Length control adds a coefficient for how much longer the first answer is (as Chatbot Arena's style control does), so that the
strengths are those of answers of equal length.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from annotate.quality.choice import ChoiceFit, fit_choice
from annotate.quality.estimates import Estimate, Floats, Resampling, percentile_interval, undefined
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import as_floats, check_same_length, resample_weights


@dataclass(frozen=True)
class Ranking:
    """Models from the strongest to the weakest, and what is known of each.

    `strengths`: with bootstrap intervals; `hessian`: (M, 2) the ends of the intervals by the curvature of the likelihood, too
    narrow where labels of one item depend on each other. `win`: (M, M) chance that the row's model is preferred to the column's,
    `tie`: (M, M) that neither is. `expected`: (M,) mean of win + tie / 2 over the other models. `comparisons`: (M,).
    `length`: log-odds for one standard deviation of the normalised difference in length, undefined without length control.
    `reason`: why there is no ranking; everything else is then None or empty.
    """

    models: list[Any]
    strengths: list[Estimate]
    hessian: Floats
    win: Floats
    tie: Floats
    expected: Floats
    comparisons: NDArray[np.intp]
    length: Estimate
    reason: str = ""


def length_feature(lengths: ArrayLike) -> Floats:
    """(N,) how much longer the first answer is, `(a - b) / (a + b)`, in standard deviations (about 0, so that equal stays 0)."""
    pairs = np.asarray(lengths, dtype=np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or (pairs < 0).any() or not np.isfinite(pairs).all():
        raise InputError("lengths.shape", pairs.shape, "expected two lengths, at or above 0, for each comparison")
    total = pairs.sum(1)
    share = np.divide(pairs[:, 0] - pairs[:, 1], total, out=np.zeros(len(pairs)), where=total > 0)
    spread = float(np.sqrt((share**2).mean()))
    return share / spread if spread > 0 else share


def why_no_ranking(names: Sequence[Any], first: NDArray[np.intp], second: NDArray[np.intp], outcomes: Floats) -> str:
    """Why the strengths have no finite maximum (Ford 1957), or an empty string.

    Each set of models must have won from, or tied with, the others at least once: the graph of "did not lose" must lead from
    every model to every other.
    """

    def listed(group: NDArray[np.bool_]) -> str:
        return ", ".join(repr(name) for name, inside in zip(names, group) if inside)

    reach = np.eye(len(names), dtype=bool)
    reach[first[outcomes >= 0], second[outcomes >= 0]] = True
    reach[second[outcomes <= 0], first[outcomes <= 0]] = True
    linked = reach | reach.T
    for _ in range(max(1, len(names).bit_length())):
        reach, linked = reach @ reach, linked @ linked
    if not linked.all():
        return f"no comparison links {listed(linked[0])} with {listed(~linked[0])}"
    if not reach.all():
        weakest = reach[int(np.argmin(reach.sum(1)))]  # who reaches fewest reaches nobody outside its own group
        return f"{listed(weakest)} lost every comparison with the others: how much weaker has no bound"
    if not (outcomes != 0).any():
        return "every comparison is a tie"
    return ""


def bradley_terry(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    outcomes: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    how: Resampling = Resampling(resamples=300),  # noqa: B008 (frozen)
) -> Ranking:
    """Strengths of models from N comparisons, by maximum likelihood.

    Args:
        first, second: (N,) models. outcomes: (N,) above 0 first won, below 0 second, 0 tie.
        lengths: (N, 2) of the two answers, in any one unit; given, the strengths are those at equal length.
        weights: (N,) such as 1 over the propensity with which the comparison was chosen.
        clusters: (N,) labels, such as the prompt; comparisons of one label are resampled together.
    Raises:
        InputError: no comparison, arrays of different lengths, or a model compared with itself.
    """
    result = np.sign(as_floats("outcomes", outcomes))
    check_same_length(first=first, second=second, outcomes=result)
    names = list(dict.fromkeys([*first, *second]))
    position = {name: i for i, name in enumerate(names)}
    a, b = (np.array([position[name] for name in side]) for side in (first, second))
    if (a == b).any():
        row = int(np.flatnonzero(a == b)[0])
        raise InputError(f"comparison {row}", first[row], "expected two different models")
    w = np.ones(len(result)) if weights is None else as_floats("weights", weights)
    controls = np.zeros((len(result), 0)) if lengths is None else length_feature(lengths)[:, None]
    check_same_length(outcomes=result, weights=w, lengths=controls)
    if (w < 0).any():
        raise InputError("weights", float(w.min()), "expected numbers at or above 0")

    # Equal rows are one row with their weights summed: without length control a few dozen stand for any number.
    rows, row_of = np.unique(np.column_stack([a, b, result, controls]), axis=0, return_inverse=True)
    row_a, row_b, row_result = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2]
    design = np.zeros((len(rows), len(names)))
    design[np.arange(len(rows)), row_a] += 1
    design[np.arange(len(rows)), row_b] -= 1
    features = np.concatenate([design[:, 1:], rows[:, 3:]], axis=1)  # the first model is held at 0, and all are centred after

    def solve(each: Floats, start: Floats | None = None) -> tuple[ChoiceFit | None, str]:
        summed = np.bincount(row_of.reshape(-1), each, len(rows)).astype(np.float64)
        there = summed > 0
        reason = why_no_ranking(names, row_a[there], row_b[there], row_result[there])
        fit = None if reason else fit_choice(features[there], row_result[there], summed[there], start)
        return fit, reason or "length and model cannot be told apart"

    fit, reason = solve(w)
    if fit is None:
        return _nothing(names, reason, len(result))
    start = fit.coefficients if fit.log_nu is None else np.append(fit.coefficients, fit.log_nu)
    draws = np.full((how.resamples, features.shape[1]), np.nan)
    resamples = (row for block in resample_weights(len(result), clusters, how.resamples, how.seed) for row in block)
    for i, times in enumerate(resamples):
        again, _ = solve(times * w, start)
        if again is not None:
            draws[i] = again.coefficients
    seen = np.bincount(np.concatenate([a, b]), minlength=len(names))
    return _ranking(names, fit, draws, seen, len(result), lengths is not None, how)


def _nothing(names: list[Any], reason: str, n: int) -> Ranking:
    none, empty = undefined(reason, n), np.zeros((0, 0))
    return Ranking(names, [none] * len(names), np.zeros((0, 2)), empty, empty, np.zeros(0), np.zeros(0, dtype=int), none, reason)


def _ranking(
    names: list[Any], fit: ChoiceFit, draws: Floats, seen: NDArray[np.intp], n: int, controlled: bool, how: Resampling
) -> Ranking:
    m = len(names)
    centre = (np.eye(m) - 1 / m)[:, 1:]  # (M, M - 1): from "the first is 0" to "the mean is 0"
    strengths = centre @ fit.coefficients[: m - 1]
    resampled = draws[:, : m - 1] @ centre.T
    errors = np.sqrt(np.diag(centre @ fit.covariance[: m - 1, : m - 1] @ centre.T))
    reach = NormalDist().inv_cdf((1 + how.level) / 2) * errors
    gap = strengths[:, None] - strengths
    nu = 0.0 if fit.log_nu is None else np.exp(fit.log_nu)
    total = np.exp(gap / 2) + np.exp(-gap / 2) + nu
    win, tie = np.exp(gap / 2) / total, nu / total
    expected = ((win + tie / 2).sum(1) - 0.5) / (m - 1)  # the model against itself is 1/2
    order = np.argsort(-strengths, kind="stable")

    def estimate(value: float, values: Floats, count: int) -> Estimate:
        low, high, note = percentile_interval(values, how)
        return Estimate(float(value), low, high, count, note)

    length = undefined("length was not controlled for", n)
    if controlled:
        length = estimate(fit.coefficients[m - 1], draws[:, m - 1], n)
    return Ranking(
        [names[i] for i in order],
        [estimate(strengths[i], resampled[:, i], int(seen[i])) for i in order],
        np.stack([strengths - reach, strengths + reach], axis=1)[order],
        win[np.ix_(order, order)],
        tie[np.ix_(order, order)],
        expected[order],
        seen[order],
        length,
    )


def ranking_pairs(ranking: Sequence[int]) -> list[tuple[int, int]]:
    """All (better, worse) pairs of a ranking of answers, best first; they are one decision, so give them one cluster."""
    if len(set(ranking)) != len(ranking):
        raise InputError("ranking", list(ranking), "expected each answer once")
    return [(better, worse) for i, better in enumerate(ranking) for worse in ranking[i + 1 :]]
