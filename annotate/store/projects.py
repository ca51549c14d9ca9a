"""A project: what is judged, by which guidelines, how often and on which scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import insert, select, update

from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.schema import project
from annotate.store.verdicts import check_text
from rlhf_kit.errors import InputError

BY_NAME = select(project).order_by(project.c.name)


@dataclass(frozen=True)
class Settings:
    """What an admin sets.

    Args:
        guidelines: markdown; a change of it raises the project's `guidelines_version`.
        scale: the largest strength of a preference, 1 to 3.
        aspects: names judged beside the whole ("helpfulness", ...).
        overlap: how many people judge each comparison, unless the comparison says otherwise; for those added afterwards.
        lease_seconds: how long a task stays with the person who was given it.
        skips_before_adjudication: how many skips send a comparison to an adjudicator.
        gold_share: the share of tasks drawn from the gold items.
    """

    guidelines: str = ""
    scale: int = 3
    aspects: Sequence[str] = ()
    overlap: int = 1
    lease_seconds: float = 1800.0
    skips_before_adjudication: int = 3
    gold_share: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "aspects", tuple(self.aspects))  # equal settings are equal whether typed in or read back
        check_text("project.guidelines", self.guidelines)
        for aspect in self.aspects:
            check_text("project.aspects", aspect)
        if len(set(self.aspects)) != len(self.aspects):
            raise InputError("project.aspects", list(self.aspects), "expected each name once")
        if self.scale not in (1, 2, 3):
            raise InputError("project.scale", self.scale, "expected 1, 2 or 3, the largest strength")
        if not 1 <= self.overlap <= 100:
            raise InputError("project.overlap", self.overlap, "expected 1 to 100 people for a comparison")
        if not 1 <= self.lease_seconds <= 30 * 86400:
            raise InputError("project.lease_seconds", self.lease_seconds, "expected 1 second to 30 days")
        if self.skips_before_adjudication < 1:
            raise InputError("project.skips_before_adjudication", self.skips_before_adjudication, "expected at least 1")
        if not 0 <= self.gold_share <= 0.5:
            raise InputError("project.gold_share", self.gold_share, "expected a share from 0 to 0.5; 0.05 to 0.1 is usual")


@dataclass(frozen=True)
class Project:
    """A project as it stands."""

    id: int
    name: str
    settings: Settings
    guidelines_version: int


def create_project(database: Database, name: str, settings: Settings = Settings(), *, by: int | None = None) -> Project:
    """Add a project and return it.

    Raises:
        InputError: the name is taken or empty.
    """
    check_text("project.name", name)
    if not name.strip():
        raise InputError("project.name", name, "expected a name")
    with database.write() as connection:
        if connection.execute(select(project.c.id).where(project.c.name == name)).first():
            raise InputError("project.name", name, "which exists already: choose another name")
        now = database.now()
        row = {"name": name, **_columns(settings), "guidelines_version": 1, "queue_version": 0, "created": now}
        key = connection.execute(insert(project).values(row).returning(project.c.id)).scalar_one()
        record(connection, now, "create_project", user=by, project=key, name=name, **_columns(settings))
    return Project(key, name, settings, 1)


def change_project(database: Database, key: int, settings: Settings, *, by: int | None = None) -> Project:
    """Give a project other settings. Comparisons keep their overlap, and judgments the version of the guidelines."""
    with database.write() as connection:
        found = connection.execute(select(project).where(project.c.id == key).with_for_update(key_share=True)).first()
        if found is None:
            raise InputError("project", key, "which does not exist")
        version = found.guidelines_version + (settings.guidelines != found.guidelines)
        values = {**_columns(settings), "guidelines_version": version}
        connection.execute(update(project).where(project.c.id == key).values(values))
        record(connection, database.now(), "change_project", user=by, project=key, **values)
    return Project(key, found.name, settings, version)


def get_project(database: Database, name: str) -> Project:
    """The project called `name`.

    Raises:
        InputError: there is none.
    """
    found = [each for each in list_projects(database) if each.name == name]
    if not found:
        raise InputError("project", name, f"expected one of {[each.name for each in list_projects(database)]}")
    return found[0]


def list_projects(database: Database) -> list[Project]:
    """All projects, by name."""
    with database.read() as connection:
        rows = connection.execute(BY_NAME).mappings().all()
    return [Project(row["id"], row["name"], _settings(row), row["guidelines_version"]) for row in rows]


def _columns(settings: Settings) -> dict:
    return {**asdict(settings), "aspects": list(settings.aspects)}


def _settings(row) -> Settings:  # type: ignore[no-untyped-def]
    return Settings(**{name: row[name] for name in Settings.__dataclass_fields__})
