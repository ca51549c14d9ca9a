"""Token shards: the pretraining corpus as memory-mapped integers with an index that can prove them whole.

    out_dir/index.json            what there is: sizes, SHA-256, the tokenizer's hash; written last
            shard-00000.tokens    uint16 (uint32 from 65,537 tokens of vocabulary), bos + text + eos of each document
            shard-00000.starts    int64, where each document begins; a document never straddles two shards

Writing streams: memory is bounded by one batch of documents. Every file is written beside its name, synced and
renamed; a folder without an index is an unfinished one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.files import ROW_SUFFIXES, TEXT_SUFFIXES, files_in, is_saved_dataset, iter_lines, iter_rows, source_path
from rlhf_kit.data.tokenizer import encode_texts, tokenizer_hash
from rlhf_kit.errors import InputError

FORMAT = 1
INDEX = "index.json"
BATCH_CHARS = 2_000_000  # encoded at once: enough to keep every core busy, small beside a model
TEXT_DOCUMENT_CHARS = 1_000_000  # a plain text without separators is cut at a paragraph after so many
SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class ShardInfo:
    """One shard as the index describes it; sizes in tokens and documents, digests of the two files."""

    name: str
    tokens: int
    documents: int
    tokens_sha256: str
    starts_sha256: str


def read_texts(source: str | Path, column: str = "text") -> Iterator[str]:
    """The documents of a corpus, as a stream.

    Args:
        source: .jsonl(.gz/.xz/.bz2) or parquet with a text column; .txt(.gz/.xz/.bz2); a folder of those; a dataset's
            name or folder. A .txt is one document, or one between each two lines `<|endoftext|>`; beyond a million
            characters it is cut at the next blank line, so that memory stays bounded.
        column: the column that holds the text.
    Raises:
        InputError: naming file, line and column: missing column, empty text, invalid JSON, truncated archive.
    """
    path = source_path(source)
    if path.is_dir() and not is_saved_dataset(path):
        for file in files_in(path, TEXT_SUFFIXES + ROW_SUFFIXES):
            yield from read_texts(file, column)
        return
    if path.is_file() and path.name.endswith(TEXT_SUFFIXES):
        yield from _plain_documents(path)
        return
    for where, row in iter_rows(source):
        if column not in row:
            raise InputError(f"{where}, column {column!r}", None, f"expected a text: the columns are {sorted(row)}")
        if not isinstance(row[column], str) or not row[column].strip():
            raise InputError(f"{where}, column {column!r}", row[column], "expected a text that is not empty: remove the row")
        yield row[column]


def _plain_documents(path: Path) -> Iterator[str]:
    lines: list[str] = []
    chars = documents = 0
    for _, line in iter_lines(path):
        ends = line.strip() == SEPARATOR
        if not ends:
            lines.append(line)
            chars += len(line) + 1
        if ends or (chars > TEXT_DOCUMENT_CHARS and not line.strip()) or chars > 2 * TEXT_DOCUMENT_CHARS:
            text = "\n".join(lines)
            lines, chars = [], 0
            if text.strip():
                documents += 1
                yield text
    text = "\n".join(lines)
    if text.strip():
        documents += 1
        yield text
    if not documents:
        raise InputError(f"{path.name}", text, "expected text: the file is empty")


def write_shards(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    out_dir: str | Path,
    shard_tokens: int = 100_000_000,
    overwrite: bool = False,
    progress: bool = True,
) -> TokenShards:
    """Tokenise a corpus into shards and open them.

    Args:
        documents: the texts, read once as a stream.
        tokenizer: each document becomes bos (where there is one) + text + eos.
        out_dir: the folder; created.
        shard_tokens: a shard is closed by the document that reaches this many tokens.
        overwrite: replace the shards already there, else refuse.
        progress: a bar, on a terminal only.
    Raises:
        InputError: shards already there, no document at all.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists() and not overwrite:
        raise InputError("out_dir", str(folder), "which already holds shards: choose another folder, or overwrite=True")
    (folder / INDEX).unlink(missing_ok=True)
    for stale in folder.glob("shard-*"):
        stale.unlink()
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    shards: list[ShardInfo] = []
    writer: _ShardWriter | None = None
    with tqdm(unit="tok", unit_scale=True, desc="tokenise", disable=None if progress else True) as bar:
        for ids in _encoded(documents, tokenizer):
            writer = writer or _ShardWriter(folder, len(shards), dtype)
            writer.add(ids)
            bar.update(len(ids))
            if writer.tokens >= shard_tokens:
                shards.append(writer.close())
                writer = None
    if writer is not None:
        shards.append(writer.close())
    if not shards:
        raise InputError("documents", [], "expected at least one text: the source is empty")
    index = {
        "format": FORMAT,
        "dtype": dtype.name,
        "vocab_size": len(tokenizer),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "tokens": sum(s.tokens for s in shards),
        "documents": sum(s.documents for s in shards),
        "shards": [asdict(s) for s in shards],
    }
    part = folder / (INDEX + ".tmp")
    with part.open("wb") as file:
        _commit(file, json.dumps(index, indent=1).encode(), part, folder / INDEX)
    return TokenShards(folder, verify=False)


