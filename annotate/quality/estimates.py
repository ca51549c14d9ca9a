"""A figure that may be undefined, the interval around it, and the exact tests and corrections that the flags rest on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import resample_weights

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure, the ends of its interval, and how many observations are behind it.

    `value` is None where the figure is not defined, never NaN and never a number by default; `reason` then says why. It also
    says why there is no interval, or what was left out.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same as a JSON-ready dict."""
        return self._asdict()

    def error(self, level: float) -> float | None:
        """The standard error of a normal whose interval at `level` is as wide; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / (2 * NormalDist().inv_cdf((1 + level) / 2))


def undefined(reason: str, n: int = 0) -> Estimate:
    """An estimate without a value, and why."""
    return Estimate(None, None, None, n, reason)


@dataclass(frozen=True)
class Resampling:
    """How an interval is drawn: the number of bootstrap resamples, their seed, and the share that the interval covers."""

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise InputError("resamples", self.resamples, "expected at least 1")
        if not 0 < self.level < 1:
            raise InputError("level", self.level, "expected a share between 0 and 1, such as 0.95")


def percentile_interval(draws: Floats, how: Resampling) -> tuple[float | None, float | None, str]:
    """The ends of the percentile interval (Efron & Tibshirani 1993, ch. 13) of (R,) or fewer draws, and what to know of it.

    NaN marks a resample in which the figure is undefined: the interval is over the others, and there is none where they are
    not even half.
    """
    defined = draws[np.isfinite(draws)]
    missing = how.resamples - len(defined)
    if 2 * missing >= how.resamples:
        return None, None, f"no interval: undefined in {missing} of {how.resamples} resamples"
    low, high = np.quantile(defined, [(1 - how.level) / 2, (1 + how.level) / 2])
    notes = [f"undefined in {missing} of {how.resamples} resamples, which the interval leaves out"] if missing else []
    if low == high:
        notes.append("every resample gives the same, so that the interval cannot see past these items")
    return float(low), float(high), "; ".join(notes)


def bootstrap_sums(
    tables: Floats, statistic: Callable[[Floats], Floats], how: Resampling, *, reason: str, clusters: ArrayLike | None = None
) -> Estimate:
    """A figure of the sum of N items' tables, with its bootstrap interval over items.

    Every measure of agreement is a function of sums over items, so that all resamples are one matrix product.

    Args:
        tables: (N, K), what each item adds.
        statistic: (R, K) sums -> (R,) values, NaN where it is undefined.
        reason: why the figure is undefined, for the case that it is.
        clusters: (N,) labels of items that are drawn together.
    """
    n = len(tables)
    value = float(statistic(tables.sum(0, keepdims=True))[0])
    if not math.isfinite(value):
        return undefined(reason, n)
    draws = [statistic(weights @ tables) for weights in resample_weights(n, clusters, how.resamples, how.seed)]
    low, high, note = percentile_interval(np.concatenate(draws), how)
    return Estimate(value, low, high, n, note)


def bootstrap_share(tables: Floats, how: Resampling, *, reason: str) -> Estimate:
    """A share of what N items hold, such as the pairs of labels that agree, with its bootstrap interval over items.

    Where all agree, or none, every resample says the same, and the exact bound over the items (Clopper & Pearson 1934) stands
    instead.

    Args:
        tables: (N, 2) of what counts and what there is, of each item.
    """
    found = bootstrap_sums(tables, lambda sums: ratio(sums[:, 0], sums[:, 1]), how, reason=reason)
    if found.value not in (0.0, 1.0):
        return found
    far = ((1 - how.level) / 2) ** (1 / found.n)
    return Estimate(found.value, far, 1.0, found.n) if found.value else Estimate(0.0, 0.0, 1 - far, found.n)


def ratio(top: Floats, bottom: Floats) -> Floats:
    """`top / bottom`, NaN where `bottom` is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom != 0)


def wilson(successes: float, n: int, level: float = 0.95, *, reason: str = "nothing was counted") -> Estimate:
    """A share with its score interval (Wilson 1927), which does not collapse where all or none succeed.

    Args:
        successes: 0 to `n`; an expected count need not be whole.
        reason: what to say where `n` is 0.
    """
    if n == 0:
        return undefined(reason)
    if not 0 <= successes <= n:
        raise InputError("successes", successes, f"expected a count from 0 to {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding.
    low = 0.0 if successes == 0 else max(0.0, middle - reach)
    high = 1.0 if successes == n else min(1.0, middle + reach)
    return Estimate(share, low, high, n)


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), 0 < p < 1, by a sum of exact terms in log space."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    i = np.arange(1, k + 1)
    terms = np.concatenate([[0.0], np.cumsum(np.log((n - i + 1) / i) + math.log(p) - math.log1p(-p))])
    largest = terms.max()
    return min(1.0, math.exp(largest + n * math.log1p(-p)) * float(np.exp(terms - largest).sum()))


def binomial_at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p), without the cancellation of 1 - P(X < k)."""
    return binomial_at_most(n - k, n, 1 - p)


def fair_coin_test(k: int, n: int) -> float:
    """Two-sided exact p-value that k of n is a fair coin's work (both tails alike, since the distribution is symmetric)."""
    return min(1.0, 2 * binomial_at_most(min(k, n - k), n, 0.5))


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """(N,) p-values adjusted for N looks (Benjamini & Hochberg 1995): those below q hold at most a share q of false alarms."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return adjusted
