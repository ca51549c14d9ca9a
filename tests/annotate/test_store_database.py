"""Opening, migrating and refusing databases; a disk that fills up; what the package imports."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest
from sqlalchemy import create_engine, inspect, text

from annotate.store import migration
from annotate.store.database import open_database
from annotate.store.schema import judgment
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good


def test_the_store_imports_neither_gradio_nor_torch():
    code = (
        "import importlib, pkgutil, sys, annotate.store\n"
        "for each in pkgutil.iter_modules(annotate.store.__path__): importlib.import_module('annotate.store.' + each.name)\n"
        "print(sorted({'gradio', 'torch', 'transformers', 'numpy'} & set(sys.modules)), len(sys.modules) > 100)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[] True"


def test_what_was_written_is_there_when_the_database_is_opened_again(database, database_url):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    database.close()
    again = open_database(database_url)
    with again.read() as connection:
        assert connection.execute(text("SELECT strength FROM judgment")).scalars().all() == [2]
    again.close()


def test_an_exception_inside_a_transaction_leaves_nothing_behind(database):
    world = World(database)

    def fail_half_way() -> None:
        with database.write() as connection:
            connection.execute(text("UPDATE project SET guidelines = 'half done'"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    with database.read() as connection:
        assert connection.execute(text("SELECT guidelines FROM project")).scalar_one() == world.settings.guidelines


def test_an_older_database_is_migrated_once_and_keeps_its_rows(database, database_url, monkeypatch):
    world = World(database)
    world.add(pair(1))
    database.close()
    steps = []

    def add_notes(connection) -> None:
        steps.append("notes")
        connection.execute(text("ALTER TABLE project ADD COLUMN notes TEXT NOT NULL DEFAULT 'none'"))

    def fill_notes(connection) -> None:
        steps.append("fill")
        connection.execute(text("UPDATE project SET notes = name"))

    monkeypatch.setattr(migration, "SCHEMA_VERSION", migration.SCHEMA_VERSION + 2)
    version = migration.SCHEMA_VERSION
    monkeypatch.setattr(migration, "MIGRATIONS", {**migration.MIGRATIONS, version - 2: add_notes, version - 1: fill_notes})
    openers = [threading.Thread(target=lambda: open_database(database_url).close()) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert steps == ["notes", "fill"]
    again = open_database(database_url)
    with again.read() as connection:
        assert connection.execute(text("SELECT notes FROM project")).scalar_one() == "project"
        assert connection.execute(text("SELECT count(*) FROM comparison")).scalar_one() == 1
        assert connection.execute(text("SELECT version FROM schema_version")).scalars().all() == [version]
    again.close()


def test_a_migration_that_fails_leaves_the_database_at_its_old_version(database, database_url, monkeypatch):
    database.close()
    old = migration.SCHEMA_VERSION

    def fail(connection) -> None:
        connection.execute(text("ALTER TABLE project ADD COLUMN half INTEGER"))
        raise RuntimeError("half way")

    with monkeypatch.context() as patch:
        patch.setattr(migration, "SCHEMA_VERSION", old + 1)
        patch.setattr(migration, "MIGRATIONS", {old: fail})
        with pytest.raises(RuntimeError, match="half way"):
            open_database(database_url)
    again = open_database(database_url)
    assert "half" not in [column["name"] for column in inspect(again.engine).get_columns("project")]
    again.close()


def test_a_newer_database_is_refused_and_left_alone(database, database_url):
    with database.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    database.close()
    with pytest.raises(InputError, match="version 99"):
        open_database(database_url)


def test_a_database_of_another_program_is_refused(database_url):
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE invoices (id INTEGER)"))
    with pytest.raises(InputError, match="invoices"):
        open_database(database_url)
    assert inspect(engine).get_table_names() == ["invoices"]
    engine.dispose()


@pytest.mark.parametrize("url", ["votes.db", "mysql://host/votes", "sqlite://", "sqlite:///:memory:", ""])
def test_a_url_that_names_no_usable_database_is_refused(url):
    with pytest.raises(InputError, match="sqlite:////folder/votes"):
        open_database(url)


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(InputError, match=r"notes\.txt.*no SQLite database"):
        open_database(f"sqlite:///{path}")
    assert path.read_text().startswith("not a database")


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="folder must exist"):
        open_database(f"sqlite:///{tmp_path}/nowhere/votes.db")


def test_a_database_that_may_not_be_written_is_refused_by_name(tmp_path):
    open_database(f"sqlite:///{tmp_path}/votes.db").close()
    with pytest.raises(InputError, match="may not be written"):
        World(open_database(f"sqlite:///file:{tmp_path}/votes.db?mode=ro&uri=true"))


def test_a_new_sqlite_file_is_readable_by_its_owner_alone(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/votes.db")
    files = os.listdir(tmp_path)
    assert "votes.db-wal" in files
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in files} == {0o600}
    database.close()


def test_a_server_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(InputError, match="does not answer") as error:
        open_database("postgresql://me:hidden@127.0.0.1:9/votes")
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_refuses_the_vote_by_name_keeps_the_old_ones_and_takes_it_afterwards(database):
    world = World(database)
    world.add(*(pair(number) for number in range(200)))
    me, task = world.people[0], world.protocol.claim(world.people[0])
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    set_limit(database, pages)
    confirmed, refused = 0, None
    while refused is None:
        try:
            task = world.protocol.submit(task.assignment, me, prefer_good(task)).next
            confirmed += 1
        except InputError as error:
            refused = str(error)
    assert "votes.db" in refused and "disk is full" in refused
    assert len(world.rows(judgment)) == confirmed < 200
    set_limit(database, 2**30)
    assert world.protocol.submit(task.assignment, me, prefer_good(task)).status == "accepted"


def set_limit(database, pages: int) -> None:
    # SQLite's own limit on the file: it raises the very error of a disk that is full.
    for connection in [database.engine.connect() for _ in range(3)]:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.close()
