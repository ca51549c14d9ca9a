"""All cases, and the choice of some of them by name."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parity import grouped, pieces, ppo, preference, process_reward, reward, sft
from benchmarks.parity.rows import Case
from rlhf_kit.errors import InputError

CASES: list[Case] = [
    *sft.CASES,
    *reward.CASES,
    *process_reward.CASES,
    *preference.CASES,
    *grouped.CASES,
    *ppo.CASES,
    *pieces.CASES,
]


def family(case: Case) -> str:
    """The part of its name before the comma: `sft` of `sft, packed`."""
    return case.algorithm.split(",")[0]


def chosen(names: Sequence[str] | None) -> list[Case]:
    """The cases of those names or families; all where None is given.

    Raises:
        InputError: a name that there is not.
    """
    if names is None:
        return CASES
    for name in names:
        if not any(name in (case.algorithm, family(case)) for case in CASES):
            families = ", ".join(dict.fromkeys(family(case) for case in CASES))
            raise InputError("--only", name, f"expected an algorithm of the table, or one of {families}")
    return [case for case in CASES if case.algorithm in names or family(case) in names]