def _encoded(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    batch: list[str] = []
    chars = 0
    for text in documents:
        batch.append(text)
        chars += len(text)
        if chars >= BATCH_CHARS:
            yield from ([*bos, *ids, tokenizer.eos_token_id] for ids in encode_texts(tokenizer, batch))
            batch, chars = [], 0
    yield from ([*bos, *ids, tokenizer.eos_token_id] for ids in encode_texts(tokenizer, batch))


class _ShardWriter:
    """One shard being written: tokens go straight to disk, only the document starts are kept."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype[Any]) -> None:
        self.folder, self.name, self.dtype = folder, f"shard-{number:05d}", dtype
        self.part = folder / f"{self.name}.tokens.tmp"
        self.file = self.part.open("wb")
        self.digest = hashlib.sha256()
        self.tokens = 0
        self.starts: list[int] = []

    def add(self, ids: list[int]) -> None:
        data = np.asarray(ids, dtype=self.dtype).tobytes()
        self.digest.update(data)
        self.file.write(data)
        self.starts.append(self.tokens)
        self.tokens += len(ids)

    def close(self) -> ShardInfo:
        with self.file:
            _commit(self.file, b"", self.part, self.folder / f"{self.name}.tokens")
        starts = np.asarray(self.starts, dtype=np.int64).tobytes()
        part = self.folder / f"{self.name}.starts.tmp"
        with part.open("wb") as file:
            _commit(file, starts, part, self.folder / f"{self.name}.starts")
        return ShardInfo(self.name, self.tokens, len(self.starts), self.digest.hexdigest(), hashlib.sha256(starts).hexdigest())


def _commit(file: BinaryIO, data: bytes, part: Path, target: Path) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
    part.rename(target)


class TokenShards:
    """The shards of a folder, opened for reading.

    Args:
        path: a folder that `write_shards` finished.
        verify: also compare every file's SHA-256 (about a second a GB); its size is always compared.
        tokenizer: where given, it must be the one the shards were written with.
    Raises:
        InputError: no index, a file missing, truncated or damaged, another tokenizer.
    """

    def __init__(self, path: str | Path, verify: bool = True, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        folder = Path(path)
        try:
            index = json.loads((folder / INDEX).read_text())
        except FileNotFoundError as error:
            raise InputError(
                f"{folder / INDEX}", None, "which is missing: the shards are unfinished, write them again"
            ) from error
        except json.JSONDecodeError as error:
            raise InputError(f"{folder / INDEX}", str(error), "expected JSON: write the shards again") from error
        if index.get("format") != FORMAT:
            raise InputError(f"{folder / INDEX}: format", index.get("format"), f"expected {FORMAT}: write the shards again")
        if tokenizer is not None and tokenizer_hash(tokenizer) != index["tokenizer_sha256"]:
            raise InputError(f"{folder}: tokenizer", "another one", "expected the shards' own: write them again, or load its own")
        self.path, self.dtype = folder, np.dtype(index["dtype"])
        self.vocab_size: int = index["vocab_size"]
        self.tokenizer_sha256: str = index["tokenizer_sha256"]
        self.infos = [ShardInfo(**info) for info in index["shards"]]
        self.tokens: list[np.ndarray] = []  # one (n,) array a shard
        self.starts: list[np.ndarray] = []  # one (documents,) int64 array a shard
        for info in self.infos:
            self.tokens.append(_open(folder / f"{info.name}.tokens", self.dtype, info.tokens, verify and info.tokens_sha256))
            self.starts.append(
                _open(folder / f"{info.name}.starts", np.dtype(np.int64), info.documents, verify and info.starts_sha256)
            )

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards, bos and eos included."""
        return sum(info.tokens for info in self.infos)

    @property
    def num_documents(self) -> int:
        """Documents in all shards."""
        return sum(info.documents for info in self.infos)

    def documents(self) -> Iterator[np.ndarray]:
        """Every document's tokens, in the order written."""
        for tokens, starts in zip(self.tokens, self.starts, strict=True):
            for begin, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
                yield tokens[begin:end]


def _open(path: Path, dtype: np.dtype[Any], count: int, sha256: str | bool) -> np.ndarray:
    expected = count * dtype.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise InputError(f"{path}: size", size, f"expected {expected} bytes: fetch the file again or write the shards again")
    if sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise InputError(f"{path}: sha256", found[:12], f"expected {str(sha256)[:12]}: the file is damaged, fetch it again")
    return np.memmap(path, dtype=dtype, mode="r")
