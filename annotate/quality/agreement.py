"""Do people agree, beyond what chance would do? Raw agreement, Cohen, Fleiss and Krippendorff, each with its interval.

An undefined measure says why: where all labels are one and the same, nothing could have disagreed, and a chance-corrected
measure is 0/0, which other libraries give as NaN or as 1. Intervals are percentile bootstraps over items.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np

from annotate.quality.estimates import Estimate, Floats, Resampling, bootstrap_share, bootstrap_sums, ratio, undefined
from annotate.quality.labels import LabelMatrix
from rlhf_kit.errors import InputError

Weights = Literal["nominal", "linear", "quadratic"]
Scale = Literal["nominal", "ordinal", "interval"]

DEFAULT = Resampling()
NO_OVERLAP = "no item has labels from two people"


def _one_label(counts: Floats, matrix: LabelMatrix) -> str:
    used = [matrix.categories[k] for k in np.flatnonzero(counts.sum(0))]
    return f"all {int(counts.sum())} labels are {used[0]!r}: nothing could disagree, so agreement beyond chance is 0/0"


def raw_agreement(matrix: LabelMatrix, how: Resampling = DEFAULT) -> Estimate:
    """The share of pairs of labels on the same item that are equal; every pair counts once, `n` is the items behind it."""
    counts = matrix.counts()
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return undefined(NO_OVERLAP)
    labels = counts.sum(1)
    tables = np.stack([(counts * (counts - 1)).sum(1), labels * (labels - 1)], axis=1)
    return bootstrap_share(tables, how, reason=NO_OVERLAP)


def cohen_kappa(
    matrix: LabelMatrix, first: Hashable, second: Hashable, weights: Weights = "nominal", how: Resampling = DEFAULT
) -> Estimate:
    """Cohen's kappa (1960) of two annotators over the items that both labelled, or its weighted form (Cohen 1968).

    Args:
        weights: what a disagreement costs: 1, the steps between the categories on the matrix's scale, or their square.
    Raises:
        InputError: an annotator who is not in the matrix, the same one twice, or other weights.
    """
    for field, name in (("first", first), ("second", second)):
        if name not in matrix.annotators:
            raise InputError(field, name, f"expected one of the annotators {matrix.annotators}")
    if first == second:
        raise InputError("second", second, "expected another annotator than the first")
    if weights not in ("nominal", "linear", "quadratic"):
        raise InputError("weights", weights, "expected 'nominal', 'linear' or 'quadratic'")
    pair = matrix.codes[:, [matrix.annotators.index(first), matrix.annotators.index(second)]]
    pair = pair[(pair >= 0).all(1)].astype(int)
    if not len(pair):
        return undefined(f"{first!r} and {second!r} share no item")
    k = len(matrix.categories)
    steps = np.abs(np.arange(k)[:, None] - np.arange(k)).astype(np.float64)
    cost = {"nominal": np.sign(steps), "linear": steps, "quadratic": steps**2}[weights]
    tables = np.eye(k * k)[pair[:, 0] * k + pair[:, 1]]
    counts = (pair[:, :, None] == np.arange(k)).sum(1).astype(np.float64)
    return bootstrap_sums(tables, lambda sums: _kappa(sums, cost), how, reason=_one_label(counts, matrix))


def _kappa(sums: Floats, cost: Floats) -> Floats:
    """Kappa of (R, K * K) tables of one side's label by the other's: 1 less observed over expected cost."""
    table = sums.reshape(-1, *cost.shape)
    expected = table.sum(2)[:, :, None] * table.sum(1)[:, None, :] / table.sum((1, 2))[:, None, None]
    return 1 - ratio((cost * table).sum((1, 2)), (cost * expected).sum((1, 2)))


def agreement_with_others(matrix: LabelMatrix, annotator: Hashable, how: Resampling = DEFAULT) -> tuple[Estimate, Estimate]:
    """How far one annotator agrees with everybody else: the share of equal pairs of labels, and Cohen's kappa of those pairs."""
    k = len(matrix.categories)
    own = matrix.codes[:, matrix.annotators.index(annotator)].astype(int)
    shared = matrix._replace(codes=matrix.codes[own >= 0])
    others = (shared.counts() - np.eye(k)[own[own >= 0]]).astype(np.float64)
    own, others = own[own >= 0][others.sum(1) > 0], others[others.sum(1) > 0]
    if not len(own):
        none = undefined(f"nobody else has labelled an item of {annotator!r}")
        return none, none
    pairs = (np.eye(k)[own][:, :, None] * others[:, None, :]).reshape(len(own), k * k)
    equal = np.stack([pairs @ np.eye(k).reshape(-1), pairs.sum(1)], axis=1)
    share = bootstrap_share(equal, how, reason=NO_OVERLAP)
    kappa = bootstrap_sums(pairs, lambda sums: _kappa(sums, 1 - np.eye(k)), how, reason=_one_label(others, matrix))
    return share, kappa


