"""Packing: many short examples in one row, none of them seeing another.

Best-fit decreasing (Johnson 1974; for language models Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"): the longest example first, each into the fullest row that still holds it. Documents are kept apart by
`position_ids` that restart at 0, not by a mask, so the fast attention paths stay open.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch

from rlhf_kit.batches import IGNORE, LMBatch
from rlhf_kit.errors import InputError

Example = tuple[np.ndarray, np.ndarray]  # ids and labels, both (n,) int32


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Which examples share a row: indices into `lengths`, a list a row, every index once.

    O(n log n): the rows are kept by the space left in them, and the distinct spaces (at most `capacity`) in order.

    Raises:
        InputError: an example longer than `capacity`, or an empty one.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    for wrong in np.flatnonzero((lengths > capacity) | (lengths < 1))[:1]:
        raise InputError(f"length of example {wrong}", int(lengths[wrong]), f"expected 1 to {capacity} tokens: truncate it")
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # space left -> the rows with so much
    spaces: list[int] = []  # the keys of by_space, ascending
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        slot = bisect_left(spaces, length)
        if slot == len(spaces):
            row, space = len(rows), capacity
            rows.append([])
        else:
            space = spaces[slot]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[slot]
        rows[row].append(i)
        left = space - length
        if left in by_space:
            by_space[left].append(row)
        elif left:
            by_space[left] = [row]
            insort(spaces, left)
    return rows


def pack(examples: Sequence[Example], sequence_length: int, pad_id: int) -> LMBatch:
    """Examples packed into rows of `sequence_length` tokens.

    The label of each example's first token is IGNORE: the token before it belongs to another. A row's padding is one
    more document, with nothing trained.

    Args:
        examples: `(ids, labels)`, (n,) integers each, 1 <= n <= sequence_length.
        sequence_length: T.
        pad_id: what fills the end of a row.
    Returns:
        (rows, T) without attention_mask: call the model with `use_cache=False`.
    Raises:
        InputError: an example that does not fit.
    """
    rows = best_fit_decreasing([len(ids) for ids, _ in examples], sequence_length)
    return pack_rows(examples, rows, sequence_length, pad_id)


def pack_rows(examples: Sequence[Example], rows: Sequence[Sequence[int]], sequence_length: int, pad_id: int) -> LMBatch:
    """`pack` with the rows already chosen: indices into `examples`, a list a row."""
    input_ids = np.full((len(rows), sequence_length), pad_id, dtype=np.int64)
    labels = np.full((len(rows), sequence_length), IGNORE, dtype=np.int64)
    position_ids = np.empty((len(rows), sequence_length), dtype=np.int64)
    counting = np.arange(sequence_length)
    for r, members in enumerate(rows):
        begin = 0
        for i in members:
            ids, targets = examples[i]
            end = begin + len(ids)
            input_ids[r, begin:end] = ids
            labels[r, begin:end] = targets
            labels[r, begin] = IGNORE
            position_ids[r, begin:end] = counting[: len(ids)]
            begin = end
        position_ids[r, begin:] = counting[: sequence_length - begin]
    return LMBatch(
        input_ids=torch.from_numpy(input_ids), labels=torch.from_numpy(labels), position_ids=torch.from_numpy(position_ids)
    )
