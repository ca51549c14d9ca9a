"""Which task a person gets next. Everything here runs inside the caller's transaction.

Work waits in an index that holds only what has a free slot, in the order of priority. What would make the search slow is the work
that this person has already seen and that still waits for others, so `frontier` remembers the first place where something unseen
waited and the next search begins there. Two things may put work before that place: new comparisons, which raise the project's
`queue_version` and void every such memory, and slots that come back, which are marked `returned` and searched for apart.

On PostgreSQL rows are locked in one order, the person, the assignment, its comparison, and waited for only in that order; all
others are taken with SKIP LOCKED. So nobody waits in a circle. On SQLite there is one writer, and the locks compile to nothing.
Statements are built once, at import: building them costs more than SQLite takes to answer.
"""

from __future__ import annotations

import random
import secrets
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, bindparam, func, insert, literal, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from annotate.store.audit import record
from annotate.store.records import Task
from annotate.store.schema import RETURNED, WAITS, assignment, candidate, comparison, frontier, item, response

SWEEP = 20  # expired leases taken back by one claim: enough to keep up, few enough that nobody waits for it


class Busy:
    """Work waits, but other transactions hold all of it at this moment: ask again in a new transaction."""


def unless_locked(query: Select, *tables: Table) -> Select:
    """Lock the rows found (`FOR NO KEY UPDATE`: others may still refer to them), passing over what somebody else holds."""
    return query.with_for_update(of=tables, key_share=True, skip_locked=True)


def _own(state: str) -> Select:
    return (
        select(comparison, assignment.c.id.label("assignment_id"))
        .join(assignment, assignment.c.comparison_id == comparison.c.id)
        .where(assignment.c.user_id == bindparam("user"), assignment.c.project_id == bindparam("project"))
        .where(assignment.c.state == state, comparison.c.kind == bindparam("kind"), comparison.c.source != "live")
        .order_by(assignment.c.revision.desc(), assignment.c.id.desc())  # an answer taken back comes before what followed it
        .limit(1)
    )


def _waiting(condition: str) -> Select:
    # A subquery compared with NULL rather than NOT EXISTS: no planner turns it into a join over all that the person has seen.
    seen = select(literal(1)).where(assignment.c.user_id == bindparam("user"), assignment.c.comparison_id == comparison.c.id)
    return (
        select(comparison)
        .where(comparison.c.project_id == bindparam("project"), comparison.c.kind == bindparam("kind"), text(condition))
        .where(seen.scalar_subquery().is_(None))
        .order_by(comparison.c.place, comparison.c.id)
        .limit(1)
    )


# A lease on what others have settled meanwhile is not worth anybody's time, unless it is their own answer taken back.
OWN_LEASE = _own("leased").where(or_(comparison.c.state == "open", assignment.c.revision > 0))
FREE = or_(comparison.c.done + comparison.c.leased < comparison.c.overlap, comparison.c.source == "gold")
OWN_EXPIRED = unless_locked(_own("expired").where(comparison.c.state == "open", FREE), comparison)
# Two ranges rather than one over (place, id): SQLite would use no more than `place` of it, and read all that share one.
SAME_PLACE = _waiting(WAITS).where(comparison.c.place == bindparam("place"), comparison.c.id >= bindparam("first"))
LATER_PLACE = _waiting(WAITS).where(comparison.c.place > bindparam("place"))
BACK = unless_locked(_waiting(RETURNED), comparison)
GOLD = _waiting("source = 'gold' AND state = 'open'").order_by(None).order_by(func.random())
OVERDUE = unless_locked(
    select(assignment.c.id.label("assignment_id"), assignment.c.user_id, assignment.c.lease_until, comparison)
    .join(comparison, comparison.c.id == assignment.c.comparison_id)
    .where(assignment.c.project_id == bindparam("project"), text("assignment.state = 'leased'"))
    .where(or_(assignment.c.lease_until <= bindparam("now"), assignment.c.lease_until > bindparam("latest")))
    .limit(SWEEP),
    assignment,
    comparison,
)
RECALL = select(frontier.c.place, frontier.c.comparison_id).where(
    *(frontier.c[name] == bindparam(name) for name in ("user_id", "project_id", "kind", "queue_version"))
)
CONTENT = (
    select(comparison.c.kind, item.c.messages, response.c.text)
    .join(item, item.c.id == comparison.c.item_id)
    .join(candidate, candidate.c.comparison_id == comparison.c.id)
    .join(response, response.c.id == candidate.c.response_id)
    .where(comparison.c.id == bindparam("comparison"))
    .order_by(candidate.c.position)
)
INSERT_ASSIGNMENT = insert(assignment).returning(assignment)
SET_ASSIGNMENT = update(assignment).where(assignment.c.id == bindparam("key")).returning(assignment)
COUNTS = ("done", "leased", "skips", "flagged")
SET_COMPARISON = (
    update(comparison)
    .where(comparison.c.id == bindparam("key"))
    .values({name: bindparam(f"new_{name}") for name in (*COUNTS, "state", "waits", "returned")})
)


