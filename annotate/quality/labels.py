"""Labels as they come, one a record, and as the measures want them: a matrix of items by annotators."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_kit.errors import InputError


@dataclass(frozen=True)
class Judgment:
    """What one annotator said of one pair of answers, and how it was shown. Only the first three are needed.

    `strength`: above 0 the item's first answer is better, below 0 its second, 0 a tie.
    `first_on_left`: whether the first answer was shown on the left.
    `seconds`: how long the pair was visible. `words`: of the two answers, in the item's order. `prompt_words`: of the prompt.
    `models`: who wrote the two answers. `group`: what items have in common that are resampled together, such as the prompt or the
    ranking that they come from. `gold`: the strength whose sign is known to be right. `at`: when, in seconds.
    """

    item: Hashable
    annotator: Hashable
    strength: int
    first_on_left: bool | None = None
    seconds: float | None = None
    words: tuple[int, int] | None = None
    prompt_words: int = 0
    models: tuple[str, str] | None = None
    group: Hashable | None = None
    gold: int | None = None
    at: float | None = None

    @property
    def winner(self) -> int:
        """1 the first answer, -1 the second, 0 a tie."""
        return (self.strength > 0) - (self.strength < 0)

    @property
    def left(self) -> int | None:
        """1 the left answer was preferred, -1 the right, 0 a tie; None where the sides were not kept."""
        return None if self.first_on_left is None else self.winner * (1 if self.first_on_left else -1)


class LabelMatrix(NamedTuple):
    """Labels of `items` (rows) by `annotators` (columns): `codes` (N, A) point into `categories`, -1 is a missing label."""

    codes: NDArray[np.int16]
    items: list[Any]
    annotators: list[Any]
    categories: list[Any]

    def counts(self) -> NDArray[np.float64]:
        """(N, K): how many annotators gave each item each category."""
        k = len(self.categories)
        item, person = np.nonzero(self.codes >= 0)
        cells = item * k + self.codes[item, person]
        return np.bincount(cells, minlength=len(self.codes) * k).reshape(-1, k).astype(np.float64)


def label_matrix(records: Iterable[tuple[Any, Any, Any]], categories: Sequence[Any] | None = None) -> LabelMatrix:
    """The matrix of `(item, annotator, label)` records; rows and columns in order of first appearance.

    Args:
        categories: the whole scale in its order; the labels that occur, sorted, by default. Weighted and ordinal measures
            count steps on it, so give it where a step of the scale may be unused.
    Raises:
        InputError: no record, a label that is not on the scale, or an annotator who labelled an item twice.
    """
    rows = list(records)
    if not rows:
        raise InputError("labels", "empty", "expected at least one (item, annotator, label)")
    scale = sorted({label for _, _, label in rows}) if categories is None else list(categories)
    code = {label: i for i, label in enumerate(scale)}
    items = {item: i for i, item in enumerate(dict.fromkeys(item for item, _, _ in rows))}
    people = {annotator: i for i, annotator in enumerate(dict.fromkeys(annotator for _, annotator, _ in rows))}
    codes = np.full((len(items), len(people)), -1, dtype=np.int16)
    for item, annotator, label in rows:
        if label not in code:
            raise InputError(f"label of {item!r} by {annotator!r}", label, f"expected one of {scale}")
        cell = items[item], people[annotator]
        if codes[cell] >= 0:
            raise InputError(f"labels of {item!r} by {annotator!r}", "two", "expected one: keep the one that stands")
        codes[cell] = code[label]
    return LabelMatrix(codes, list(items), list(people), scale)
