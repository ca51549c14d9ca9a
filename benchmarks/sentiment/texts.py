"""Film reviews (Pang and Lee 2004) and single sentences of reviews (Pang and Lee 2005), cut into who may see what.

Ten folds: the authors' for reviews, every tenth sentence for sentences. The reward reads four, the judge four others, the
language model all eight of these; prompts to train on come from the ninth and everything that is measured from the
tenth, which no model has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.data.files import iter_rows
from rlhf_kit.data.tokenizer import encode_texts
from rlhf_kit.errors import InputError

REWARD, JUDGE, PROMPTS, HELD_OUT = range(4), range(4, 8), (8,), (9,)
REVIEWS, SENTENCES = "movie_reviews_v2.jsonl", "sentence_polarity.jsonl"
PASSAGE_CHARACTERS = 200  # lines of a review (sentences, more or less) are joined up to so many


@dataclass(frozen=True)
class Text:
    """A sentence, or a passage of a review, which has the label of its review."""

    text: str
    positive: bool
    fold: int
    sentence: bool


def read_reviews(folder: Path) -> list[Text]:
    """Both files, compressed or not, from `folder` or its subfolder `classify`.

    Raises:
        InputError: a file that is not there, or a row without `text`, `label` or `fold`.
    """
    texts = []
    for where, row in iter_rows(find(folder, REVIEWS)):
        text, label, fold = (_column(where, row, name) for name in ("text", "label", "fold"))
        texts += [Text(passage, label == "pos", int(fold), False) for passage in passages(str(text))]
    for i, (where, row) in enumerate(iter_rows(find(folder, SENTENCES))):
        text, label = (_column(where, row, name) for name in ("text", "label"))
        texts.append(Text(str(text), label == "pos", i % 10, True))
    return texts


def find(folder: Path, name: str, inside: str = "classify") -> Path:
    """`name` with any ending, in `folder` or in its subfolder `inside`."""
    for place in (folder, folder / inside):
        for ending in ("", ".xz", ".gz", ".bz2"):
            if (path := place / (name + ending)).is_file():
                return path
    raise InputError("--data", str(folder), f"expected {name} (.xz, .gz) in it or in its folder {inside}")


def _column(where: str, row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise InputError(f"{where}, column {name!r}", None, f"expected one: the columns are {sorted(row)}")
    return row[name]


def passages(review: str) -> Iterator[str]:
    """Whole lines, joined until they are long enough; a short rest at the end is left out."""
    lines: list[str] = []
    for line in review.splitlines():
        lines.append(line.strip())
        if sum(map(len, lines)) >= PASSAGE_CHARACTERS:
            yield " ".join(lines)
            lines = []


def of_folds(texts: Iterable[Text], folds: Iterable[int]) -> list[Text]:
    """Those of some folds."""
    wanted = set(folds)
    return [text for text in texts if text.fold in wanted]


def beginnings(texts: Iterable[Text], tokenizer: Any, tokens: int, seed: int) -> Tensor:
    """(N, tokens) long: how the passages begin, bos included, shuffled; each beginning once.

    Raises:
        InputError: no passage is longer than that.
    """
    found = encode_texts(tokenizer, [text.text for text in texts if not text.sentence])
    rows = dict.fromkeys(tuple([tokenizer.bos_token_id, *ids][:tokens]) for ids in found if len(ids) >= tokens)
    if not rows:
        raise InputError("--prompt_tokens", tokens, "expected fewer than the longest passage has")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(list(rows))[order]


def repeated(prompts: Tensor, count: int) -> Tensor:
    """(count, Q): the prompts from the first on, and again from the first."""
    return prompts[torch.arange(count) % len(prompts)]
