"""Batches as a pure function of (seed, epoch, step, rank, world): no loader, no state, nothing to save or to resume.

Steps count from 0 over the whole run; `epoch = step // steps_per_epoch`. What a step holds is decided for all ranks
together, then dealt out, so it does not depend on how many there are, and every rank gets the same number of
micro-batches. Where the data do not suffice for that, a rank gets a batch that counts for nothing: labels all IGNORE
(LMBatch), masks all False (PreferenceBatch, FeedbackBatch). The last step of an epoch may be smaller than `batch_size`;
nothing is dropped unless `drop_last`.

Which examples stand in a step, and who gets them, is decided in `dealing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from rlhf_kit.batches import IGNORE, LMBatch, PreferenceBatch, PromptBatch
from rlhf_kit.data.dealing import Epochs, Flat, check_positive, check_rank, deal, deal_by_tokens, no_row, permutation
from rlhf_kit.data.examples import PreferenceExample, PromptExample
from rlhf_kit.data.packing import Example, best_fit_decreasing, pack_rows
from rlhf_kit.data.records import Record
from rlhf_kit.data.shards import TokenShards
from rlhf_kit.errors import InputError


class Batches(Protocol):
    """A dataset seen as optimizer steps."""

    steps_per_epoch: int

    def micro_batches(self, step: int, rank: int, world: int) -> list[Any]:
        """The micro-batches of one rank at one step of the run: the same number on every rank."""
        ...


class TokenBatches:
    """Pretraining: rows of contiguous tokens from shards, each token but a shard's first a target once an epoch.

    A row holds `sequence_length` tokens and so predicts one fewer; the next row begins with the last token of this
    one. A shard's last row is padded (its labels IGNORE).

    Args:
        shards: the corpus.
        sequence_length: T, tokens a row.
        batch_size: rows an optimizer step, over all ranks.
        micro_batch_size: rows a forward.
        seed: of the order of rows.
        separate_documents: no attention across documents, by position_ids that restart; a micro-batch in which no
            document begins goes without, the fast path. False: rows are plain text, the next bos a target like any.
        drop_last: drop the smaller last step of an epoch.
    """

    def __init__(
        self,
        shards: TokenShards,
        sequence_length: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        *,
        separate_documents: bool = True,
        drop_last: bool = False,
    ) -> None:
        check_positive(micro_batch_size=micro_batch_size)
        if sequence_length < 2:
            raise InputError("sequence_length", sequence_length, "expected 2 or more: a row predicts its next tokens")
        self.shards, self.sequence_length, self.micro_batch_size = shards, sequence_length, micro_batch_size
        self.separate_documents = separate_documents
        rows = [max(0, -(-(len(tokens) - 1) // (sequence_length - 1))) for tokens in shards.tokens]
        self._ends = np.cumsum(rows)
        self._epochs = Epochs(int(self._ends[-1]), batch_size, seed, drop_last)
        self.steps_per_epoch = self._epochs.steps

    def micro_batches(self, step: int, rank: int, world: int) -> list[LMBatch]:
        """(B, T) rows of one rank at one step, without attention_mask."""
        check_rank(rank, world)
        return [self._rows(rows) for rows in deal(self._epochs.members(step), self.micro_batch_size, rank, world)]

    def _rows(self, rows: np.ndarray) -> LMBatch:
        width = self.sequence_length
        if not len(rows):
            return _nothing(0)
        input_ids = np.zeros((len(rows), width), dtype=np.int64)
        labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
        begins = np.zeros((len(rows), width), dtype=bool)  # where a document begins inside the row
        for i, row in enumerate(rows.tolist()):
            shard = int(np.searchsorted(self._ends, row, side="right"))
            begin = (row - int(self._ends[shard - 1] if shard else 0)) * (width - 1)
            tokens = self.shards.tokens[shard][begin : begin + width]
            input_ids[i, : len(tokens)] = labels[i, : len(tokens)] = tokens
            if self.separate_documents:
                starts = self.shards.starts[shard]
                first, last = np.searchsorted(starts, [begin + 1, begin + len(tokens)])
                begins[i, starts[first:last] - begin] = True
        labels[begins] = IGNORE  # the token before belongs to another document
        batch = LMBatch(input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels))
        if begins.any():
            column = np.arange(width)
            batch.position_ids = torch.from_numpy(column - np.maximum.accumulate(np.where(begins, column, 0), axis=1))
        return batch


class ExampleBatches:
    """SFT: examples of different lengths, padded on the right to the longest of their micro-batch, or packed.

    Args:
        examples: `(ids, labels)` arrays, from `examples.sft_examples`.
        batch_size: examples an optimizer step, over all ranks.
        micro_batch_size: rows a forward at most.
        seed: of the order of examples.
        pad_id: what stands where nothing is.
        max_tokens_per_micro_batch: instead of `micro_batch_size`, rows times longest row at most; an example that is
            longer alone stands alone.
        packed_length: pack the examples of a step into rows of so many tokens (best fit), `micro_batch_size` rows a
            forward; no attention across examples. Lengths are then mixed, not bucketed: mixed ones pack better.
        drop_last: drop the smaller last step of an epoch.
    Raises:
        InputError: no examples, both or neither kind of micro-batch, an example longer than `packed_length`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        pad_id: int = 0,
        *,
        max_tokens_per_micro_batch: int | None = None,
        packed_length: int | None = None,
        drop_last: bool = False,
    ) -> None:
        if (micro_batch_size is None) == (max_tokens_per_micro_batch is None):
            raise InputError("micro_batch_size", micro_batch_size, "expected either it or max_tokens_per_micro_batch")
        if packed_length is not None and micro_batch_size is None:
            raise InputError("packed_length", packed_length, "expected with micro_batch_size, which then counts packed rows")
        self.examples, self.pad_id, self.packed_length = examples, pad_id, packed_length
        self.micro_batch_size, self.max_tokens = micro_batch_size, max_tokens_per_micro_batch
        check_positive(micro_batch_size=micro_batch_size, max_tokens_per_micro_batch=max_tokens_per_micro_batch)
        self._ids, self._labels = (Flat([example[i] for example in examples]) for i in (0, 1))
        lengths = self._ids.lengths
        self.longest = int(lengths.max(initial=0))  # tokens
        if packed_length is not None and len(examples) and lengths.max() > packed_length:
            raise InputError("packed_length", packed_length, f"expected at least {lengths.max()}, the longest example: truncate")
        self._epochs = Epochs(lengths if packed_length is None else len(lengths), batch_size, seed, drop_last)
        self.steps_per_epoch = self._epochs.steps

    def micro_batches(self, step: int, rank: int, world: int) -> list[LMBatch]:
        """(B, T) batches of one rank at one step: with attention_mask, or packed with position_ids."""
        check_rank(rank, world)
        members = self._epochs.members(step)
        if self.packed_length is not None:
            return self._packed(members, self.packed_length, rank, world)
        if self.max_tokens is not None:
            groups = deal_by_tokens(members, self._ids.lengths, self.max_tokens, rank, world)
        else:
            groups = deal(members, self.micro_batch_size or 1, rank, world)
        return [self._padded(group) for group in groups]

    def _padded(self, group: np.ndarray) -> LMBatch:
        if not len(group):
            return _nothing(self.pad_id, masked=True)
        input_ids, mask = self._ids.gather(group, self.pad_id)
        return LMBatch(input_ids=input_ids, labels=self._labels.gather(group, IGNORE)[0], attention_mask=mask)

    def _packed(self, members: np.ndarray, width: int, rank: int, world: int) -> list[LMBatch]:
        rows = [members[row] for row in best_fit_decreasing(self._ids.lengths[members], width)]
        dealt = deal(np.arange(len(rows)), self.micro_batch_size or 1, rank, world)
        batches = []
        for group in dealt:
            if not len(group):
                batches.append(_nothing(self.pad_id))
                continue
            chosen = [rows[r].tolist() for r in group]
            longest = max(int(self._ids.lengths[row].sum()) for row in chosen)
            batches.append(pack_rows(self.examples, chosen, longest, self.pad_id))
        return batches


