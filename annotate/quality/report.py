"""Everything that is known of the labels so far, as one JSON-ready dict: for the admin's page, a file, or a data card."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from annotate.quality.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, raw_agreement
from annotate.quality.annotators import Profile, profile_annotators
from annotate.quality.biases import left_rate
from annotate.quality.estimates import Estimate, Resampling, undefined
from annotate.quality.flags import Thresholds
from annotate.quality.labels import Judgment, label_matrix
from annotate.quality.ranking import Ranking, bradley_terry

MOST_PAIRED = 10  # annotators; beyond it a table of pairs is no longer read, and each one's agreement with the others stands
WINDOWS, FEWEST_ITEMS = 12, 10  # of agreement over time, and in each of them
LIMITS, DEFAULT = Thresholds(), Resampling()


def quality_report(
    judgments: Sequence[Judgment], *, thresholds: Thresholds = LIMITS, how: Resampling = DEFAULT, rankings: int = 200
) -> dict[str, Any]:
    """All measures of `judgments`: the ones that stand, at most one an annotator and item.

    Args:
        how: the bootstrap of all measures but the rankings, which refit for every one of their `rankings` resamples.
    Returns:
        `counts`, `agreement` (`winner` over first, second, tie; `strength` over the whole scale), `pairs` (Cohen's kappa),
        `over_time`, `annotators` (with `flags`), `left`, `seconds`, `ranking`, `ranking_at_equal_length`. An estimate is
        `{"value", "low", "high", "n", "reason"}`, its value null where it is undefined.
    Raises:
        InputError: no judgment, or two of one annotator on one item.
    """
    winner = label_matrix(((j.item, j.annotator, j.winner) for j in judgments), categories=[-1, 0, 1])
    strength = label_matrix((j.item, j.annotator, j.strength) for j in judgments)
    pairs = list(itertools.combinations(winner.annotators, 2)) if len(winner.annotators) <= MOST_PAIRED else []
    sides = [j.left for j in judgments if j.left is not None]
    fits = Resampling(rankings, how.seed, how.level)
    return {
        "counts": {"labels": len(judgments), "items": len(winner.items), "annotators": len(winner.annotators)},
        "agreement": {
            "winner": {
                "raw": raw_agreement(winner, how).as_dict(),
                "fleiss": fleiss_kappa(winner, how).as_dict(),
                "alpha": krippendorff_alpha(winner, "nominal", how).as_dict(),
            },
            "strength": {"alpha": krippendorff_alpha(strength, "ordinal", how).as_dict()},
        },
        "pairs": [{"first": a, "second": b, "kappa": cohen_kappa(winner, a, b, how=how).as_dict()} for a, b in pairs],
        "over_time": agreement_over_time(judgments, how),
        "annotators": [_profile(p) for p in profile_annotators(judgments, thresholds, how)],
        "left": (left_rate(sides, how.level)[0] if sides else undefined("the sides were not kept")).as_dict(),
        "seconds": _seconds(judgments),
        "ranking": _ranking(judgments, fits, controlled=False),
        "ranking_at_equal_length": _ranking(judgments, fits, controlled=True),
    }


def agreement_over_time(judgments: Sequence[Judgment], how: Resampling = DEFAULT) -> list[dict[str, Any]]:
    """Raw agreement on who won, in windows of as many items each, in the order in which items were finished.

    Returns:
        `{"items": items finished by the window's end, "at": when its last label came, "agreement": estimate}` for each; none
        where times were not kept, or overlap is too little for two windows.
    """
    labels: dict[Hashable, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        labels[judgment.item].append(judgment)
    shared = [item for item in labels.values() if len(item) > 1]
    windows = min(WINDOWS, len(shared) // FEWEST_ITEMS)
    if windows < 2 or any(j.at is None for item in shared for j in item):
        return []
    shared.sort(key=lambda item: max(j.at or 0.0 for j in item))
    rows = []
    for chosen in np.array_split(np.arange(len(shared)), windows):
        window = [j for i in chosen for j in shared[i]]
        found = raw_agreement(label_matrix((j.item, j.annotator, j.winner) for j in window), how)
        rows.append({"items": int(chosen[-1]) + 1, "at": max(j.at or 0.0 for j in window), "agreement": found.as_dict()})
    return rows


def _profile(profile: Profile) -> dict[str, Any]:
    # dataclasses.asdict would keep a NamedTuple a tuple, and JSON its values without their names.
    found = {key: value.as_dict() if isinstance(value, Estimate) else value for key, value in vars(profile).items()}
    return {**found, "flags": [flag._asdict() for flag in profile.flags]}


def _seconds(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """Quantiles of the time a judgment took, and its histogram over twenty equal steps of the logarithm."""
    taken = np.array([j.seconds for j in judgments if j.seconds is not None and j.seconds > 0])
    if not len(taken):
        return {"n": 0, "quantiles": {}, "edges": [], "judgments": []}
    low, high = float(taken.min()), float(taken.max())
    edges = np.geomspace(low, high, 21) if high > low else np.array([low / 2, low * 2])
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return {
        "n": len(taken),
        "quantiles": {str(q): float(np.quantile(taken, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "edges": edges.tolist(),
        "judgments": np.histogram(taken, edges)[0].tolist(),
    }


def _ranking(judgments: Sequence[Judgment], how: Resampling, *, controlled: bool) -> dict[str, Any]:
    used = [j for j in judgments if j.models is not None and j.models[0] != j.models[1] and (j.words or not controlled)]
    if not used:
        return {"models": [], "reason": "the lengths were not kept" if controlled else "no two models are compared"}
    found = bradley_terry(
        [j.models[0] for j in used if j.models],
        [j.models[1] for j in used if j.models],
        [j.winner for j in used],
        lengths=[j.words or (0, 0) for j in used] if controlled else None,
        clusters=_codes([j.item if j.group is None else j.group for j in used]),
        how=how,
    )
    return ranking_dict(found)


def _codes(labels: Sequence[Hashable]) -> list[int]:
    position = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [position[label] for label in labels]


def ranking_dict(found: Ranking) -> dict[str, Any]:
    """A ranking as JSON: a row a model, strongest first; the chances of win and tie; the weight of length; why there is none."""
    rows = []
    for i, model in enumerate(found.models):
        row: dict[str, Any] = {"model": model, "strength": found.strengths[i].as_dict()}
        if not found.reason:
            row |= {"hessian": found.hessian[i].tolist(), "expected": float(found.expected[i])}
            row |= {"comparisons": int(found.comparisons[i])}
        rows.append(row)
    return {
        "models": rows,
        "win": found.win.tolist(),
        "tie": found.tie.tolist(),
        "length": found.length.as_dict(),
        "reason": found.reason,
    }