def fleiss_kappa(matrix: LabelMatrix, how: Resampling = DEFAULT) -> Estimate:
    """Fleiss' kappa (1971) over the items with the commonest number of labels (the larger of two equally common ones).

    The measure is defined for one number of labels an item; `reason` says how many items with another were left out.
    Krippendorff's alpha takes them all.
    """
    counts = matrix.counts()
    labels = counts.sum(1).astype(int)
    overlapping = labels[labels >= 2]
    if not len(overlapping):
        return undefined(NO_OVERLAP)
    frequency = np.bincount(overlapping)
    raters = len(frequency) - 1 - int(np.argmax(frequency[::-1]))
    counts = counts[labels == raters]
    agreeing = ((counts**2).sum(1) - raters) / (raters * (raters - 1))
    tables = np.concatenate([agreeing[:, None], counts], axis=1)

    def kappa(sums: Floats) -> Floats:
        total = sums[:, 1:].sum(1)
        observed = raters * sums[:, 0] / total
        chance = ((sums[:, 1:] / total[:, None]) ** 2).sum(1)
        return ratio(observed - chance, 1 - chance)

    found = bootstrap_sums(tables, kappa, how, reason=_one_label(counts, matrix))
    if len(counts) == len(labels):
        return found
    left_out = f"{len(labels) - len(counts)} of {len(labels)} items left out: they do not have {raters} labels"
    return found._replace(reason="; ".join(filter(None, [found.reason, left_out])))


def krippendorff_alpha(matrix: LabelMatrix, scale: Scale = "nominal", how: Resampling = DEFAULT) -> Estimate:
    """Krippendorff's alpha (2011, "Computing Krippendorff's alpha-reliability"), for any number of labels an item.

    Args:
        scale: a disagreement is 1; the squared distance of the categories' mid-ranks; or of their values (numbers).
    Raises:
        InputError: another scale, or an interval scale whose categories are not numbers.
    """
    if scale not in ("nominal", "ordinal", "interval"):
        raise InputError("scale", scale, "expected 'nominal', 'ordinal' or 'interval'")
    if scale == "interval" and not all(isinstance(c, int | float | np.number) for c in matrix.categories):
        raise InputError("categories", matrix.categories, "expected numbers for an interval scale")
    counts = matrix.counts()
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return undefined(NO_OVERLAP)
    k = len(matrix.categories)
    together = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(k)
    tables = (together / (counts.sum(1) - 1)[:, None, None]).reshape(len(counts), k * k)

    def alpha(sums: Floats) -> Floats:
        observed = sums.reshape(-1, k, k)
        used = observed.sum(2)
        if scale == "nominal":
            distance = np.broadcast_to(1 - np.eye(k), observed.shape)
        else:
            values = np.cumsum(used, 1) - used / 2 if scale == "ordinal" else np.asarray([matrix.categories], dtype=np.float64)
            distance = (values[:, :, None] - values[:, None, :]) ** 2
        expected = (used[:, :, None] * used[:, None, :] * distance).sum((1, 2))
        return 1 - ratio((used.sum(1) - 1) * (observed * distance).sum((1, 2)), expected)

    return bootstrap_sums(tables, alpha, how, reason=_one_label(counts, matrix))
