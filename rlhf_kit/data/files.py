"""Rows and texts from what people have: JSON lines, plain text, parquet, folders of those, `datasets` names.

Everything is read as a stream. What is wrong is named by file and line.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rlhf_kit.errors import InputError

logger = logging.getLogger(__name__)
ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.bz2", ".parquet")
TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".txt.bz2")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_SURROGATE, _ESCAPED = re.compile("[\ud800-\udfff]"), re.compile(r"\\u[dD][89a-fA-F]")


def iter_rows(
    source: str | Path, on_bad_line: Callable[[InputError], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` of every row, where being `sft.jsonl line 12`, for error messages.

    Args:
        source: a .jsonl(.gz/.xz/.bz2) or .parquet file, a folder of those, a `datasets` folder (`save_to_disk`), or
            the name of a dataset. Of the last two, `NAME@SPLIT` reads another split than train, and `NAME:CONFIG` (before
            the split) one of a dataset's configurations.
        on_bad_line: gets the error of a line that is not a JSON object, and the reading goes on; raised where None.
    Raises:
        InputError: nothing readable there, a truncated file, a line that is not a JSON object or holds half a character.
    """
    path = source_path(source)
    name, split = str(source), "train"
    if not path.exists() and "@" in name:
        name, _, split = name.rpartition("@")
        path = source_path(name)
    if path.is_dir() and is_saved_dataset(path):
        yield from _saved_rows(path, split)
    elif path.is_dir():
        for file in files_in(path, ROW_SUFFIXES):
            yield from iter_rows(file, on_bad_line)
    elif path.is_file():
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif path.name.endswith(ROW_SUFFIXES):
            yield from _json_rows(path, on_bad_line)
        else:
            raise InputError("file", str(source), f"expected one of {', '.join(ROW_SUFFIXES)}: convert it")
    else:
        yield from _named_rows(name, split)


def _json_rows(path: Path, on_bad_line: Callable[[InputError], None] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in iter_lines(path):
        if not line.strip():
            continue
        try:
            row = _parse(path, number, line)
        except InputError as error:
            if on_bad_line is None:
                raise
            on_bad_line(error)
        else:
            yield f"{path.name} line {number}", row


def source_path(source: str | Path) -> Path:
    """`source` as a path, which the name of a dataset is, too.

    Raises:
        InputError: nothing was named; an empty path would be the current directory.
    """
    if not str(source).strip():
        raise InputError("data", str(source), "expected a file, a folder or the name of a dataset")
    return Path(source)


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder that end in one of `suffixes`, sorted; a warning names whatever else lies there unhidden.

    Raises:
        InputError: there is none.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file() and entry.name.endswith(suffixes)]
    others = [entry.name + "/" * entry.is_dir() for entry in entries if entry not in files]
    if not files:
        raise InputError(f"folder {folder}", others, f"expected files {suffixes}")
    if others:
        logger.warning("folder %s: %s not read, only %s are", folder, ", ".join(others), ", ".join(suffixes))
    return files


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """`(number, line)` from 1 of a UTF-8 text file, plain or compressed, without the newline and the byte order mark.

    Raises:
        InputError: a truncated or damaged archive, bytes that are not UTF-8.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for raw in file:
                number += 1
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} line {number}", error.object[error.start :][:8], "expected UTF-8: convert it") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error, ValueError) as error:
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
    except (ValueError, RecursionError) as error:  # beside wrong syntax: numbers of thousands of digits, endless brackets
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else _reason(error)
        raise InputError(f"{path.name} line {number}", line, f"expected JSON ({reason}): mend or remove it") from error
    if not isinstance(row, dict):
        raise InputError(f"{path.name} line {number}", row, "expected a JSON object, one a line")
    if _ESCAPED.search(line):
        _refuse_half_characters(f"{path.name} line {number}", row)
    return row


def _refuse_half_characters(where: str, row: dict[str, Any]) -> None:
    """A surrogate without its other half is no character: nothing can encode it, and no tokenizer takes it."""
    for column, value in row.items():
        text = json.dumps([column, value], ensure_ascii=False)
        if found := _SURROGATE.search(text):
            near = text[max(0, found.start() - 20) : found.end() + 20]
            raise InputError(
                f"{where}, column {column!r}", near, f"expected no lone surrogate {found[0]!r}: mend or remove the row"
            )


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet

    def rows() -> Iterator[dict[str, Any]]:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()

    yield from _numbered(rows(), path.name, "expected a whole parquet file: fetch it again")


def _numbered(rows: Iterable[Mapping[str, Any]], name: str, mend: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)`; whatever the reader of a damaged file or a lost connection raises becomes one InputError."""
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{name} row {number}", dict(row)
    except Exception as error:
        raise InputError(f"{name} after row {number}", _reason(error), mend) from error


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is what `datasets` writes with `save_to_disk`."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))


def _saved_rows(path: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    mend = "expected a whole folder of save_to_disk: save or fetch it again"
    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # what is missing or damaged there fails in as many ways as there are files
        raise InputError(f"{path}", _reason(error), mend) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(f"{path}: split", split, f"expected one of {sorted(data)}")
        data = data[split]
    yield from _numbered(data, path.name, mend)


def _named_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if name.startswith((".", "/", "~")) or name.endswith(ROW_SUFFIXES + TEXT_SUFFIXES):
        raise InputError("path", name, "expected an existing file or folder: check the spelling")
    import datasets

    try:
        repository, _, config = name.partition(":")
        data = datasets.load_dataset(repository, config or None, split=split, streaming=True)
    except Exception as error:  # a missing path, an unknown name and a dead network look different in every release
        raise InputError("data", name, f"neither an existing path nor a dataset that loads ({_reason(error)})") from error
    yield from _numbered(data, name, "expected a dataset that can be read to its end: check the connection, or download it first")
