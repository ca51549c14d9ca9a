"""Is an online run healthy? Rules that training and the report share (`health_rules.py`), asked of its curves.

A note is a reason to look, not a verdict. The report shows all of them. While a run goes, `Watch` says each alarm once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_kit.health_rules import ANY_TIME, ONCE_SETTLED, Curve, Note
from rlhf_kit.wording import count


def online_notes(curve: Curve) -> list[Note]:
    """Every check that the metrics allow."""
    return [note for rule in (*ANY_TIME, *ONCE_SETTLED) for note in rule(curve)]


class Watch:
    """The alarms of a run while it goes, each once.

    Args:
        total_steps: of the run; from its half on it is also asked what a run should reach by then.
        rows: reports of the run before it was resumed.
    """

    def __init__(self, total_steps: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.total_steps = total_steps
        self._curves: dict[str, tuple[list[float], list[float]]] = {}
        self._told: set[str] = set()
        self._reports, self._due = 0, 0
        for row in rows:
            self._add(row)
            self._told.update(row.get("alarms", ()))

    def add(self, row: Mapping[str, Any]) -> list[Note]:
        """Take in the report of one step; return the alarms that are new.

        Rules read whole curves: past 200 reports they are asked once in half a percent more, so that a long run pays for its
        length and not for the square of it.
        """
        self._add(row)
        notes = not_finite([row])
        if self._reports >= self._due or row["step"] >= self.total_steps:
            self._due = self._reports + max(1, self._reports // 200)
            rules = (*ANY_TIME, *ONCE_SETTLED) if 2 * row["step"] >= self.total_steps else ANY_TIME
            notes += [note for rule in rules for note in rule(self._curve)]
        new = [note for note in notes if not note.ok and note.title not in self._told]
        self._told.update(note.title for note in new)
        return new

    def _add(self, row: Mapping[str, Any]) -> None:
        self._reports += 1
        for key, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                steps, values = self._curves.setdefault(key, ([], []))
                steps.append(row["step"])
                values.append(value)

    def _curve(self, key: str) -> tuple[list[float], list[float]]:
        return self._curves.get(key, ([], []))


def not_finite(rows: Iterable[Mapping[str, Any]]) -> list[Note]:
    """Numbers that are not finite, as they are or as the metrics file writes them (null, with a count `nonfinite`)."""
    for row in rows:
        for key, value in row.items():
            if (isinstance(value, float) and not math.isfinite(value)) or (value is None and row.get("nonfinite")):
                text = f"{key} is {value or 'not a number'} at step {count(row['step'])}: everything after it is suspect."
                return [Note(False, "A number is not finite", text)]
    return []
