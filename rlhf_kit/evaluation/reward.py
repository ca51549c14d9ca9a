"""How good a reward model is: how often it agrees with people, whether its margins mean what they say, what it is biased to.

Everything here reads arrays of scores, the chosen answer's and the rejected one's, pair by pair; `score_preferences`
makes them from a model. A reward model says `P(chosen is better) = sigmoid(score_chosen - score_rejected)` (Bradley &
Terry 1952), and calibration asks that of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from rlhf_kit.batches import PreferenceBatch
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import Floats, Interval, as_floats, check_same_length, share_interval
from rlhf_kit.evaluation.perplexity import evaluating
from rlhf_kit.models.access import scalar_scores


class PreferenceScores(NamedTuple):
    """Scores and lengths (tokens, prompt included) of N pairs, (N,) each."""

    chosen: Floats
    rejected: Floats
    chosen_lengths: Floats
    rejected_lengths: Floats


class Calibration(NamedTuple):
    """Bins of equal size by confidence, and the gap between what was predicted and what was seen.

    `predicted[i]` is the mean confidence of bin i, `observed[i]` its accuracy, `pairs[i]` its size; `ece` is the mean
    gap over all pairs. With few pairs a bin's accuracy is noisy, and so `ece` is above 0 even for a perfect model.
    """

    predicted: list[float]
    observed: list[float]
    pairs: list[int]
    ece: float


def _pairs(chosen: ArrayLike, rejected: ArrayLike) -> tuple[Floats, Floats]:
    won, lost = as_floats("chosen", chosen), as_floats("rejected", rejected)
    check_same_length(chosen=won, rejected=lost)
    return won, lost


def agreement(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """(N,) 1 where the chosen answer scores higher, 0 where lower, 1/2 on a tie."""
    won, lost = _pairs(chosen, rejected)
    return (np.sign(won - lost) + 1) / 2


def accuracy(
    chosen: ArrayLike, rejected: ArrayLike, *, clusters: ArrayLike | None = None, resamples: int = 1000, seed: int = 0
) -> Interval:
    """The share of pairs in which the chosen answer scores higher (a tie is half), with its 95 % bootstrap interval.

    Args:
        clusters: (N,) prompt labels where a prompt has more than one pair.
    """
    return share_interval(agreement(chosen, rejected), clusters=clusters, resamples=resamples, seed=seed)


def bayes_accuracy(probability: ArrayLike) -> float:
    """The accuracy that no scorer can beat when labels are drawn with (N,) known probabilities of the first answer."""
    p = as_floats("probability", probability)
    if p.min() < 0 or p.max() > 1:
        raise InputError("probability", (float(p.min()), float(p.max())), "expected numbers from 0 to 1")
    return float(np.maximum(p, 1 - p).mean())


def log_loss(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Mean of `-log sigmoid(chosen - rejected)` in nats; ln 2 for a model that knows nothing."""
    won, lost = _pairs(chosen, rejected)
    return float(np.logaddexp(0, lost - won).mean())


