"""The schema's version, and the way from an older one to this one.

A change of `schema.py` raises `SCHEMA_VERSION` by one and adds its step to `MIGRATIONS`: `{old version: function(connection)}`.
Steps are never edited afterwards. All of them run in one transaction (DDL is transactional in both databases), so that a database
is at its old version or at the new one, never between.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, insert, inspect, select, text, update

from annotate.store.schema import metadata, schema_version
from rlhf_kit.errors import InputError

SCHEMA_VERSION = 1
MIGRATIONS: dict[int, Callable[[Connection], None]] = {}
POSTGRESQL_LOCK = 7_316_402_511  # any number will do, as long as every version of this code takes the same


def migrate(connection: Connection, url: str) -> None:
    """Create the tables in an empty database, or bring an older one to `SCHEMA_VERSION`, in the caller's transaction.

    Raises:
        InputError: the database is newer than this code, or holds tables of something else.
    """
    if connection.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE already lets one in at a time
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRESQL_LOCK})
    tables = inspect(connection).get_table_names()
    if not tables:
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
        return
    if schema_version.name not in tables:
        raise InputError("database", url, f"it holds other tables ({', '.join(sorted(tables)[:3])}): name an empty database")
    version = connection.execute(select(schema_version.c.version)).scalar_one()
    if version > SCHEMA_VERSION:
        raise InputError(
            "database", url, f"its schema is version {version}, this program knows {SCHEMA_VERSION}: use a newer one"
        )
    for old in range(version, SCHEMA_VERSION):
        MIGRATIONS[old](connection)
    if version < SCHEMA_VERSION:
        connection.execute(update(schema_version).values(version=SCHEMA_VERSION))
