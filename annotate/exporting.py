"""From votes to training data: TRL's preference format, ties, both bad and corrected answers, with a manifest and a data card.

What an export holds can afterwards be taken back by force alone, because a model may have learned from it. So it is noted before
anything is read: a vote cannot be undone between being read and being written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update

from annotate.datacard import Summary, data_card
from annotate.export_files import Tables, file_list, new_folder, sha256, to_datasets, to_parquet
from annotate.export_rows import SPLITS, ExportSettings, edit_rows, kept_votes, preference_rows, why_left_out
from annotate.standing import judged, last_judgment, one_moment
from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.migration import SCHEMA_VERSION
from annotate.store.projects import Project
from annotate.store.schema import export, user
from rlhf_kit.errors import InputError

DEFAULT = ExportSettings()


def export_project(
    database: Database, project: Project, output: Path, settings: ExportSettings = DEFAULT, *, by: int | None = None
) -> dict[str, Any]:
    """Write what people said to the new folder `output`, and return its manifest.

    The same votes and settings give the same bytes. `train` and `test` hold `{prompt, chosen, rejected, margin}`, `ties` and
    `both_bad` `{prompt, response_a, response_b}`, `sft_train` and `sft_test` `{messages}`; a file without rows is not written.

    Raises:
        InputError: nothing to export, a name in `without` that is nobody's, a folder that exists or cannot be written.
    """
    _check_names(database, settings.without)
    output = Path(output)
    with new_folder(output) as (folder, publish), _reserved(database, project.id, by) as (last, finish):
        summary = _write_tables(database, project, folder, settings, last)
        (folder / "README.md").write_text(data_card(project, settings, summary), encoding="utf-8")
        manifest = _manifest(project, settings, summary, folder, last)
        words = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (folder / "manifest.json").write_text(words, encoding="utf-8")
        finish(hashlib.sha256(words.encode()).hexdigest(), publish)
    return manifest


def _write_tables(database: Database, project: Project, folder: Path, settings: ExportSettings, last: int) -> Summary:
    tables, summary = Tables(folder), Summary()
    with database.read() as connection:
        one_moment(connection)
        for found in judged(connection, project.id, last):
            votes = kept_votes(found, settings)
            reason = why_left_out(found, votes, settings)
            summary.add(found, votes, reason)
            if not reason:
                for name, row in (*preference_rows(found, votes, settings), *edit_rows(found, votes, settings)):
                    tables.add(name, row)
    tables.close()
    summary.rows = dict(sorted(tables.rows.items()))
    if not tables.rows:
        left_out = ", ".join(f"{count} {reason}" for reason, count in summary.left_out.items()) or "nobody has voted yet"
        raise InputError("project", project.name, f"in which there is nothing to export ({left_out})")
    if settings.format == "parquet":
        to_parquet(tables)
    elif settings.format == "datasets" and any(split in tables.rows for split in SPLITS):
        to_datasets(tables, SPLITS)
    return summary


def _manifest(project: Project, settings: ExportSettings, summary: Summary, folder: Path, last: int) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for path in file_list(folder):
        name = path.relative_to(folder).as_posix()
        rows = {"rows": summary.rows[path.stem]} if path.stem in summary.rows and path.parent == folder else {}
        files[name] = {"sha256": sha256(path), **rows}
    return {
        "schema_version": SCHEMA_VERSION,
        "project": project.name,
        "guidelines_version": project.guidelines_version,
        "last_judgment": last,
        # Whose votes are not trusted is nobody else's business.
        "settings": asdict(settings) | {"without": len(settings.without)},
        "rows": summary.rows,
        "left_out": summary.left_out,
        "files": files,
    }


def _check_names(database: Database, names: tuple[str, ...]) -> None:
    with database.read() as connection:
        known = set(connection.execute(select(user.c.name)).scalars())
    for name in names:
        if name not in known:
            raise InputError("--without", name, "which is nobody's name: see `python -m annotate users list`")


@contextmanager
def _reserved(
    database: Database, project_id: int, by: int | None
) -> Iterator[tuple[int, Callable[[str, Callable[[], None]], None]]]:
    """`(last, finish)`: judgments up to `last` count as exported from now on, unless the block fails.

    `finish(manifest_hash, publish)` stores the hash and publishes, both or neither.
    """
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            # Who takes a vote back reads this table first: wait for those who have, and let the others see the new row.
            connection.exec_driver_sql("LOCK TABLE export IN ACCESS EXCLUSIVE MODE")
        last = last_judgment(connection, project_id)
        row = {"project_id": project_id, "user_id": by, "manifest_hash": "", "last_judgment": last, "created": database.now()}
        key = connection.execute(insert(export).values(row).returning(export.c.id)).scalar_one()

    def finish(manifest_hash: str, publish: Callable[[], None]) -> None:
        with database.write() as connection:
            connection.execute(update(export).where(export.c.id == key).values(manifest_hash=manifest_hash))
            details = {"export": key, "manifest_hash": manifest_hash, "last_judgment": last}
            record(connection, database.now(), "export", user=by, project=project_id, **details)
            publish()

    try:
        yield last, finish
    except BaseException:
        with database.write() as connection:
            connection.execute(delete(export).where(export.c.id == key))
        raise
