"""Writers that share a commit: nobody is told before it is on the disk, and nobody pays for another's fault."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from annotate.store.database import Database, open_database
from rlhf_kit.errors import InputError


@pytest.fixture
def notes(tmp_path: Path):
    database = open_database(f"sqlite:///{tmp_path}/votes.db")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE note (word TEXT UNIQUE)"))
    yield database
    database.close()


def write(database: Database, word: str, then: Callable[[], object] = lambda: None) -> None:
    with database.write() as connection:
        connection.execute(text("INSERT INTO note VALUES (:word)"), {"word": word})
        then()


def words(database: Database) -> list[str]:
    with database.read() as connection:
        return sorted(connection.execute(text("SELECT word FROM note")).scalars())


def together(database: Database, moves: dict[str, Callable[[], object]]) -> dict[str, BaseException | None]:
    """Let all move while the first holds the turn, so that they are one group; what became of each."""
    found: dict[str, BaseException | None] = {}
    held, waiting = threading.Event(), threading.Event()

    def run(name: str, move: Callable[[], object]) -> None:
        try:
            write(database, name, move)
            found[name] = None
        except BaseException as fault:
            found[name] = fault

    def hold() -> None:
        held.set()
        assert waiting.wait(20)

    first = threading.Thread(target=run, args=("first", hold))
    first.start()
    assert held.wait(20)
    threads = [threading.Thread(target=run, args=pair) for pair in moves.items()]
    for thread in threads:
        thread.start()
    shared = database._write.__self__  # type: ignore[attr-defined]
    while shared._waiting < len(threads):
        pass
    waiting.set()
    for thread in (first, *threads):
        thread.join(20)
    return found


def fail() -> None:
    raise ValueError("a fault of its own")


def test_those_who_wait_together_share_one_commit(notes: Database):
    commits: list[object] = []
    event.listen(notes.engine, "commit", commits.append)
    found = together(notes, {str(number): lambda: None for number in range(8)})
    assert set(found.values()) == {None}
    assert len(words(notes)) == 9
    assert len(commits) == 1 + 1  # and that of the reader


def test_one_that_fails_is_rolled_back_alone(notes: Database):
    found = together(notes, {"a": lambda: None, "bad": fail, "b": lambda: None, "worse": fail})
    assert Counter(type(fault) for fault in found.values()) == {type(None): 3, ValueError: 2}
    assert words(notes) == ["a", "b", "first"]
    write(notes, "afterwards")
    assert "afterwards" in words(notes)


def test_a_word_that_is_there_fails_alone_too(notes: Database):
    write(notes, "there")
    found = together(notes, {"there": lambda: None, "new": lambda: None})
    assert {name for name, fault in found.items() if fault} == {"there"}
    assert words(notes) == ["first", "new", "there"]


def test_nobody_is_told_before_the_commit_and_all_are_told_when_it_fails(notes: Database):
    def refuse(_connection: object) -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))

    event.listen(notes.engine, "commit", refuse)
    found = together(notes, {"a": lambda: None, "b": lambda: None})
    event.remove(notes.engine, "commit", refuse)
    assert all(isinstance(fault, InputError) and "disk is full" in str(fault) for fault in found.values())
    assert words(notes) == []
    write(notes, "afterwards")
    assert words(notes) == ["afterwards"]


def test_when_the_whole_transaction_is_lost_those_before_are_told_and_those_after_begin_anew(notes: Database):
    def lose() -> None:  # as SQLite does by itself when the disk fills up at the wrong moment
        group = notes._write.__self__._group  # type: ignore[attr-defined]
        group.connection.connection.driver_connection.rollback()
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    found = together(notes, {"lost": lose, "a": lambda: None, "b": lambda: None})
    kept = [name for name, fault in found.items() if fault is None]
    assert found["first"] is not None and found["lost"] is not None
    assert words(notes) == sorted(kept)
    write(notes, "afterwards")
    assert "afterwards" in words(notes)
