"""What people answer for other reasons than the answers: the side, the length, the wish to be done.

Each is measured from one annotator's judgments alone, as arrays in the order in which they were given.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from annotate.quality.choice import fit_choice
from annotate.quality.estimates import Estimate, Floats, fair_coin_test, undefined, wilson
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import as_floats, check_same_length

READING_SPEED = 700.0  # words a minute: three times silent reading, 238 (Brysbaert 2019); nobody who is faster has read it all


def left_rate(choices: ArrayLike, level: float = 0.95) -> tuple[Estimate, float]:
    """How often the left answer was preferred among those that were no tie, and the exact two-sided p-value against 1/2.

    Sides are drawn at random, so that anything but 1/2 is the annotator's own.

    Args:
        choices: (N,) 1 left, -1 right, 0 tie.
    """
    sides = np.asarray(choices)
    left, n = int((sides > 0).sum()), int((sides != 0).sum())
    return wilson(left, n, level, reason="no pair was decided"), fair_coin_test(left, n) if n else 1.0


def length_slope(choices: ArrayLike, difference: ArrayLike, level: float = 0.95) -> Estimate:
    """The slope of a logistic regression of choosing left on how much longer the left answer is; ties are left out.

    Args:
        choices: (N,) 1 left, -1 right, 0 tie. difference: (N,) length of left less right, in any unit.
    Returns:
        log-odds a unit of `difference`, beside a constant for the side, with its Wald interval.
    """
    sides, gaps = np.asarray(choices), np.asarray(difference, dtype=float)
    check_same_length(choices=sides, difference=gaps)
    gaps, sides = gaps[sides != 0], np.sign(sides[sides != 0])
    n = len(sides)
    left, right = gaps[sides > 0], gaps[sides < 0]
    if not len(left) or not len(right):
        return undefined("expected choices of both sides" if n else "no pair was decided", n)
    if gaps.min() == gaps.max():
        return undefined("the difference in length is the same in every pair", n)
    if left.min() >= right.max() or left.max() <= right.min():
        return undefined("length tells all choices apart: the slope has no bound", n)
    unit = float(np.sqrt((gaps**2).mean()))  # so that the fit does not depend on the unit
    fit = fit_choice(np.stack([np.ones(n), gaps / unit], axis=1), sides)
    if fit is None:
        return undefined("length tells almost all choices apart: the slope has no bound", n)
    slope, error = float(fit.coefficients[1]) / unit, math.sqrt(fit.covariance[1, 1]) / unit
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Estimate(slope, slope - reach, slope + reach, n)


def too_fast(seconds: ArrayLike, words: ArrayLike, words_a_minute: float = READING_SPEED, level: float = 0.95) -> Estimate:
    """The share of judgments given in less time than it takes to read what was shown.

    Args:
        seconds: (N,) that the pair was visible. words: (N,) shown, the prompt and both answers.
    """
    if words_a_minute <= 0:
        raise InputError("words_a_minute", words_a_minute, "expected a number above 0")
    taken, shown = np.asarray(seconds, dtype=float), np.asarray(words, dtype=float)
    check_same_length(seconds=taken, words=shown)
    fast = int((taken < 60 * shown / words_a_minute).sum())
    return wilson(fast, len(taken), level, reason="no time was kept")


def robust_z(values: ArrayLike) -> Floats:
    """(N,) how far each value lies from the median, in units of a standard deviation estimated by the median deviation.

    The modified z-score of Iglewicz & Hoaglin (1993); beyond 3.5 is an outlier. All 0 where over half of the values are equal.
    """
    array = as_floats("values", values)
    distance = array - np.median(array)
    spread = 1.4826 * np.median(np.abs(distance))  # 1 / NormalDist().inv_cdf(3/4), so that it fits a normal's deviation
    return distance / spread if spread > 0 else np.zeros_like(distance)


def longest_run(keys: ArrayLike) -> tuple[int, int]:
    """The length of the longest run of one and the same key, and where it starts; the first of equals."""
    array = np.asarray(keys)
    if not len(array):
        return 0, 0
    starts = np.flatnonzero(np.concatenate([[True], array[1:] != array[:-1]]))
    lengths = np.diff(np.append(starts, len(array)))
    best = int(np.argmax(lengths))
    return int(lengths[best]), int(starts[best])


def run_bound(length: int, n: int, shares: ArrayLike) -> float:
    """At most how likely a run of `length` or more equal keys is in n independent ones drawn with `shares`.

    Boole's inequality over the places where a run can begin: `sum_c p^r + (n - r) (1 - p) p^r`. Equal keys in a row are what
    chance gives now and then; what is far below chance is somebody who pressed one key without looking.
    """
    p = as_floats("shares", shares)
    return float(min(1.0, (p**length * (1 + max(0, n - length) * (1 - p))).sum())) if length <= n else 0.0
