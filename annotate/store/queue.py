"""Which task a person gets next. Everything here runs inside the caller's transaction.

Work waits in an index that holds only what has a free slot, in the order of priority. What would make the search slow is the work
that this person has already seen and that still waits for others, so `progress` remembers the first place where something unseen
waited and the next search begins there. Two things may put work before that place: new comparisons, which raise the project's
`queue_version` and void every such memory, and slots that come back, which are marked `returned` and searched for apart.

On PostgreSQL the rows are locked in one order, the person, the assignment, its comparison, and waited for only in that order; all
others are taken with SKIP LOCKED. So nobody waits in a circle. On SQLite there is one writer, and the locks compile to nothing.
"""

from __future__ import annotations

import random
import secrets
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, func, insert, literal, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from annotate.store.audit import record
from annotate.store.records import Task
from annotate.store.schema import RETURNED, WAITS, assignment, candidate, comparison, item, progress, response

SWEEP = 100  # expired leases taken back by one claim: enough to keep up, few enough that nobody waits for it
Found = Row[Any] | None


class Busy:
    """Work waits, but other transactions hold all of it at this moment: ask again in a new transaction."""


def claim(connection: Connection, project: Row, user: int, kind: str, now: float, rng: random.Random) -> Task | Busy | None:
    """The person's own lease where there is one, else the most urgent comparison with a free slot that they have not seen."""
    held = _own_lease(connection, project, user, kind)
    if held is None:
        sweep(connection, project, now)
        held = _own_expired(connection, project, user, kind)
    if held is not None:
        return _renew(connection, project, held, now)
    found = _first_waiting(connection, project, user, kind)
    if not isinstance(found, Row):
        return found
    gold = _unseen_gold(connection, project, user, kind) if rng.random() < project.gold_share else None
    return lease(connection, project, user, gold or found, now, rng)


def lease(connection: Connection, project: Row, user: int, chosen: Row, now: float, rng: random.Random) -> Task:
    """Give `chosen`, a comparison's row, to the person: draw the order to show, and store it."""
    size = select(func.count()).select_from(candidate).where(candidate.c.comparison_id == chosen.id)
    shown = list(range(connection.execute(size).scalar_one()))
    rng.shuffle(shown)
    row = {
        "token": secrets.token_urlsafe(16),
        "project_id": project.id,
        "comparison_id": chosen.id,
        "user_id": user,
        "shown": shown,
        "state": "leased",
        "leased_at": now,
        "lease_until": now + project.lease_seconds,
        "guidelines_version": project.guidelines_version,
        "revision": 0,
    }
    made = connection.execute(insert(assignment).values(row).returning(assignment)).one()
    settle(connection, project, chosen, leased=1)
    record(connection, now, "lease", user=user, project=project.id, assignment=made.id, comparison=chosen.id)
    return load_task(connection, made)


def settle(connection: Connection, project: Row, before: Row, **changes: int) -> None:
    """Add `changes` to the counts of a comparison whose locked row is `before`, and work out its state.

    Gold items are everybody's: they have no slots to count.
    """
    if before.source == "gold":
        changes = {name: change for name, change in changes.items() if name in ("skips", "flagged")}
        if not changes:
            return
    counts = {name: getattr(before, name) + changes.get(name, 0) for name in ("done", "leased", "skips", "flagged")}
    if before.state == "decided":
        state = "decided"
    elif counts["flagged"] or counts["skips"] >= project.skips_before_adjudication:
        state = "adjudicate"
    else:
        state = "done" if counts["done"] >= before.overlap and before.source != "gold" else "open"
    waited = before.state == "open" and before.done + before.leased < before.overlap
    waits = state == "open" and counts["done"] + counts["leased"] < before.overlap
    returned = int(waits and (before.returned or not waited))
    values = {**counts, "state": state, "returned": returned}
    connection.execute(update(comparison).where(comparison.c.id == before.id).values(values))


def sweep(connection: Connection, project: Row, now: float) -> None:
    """Take back the slots of leases that ran out, and shorten those that a clock set back has made too long."""
    latest = now + project.lease_seconds
    query = (
        select(assignment.c.id.label("assignment_id"), assignment.c.user_id, assignment.c.lease_until, comparison)
        .join(comparison, comparison.c.id == assignment.c.comparison_id)
        .where(assignment.c.project_id == project.id, text("assignment.state = 'leased'"))
        .where(or_(assignment.c.lease_until <= now, assignment.c.lease_until > latest))
        .limit(SWEEP)
    )
    for row in connection.execute(_unless_locked(query, assignment, comparison)).all():
        this = assignment.c.id == row.assignment_id
        if row.lease_until > latest:
            connection.execute(update(assignment).where(this).values(lease_until=latest))
            continue
        connection.execute(update(assignment).where(this).values(state="expired"))
        settle(connection, project, row, leased=-1)
        record(connection, now, "expire", user=row.user_id, project=project.id, assignment=row.assignment_id)