def claim(connection: Connection, project: Row, user: int, kind: str, now: float, rng: random.Random) -> Task | Busy | None:
    """The person's own lease where there is one, else the most urgent comparison with a free slot that they have not seen."""
    who = {"project": project.id, "user": user, "kind": kind}
    lease_until = now + project.lease_seconds
    if held := connection.execute(OWN_LEASE, who).first():
        return load_task(connection, change_assignment(connection, held.assignment_id, lease_until=lease_until))
    sweep(connection, project, now)
    if held := connection.execute(OWN_EXPIRED, who).first():
        settle(connection, project, held, leased=1)
        values = {"state": "leased", "leased_at": now, "lease_until": lease_until}
        return load_task(connection, change_assignment(connection, held.assignment_id, **values))
    found = _first_waiting(connection, project, who)
    if not isinstance(found, Row):
        return found
    gold = connection.execute(GOLD, who).first() if rng.random() < project.gold_share else None
    return lease(connection, project, user, gold or found, now, rng)


def lease(connection: Connection, project: Row, user: int, chosen: Row, now: float, rng: random.Random | None) -> Task:
    """Give `chosen`, a comparison's row, to the person: draw the order to show (None: the canonical one), and store it."""
    content = connection.execute(CONTENT, {"comparison": chosen.id}).all()
    shown = list(range(len(content)))
    if rng is not None:
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
    made = connection.execute(INSERT_ASSIGNMENT, row).one()
    settle(connection, project, chosen, leased=1)
    record(connection, now, "lease", user=user, project=project.id, assignment=made.id, comparison=chosen.id)
    return _task(made, content)


def settle(connection: Connection, project: Row, before: Row, **changes: int) -> None:
    """Add `changes` to the counts of a comparison whose locked row is `before`, and work out its state.

    Gold items are everybody's: they have no slots to count.
    """
    if before.source == "gold":
        changes = {name: change for name, change in changes.items() if name in ("skips", "flagged")}
        if not changes:
            return
    counts = {name: getattr(before, name) + changes.get(name, 0) for name in COUNTS}
    # A reopened comparison has forgotten its skips and flags; one of them may still be undone.
    counts.update({name: max(0, counts[name]) for name in ("skips", "flagged")})
    if before.state == "decided":
        state = "decided"
    elif counts["flagged"] or counts["skips"] >= project.skips_before_adjudication:
        state = "adjudicate"
    else:
        state = "done" if counts["done"] >= before.overlap and before.source != "gold" else "open"
    waits = before.source == "queue" and state == "open" and counts["done"] + counts["leased"] < before.overlap
    values = {**counts, "state": state, "waits": int(waits), "returned": int(waits and (before.returned or not before.waits))}
    connection.execute(SET_COMPARISON, {"key": before.id, **{f"new_{name}": value for name, value in values.items()}})


def sweep(connection: Connection, project: Row, now: float) -> None:
    """Take back the slots of leases that ran out, and shorten those that a clock set back has made too long."""
    latest = now + project.lease_seconds
    freed: dict[int, list[Row]] = {}  # by comparison: several leases of one may run out together
    for row in connection.execute(OVERDUE, {"project": project.id, "now": now, "latest": latest}).all():
        if row.lease_until > latest:
            change_assignment(connection, row.assignment_id, lease_until=latest)
            continue
        change_assignment(connection, row.assignment_id, state="expired")
        freed.setdefault(row.id, []).append(row)
        record(connection, now, "expire", user=row.user_id, project=project.id, assignment=row.assignment_id)
    for rows in freed.values():
        settle(connection, project, rows[0], leased=-len(rows))


def change_assignment(connection: Connection, key: int, **values: Any) -> Row:
    """Set columns of an assignment and return its new row."""
    return connection.execute(SET_ASSIGNMENT, {"key": key, **values}).one()


def load_task(connection: Connection, row: Row) -> Task:
    """The task of an assignment's row, answers in the order shown."""
    return _task(row, connection.execute(CONTENT, {"comparison": row.comparison_id}).all())


def _task(row: Row, content: Any) -> Task:
    return Task(
        assignment=row.token,
        revision=row.revision + 1,
        kind=content[0].kind,
        messages=content[0].messages,
        responses=tuple(content[position].text for position in row.shown),
        guidelines_version=row.guidelines_version,
        lease_until=row.lease_until,
    )


def _first_waiting(connection: Connection, project: Row, who: dict[str, Any]) -> Row | Busy | None:
    owner = {"user_id": who["user"], "project_id": project.id, "kind": who["kind"], "queue_version": project.queue_version}
    known = connection.execute(RECALL, owner).first()
    since = {**who, "place": known.place if known else float("-inf"), "first": known.comparison_id if known else 0}
    first = connection.execute(SAME_PLACE, since).first() or connection.execute(LATER_PLACE, since).first()
    if first is not None and (first.place, first.id) != (since["place"], since["first"]):
        _remember(connection, {**owner, "place": first.place, "comparison_id": first.id})
    back = connection.execute(BACK, who).first()
    if back is not None and (first is None or (back.place, back.id) <= (first.place, first.id)):
        return back
    if first is None or connection.dialect.name == "sqlite":
        return first
    same, later = (unless_locked(query, comparison) for query in (SAME_PLACE, LATER_PLACE))
    return connection.execute(same, since).first() or connection.execute(later, since).first() or Busy()


def _remember(connection: Connection, row: dict[str, Any]) -> None:
    connection.execute(REMEMBER[connection.dialect.name], row)


def _upsert(dialect: Any) -> Any:
    query = dialect.insert(frontier)
    values = {name: query.excluded[name] for name in ("queue_version", "place", "comparison_id")}
    return query.on_conflict_do_update(index_elements=list(frontier.primary_key.columns), set_=values)


REMEMBER = {"sqlite": _upsert(sqlite), "postgresql": _upsert(postgresql)}
