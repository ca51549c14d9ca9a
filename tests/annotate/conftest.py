"""`database` is each test's own, once on SQLite and once on PostgreSQL, whose server the test run starts and stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from annotate.store.database import Database, open_database


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
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield server.format(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str, clock: Clock) -> Iterator[Database]:
    database = open_database(database_url, now=clock)
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str | None]:
    """A server of this process (each worker of xdist has its own), reached by a socket in its own folder: no port to clash."""
    programs = _programs()
    if programs is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may have 107 bytes at most: no deep folder
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    _run(
        folder,
        [programs / "initdb", "--pgdata", data, "--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8"],
    )
    settings = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200 -c jit=off"
    _run(folder, [programs / "pg_ctl", "start", "--pgdata", data, "--log", folder / "log", "--options", settings, "--wait"])
    try:
        yield f"postgresql://postgres@/{{}}?host={folder}"
    finally:
        _run(folder, [programs / "pg_ctl", "stop", "--pgdata", data, "--mode", "immediate"])
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else debian[-1].parent if debian else None


def _run(folder: Path, command: list[object]) -> None:
    # The server refuses to run as root: it runs as the user that Debian's package made for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    words = [*as_user, *map(str, command)]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
