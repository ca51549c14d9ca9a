"""What people could not settle among themselves: skipped by many, flagged by one, or sent here by an admin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, func, insert, select, text, update

from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.queue import settle
from annotate.store.records import Message
from annotate.store.schema import CASES, adjudication, assignment, candidate, comparison, item, judgment, project, response, user
from annotate.store.verdicts import KINDS, check_ranking, check_strength, check_text, dense
from rlhf_kit.errors import InputError

DecisionKind = Literal["preference", "tie", "both_bad", "rank", "discard", "reopen"]


@dataclass(frozen=True)
class Said:
    """What one person said, in canonical order. `kind`: a verdict's, `skip` or `flag`."""

    user: str
    kind: str
    strength: int | None
    ranking: Sequence[int] | None
    flags: Sequence[str]
    justification: str
    late: bool


@dataclass(frozen=True)
class Case:
    """A comparison before an adjudicator, answers in canonical order. `state`: the comparison's; `adjudicate` where it waits."""

    comparison: int
    kind: Literal["pair", "rank"]
    messages: Sequence[Message]
    responses: Sequence[str]
    said: Sequence[Said]
    state: str


@dataclass(frozen=True)
class Decision:
    """An adjudicator's word, in canonical order: a verdict; `discard`: it is left out; `reopen`: people judge it after all."""

    kind: DecisionKind
    strength: int = 0
    ranking: Sequence[int] | None = None
    reason: str = ""


def list_cases(database: Database, project_id: int, limit: int = 50) -> list[Case]:
    """The comparisons that wait for a decision, the oldest first."""
    with database.read() as connection:
        rows = connection.execute(_cases(project_id).where(text(CASES)).order_by(comparison.c.id).limit(limit)).all()
        return [_case(connection, row) for row in rows]


def count_cases(database: Database, project_id: int) -> int:
    """How many comparisons wait for a decision."""
    query = select(func.count()).select_from(comparison).where(comparison.c.project_id == project_id, text(CASES))
    with database.read() as connection:
        return connection.execute(query).scalar_one()


def list_disagreements(database: Database, project_id: int, limit: int = 50) -> list[Case]:
    """Pairs that wait for nobody, though one person found the first answer better and another the second; the oldest first."""
    sides = (
        select(assignment.c.comparison_id)
        .join(judgment, (judgment.c.assignment_id == assignment.c.id) & (judgment.c.revision == assignment.c.revision))
        .where(assignment.c.project_id == project_id, judgment.c.kind == "preference")
        .group_by(assignment.c.comparison_id)
        .having(func.min(judgment.c.strength) < 0, func.max(judgment.c.strength) > 0)
    )
    query = _cases(project_id).where(comparison.c.id.in_(sides), comparison.c.state.in_(("open", "done")))
    queued = query.where(comparison.c.source != "gold").order_by(comparison.c.id).limit(limit)
    with database.read() as connection:
        return [_case(connection, row) for row in connection.execute(queued).all()]


def load_case(database: Database, project_id: int, comparison_id: int) -> Case:
    """A comparison as an adjudicator sees it, whether it waits or not.

    Raises:
        InputError: the project has none with this id.
    """
    with database.read() as connection:
        row = connection.execute(_cases(project_id).where(comparison.c.id == comparison_id)).first()
        if row is None:
            raise InputError("comparison", comparison_id, "which this project does not have")
        return _case(connection, row)


def models_of(database: Database, comparison_id: int) -> list[str]:
    """The names of the models behind the answers, in canonical order; for those who have decided already."""
    query = select(response.c.model).join(candidate, candidate.c.response_id == response.c.id)
    with database.read() as connection:
        ordered = query.where(candidate.c.comparison_id == comparison_id).order_by(candidate.c.position)
        return list(connection.execute(ordered).scalars())


def send_to_adjudication(database: Database, comparison_id: int, *, by: int, reason: str) -> None:
    """Put a comparison before the adjudicators, say because its votes contradict each other."""
    check_text("reason", reason)
    with database.write() as connection:
        found, settings = _locked(connection, comparison_id, by)
        if found.state == "decided":
            raise InputError("comparison", comparison_id, "which is decided already: decide it again instead")
        settle(connection, settings, found, flagged=1)
        details = {"comparison": found.id, "reason": reason}
        record(connection, database.now(), "send_to_adjudication", user=by, project=found.project_id, **details)