def brier_score(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Mean of `(1 - P)^2` with `P = sigmoid(chosen - rejected)` (Brier 1950); 1/4 for a model that knows nothing."""
    won, lost = _pairs(chosen, rejected)
    return float(np.square(np.exp(-np.logaddexp(0, won - lost))).mean())  # 1 - sigmoid(d) = sigmoid(-d), without overflow


def calibration(chosen: ArrayLike, rejected: ArrayLike, bins: int = 10) -> Calibration:
    """Reliability of the predicted probabilities, in bins of equal mass (Nguyen & O'Connor 2015).

    "Chosen first" is an order that the model never sees, so each pair is read from the side the model favours: its
    confidence is `sigmoid(|chosen - rejected|)`, from 1/2 up, and it is right where the chosen answer scores higher.
    """
    won, lost = _pairs(chosen, rejected)
    if bins < 1:
        raise InputError("bins", bins, "expected at least 1")
    confidence = 1 / (1 + np.exp(-np.abs(won - lost)))
    # Equal confidences share their mean outcome, so that the order of the pairs cannot matter where a bin ends among them.
    _, group, size = np.unique(confidence, return_inverse=True, return_counts=True)
    right = (np.bincount(group, agreement(won, lost)) / size)[group]
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    predicted, observed = [float(confidence[p].mean()) for p in parts], [float(right[p].mean()) for p in parts]
    pairs = [len(p) for p in parts]
    ece = float(np.average(np.abs(np.subtract(predicted, observed)), weights=pairs))
    return Calibration(predicted, observed, pairs, ece)


def _correlation(x: Floats, y: Floats) -> float:
    scale = float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def length_bias(
    chosen: ArrayLike, rejected: ArrayLike, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike
) -> dict[str, float | None]:
    """Does the model pay for length?

    Returns:
        `accuracy_longer`, `accuracy_shorter`: accuracy where the chosen answer is the longer / the shorter one (None
        where there is no such pair), with `pairs_longer`, `pairs_shorter`. A model that only counts words has 1 and 0.
        `prefers_longer`, `people_prefer_longer`: how often the higher score / the choice went to the longer answer.
        `correlation`: Pearson's between score and length over all answers.
        `difference_correlation`: the same between the differences within a pair (through the origin, since a pair has
        no order), which no difference between prompts can cause.
    """
    won, lost = _pairs(chosen, rejected)
    long, short = _pairs(chosen_lengths, rejected_lengths)
    check_same_length(scores=won, lengths=long)
    right, gap = agreement(won, lost), long - short
    longer, shorter = right[gap > 0], right[gap < 0]
    pairs = len(longer) + len(shorter)
    scores, lengths = np.concatenate([won, lost]), np.concatenate([long, short])
    return {
        "accuracy_longer": float(longer.mean()) if len(longer) else None,
        "accuracy_shorter": float(shorter.mean()) if len(shorter) else None,
        "pairs_longer": len(longer),
        "pairs_shorter": len(shorter),
        "prefers_longer": float((longer.sum() + (1 - shorter).sum()) / pairs) if pairs else None,
        "people_prefer_longer": len(longer) / pairs if pairs else None,
        "correlation": _correlation(scores - scores.mean(), lengths - lengths.mean()),
        "difference_correlation": _correlation(won - lost, gap),
    }


def score_preferences(model: nn.Module, batches: Iterable[PreferenceBatch]) -> PreferenceScores:
    """The scores of every pair under a scalar-head model, in order, without gradients.

    Raises:
        InputError: no pair at all, or a model without a single scalar head.
    """
    columns: list[list[Floats]] = [[], [], [], []]
    with evaluating(model) as device:
        for batch in batches:
            # A batch that only keeps the ranks in step ends in empty rows.
            batch = batch.rows(batch.chosen_mask.any(1).nonzero()[:, 0]).to(device)
            if not len(batch.chosen_ids):
                continue
            found = (
                scalar_scores(model, batch.chosen_ids, batch.chosen_mask),
                scalar_scores(model, batch.rejected_ids, batch.rejected_mask),
                batch.chosen_mask.sum(1),
                batch.rejected_mask.sum(1),
            )
            for column, values in zip(columns, found):
                column.append(values.double().cpu().numpy())
    if not columns[0]:
        raise InputError("preference batches", 0, "expected at least one pair: check the evaluation data")
    return PreferenceScores(*(np.concatenate(column) for column in columns))


def summarize_preferences(scores: PreferenceScores, *, bins: int = 10, clusters: ArrayLike | None = None) -> dict[str, Any]:
    """Everything above about one set of scores, JSON-ready: the reward model's part of `evaluation.json`."""
    won, lost = scores.chosen, scores.rejected
    return {
        "accuracy": accuracy(won, lost, clusters=clusters).as_dict(),
        "log_loss": log_loss(won, lost),
        "brier": brier_score(won, lost),
        "calibration": calibration(won, lost, bins)._asdict(),
        "length_bias": length_bias(*scores),
    }
