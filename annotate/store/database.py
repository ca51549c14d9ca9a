"""One database behind a URL: SQLite in a file, or PostgreSQL.

SQLite takes one writer at a time. Writers of this process queue at a lock, because SQLite's own waiting is a sleep that lets late
comers overtake, and share commits; `BEGIN IMMEDIATE` and `busy_timeout` settle it between processes. `synchronous=FULL`: a vote
taken is on disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError

from annotate.store import migration
from annotate.store.commits import SharedCommits
from rlhf_kit.errors import InputError

BUSY_SECONDS = 30
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_SECONDS * 1000}", "foreign_keys=ON")
SQLITE_FAULTS = {
    "database or disk is full": "the disk is full and nothing of this was written: free some space and send it again",
    "database is locked": f"another process has been writing for {BUSY_SECONDS} seconds: stop it, or send this again later",
    "readonly database": "it may not be written: give this user the right to write the file and its folder",
    "unable to open database file": "it cannot be opened: the folder must exist and be writable",
    "file is not a database": "it is no SQLite database: name another file, or one that does not exist yet",
    "disk image is malformed": "the file is damaged: restore it from a backup",
}
POSTGRESQL_FAULTS = {
    "53100": "the server's disk is full and nothing of this was written: free some space and send it again",
    "25006": "the server takes no writes: name the primary, not a replica",
    "42501": "this role may not do that: grant it CREATE on the schema",
}


class Database:
    """Transactions over one URL; made by `open_database`. Safe to share between threads."""

    def __init__(self, url: URL, now: Callable[[], float]) -> None:
        self.now = now
        self.shown_url = url.render_as_string(hide_password=True)
        self.sqlite = url.get_backend_name() == "sqlite"
        if self.sqlite:
            self.engine = create_engine(url, pool_size=10, connect_args={"isolation_level": None, "timeout": BUSY_SECONDS})
            event.listen(self.engine, "connect", _set_pragmas)
            event.listen(self.engine, "begin", _begin)
        else:
            self.engine = create_engine(url, pool_size=10, max_overflow=20, pool_pre_ping=True)
        writer = self.engine.execution_options(begin="BEGIN IMMEDIATE")
        self._write = SharedCommits(writer).transaction if self.sqlite else writer.begin

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end, rolled back by any exception."""
        with self._named_faults(), self._write() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; on SQLite it sees one moment and blocks nobody."""
        with self._named_faults(), self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give the connections back. What was committed is safe without it."""
        self.engine.dispose()

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            mend = self._mend(error)
            if mend is None:
                raise
            raise InputError("database", self.shown_url, mend) from error

    def _mend(self, error: DBAPIError) -> str | None:
        words = str(error.orig)
        if self.sqlite:
            return next((mend for fault, mend in SQLITE_FAULTS.items() if fault in words), None)
        state = getattr(error.orig, "sqlstate", None)
        # Without a state the server never answered: no such host, nobody listening, wrong password.
        if state is None and "connection" in words:
            return f"PostgreSQL does not answer ({words.strip().splitlines()[0]}): check the URL, and that the server runs"
        return POSTGRESQL_FAULTS.get(state or "")


def open_database(url: str, *, now: Callable[[], float] = time.time) -> Database:
    """Open the database at `url`, creating its tables or migrating them to this code's version.

    Args:
        url: `sqlite:////folder/votes.db` or `postgresql://user:password@host/name`.
        now: seconds since 1970. It may jump: nothing here trusts it to be monotone.
    Raises:
        InputError: an unknown scheme, no database there, one of another program, or one newer than this code.
    """
    database = Database(_checked(url), now)
    with database.write() as connection:
        migration.migrate(connection, database.shown_url)
    return database


def insert_missing(connection: Connection, table: Table) -> Any:
    """An INSERT into `table` that passes over rows which are there already, also those of a transaction not yet committed."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).on_conflict_do_nothing()


def _checked(url: str) -> URL:
    mend = "expected sqlite:////folder/votes.db or postgresql://user:password@host/name"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError("database", url, mend) from None
    backend = parsed.drivername.partition("+")[0]
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise InputError("database", parsed.render_as_string(hide_password=True), mend)
    if not parsed.database or parsed.database == ":memory:":
        raise InputError("database", url, "which would be lost with the process: name a file, sqlite:////folder/votes.db")
    if not parsed.query and not os.path.exists(parsed.database):
        _create_private(parsed.database, url)
    return parsed


def _create_private(path: str, url: str) -> None:
    # It will hold password hashes and sessions: its owner's alone, whatever the umask. SQLite's other files copy the mode.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise InputError(
            "database", url, f"it cannot be created ({error.strerror}): the folder must exist and be writable"
        ) from error


def _set_pragmas(raw: Any, _record: object) -> None:
    for pragma in PRAGMAS:
        raw.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