def decide(database: Database, comparison_id: int, decision: Decision, *, by: int) -> None:
    """Settle a comparison. A later decision replaces an earlier one; both stay on record. Votes are not touched.

    Raises:
        InputError: `by` is no active admin, or the decision does not fit the comparison.
    """
    check_text("decision.reason", decision.reason)
    with database.write() as connection:
        found, settings = _locked(connection, comparison_id, by)
        _check_decision(connection, decision, found, settings)
        ranking = dense(decision.ranking) if decision.ranking is not None else None
        strength = decision.strength if decision.kind in KINDS["pair"] else None
        values = {"decision": decision.kind, "strength": strength, "ranking": ranking, "reason": decision.reason}
        now = database.now()
        connection.execute(insert(adjudication).values(comparison_id=found.id, user_id=by, created=now, **values))
        if decision.kind == "reopen":
            _reopen(connection, settings, found)
        else:
            connection.execute(update(comparison).where(comparison.c.id == found.id).values(state="decided", waits=0, returned=0))
        record(connection, now, "decide", user=by, project=found.project_id, comparison=found.id, decision=decision.kind)


def _cases(project_id: int) -> Select:
    query = select(comparison.c.id, comparison.c.kind, comparison.c.state, item.c.messages)
    return query.join(item, item.c.id == comparison.c.item_id).where(comparison.c.project_id == project_id)


def _case(connection: Connection, row: Row) -> Case:
    return Case(row.id, row.kind, row.messages, _texts(connection, row.id), _said(connection, row.id), row.state)


def _reopen(connection: Connection, settings: Row, found: Row) -> None:
    query = update(comparison).where(comparison.c.id == found.id).values(state="adjudicate").returning(comparison)
    settle(connection, settings, connection.execute(query).one(), skips=-found.skips, flagged=-found.flagged)


def _check_decision(connection: Connection, decision: Decision, found: Row, settings: Row) -> None:
    allowed = (*KINDS[found.kind], "discard", "reopen")
    if decision.kind not in allowed:
        raise InputError("decision.kind", decision.kind, f"expected one of {', '.join(allowed)}")
    check_strength("decision.strength", decision.strength, settings.scale, preference=decision.kind == "preference")
    if decision.kind == "rank":
        check_ranking("decision.ranking", decision.ranking, len(_texts(connection, found.id)))
    elif decision.ranking is not None:
        raise InputError("decision.ranking", decision.ranking, f"expected None for {decision.kind}")


def _locked(connection: Connection, comparison_id: int, by: int) -> tuple[Row, Row]:
    admin = select(user.c.id).where(user.c.id == by, user.c.role == "admin", user.c.active)
    if connection.execute(admin).first() is None:
        raise InputError("user", by, "expected an active admin")
    query = select(comparison).where(comparison.c.id == comparison_id).with_for_update(key_share=True)
    found = connection.execute(query).first()
    if found is None:
        raise InputError("comparison", comparison_id, "which does not exist")
    return found, connection.execute(select(project).where(project.c.id == found.project_id)).one()


def _texts(connection: Connection, comparison_id: int) -> list[str]:
    query = select(response.c.text).join(candidate, candidate.c.response_id == response.c.id)
    ordered = query.where(candidate.c.comparison_id == comparison_id).order_by(candidate.c.position)
    return list(connection.execute(ordered).scalars())


def _said(connection: Connection, comparison_id: int) -> list[Said]:
    query = (
        select(judgment, user.c.name)
        .join(assignment, assignment.c.id == judgment.c.assignment_id)
        .join(user, user.c.id == judgment.c.user_id)
        .where(assignment.c.comparison_id == comparison_id)
        .where(judgment.c.revision == assignment.c.revision, judgment.c.kind != "undo")
        .order_by(judgment.c.id)
    )
    return [_one_said(row) for row in connection.execute(query)]


def _one_said(row: Any) -> Said:
    return Said(row.name, row.kind, row.strength, row.ranking, row.flags or (), row.justification, row.late)
