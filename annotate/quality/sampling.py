"""Which comparisons to put to people: the uncertain ones more often, every one sometimes, and the chance of each kept.

What is chosen by its uncertainty is no picture of the whole. Since each item's chance of being chosen is known exactly, a
mean over all items can still be had, by weighing each chosen one with 1 over its chance (Horvitz & Thompson 1952).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from annotate.quality.estimates import Floats
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import as_floats, check_same_length

# Comparisons -> (P,) scores at or above 0, or (M, P) margins, first less second answer, of an ensemble of M reward models.
Scorer = Callable[[Sequence[Any]], ArrayLike]


class Draw(NamedTuple):
    """Chosen comparisons: `chosen` (n,) into the pool, with the `propensity` (n,) of each to be chosen."""

    chosen: NDArray[np.intp]
    propensity: Floats


def _preferences(margins: ArrayLike) -> Floats:
    scores = np.asarray(margins, dtype=np.float64)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise InputError("margins.shape", scores.shape, "expected (members, pairs) finite differences of rewards")
    return np.exp(-np.logaddexp(0.0, -scores))


def disagreement(margins: ArrayLike) -> Floats:
    """(P,) standard deviation, over an ensemble's members, of the chance that the first answer is better; 0 for one member.

    Args:
        margins: (M, P) reward of the first answer less the second's, by each of M reward models.
    """
    return _preferences(margins).std(0)


def preference_entropy(margins: ArrayLike) -> Floats:
    """(P,) entropy, in nats, of the mean chance that the first answer is better: at most log 2, where the pair is even.

    High where members disagree and also where all agree that the pair is close; useful with a single reward model.
    """
    p = np.clip(_preferences(margins).mean(0), 1e-300, 1 - 2**-53)
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def inclusion_probabilities(scores: ArrayLike, size: int, uniform_share: float = 0.2) -> Floats:
    """(P,) chances of being among `size` chosen ones; they sum to `size`, and none is above 1.

    A share of each is the same for all, `uniform_share * size / P`, so that nothing is out of reach; the rest is proportional to
    the score, where what would pass 1 is cut there and its excess shared out among the others.

    Raises:
        InputError: scores below 0, a size that does not fit, or a uniform share outside [0.2, 1].
    """
    array = as_floats("scores", scores)
    n = len(array)
    if array.min() < 0:
        raise InputError("scores", float(array.min()), "expected numbers at or above 0")
    if not 1 <= size <= n:
        raise InputError("size", size, f"expected 1 to {n}, the number of comparisons to choose from")
    if not 0.2 <= uniform_share <= 1:
        raise InputError("uniform_share", uniform_share, "expected 0.2 to 1: less makes estimates from the sample too noisy")
    sure = np.zeros(n, dtype=bool)
    chances = np.full(n, size / n)
    while array[~sure].sum() > 0:
        open_slots = size - int(sure.sum())
        chances[sure] = 1.0
        chances[~sure] = open_slots * array[~sure] / array[~sure].sum()
        if (chances[~sure] <= 1).all():
            break
        sure |= chances > 1
    else:
        # Nothing left to tell the others apart by: they share what is left alike.
        chances[sure] = 1.0
        if (~sure).any():
            chances[~sure] = (size - int(sure.sum())) / int((~sure).sum())
    return np.minimum(uniform_share * size / n + (1 - uniform_share) * chances, 1.0)


def systematic_sample(chances: ArrayLike, rng: np.random.Generator) -> NDArray[np.intp]:
    """Sorted indices, each chosen with exactly its chance, as many as the chances sum to (a whole number).

    Randomised systematic sampling (Goodman & Kish 1950): the chances are laid end to end in random order, and a ruler of unit
    marks with a random start picks what it hits. Chances of at most 1 cannot be hit twice.
    """
    p = as_floats("chances", chances)
    size = round(float(p.sum()))
    if p.min() < 0 or p.max() > 1 or abs(p.sum() - size) > 1e-6:
        raise InputError("chances", float(p.sum()), "expected numbers from 0 to 1 that sum to a whole number")
    order = rng.permutation(len(p))
    edges = np.cumsum(p[order])
    edges *= size / edges[-1]  # rounding must not lose the last mark
    return np.sort(order[np.searchsorted(edges, rng.random() + np.arange(size), side="right")])


def choose_comparisons(
    comparisons: Sequence[Any],
    scorer: Scorer,
    size: int,
    *,
    gold: Sequence[Any] = (),
    uniform_share: float = 0.2,
    gold_share: float = 0.05,
    seed: int = 0,
) -> tuple[Draw, Draw]:
    """Choose `size` comparisons, `gold_share` of them from those with a known answer, and keep each one's propensity.

    Args:
        scorer: gives each comparison's uncertainty, (P,), or an ensemble's margins, (M, P), of which `disagreement` is taken.
        gold: comparisons of known answer, chosen alike; where there are too few, all are, and the others fill up.
        gold_share: 0.05 to 0.1, or 0 without gold.
    Returns:
        the draw from `comparisons` and the draw from `gold`.
    """
    if gold and not 0.05 <= gold_share <= 0.1:
        raise InputError("gold_share", gold_share, "expected 0.05 to 0.1: enough to see who is careless, and no more")
    rng = np.random.default_rng(seed)
    n_gold = min(len(gold), max(1, round(gold_share * size))) if gold else 0
    found = np.asarray(scorer(comparisons), dtype=np.float64)
    scores = disagreement(found) if found.ndim == 2 else found
    check_same_length(scores=scores, comparisons=comparisons)
    chances = inclusion_probabilities(scores, size - n_gold, uniform_share)
    index = systematic_sample(chances, rng)
    gold_index = np.sort(rng.choice(len(gold), n_gold, replace=False)) if n_gold else np.zeros(0, dtype=np.intp)
    return Draw(index, chances[index]), Draw(gold_index, np.full(n_gold, n_gold / max(1, len(gold))))


def horvitz_thompson_mean(values: ArrayLike, propensities: ArrayLike, population: int) -> float:
    """The mean over all `population` items, from the chosen ones' values; unbiased whatever decided the propensities."""
    found, chances = as_floats("values", values), as_floats("propensities", propensities)
    check_same_length(values=found, propensities=chances)
    if chances.min() <= 0 or chances.max() > 1:
        raise InputError("propensities", (float(chances.min()), float(chances.max())), "expected numbers above 0 and at most 1")
    return float((found / chances).sum() / population)
