"""Does one person contradict themselves? A over B, B over C and C over A cannot all be meant (Kendall & Babington Smith 1940).

It needs no overlap between people, only all pairs of three answers or more judged by one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from annotate.quality.estimates import Estimate, Resampling, bootstrap_share, undefined
from rlhf_kit.evaluation.intervals import check_same_length


def cyclic_triples(
    groups: Sequence[Hashable],
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    outcomes: ArrayLike,
    how: Resampling = Resampling(),  # noqa: B008 (frozen)
) -> Estimate:
    """The share of triples of answers, all three pairs decided, that go round in a circle; 1/4 where a coin decides.

    Args:
        groups: (N,) what the pairs belong to, a prompt as one person judged it; the interval resamples groups.
        first, second: (N,) answers. outcomes: (N,) above 0 first is better, below 0 second; a triple with a tie is left out.
    """
    signs = np.sign(np.asarray(outcomes))
    check_same_length(groups=groups, first=first, second=second, outcomes=signs)
    beats: dict[Hashable, dict[tuple[Hashable, Hashable], float]] = {}
    for group, a, b, sign in zip(groups, first, second, signs.tolist()):
        beats.setdefault(group, {}).update({(a, b): sign, (b, a): -sign})
    tables = []
    for pairs in beats.values():
        circular = decided = 0
        for a, b, c in itertools.combinations(dict.fromkeys(a for a, _ in pairs), 3):
            ring = [pairs.get(pair, 0) for pair in ((a, b), (b, c), (c, a))]
            decided += all(ring)
            circular += abs(sum(ring)) == 3
        if decided:
            tables.append((circular, decided))
    if not tables:
        return undefined("no three answers have all their pairs decided")
    return bootstrap_share(np.array(tables, dtype=np.float64), how, reason="")
