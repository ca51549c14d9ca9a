"""Labelled texts, from raw rows to batches: what a yes-or-no classifier learns from.

Read: rows with `text` and `label` in any form that `files` reads. A label is true or false, 1 or 0, or, where the positive
one is named, whatever names stand there. A text is plain: bos, its tokens, and no stop token, so that a classifier that
judges answers as a reward has learned to judge what may be unfinished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import LabelledBatch
from rlhf_kit.data.dealing import Epochs, Flat, check_positive, check_rank, deal, no_row
from rlhf_kit.data.examples import EncodingStats
from rlhf_kit.data.files import iter_rows
from rlhf_kit.data.records import Record, at_least_one, unknown_columns
from rlhf_kit.data.tokenizer import encode_texts
from rlhf_kit.errors import InputError


def load_labelled(source: str | Path, positive: str | None = None) -> list[Record]:
    """`{"text": str, "label": bool, ...}`, both labels among them; other columns stay.

    Args:
        positive: the label that counts as True, where labels are names; every other one is False.
    Raises:
        InputError: unreadable source, missing columns, an empty text, a label that is neither true nor false, one label only.
    """
    records = at_least_one([_labelled(where, row, positive) for where, row in iter_rows(source)], source)
    labels = {record["label"] for record in records}
    if len(labels) == 1:
        mend = "in every row, expected both: add texts of the other kind" + ("" if positive is None else ", or check --positive")
        raise InputError(f"{source}: column 'label'", labels.pop(), mend)
    return records


def _labelled(where: str, row: Record, positive: str | None) -> Record:
    if not {"text", "label"} <= row.keys():
        raise unknown_columns(where, row, "text + label")
    text, label = row["text"], row["label"]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}, column 'text'", text, "expected a text that is not empty: mend or remove the row")
    if positive is not None:
        label = str(label) == positive
    elif label not in (0, 1):  # true and false are among them
        mend = "expected true or false, 1 or 0: or name the label that counts as true with --positive"
        raise InputError(f"{where}, column 'label'", label, mend)
    return {**row, "label": bool(label)}


@dataclass
class LabelledExample:
    """A text in tokens, and whether it is what is looked for."""

    ids: np.ndarray  # (n,) int32
    label: bool


def labelled_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[LabelledExample], EncodingStats]:
    """Each text as bos and its first tokens, `max_length` in all, and the counts."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    stats, examples = EncodingStats(records=len(records)), []
    for record, found in zip(records, encode_texts(tokenizer, [str(record["text"]) for record in records])):
        ids = np.asarray([*bos, *found], dtype=np.int32)
        stats.truncated += len(ids) > max_length
        examples.append(LabelledExample(ids[:max_length], record["label"]))
        stats.tokens += len(examples[-1].ids)
    stats.kept = len(examples)
    stats.report("labelled texts", max_length)
    return examples, stats


class LabelledBatches:
    """Labelled texts, padded on the right to the longest of their micro-batch; similar lengths together.

    A rank left without texts gets one row whose mask is all False: it counts for nothing.

    Args:
        examples: from `labelled_examples`.
        batch_size: texts an optimizer step, over all ranks.
        micro_batch_size: texts a forward at most.
        seed: of the order of texts.
        pad_id: what stands where nothing is.
    """

    def __init__(
        self, examples: Sequence[LabelledExample], batch_size: int, micro_batch_size: int, seed: int, pad_id: int
    ) -> None:
        check_positive(micro_batch_size=micro_batch_size)
        self.micro_batch_size, self.pad_id = micro_batch_size, pad_id
        self._ids = Flat([e.ids for e in examples])
        self.longest = int(self._ids.lengths.max(initial=0))  # tokens
        self._labels = torch.tensor([e.label for e in examples], dtype=torch.bool)
        self._epochs = Epochs(self._ids.lengths, batch_size, seed, drop_last=False)
        self.steps_per_epoch = self._epochs.steps

    def micro_batches(self, step: int, rank: int, world: int) -> list[LabelledBatch]:
        """The texts of one rank at one step."""
        check_rank(rank, world)
        return [self._batch(group) for group in deal(self._epochs.members(step), self.micro_batch_size, rank, world)]

    def _batch(self, group: np.ndarray) -> LabelledBatch:
        if not len(group):
            return LabelledBatch(*no_row(self.pad_id), torch.zeros(1, dtype=torch.bool))
        return LabelledBatch(*self._ids.gather(group, self.pad_id), self._labels[torch.from_numpy(group)])
