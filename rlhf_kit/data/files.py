"""Rows and texts from what people have: JSON lines, plain text, parquet, folders of those, `datasets` names.

Everything is read as a stream. What is wrong is named by file and line.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlhf_kit.errors import InputError

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2", ".parquet")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".txt.bz2")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def iter_rows(source: str | Path, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` of every row, where being `sft.jsonl line 12`, for error messages.

    Args:
        source: a .jsonl(.gz/.xz/.bz2) or .parquet file, a folder of those, a `datasets` folder (`save_to_disk`), or
            the name of a dataset.
        split: which split of a dataset to read, where it has any.
    Raises:
        InputError: nothing readable there, a truncated file, a line that is not a JSON object.
    """
    path = Path(source)
    if path.is_dir() and _is_saved_dataset(path):
        yield from _saved_rows(path, split)
    elif path.is_dir():
        files = [p for p in sorted(path.iterdir()) if p.name.endswith(ROW_SUFFIXES)]
        if not files:
            raise InputError(f"folder {path}", sorted(p.name for p in path.iterdir()), f"expected files {ROW_SUFFIXES}")
        for file in files:
            yield from iter_rows(file)
    elif path.is_file():
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif path.name.endswith(ROW_SUFFIXES):
            for number, line in iter_lines(path):
                if line.strip():
                    yield f"{path.name} line {number}", _parse(path, number, line)
        else:
            raise InputError("file", str(source), f"expected one of {', '.join(ROW_SUFFIXES)}: convert it")
    else:
        yield from _named_rows(str(source), split)


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """`(number, line)` from 1 of a UTF-8 text file, plain or compressed, without the newline.

    Raises:
        InputError: a truncated or damaged archive, bytes that are not UTF-8.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for raw in file:
                number += 1
                line = raw.decode("utf-8")
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} line {number}", error.object[error.start :][:8], "expected UTF-8: convert it") from error
    except (EOFError, OSError, lzma.LZMAError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} after line {number}", str(error), "expected a whole file: fetch it again") from error


def open_binary(path: Path) -> IO[bytes]:
    """A file opened for reading bytes, decompressed by its suffix."""
    opener = _OPENERS.get(path.suffix)
    return opener(path, "rb") if opener else path.open("rb")


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path.name} line {number}", line, f"expected JSON ({error.msg} at column {error.colno}): mend or remove it"
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{path.name} line {number}", row, "expected a JSON object, one a line")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path.name} after row {number}", str(error), "expected a whole parquet file: fetch it again"
        ) from error


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved_rows(path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    data = datasets.load_from_disk(str(path))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(f"{path}: split", split, f"expected one of {sorted(data)}")
        data = data[split]
    for number, row in enumerate(data, 1):
        yield f"{path.name} row {number}", dict(row)


def _named_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if name.startswith((".", "/", "~")) or name.endswith(ROW_SUFFIXES + TEXT_SUFFIXES):
        raise InputError("path", name, "expected an existing file or folder: check the spelling")
    import datasets

    try:
        data = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # a missing path, an unknown name and a dead network look different in every release
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError("data", name, f"neither an existing path nor a dataset that loads ({reason})") from error
    for number, row in enumerate(data, 1):
        yield f"{name} row {number}", dict(row)
