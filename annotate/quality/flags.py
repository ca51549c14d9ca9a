"""What an admin should look at: a plain sentence, the number and the threshold, and not more false alarms than agreed.

Every check of a kind is made for every annotator, so that its p-values are adjusted for as many looks (Benjamini & Hochberg).
A flag also needs an effect that matters: with enough labels everybody differs from everything. A flag is a reason to look, not
a verdict.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from annotate.quality.estimates import benjamini_hochberg


@dataclass(frozen=True)
class Thresholds:
    """When a measure is worth a flag.

    `false_alarms`: the share of flags of one kind that may be chance. `gold_accuracy`, `kappa`: flagged below.
    `side`: how far the left-side rate may be from 1/2. `length`: how far the length slope, in log-odds for 100 words, may be from
    the team's. `too_fast`: the share of judgments faster than reading that is let pass.
    `pace`: robust standard deviations from the team's median time a word, and `pace_ratio` the factor that it must be off
    besides. `fewest`: judgments before anybody is judged.
    """

    false_alarms: float = 0.05
    gold_accuracy: float = 0.7
    kappa: float = 0.2
    side: float = 0.1
    length: float = 0.2
    too_fast: float = 0.1
    pace: float = 3.5
    pace_ratio: float = 2.0
    fewest: int = 10


class Check(NamedTuple):
    """One measure of one annotator, held against its threshold.

    `p_value`: the chance of a value as far out from somebody at the threshold; None for a rule that is no test.
    `matters`: whether the value is past the threshold at all. `sentence`: what to say if it is flagged.
    """

    value: float
    threshold: float
    p_value: float | None
    matters: bool
    sentence: str


class Flag(NamedTuple):
    """A check that was not passed; `p_adjusted` is over all annotators who were checked for the same."""

    kind: str
    sentence: str
    value: float
    threshold: float
    p_adjusted: float | None


def raise_flags(checks: Mapping[Hashable, Mapping[str, Check]], false_alarms: float = 0.05) -> dict[Hashable, list[Flag]]:
    """The flags of each annotator, from their checks by kind."""
    flags: dict[Hashable, list[Flag]] = {annotator: [] for annotator in checks}
    for kind in dict.fromkeys(kind for found in checks.values() for kind in found):
        looked = {annotator: found[kind] for annotator, found in checks.items() if kind in found}
        tested = [annotator for annotator, check in looked.items() if check.p_value is not None]
        adjusted = dict(zip(tested, benjamini_hochberg([looked[annotator].p_value or 0.0 for annotator in tested]).tolist()))
        for annotator, check in looked.items():
            p = adjusted.get(annotator)
            if check.matters and (p is None or p < false_alarms):
                flags[annotator].append(Flag(kind, check.sentence, check.value, check.threshold, p))
    return flags
