"""What crosses the store's boundary.

Sides are as shown: `strength` above 0 says that the first answer (the left one) is better, below 0 the second. The store turns
them into canonical order by the order it drew itself, so that no caller has to, and none can get it wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["pair", "rank"]
VerdictKind = Literal["preference", "tie", "both_bad", "rank"]
Status = Literal["accepted", "late", "duplicate", "refused"]
Message = Mapping[str, Any]  # {"role": ..., "content": ...}


@dataclass(frozen=True)
class NewResponse:
    """An answer to import. `rm_score`: what a reward model gave it, if one did."""

    text: str
    model: str = ""
    checkpoint: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    rm_score: float | None = None


@dataclass(frozen=True)
class NewComparison:
    """A comparison to import: the conversation so far and two answers to it (a pair), or 3 to 9 (a ranking).

    Args:
        responses: their order is the canonical one.
        overlap: how many people shall judge it; the project's setting where None.
        priority: higher is served sooner; ties in the order of import.
        gold_strength, gold_ranking: the known answer, canonical; it makes the comparison a gold item.
        propensity: the probability in (0, 1] with which `sampled_by` chose this comparison.
    """

    messages: Sequence[Message]
    responses: Sequence[NewResponse]
    overlap: int | None = None
    priority: float = 0.0
    gold_strength: int | None = None
    gold_ranking: Sequence[int] | None = None
    propensity: float | None = None
    sampled_by: str = ""


@dataclass(frozen=True)
class Task:
    """What a person is asked. Neither the models' names nor the canonical order are in it.

    Args:
        assignment: the opaque id under which the verdict comes back.
        revision: which answer to this assignment is asked for; 1, or more after an undo. The verdict carries it back.
        responses: texts in the order to show.
        lease_until: seconds since 1970; a verdict that comes later still counts, marked late.
    """

    assignment: str
    revision: int
    kind: Kind
    messages: Sequence[Message]
    responses: Sequence[str]
    guidelines_version: int
    lease_until: float


@dataclass(frozen=True)
class Verdict:
    """What a person said, in the order shown.

    Args:
        revision: the task's.
        strength: 1 to the project's scale where the first answer is better, negative where the second; 0 but for `preference`.
        ranking: for `rank`, the place of each answer shown, 1 the best; equal places are ties.
        aspects: a strength for each of the project's aspects that was judged, pairs only; 0 is a tie.
        flags: marks beside the vote ("unsafe", ...).
        edits: {place shown, from 0: the corrected text}.
        visible_ms: how long the task was on a visible page.
    """

    revision: int
    kind: VerdictKind
    strength: int = 0
    ranking: Sequence[int] | None = None
    aspects: Mapping[str, int] = field(default_factory=dict)
    flags: Sequence[str] = ()
    justification: str = ""
    edits: Mapping[int, str] = field(default_factory=dict)
    visible_ms: int | None = None


@dataclass(frozen=True)
class Result:
    """What became of it, and the next task (None: nothing is left for this person now).

    `accepted`; `late`: accepted after the lease ran out; `duplicate`: already had it, nothing changed; `refused`: not this
    person's to answer, or not any more (`reason` says which), nothing changed but the audit trail.
    """

    status: Status
    next: Task | None
    reason: str = ""


@dataclass(frozen=True)
class Past:
    """One of a person's own answers, as it was shown. `undoable`: not exported and not adjudicated since."""

    task: Task
    kind: Literal["preference", "tie", "both_bad", "rank", "skip", "flag"]
    strength: int | None
    ranking: Sequence[int] | None
    justification: str
    late: bool
    created: float
    undoable: bool
