"""A PostgreSQL server of one's own, reached by a socket in its own folder: no port to clash, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

ABSENT = "PostgreSQL's initdb is not there: install the package `postgresql`"


@contextmanager
def postgresql_server(*settings: str) -> Iterator[str | None]:
    """Start a server, and give the URL of its databases with `{}` for the name; None where PostgreSQL is not installed.

    Args:
        settings: of the server, `name=value`; its own defaults sync each commit to the disk.
    """
    programs = _programs()
    if programs is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may have 107 bytes at most: no deep folder
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    access = ["--username", "postgres", "--auth", "trust"]
    _run(folder, [programs / "initdb", "--pgdata", data, *access, "--no-sync", "--encoding", "UTF8"])
    options = " ".join(f"-c {each}" for each in ("listen_addresses=", "max_connections=200", *settings))
    start = [programs / "pg_ctl", "start", "--pgdata", data, "--log", folder / "log", "--options", f"-k {folder} {options}"]
    _run(folder, [*start, "--wait"])
    try:
        yield f"postgresql://postgres@/{{}}?host={folder}"
    finally:
        _run(folder, [programs / "pg_ctl", "stop", "--pgdata", data, "--mode", "immediate"])
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgresql_database(server: str, name: str) -> Iterator[str]:
    """An empty database of that server; the URL. It is dropped at the end, whoever is still connected."""
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield server.format(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _programs() -> Path | None:
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else debian[-1].parent if debian else None


def _run(folder: Path, command: Sequence[object]) -> None:
    # The server refuses to run as root: it runs as the user that Debian's package made for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    words = [*as_user, *map(str, command)]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
