"""The audit trail: who did what, when. Rows are only ever added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select

from annotate.store.database import Database
from annotate.store.schema import event, export, user

INSERT_EVENT = insert(event)


@dataclass(frozen=True)
class Export:
    """A hand-over: by whom (None: the command line), when, and the SHA-256 of its manifest."""

    id: int
    user: str | None
    manifest_hash: str
    created: float


@dataclass(frozen=True)
class Event:
    """One line of the trail; `user` and `project` are ids, None where there is none (the command line, a failed login)."""

    id: int
    action: str
    user: int | None
    project: int | None
    details: Mapping[str, Any]
    created: float


def record(
    connection: Connection, now: float, action: str, *, user: int | None = None, project: int | None = None, **details: Any
) -> None:
    """Add a line in the caller's transaction, so that there is no deed without its line and no line without its deed."""
    row = {"action": action, "user_id": user, "project_id": project, "details": details, "created": now}
    connection.execute(INSERT_EVENT, row)


def events(
    database: Database, *, project: int | None = None, limit: int = 100, before: int | None = None, action: str | None = None
) -> list[Event]:
    """The newest `limit` lines, newest first, with an id below `before` to page on; of one project, one action, or all."""
    query = select(event).order_by(event.c.id.desc()).limit(limit)
    if action is not None:
        query = query.where(event.c.action == action)
    if project is not None:
        query = query.where(event.c.project_id == project)
    if before is not None:
        query = query.where(event.c.id < before)
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [Event(row.id, row.action, row.user_id, row.project_id, row.details, row.created) for row in rows]


def actions(database: Database) -> list[str]:
    """The names of all actions on record."""
    with database.read() as connection:
        return list(connection.execute(select(event.c.action).distinct().order_by(event.c.action)).scalars())


def list_exports(database: Database, project: int) -> list[Export]:
    """The finished exports of a project, newest first."""
    query = select(export.c.id, user.c.name, export.c.manifest_hash, export.c.created).outerjoin(
        user, user.c.id == export.c.user_id
    )
    finished = query.where(export.c.project_id == project, export.c.manifest_hash != "")
    with database.read() as connection:
        return [Export(*row) for row in connection.execute(finished.order_by(export.c.id.desc()))]