def load_task(connection: Connection, row: Row) -> Task:
    """The task of an assignment's row, answers in the order shown."""
    query = (
        select(comparison.c.kind, item.c.messages, candidate.c.position, response.c.text)
        .join(item, item.c.id == comparison.c.item_id)
        .join(candidate, candidate.c.comparison_id == comparison.c.id)
        .join(response, response.c.id == candidate.c.response_id)
        .where(comparison.c.id == row.comparison_id)
    )
    found = connection.execute(query).all()
    texts = {each.position: each.text for each in found}
    return Task(
        assignment=row.token,
        revision=row.revision + 1,
        kind=found[0].kind,
        messages=found[0].messages,
        responses=tuple(texts[position] for position in row.shown),
        guidelines_version=row.guidelines_version,
        lease_until=row.lease_until,
    )


def _unless_locked(query: Select, *tables: Table) -> Select:
    # key_share: FOR NO KEY UPDATE, so that others may still refer to the row.
    return query.with_for_update(of=tables, key_share=True, skip_locked=True)


def _own(project: Row, user: int, kind: str, state: str) -> Select:
    return (
        select(comparison, assignment.c.id.label("assignment_id"), assignment.c.state.label("assignment_state"))
        .join(assignment, assignment.c.comparison_id == comparison.c.id)
        .where(assignment.c.user_id == user, assignment.c.project_id == project.id, assignment.c.state == state)
        .where(comparison.c.kind == kind, comparison.c.source != "live")
        .order_by(assignment.c.leased_at.desc(), assignment.c.id.desc())
        .limit(1)
    )


def _own_lease(connection: Connection, project: Row, user: int, kind: str) -> Found:
    # A lease on what others have settled meanwhile is not worth their time, unless it is an answer of their own taken back.
    wanted = or_(comparison.c.state == "open", assignment.c.revision > 0)
    return connection.execute(_own(project, user, kind, "leased").where(wanted)).first()


def _own_expired(connection: Connection, project: Row, user: int, kind: str) -> Found:
    query = _own(project, user, kind, "expired").where(comparison.c.state == "open")
    free = or_(comparison.c.done + comparison.c.leased < comparison.c.overlap, comparison.c.source == "gold")
    return connection.execute(_unless_locked(query.where(free), comparison)).first()


def _renew(connection: Connection, project: Row, held: Row, now: float) -> Task:
    values = {"state": "leased", "lease_until": now + project.lease_seconds}
    if held.assignment_state == "expired":
        values["leased_at"] = now
        settle(connection, project, held, leased=1)
    query = update(assignment).where(assignment.c.id == held.assignment_id).values(values).returning(assignment)
    return load_task(connection, connection.execute(query).one())


def _first_waiting(connection: Connection, project: Row, user: int, kind: str) -> Row | Busy | None:
    memory = _recall(connection, project, user, kind)
    whole = _waiting(project, user, kind, WAITS)
    since = whole.where(tuple_(comparison.c.place, comparison.c.id) >= memory) if memory else whole
    first = connection.execute(since).first()
    if first is not None and (first.place, first.id) != memory:
        _remember(connection, project, user, kind, first)
    back = connection.execute(_unless_locked(_waiting(project, user, kind, RETURNED), comparison)).first()
    if back is not None and (first is None or (back.place, back.id) <= (first.place, first.id)):
        return back
    if connection.dialect.name == "sqlite":
        return first
    free = connection.execute(_unless_locked(since, comparison)).first()
    return free if free is not None else Busy() if first is not None else None


def _waiting(project: Row, user: int, kind: str, condition: str) -> Select:
    # A subquery compared with NULL rather than NOT EXISTS: no planner turns it into a join over all that the person has seen.
    seen = select(literal(1)).where(assignment.c.user_id == user, assignment.c.comparison_id == comparison.c.id)
    return (
        select(comparison)
        .where(comparison.c.project_id == project.id, comparison.c.kind == kind, text(condition))
        .where(seen.scalar_subquery().is_(None))
        .order_by(comparison.c.place, comparison.c.id)
        .limit(1)
    )


def _unseen_gold(connection: Connection, project: Row, user: int, kind: str) -> Found:
    return connection.execute(
        _waiting(project, user, kind, "source = 'gold' AND state = 'open'").order_by(None).order_by(func.random())
    ).first()


def _recall(connection: Connection, project: Row, user: int, kind: str) -> tuple[float, int] | None:
    query = select(progress).where(
        progress.c.user_id == user,
        progress.c.project_id == project.id,
        progress.c.kind == kind,
        progress.c.queue_version == project.queue_version,
    )
    row = connection.execute(query).first()
    return None if row is None else (row.place, row.comparison_id)


def _remember(connection: Connection, project: Row, user: int, kind: str, first: Row) -> None:
    place = {"queue_version": project.queue_version, "place": first.place, "comparison_id": first.id}
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    query = dialect.insert(progress).values(user_id=user, project_id=project.id, kind=kind, **place)
    key = (progress.c.user_id, progress.c.project_id, progress.c.kind)
    connection.execute(query.on_conflict_do_update(index_elements=key, set_=place))