class PreferenceBatches:
    """Pairs of answers, each side padded on the right to its longest; similar lengths together.

    A rank left without pairs gets one row whose masks are all False: it counts for nothing.

    Args:
        examples: from `examples.preference_examples`. Where any has a margin, those without have 0.
        batch_size: pairs an optimizer step, over all ranks.
        micro_batch_size: pairs a forward at most.
        seed: of the order of pairs.
        pad_id: what stands where nothing is.
        drop_last: drop the smaller last step of an epoch.
    """

    def __init__(
        self,
        examples: Sequence[PreferenceExample],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        pad_id: int,
        *,
        drop_last: bool = False,
    ) -> None:
        check_positive(micro_batch_size=micro_batch_size)
        self.micro_batch_size, self.pad_id = micro_batch_size, pad_id
        self._chosen, self._rejected = Flat([e.chosen for e in examples]), Flat([e.rejected for e in examples])
        self._answers = [
            Flat([_answer(e.chosen, e.chosen_answer, e.prompt_length) for e in examples]),
            Flat([_answer(e.rejected, e.rejected_answer, e.prompt_length) for e in examples]),
        ]
        margins = [e.margin for e in examples]
        self._margins = None if all(m is None for m in margins) else torch.tensor([m or 0.0 for m in margins])
        lengths = np.maximum(self._chosen.lengths, self._rejected.lengths)
        self.longest = int(lengths.max(initial=0))  # tokens
        self._epochs = Epochs(lengths, batch_size, seed, drop_last)
        self.steps_per_epoch = self._epochs.steps

    def micro_batches(self, step: int, rank: int, world: int) -> list[PreferenceBatch]:
        """The pairs of one rank at one step."""
        check_rank(rank, world)
        return [self._pairs(group) for group in deal(self._epochs.members(step), self.micro_batch_size, rank, world)]

    def _pairs(self, group: np.ndarray) -> PreferenceBatch:
        index = group if len(group) else np.zeros(1, dtype=np.int64)
        sides = [side.gather(index, self.pad_id) for side in (self._chosen, self._rejected)]
        answers = [answer.gather(index, 0)[0].bool() for answer in self._answers]
        if not len(group):
            sides = [no_row(self.pad_id) for _ in sides]
            answers = [no_row(self.pad_id)[1] for _ in sides]
        margin = None if self._margins is None else self._margins[torch.from_numpy(index)] * float(len(group) > 0)
        return PreferenceBatch(*sides[0], *sides[1], margin, *answers)


