"""A small project with people in it, and the few moves that the store's tests make."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sqlalchemy import Table, insert, select

from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.items import add_comparisons
from annotate.store.projects import Settings, create_project
from annotate.store.protocol import Protocol
from annotate.store.records import NewComparison, NewResponse, Task, Verdict
from annotate.store.schema import event, export, user


def pair(number: int, **other: object) -> NewComparison:
    """Question `number`; the first answer is the better one, and its text says so."""
    messages = [{"role": "user", "content": f"question {number}"}]
    responses = [NewResponse(f"good {number}", model="secret-a"), NewResponse(f"bad {number}", model="secret-b")]
    return NewComparison(messages, responses, **other)


def ranking(number: int, size: int = 4, **other: object) -> NewComparison:
    """Question `number` with answers whose texts end in their canonical position."""
    messages = [{"role": "user", "content": f"rank {number}"}]
    return NewComparison(messages, [NewResponse(f"answer {number} {position}") for position in range(size)], **other)


@dataclass
class World:
    """`people` are ids of annotators; `admin` is an id."""

    database: Database
    settings: Settings = field(default_factory=lambda: Settings(gold_share=0.0))
    people: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.project = create_project(self.database, "project", self.settings)
        self.protocol = Protocol(self.database, self.project.id, random.Random(0))
        self.admin = self.person("admin", role="admin")
        self.people = [self.person(f"person {number}") for number in range(4)]

    def person(self, name: str, role: str = "annotator") -> int:
        row = {"name": name, "role": role, "password": "none", "active": True, "created": 0.0}
        with self.database.write() as connection:
            return connection.execute(insert(user).values(row).returning(user.c.id)).scalar_one()

    def add(self, *records: NewComparison) -> None:
        add_comparisons(self.database, self.project.id, records)

    def rows(self, table: Table) -> list:
        with self.database.read() as connection:
            order = list(table.primary_key.columns)
            return list(connection.execute(select(table).order_by(*order)).all())

    def events(self, action: str) -> list:
        return [row for row in self.rows(event) if row.action == action]


def question(task: Task | None) -> int | None:
    """The number of the question asked."""
    return None if task is None else int(task.messages[0]["content"].split()[-1])


def prefer_good(task: Task, strength: int = 2) -> Verdict:
    """The verdict of somebody who reads the texts and finds the good answer better."""
    return Verdict(task.revision, "preference", strength if task.responses[0].startswith("good") else -strength)


def record_export(database: Database, project: int, manifest_hash: str, last_judgment: int, *, by: int | None = None) -> int:
    """As if the project's judgments with ids up to `last_judgment` had been handed over; the export's id."""
    with database.write() as connection:
        now = database.now()
        row = {
            "project_id": project,
            "user_id": by,
            "manifest_hash": manifest_hash,
            "last_judgment": last_judgment,
            "created": now,
        }
        key = connection.execute(insert(export).values(row).returning(export.c.id)).scalar_one()
        record(connection, now, "export", user=by, project=project, export=key, manifest_hash=manifest_hash)
    return key
