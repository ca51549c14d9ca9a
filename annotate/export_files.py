"""A folder of tables that appears whole or not at all, and is the same to the last byte when it is written again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlhf_kit.errors import InputError

PARQUET_ROWS = 1000  # in a row group
Row = Mapping[str, Any]


class Tables:
    """JSON lines in files that open at their first row; `rows` counts them by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, int] = {}
        self._files: dict[str, IO[str]] = {}

    def add(self, name: str, row: Row) -> None:
        """Append a row to the table `name`."""
        if name not in self._files:
            self._files[name] = self.path(name).open("w", encoding="utf-8", newline="\n")
        self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows[name] = self.rows.get(name, 0) + 1

    def path(self, name: str) -> Path:
        """The file of a table."""
        return self.folder / f"{name}.jsonl"

    def close(self) -> None:
        """Write out what is still buffered."""
        for file in self._files.values():
            file.close()


def to_parquet(tables: Tables) -> None:
    """Turn every table into a parquet file."""
    import pyarrow
    import pyarrow.json
    import pyarrow.parquet

    for name in tables.rows:
        path = tables.path(name)
        options = pyarrow.json.ReadOptions(use_threads=False, block_size=max(2**20, path.stat().st_size + 1))
        table = pyarrow.json.read_json(path, options)
        pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=PARQUET_ROWS)
        path.unlink()


def to_datasets(tables: Tables, splits: tuple[str, ...]) -> None:
    """Turn the tables called `splits` into a `DatasetDict` in the folder `dataset`; the others stay."""
    import datasets

    found = [name for name in splits if name in tables.rows]
    data = {
        name: datasets.Dataset.from_list([json.loads(line) for line in tables.path(name).open(encoding="utf-8")])
        for name in found
    }
    features = data[found[0]].features
    for name in found:
        data[name] = data[name].cast(features)
        # By default the fingerprint has the moment in it.
        data[name]._fingerprint = hashlib.sha256(tables.path(name).read_bytes()).hexdigest()[:16]
    datasets.DatasetDict(data).save_to_disk(str(tables.folder / "dataset"))
    for name in found:
        tables.path(name).unlink()


def file_list(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """The hash of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target: Path) -> Iterator[tuple[Path, Any]]:
    """`(folder, publish)`: write into `folder`, and `publish()` gives it the name `target`. Left without that, nothing stays.

    Raises:
        InputError: something is at `target` already, or it cannot be written, a full disk among the reasons.
    """
    if target.exists():
        raise InputError("--output", str(target), "which exists already: name a new folder")
    folder = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    moved: list[Path] = []

    def publish() -> None:
        for path in [*file_list(folder), folder]:
            _sync(path)
        os.rename(folder, target)
        moved.append(target)
        _sync(target.parent)

    try:
        folder.mkdir(parents=True)
        yield folder, publish
    except BaseException as error:
        for path in (folder, *moved):
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            mend = f"which cannot be written ({error.strerror}) and was not: free some space, or name another folder"
            raise InputError("--output", str(target), mend) from error
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of an export that was not published


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
