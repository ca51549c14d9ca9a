"""Which examples stand in which step, who gets them, and how rows of different lengths become a matrix.

Padding costs as much as data, so examples meet others of their length: the shuffled epoch is cut into stretches of
at most `BUCKET_STEPS` steps, each stretch is sorted by length and cut into steps, and the steps are shuffled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from rlhf_kit.errors import InputError

BUCKET_STEPS = 16


@functools.lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) the order of an epoch; the same array each time, to be read only."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class Epochs:
    """Which examples stand in which step: indices into the data, whatever they are.

    Args:
        lengths: (N,) of the examples where steps should hold similar ones, or their number N.
    """

    def __init__(self, lengths: np.ndarray | int, batch_size: int, seed: int, drop_last: bool) -> None:
        self.lengths = None if isinstance(lengths, int) else lengths
        self.count = lengths if isinstance(lengths, int) else len(lengths)
        check_positive(batch_size=batch_size)
        if not self.count or (drop_last and self.count < batch_size):
            raise InputError("examples", self.count, f"expected at least {batch_size if drop_last else 1}: give more data")
        self.batch_size, self.seed = batch_size, seed
        self.steps = self.count // batch_size if drop_last else -(-self.count // batch_size)
        self._epoch = -1
        self._order: list[np.ndarray] = []

    def members(self, step: int) -> np.ndarray:
        """(n,) indices of the examples of a step, n <= batch_size; sorted by length where lengths were given."""
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more")
        epoch, at = divmod(step, self.steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order[at]

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        order = permutation(self.count, self.seed, epoch)[: self.steps * self.batch_size]
        if self.lengths is None:
            return np.split(order, range(self.batch_size, len(order), self.batch_size))
        steps: list[np.ndarray] = []
        # At least four stretches an epoch, else a small dataset would make the same batches every time.
        stretch = self.batch_size * min(BUCKET_STEPS, max(1, self.steps // 4))
        for begin in range(0, len(order), stretch):
            part = order[begin : begin + stretch]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            # The odd few of the last stretch stand first, so that no step is long for want of companions.
            first = len(part) % self.batch_size or self.batch_size
            steps += np.split(part, range(first, len(part), self.batch_size))
        shuffle = np.random.default_rng([self.seed, epoch, 1])
        return [steps[i] for i in shuffle.permutation(len(steps))]


def deal(members: np.ndarray, size: int, rank: int, world: int) -> list[np.ndarray]:
    """This rank's micro-batches of at most `size` rows: neighbours together, the same number on every rank."""
    each = -(-len(members) // (size * world))
    return np.array_split(members, each * world)[rank::world]


def deal_by_tokens(members: np.ndarray, lengths: np.ndarray, limit: int, rank: int, world: int) -> list[np.ndarray]:
    """Like `deal`, for micro-batches of at most `limit` padded tokens (one row where that alone is longer)."""
    longest_first = members[::-1]
    groups: list[np.ndarray] = []
    begin = 0
    while begin < len(longest_first):
        rows = max(1, limit // int(lengths[longest_first[begin]]))
        groups.append(longest_first[begin : begin + rows])
        begin += rows
    while len(groups) % world:  # halve the groups of most rows until all ranks have as many
        i = max(range(len(groups)), key=lambda g: len(groups[g]))
        groups[i : i + 1] = np.array_split(groups[i], 2)
    return groups[rank::world]


class Flat:
    """Many integer rows as one array, gathered into right- or left-padded matrices without a loop over rows."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]) if len(rows) else np.zeros(0, dtype=np.int64)
        self.values = np.concatenate(rows) if len(rows) else np.zeros(0, dtype=np.int32)

    def gather(self, index: np.ndarray, fill: int, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """`(values (B, T) long, mask (B, T) bool)`, T the longest of the rows."""
        lengths = self.lengths[index]
        width = int(lengths.max())
        column = np.arange(width)[None] - (width - lengths[:, None] if left else 0)
        mask = (column >= 0) & (column < lengths[:, None])
        at = np.where(mask, self.starts[index][:, None] + column, 0)
        values = np.where(mask, self.values[at], fill).astype(np.int64)
        return torch.from_numpy(values), torch.from_numpy(mask)


def no_row(pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(ids (1, 1), mask (1, 1))` of a rank left without examples: a row that counts for nothing."""
    return torch.full((1, 1), pad_id), torch.zeros(1, 1, dtype=torch.bool)


def check_positive(**sizes: int | None) -> None:
    """Refuse by name a size below 1; None passes."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(name, size, "expected 1 or more")


def check_rank(rank: int, world: int) -> None:
    """Refuse a rank that the world does not have."""
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank}, expected 0 to {world - 1}")
