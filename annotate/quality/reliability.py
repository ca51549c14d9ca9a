"""Who is right how often, when nobody knows the truth: Dawid and Skene's (1979) model, fitted by EM.

Each annotator has a confusion matrix: the chance of each label, given the true one. The truth of an item and the matrices
explain each other. Two things are added to the paper's algorithm. Pseudo-counts, heavier on the diagonal, keep a person with
few labels from an extreme matrix, and say that people mostly mean what they say: without that, "first is better" and "second
is better" could change places and fit the labels as well. And items of known truth (gold) may be given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from annotate.quality.estimates import Floats
from annotate.quality.labels import LabelMatrix
from rlhf_kit.errors import InputError


class Reliability(NamedTuple):
    """What the labels say of items and annotators.

    `posterior`: (N, K) probability of each true label. `prior`: (K,). `confusion`: (A, K, K), row the truth, column the label.
    `accuracy`: (A,) chance of the right label on an item drawn from the prior. `expected_right`: (A,) expected number of the
    annotator's labels that are right. `labels`: (A,) how many they gave. `objective`: log posterior after each iteration, up to
    a constant. `converged`: whether it stopped because nothing moved.
    """

    posterior: Floats
    prior: Floats
    confusion: Floats
    accuracy: Floats
    expected_right: Floats
    labels: NDArray[np.intp]
    objective: list[float]
    converged: bool


def dawid_skene(
    matrix: LabelMatrix,
    *,
    gold: ArrayLike | None = None,
    smoothing: float = 0.5,
    tolerance: float = 1e-9,
    iterations: int = 1000,
) -> Reliability:
    """Fit the model by EM from the majority's view (Dawid & Skene 1979, eqs. 2.3-2.5), in log space.

    Args:
        gold: (N,) codes of known truths, -1 where unknown.
        smoothing: pseudo-count of every cell of a confusion matrix and of the prior; the diagonal has twice as much.
        tolerance: stop when no posterior probability moves by more.
    Raises:
        InputError: a smoothing that is not above 0, or gold that does not fit the matrix.
    """
    if smoothing <= 0:
        raise InputError("smoothing", smoothing, "expected a number above 0")
    k = len(matrix.categories)
    known = np.full(len(matrix.items), -1) if gold is None else np.asarray(gold)
    if known.shape != (len(matrix.items),) or known.min() < -1 or known.max() >= k:
        raise InputError("gold", gold, f"expected {len(matrix.items)} codes below {k}, -1 where the truth is unknown")
    people = len(matrix.annotators)
    item, person = np.nonzero(matrix.codes >= 0)  # one row a label: few of the matrix's cells are filled
    label = matrix.codes[item, person].astype(int)
    extra = smoothing * (1 + np.eye(k))
    excluded = np.where((known[:, None] < 0) | (known[:, None] == np.arange(k)), 0.0, -np.inf)

    votes = (matrix.counts() + smoothing) * np.exp(excluded)
    posterior = votes / votes.sum(1, keepdims=True)
    objective: list[float] = []
    converged = False
    for _ in range(iterations):
        prior = posterior.sum(0) + smoothing
        prior /= prior.sum()
        confusion = extra + np.stack(
            [np.bincount(person * k + label, posterior[item, true], people * k).reshape(people, k) for true in range(k)], axis=1
        )
        confusion /= confusion.sum(2, keepdims=True)
        seen = np.log(confusion)[person, :, label]  # (L, K): how likely each label is, for each truth
        joint = excluded + np.log(prior) + np.stack([np.bincount(item, seen[:, t], len(known)) for t in range(k)], axis=1)
        largest = joint.max(1, keepdims=True)
        evidence = largest + np.log(np.exp(joint - largest).sum(1, keepdims=True))
        objective.append(float(evidence.sum() + (extra * np.log(confusion)).sum() + smoothing * np.log(prior).sum()))
        before, posterior = posterior, np.exp(joint - evidence)
        if np.abs(posterior - before).max() < tolerance:
            converged = True
            break
    accuracy = np.einsum("k,akk->a", prior, confusion)
    expected_right = np.bincount(person, posterior[item, label], people).astype(np.float64)
    labels = np.bincount(person, minlength=people)
    return Reliability(posterior, prior, confusion, accuracy, expected_right, labels, objective, converged)
