"""An estimate and the interval around it: one record, one bootstrap, used by every evaluation.

Prompts, not answers, are the unit that a second evaluation would draw anew, so that answers to one prompt are
resampled together (`clusters`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_kit.errors import InputError

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with the ends of its interval, and the number of values behind it."""

    estimate: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """The same as a JSON-ready dict, the form that `evaluation.json` and the report use."""
        return self._asdict()


def as_floats(name: str, values: ArrayLike) -> Floats:
    """`values` as a finite (N,) float64 array, N > 0.

    Raises:
        InputError: another rank, nothing in it, or a number that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"{name}.shape", array.shape, "expected one number for each item, and at least one item")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{name}[{index}]", float(array[index]), "expected a finite number: look at what produced it")
    return array


def check_same_length(**arrays: Any) -> None:
    """Raise InputError where the named arrays are not of one length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError("lengths of " + ", ".join(lengths), list(lengths.values()), "expected one length for all")


def resample_weights(n: int, clusters: ArrayLike | None, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of n items occurs in each bootstrap resample, whole clusters at a time: blocks of (rows, n)."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
    check_same_length(values=range(n), clusters=group)
    groups = int(group.max()) + 1
    block = max(1, 2**22 // n)  # 32 MB at a time
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=rows).astype(np.float64)[:, group]


def bootstrap(
    statistic: Callable[[Floats], Floats],
    n: int,
    *,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron & Tibshirani 1993, ch. 13) of a statistic of weighted items.

    Args:
        statistic: (R, n) weights, how often each item occurs in each resample -> (R,) values.
        clusters: (n,) labels; items of one label are drawn together.
    """
    estimate = float(statistic(np.ones((1, n)))[0])
    draws = np.concatenate([statistic(weights) for weights in resample_weights(n, clusters, resamples, seed)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n)


def mean_interval(
    values: ArrayLike, *, clusters: ArrayLike | None = None, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The mean of (N,) values with its bootstrap interval."""
    array = as_floats("values", values)
    return bootstrap(lambda w: (w @ array) / w.sum(1), len(array), clusters=clusters, level=level, resamples=resamples, seed=seed)


def share_interval(
    values: ArrayLike, *, clusters: ArrayLike | None = None, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The mean of (N,) values from 0 to 1 (right or wrong, won or lost) with its bootstrap interval.

    A bootstrap cannot see past its data: where every value is 0, or every value is 1, it would answer with an interval
    of no width. There the exact binomial bound (Clopper & Pearson 1934) over the clusters takes its place.
    """
    array = as_floats("values", values)
    if array.min() < 0 or array.max() > 1:
        raise InputError("values", (float(array.min()), float(array.max())), "expected numbers from 0 to 1")
    if array.min() < array.max() or array[0] not in (0.0, 1.0):
        return mean_interval(array, clusters=clusters, level=level, resamples=resamples, seed=seed)
    n = len(array) if clusters is None else len(np.unique(np.asarray(clusters)))
    far = ((1 - level) / 2) ** (1 / n)
    return Interval(1.0, far, 1.0, len(array)) if array[0] else Interval(0.0, 0.0, 1 - far, len(array))
