"""One annotator at a time: how often right, how far like the others, how fast, and leaning where to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from annotate.quality.agreement import agreement_with_others
from annotate.quality.biases import left_rate, length_slope, longest_run, robust_z, run_bound, too_fast
from annotate.quality.estimates import (
    Estimate,
    Resampling,
    binomial_at_least,
    binomial_at_most,
    fair_coin_test,
    undefined,
    wilson,
)
from annotate.quality.flags import Check, Flag, Thresholds, raise_flags
from annotate.quality.labels import Judgment, label_matrix
from annotate.quality.reliability import dawid_skene
from rlhf_kit.wording import count, number, percent

LIMITS, DEFAULT = Thresholds(), Resampling()
WORDS = 100  # the unit of length: a slope of 0.1 is 0.1 log-odds for a hundred words more


@dataclass
class Profile:
    """What is known of one annotator.

    `gold`: right answers on items of known truth. `agreement`, `kappa`: with everybody else, raw and beyond chance.
    `reliability`: expected share of right labels by Dawid and Skene's model; its interval takes the model's truths as given.
    `left`: rate of the left side. `length`: log-odds for the left answer for 100 words more. `run`: longest run of one key, None
    where the sides were not kept.
    """

    annotator: Hashable
    labels: int
    gold: Estimate
    agreement: Estimate
    kappa: Estimate
    reliability: Estimate
    left: Estimate
    length: Estimate
    too_fast: Estimate
    median_seconds: float | None
    run: int | None
    flags: list[Flag] = field(default_factory=list)


def profile_annotators(
    judgments: Sequence[Judgment],
    thresholds: Thresholds = LIMITS,
    how: Resampling = DEFAULT,
) -> list[Profile]:
    """A profile of every annotator, with flags; judgments in the order in which they were given, or with `at`."""
    ordered = sorted(judgments, key=lambda j: j.at or 0.0) if all(j.at is not None for j in judgments) else list(judgments)
    matrix = label_matrix(((j.item, j.annotator, j.winner) for j in ordered), categories=[-1, 0, 1])
    truth = {j.item: (j.gold > 0) - (j.gold < 0) + 1 for j in ordered if j.gold is not None}
    model = dawid_skene(matrix, gold=[truth.get(item, -1) for item in matrix.items])
    own: dict[Hashable, list[Judgment]] = {annotator: [] for annotator in matrix.annotators}
    for judgment in ordered:
        own[judgment.annotator].append(judgment)

    profiles = []
    for i, (annotator, mine) in enumerate(own.items()):
        known = [j for j in mine if j.gold is not None]
        right = sum(j.winner == truth[j.item] - 1 for j in known)
        agreement, kappa = agreement_with_others(matrix, annotator, how)
        timed = [j for j in mine if j.seconds is not None]
        read = [j for j in timed if j.words is not None]
        lengths = _lengths(mine)
        profiles.append(
            Profile(
                annotator,
                len(mine),
                wilson(right, len(known), how.level, reason="no gold item was judged"),
                agreement,
                kappa,
                # An expected count may pass a whole one by rounding.
                wilson(min(float(model.expected_right[i]), len(mine)), len(mine), how.level),
                left_rate(_sides(mine), how.level)[0] if _sides(mine) else undefined("the sides were not kept"),
                length_slope(*lengths, how.level) if lengths[0] else undefined("sides or lengths were not kept"),
                too_fast([j.seconds or 0.0 for j in read], [_shown(j) for j in read], level=how.level),
                float(np.median([j.seconds for j in timed])) if timed else None,
                longest_run(keys)[0] if (keys := _keys(mine)) else None,
            )
        )
    checks = _checks(profiles, own, thresholds, how.level)
    for profile in profiles:
        profile.flags = raise_flags(checks, thresholds.false_alarms)[profile.annotator]
    return profiles


def _sides(judgments: Sequence[Judgment]) -> list[int]:
    return [j.left for j in judgments if j.left is not None]


def _lengths(judgments: Sequence[Judgment]) -> tuple[list[int], list[float]]:
    """Choices of left, and how much longer left is, in units of WORDS."""
    used = [j for j in judgments if j.left is not None and j.words is not None]
    gaps = [(j.words[0] - j.words[1]) * (1 if j.first_on_left else -1) / WORDS for j in used if j.words is not None]
    return [j.left or 0 for j in used], gaps


def _shown(judgment: Judgment) -> int:
    return judgment.prompt_words + sum(judgment.words or ())


def _keys(judgments: Sequence[Judgment]) -> list[int]:
    """What was pressed: the strength as seen on the screen, which is unknown where the sides were not kept."""
    return [j.strength if j.first_on_left else -j.strength for j in judgments if j.first_on_left is not None]


def _checks(
    profiles: Sequence[Profile], own: dict[Hashable, list[Judgment]], limits: Thresholds, level: float
) -> dict[Hashable, dict[str, Check]]:
    """Every check that an annotator has enough judgments for."""
    everything = [j for mine in own.values() for j in mine]
    frequency = Counter(_keys(everything))
    shares = np.array(list(frequency.values())) / max(1, frequency.total())
    team = length_slope(*_lengths(everything), level)
    checks: dict[Hashable, dict[str, Check]] = {p.annotator: {} for p in profiles}
    for p in profiles:
        found: dict[str, Check | None] = {
            "gold": _gold_check(p, limits),
            "agreement": _kappa_check(p, limits, level),
            "side": _side_check(p, limits),
            "length": _length_check(p, team, limits, level),
            "too fast": _fast_check(p, limits),
            "same key": _run_check(p, len(_keys(own[p.annotator])), shares, limits),
        }
        checks[p.annotator] = {kind: check for kind, check in found.items() if check is not None}
    for annotator, check in _pace_checks(own, limits).items():
        checks[annotator]["pace"] = check
    return checks


def _gold_check(p: Profile, limits: Thresholds) -> Check | None:
    if p.gold.value is None or p.gold.n < limits.fewest:
        return None
    right = round(p.gold.value * p.gold.n)
    return Check(
        p.gold.value,
        limits.gold_accuracy,
        binomial_at_most(right, p.gold.n, limits.gold_accuracy),
        p.gold.value < limits.gold_accuracy,
        f"Right on {right} of {p.gold.n} gold items ({percent(p.gold.value)}); {percent(limits.gold_accuracy)} is expected.",
    )


def _kappa_check(p: Profile, limits: Thresholds, level: float) -> Check | None:
    k = p.kappa
    error = k.error(level)
    if k.value is None or error is None or k.n < limits.fewest:
        return None
    z = (k.value - limits.kappa) / error if error > 0 else math.copysign(math.inf, k.value - limits.kappa)
    return Check(
        k.value,
        limits.kappa,
        NormalDist().cdf(z),
        k.value < limits.kappa,
        f"Agrees with the others hardly beyond chance: kappa {number(k.value)} over {k.n} shared items; "
        f"{number(limits.kappa)} is expected.",
    )


def _side_check(p: Profile, limits: Thresholds) -> Check | None:
    if p.left.value is None or p.left.n < limits.fewest:
        return None
    left = round(p.left.value * p.left.n)
    off = abs(p.left.value - 0.5)
    return Check(
        p.left.value,
        limits.side,
        fair_coin_test(left, p.left.n),
        off > limits.side,
        f"Prefers the left answer in {percent(p.left.value)} of {p.left.n} decided pairs; sides are drawn at random, so that "
        f"{percent(0.5)} is expected, {percent(limits.side)} more or less.",
    )


def _length_check(p: Profile, team: Estimate, limits: Thresholds, level: float) -> Check | None:
    own_error, team_error = p.length.error(level), team.error(level)
    if p.length.value is None or team.value is None or own_error is None or team_error is None or p.length.n < limits.fewest:
        return None
    # The team holds this annotator too, so that the variances subtract (Hausman 1978).
    variance = own_error**2 - team_error**2
    if variance <= 0:
        return None
    gap = p.length.value - team.value
    return Check(
        p.length.value,
        team.value,
        2 * NormalDist().cdf(-abs(gap) / math.sqrt(variance)),
        abs(gap) > limits.length,
        f"Leans to the {'longer' if gap > 0 else 'shorter'} answer more than the team does: {number(p.length.value)} log-odds "
        f"for {WORDS} words more; the team {number(team.value)}, give or take {number(limits.length)}.",
    )


def _fast_check(p: Profile, limits: Thresholds) -> Check | None:
    if p.too_fast.value is None or p.too_fast.n < limits.fewest:
        return None
    fast = round(p.too_fast.value * p.too_fast.n)
    return Check(
        p.too_fast.value,
        limits.too_fast,
        binomial_at_least(fast, p.too_fast.n, limits.too_fast),
        p.too_fast.value > limits.too_fast,
        f"Answered {fast} of {p.too_fast.n} pairs ({percent(p.too_fast.value)}) in less time than it takes to read them; "
        f"{percent(limits.too_fast)} is let pass.",
    )


def _run_check(p: Profile, n: int, shares: Any, limits: Thresholds) -> Check | None:
    if p.run is None or n < limits.fewest:
        return None
    limit = next(r for r in range(1, n + 2) if run_bound(r, n, shares) < limits.false_alarms)
    return Check(
        float(p.run),
        float(limit),
        run_bound(p.run, n, shares),
        p.run >= limit,
        f"Pressed the same key {count(p.run)} times in a row in {count(n)} judgments; {count(limit)} by chance is rare.",
    )


def _pace_checks(own: dict[Hashable, list[Judgment]], limits: Thresholds) -> dict[Hashable, Check]:
    """Seconds a word against the team's; a rule, not a test, and only in a team of five or more."""
    paces = {}
    for annotator, mine in own.items():
        seen = [(j.seconds or 0.0) / max(1, _shown(j)) for j in mine if j.seconds is not None and j.words is not None]
        if len(seen) >= limits.fewest:
            paces[annotator] = math.log(max(float(np.median(seen)), 1e-6))
    if len(paces) < 5:
        return {}
    middle = float(np.median(list(paces.values())))
    return {
        annotator: Check(
            float(z),
            limits.pace,
            None,
            abs(float(z)) > limits.pace and abs(pace - middle) > math.log(limits.pace_ratio),
            f"Takes {number(math.exp(pace - middle))} times the team's median time a word: {number(abs(float(z)))} robust "
            f"standard deviations {'more' if z > 0 else 'less'}; {number(limits.pace)} is let pass.",
        )
        for (annotator, pace), z in zip(paces.items(), robust_z(list(paces.values())))
    }
