"""One commit for all writers of this process that wait together, for SQLite: a disk syncs twenty votes as fast as one.

Writers take turns. Who finds others waiting when their turn is over leaves the transaction open for the next; who finds nobody
commits for all, and only then is any of them told that their work is done. One that fails is rolled back alone, to the savepoint
where its turn began. Where the whole transaction is lost, by a commit that fails or a disk that fills up, all in it are told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

MOST = 32  # turns in a transaction, so that nobody waits for long however many come


@dataclass
class _Group:
    """Those who share a transaction. `fault`: what lost it, if anything did."""

    connection: Connection
    turns: int = 0
    fault: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def turn(self) -> Iterator[Connection]:
        savepoint = self.turns > 0  # the first has nobody before it whose work would have to stay
        if savepoint:
            self.connection.exec_driver_sql("SAVEPOINT turn")
        try:
            yield self.connection
        except BaseException as fault:
            if savepoint and self.connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
                self.connection.exec_driver_sql("ROLLBACK TO turn")
                self.connection.exec_driver_sql("RELEASE turn")
            else:
                self.fault = fault
            raise
        if savepoint:
            self.connection.exec_driver_sql("RELEASE turn")
        self.turns += 1

    def end(self) -> None:
        """Commit, or roll back what is lost, and let everybody go."""
        transaction = self.connection.get_transaction()
        try:
            if transaction is not None and self.fault is None:
                transaction.commit()
        except BaseException as fault:
            self.fault = fault
            self.connection.invalidate()  # the transaction may still be open in it
        finally:
            self.connection.close()  # which rolls back what was not committed
            self.over.set()


class SharedCommits:
    """Transactions of one engine, whose `begin` takes the write lock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._group: _Group | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A turn; what it did is on the disk when the block has been left without an exception."""
        self._count(1)
        with self._turns:
            self._count(-1)
            group = self._group = self._group or self._begin()
            try:
                with group.turn() as connection:
                    yield connection
            finally:
                if group.fault is not None or not self._waiting or group.turns >= MOST:
                    self._group = None
                    group.end()
        group.over.wait()
        if group.fault is not None:
            raise group.fault

    def _begin(self) -> _Group:
        connection = self._engine.connect()
        try:
            connection.begin()
        except BaseException:
            connection.close()
            raise
        return _Group(connection)

    def _count(self, change: int) -> None:
        with self._counting:
            self._waiting += change
