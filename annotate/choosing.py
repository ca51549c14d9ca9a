"""Import those of a file's comparisons whose judgement teaches a reward model most, and some of all others.

The rows carry what each member of an ensemble of reward models says of each answer, as `recipes/sample_pairs.py --reward a,b,c`
writes it: member_scores_a and member_scores_b of a pair, member_scores beside each of several responses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from annotate.importing import Preferences, Report, Row, add_all, read_rows
from annotate.quality.sampling import choose_comparisons, disagreement, preference_entropy
from annotate.store.database import Database
from annotate.store.records import NewComparison
from rlhf_kit.errors import InputError

Uncertainty = Literal["disagreement", "entropy"]
MEASURES: dict[Uncertainty, Callable[[ArrayLike], NDArray[np.float64]]] = {
    "disagreement": disagreement,
    "entropy": preference_entropy,
}


def import_chosen(
    database: Database,
    project_id: int,
    source: str | Path,
    size: int,
    *,
    uncertainty: Uncertainty = "disagreement",
    uniform_share: float = 0.2,
    gold_share: float = 0.05,
    preferences: Preferences = "pairs",
    skip_bad: bool = False,
    seed: int = 0,
    by: int | None = None,
) -> Report:
    """Add `size` of a file's comparisons to a project, each with its propensity: the chance with which it was chosen.

    The choice is a function of the file and the seed, so that the same import again, after a crash too, adds only what is
    missing. Where a row has a propensity already, from an earlier choice, the two are multiplied.

    Args:
        uncertainty: `disagreement` of the members on who wins, or `entropy` of what they say together, for a single one too.
            A ranking's is the mean over its pairs.
        uniform_share, gold_share: see `annotate.quality.sampling`; the other arguments as of `annotate.importing.import_file`.
    Raises:
        InputError: a bad row, one without scores, or fewer comparisons than `size`.
    """
    report, pool, gold, scores = Report(), [], [], []
    for where, row, new in read_rows(source, preferences=preferences, report=report, on_bad=report.note if skip_bad else None):
        if new.gold_strength is not None or new.gold_ranking is not None:
            gold.append(new)
            continue
        try:
            scores.append(_uncertainty(where, row, len(new.responses), uncertainty))
        except InputError as error:
            if not skip_bad:
                raise
            report.note(error)
        else:
            pool.append(new)
    if not 1 <= size <= len(pool):
        raise InputError("--choose", size, f"expected 1 to {len(pool)}, the comparisons without a known answer in {source}")
    shares = {"uniform_share": uniform_share, "gold_share": gold_share}
    drawn, known = choose_comparisons(pool, lambda _: scores, size, gold=gold, seed=seed, **shares)
    how = f"{uncertainty}, {uniform_share:.0%} uniform"
    chosen = [_with_chance(pool[i], chance, how) for i, chance in zip(drawn.chosen, drawn.propensity)]
    chosen += [_with_chance(gold[i], chance, "gold") for i, chance in zip(known.chosen, known.propensity)]
    return add_all(database, project_id, chosen, report, by=by)


def _with_chance(new: NewComparison, chance: float, how: str) -> NewComparison:
    before = 1.0 if new.propensity is None else new.propensity
    return replace(new, propensity=before * float(chance), sampled_by=how)


def _uncertainty(where: str, row: Row, answers: int, uncertainty: Uncertainty) -> float:
    scores = _member_scores(where, row, answers)
    if uncertainty == "disagreement" and len(scores) < 2:
        mend = "expected at least two reward models' scores: sample with --reward a,b,c, or choose --uncertainty entropy"
        raise InputError(f"{where}, number of member scores", len(scores), mend)
    first, second = zip(*itertools.combinations(range(answers), 2))
    return float(MEASURES[uncertainty](scores[:, first] - scores[:, second]).mean())


def _member_scores(where: str, row: Row, answers: int) -> NDArray[np.float64]:
    """(M, answers)"""
    if "responses" in row:
        found = [each.get("member_scores") if isinstance(each, dict) else None for each in row["responses"]]
    else:
        found = [row.get(f"member_scores_{side}") for side in "ab"]
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.zeros(0)
    if scores.ndim != 2 or scores.shape[0] != answers or not scores.shape[1] or not np.isfinite(scores).all():
        mend = "expected a list of finite numbers for each answer, one a reward model: sample the pairs with --reward a,b,c"
        raise InputError(f"{where}, member scores", _short(found), mend)
    return scores.T


def _short(found: list[Any]) -> Any:
    return None if all(each is None for each in found) else found