def _answer(ids: np.ndarray, answer: np.ndarray | None, prompt_length: int) -> np.ndarray:
    """(n,) bool: what the assistant wrote, which is all that follows the prompt unless it is said otherwise."""
    return np.arange(len(ids)) >= prompt_length if answer is None else answer


class PromptBatches:
    """Prompts for online RL: an endless stream, one shuffled epoch after the other, the same number at every step.

    Args:
        examples: from `examples.prompt_examples`.
        batch_size: answers a step, over all ranks: `batch_size / group_size` prompts.
        seed: of the order of prompts.
        pad_id: what stands before a shorter prompt.
        group_size: answers to each prompt, side by side on one rank.
    Raises:
        InputError: no prompts; sizes that do not divide.
    """

    def __init__(
        self, examples: Sequence[PromptExample], batch_size: int, seed: int, pad_id: int, *, group_size: int = 1
    ) -> None:
        check_positive(batch_size=batch_size, group_size=group_size)
        if not examples:
            raise InputError("examples", 0, "expected at least 1: give more prompts")
        if batch_size % group_size:
            raise InputError("batch_size", batch_size, f"expected a multiple of group_size, {group_size}: it counts answers")
        self.prompts_per_step, self.group_size, self.pad_id = batch_size // group_size, group_size, pad_id
        self._rows: list[Record] = [e.row for e in examples]
        self._ids = Flat([e.ids for e in examples])
        self.seed = seed
        self.steps_per_epoch = -(-len(examples) // self.prompts_per_step)

    def batch(self, step: int, rank: int, world: int) -> tuple[PromptBatch, list[Record]]:
        """`(prompts (B, Q), their records)`, B = batch_size / world; group_ids are unique over the step's ranks."""
        check_rank(rank, world)
        if self.prompts_per_step % world:
            raise InputError("batch_size", self.prompts_per_step * self.group_size, f"expected prompts for {world} ranks alike")
        begin = step * self.prompts_per_step
        epochs, at = np.divmod(np.arange(begin, begin + self.prompts_per_step), len(self._rows))
        members = np.concatenate(
            [permutation(len(self._rows), self.seed, e)[at[epochs == e]] for e in np.unique(epochs).tolist()]
        )
        groups = np.arange(rank, self.prompts_per_step, world)
        index = np.repeat(members[groups], self.group_size)
        query_ids, query_mask = self._ids.gather(index, self.pad_id, left=True)
        group_ids = torch.from_numpy(np.repeat(groups, self.group_size))
        return PromptBatch(query_ids, query_mask, group_ids), [self._rows[i] for i in index.tolist()]


def _nothing(pad_id: int, masked: bool = False) -> LMBatch:
    """A batch that counts for nothing: (1, 2), every label IGNORE."""
    ids = torch.full((1, 2), pad_id)
    return LMBatch(
        input_ids=ids, labels=torch.full_like(ids, IGNORE), attention_mask=torch.ones_like(ids).bool() if masked else None
    )
