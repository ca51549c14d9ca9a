"""`database` is each test's own, once on SQLite and once on PostgreSQL, whose server the test run starts and stops."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from annotate.store.database import Database, open_database
from benchmarks.annotate_load.postgresql import postgresql_database
from benchmarks.annotate_load.postgresql import postgresql_server as postgresql_server_of_ones_own


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/votes.db"
        return
    server: str | None = request.getfixturevalue("postgresql_server")
    if server is None:
        pytest.skip(request.getfixturevalue("postgresql_absent"))
    with postgresql_database(server, f"test_{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture
def database(database_url: str, clock: Clock) -> Iterator[Database]:
    database = open_database(database_url, now=clock)
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str | None]:
    """A server of this process (each worker of xdist has its own)."""
    with postgresql_server_of_ones_own("fsync=off", "jit=off") as server:
        yield server
