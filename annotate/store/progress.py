"""How far a project is, who did how much, and when it will be done at the present pace."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from annotate.store.database import Database
from annotate.store.schema import assignment, comparison, judgment, user

PACE_SECONDS = 3600.0
PACE_VOTES = 5000
SHORTEST_PACE = 60.0
VOTES = ("preference", "tie", "both_bad", "rank")


@dataclass(frozen=True)
class Progress:
    """A project's counts. Gold items and live chats are left out of all but `votes`.

    Args:
        slots, slots_done: a comparison has as many slots as its overlap; votes beyond it count nothing here.
        votes: answers that stand, of any source; `late` of them came after their lease had run out.
        eta_seconds: the open slots at the pace since the first vote of the last hour; None where nobody voted in it.
    """

    open: int
    done: int
    adjudicate: int
    decided: int
    slots: int
    slots_done: int
    leased: int
    votes: int
    late: int
    eta_seconds: float | None


@dataclass(frozen=True)
class PersonProgress:
    """One person's counts in a project, and when they last answered."""

    user: int
    name: str
    votes: int
    skips: int
    late: int
    last: float


def project_progress(database: Database, project_id: int) -> Progress:
    """The project's counts as of now."""
    queued = (comparison.c.project_id == project_id) & (comparison.c.source == "queue")
    filled = case((comparison.c.done > comparison.c.overlap, comparison.c.overlap), else_=comparison.c.done)
    remaining = case((comparison.c.state == "open", comparison.c.overlap - filled), else_=0)
    sums = [func.coalesce(func.sum(each), 0) for each in (comparison.c.overlap, filled, comparison.c.leased, remaining)]
    states = select(comparison.c.state, func.count()).where(queued).group_by(comparison.c.state)
    standing = _standing(project_id).with_only_columns(func.count(), func.count(case((judgment.c.late, 1))))
    with database.read() as connection:
        by_state = {state: count for state, count in connection.execute(states)}
        slots, slots_done, leased, missing = connection.execute(select(*sums).where(queued)).one()
        votes, late = connection.execute(standing).one()
        pace = _votes_per_second(connection, project_id, database.now())
    counts = {state: by_state.get(state, 0) for state in ("open", "done", "adjudicate", "decided")}
    eta = missing / pace if pace else None
    return Progress(**counts, slots=slots, slots_done=slots_done, leased=leased, votes=votes, late=late, eta_seconds=eta)


def people_progress(database: Database, project_id: int) -> list[PersonProgress]:
    """Everybody who has answered in the project, by name."""
    skipped = judgment.c.kind.in_(("skip", "flag"))
    columns = (func.count(case((~skipped, 1))), func.count(case((skipped, 1))), func.count(case((judgment.c.late, 1))))
    query = _standing(project_id, answers=(*VOTES, "skip", "flag")).join(user, user.c.id == judgment.c.user_id)
    query = query.with_only_columns(user.c.id, user.c.name, *columns, func.max(judgment.c.created))
    with database.read() as connection:
        return [PersonProgress(*row) for row in connection.execute(query.group_by(user.c.id, user.c.name).order_by(user.c.name))]


def _standing(project_id: int, answers: tuple[str, ...] = VOTES):  # type: ignore[no-untyped-def]  # a Select of changing columns
    return (
        select(judgment.c.id)
        .join(assignment, (assignment.c.id == judgment.c.assignment_id) & (assignment.c.revision == judgment.c.revision))
        .where(judgment.c.project_id == project_id, judgment.c.kind.in_(answers))
    )


def _votes_per_second(connection: Connection, project_id: int, now: float) -> float:
    query = select(judgment.c.created).where(judgment.c.project_id == project_id, judgment.c.kind.in_(VOTES))
    times = connection.execute(query.order_by(judgment.c.id.desc()).limit(PACE_VOTES)).scalars().all()
    recent = [time for time in times if now - PACE_SECONDS < time <= now]
    if not recent:
        return 0.0
    # People began less than an hour ago, or the newest 5000 reach less far back: what they took, but no less than a minute.
    return len(recent) / max(SHORTEST_PACE, now - min(recent))
