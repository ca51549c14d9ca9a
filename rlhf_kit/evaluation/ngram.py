"""An n-gram model with interpolated modified Kneser-Ney smoothing, the baseline a neural model has to beat.

After Chen & Goodman 1998, section 3, over bytes by default, in sorted numpy arrays: an n-gram is one 64-bit integer
(its symbols packed side by side, the oldest on top), so that counting is sorting and a lookup is a binary search.
The 38 MB of books that the kit is tried on take about a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_kit.errors import InputError

Ints = NDArray[np.int64]
Symbols = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


@dataclass
class _Level:
    """One order: the n-grams seen with what is left of their counts, and the contexts they follow."""

    grams: Ints  # (G,) sorted
    discounted: NDArray[np.float32]  # (G,) count - D(count)
    contexts: Ints  # (C,) sorted: n-grams without their last symbol
    totals: Floats  # (C,) sum of the counts
    released: Floats  # (C,) sum of the discounts, the mass that goes to the shorter context


def _discounts(counts: Ints) -> Floats:
    """D(1), D(2), D(3+) of modified Kneser-Ney (Chen & Goodman 1998, eq. 26), from the counts of counts."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0.0, 0.5, 0.75, 0.75])  # too little text for the estimate
    y = n1 / (n1 + 2 * n2)
    estimates = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return np.array([0.0, *(min(max(d, 0.1), c - 0.1) for c, d in enumerate(estimates, 1))])


def _level(grams: Ints, counts: Ints, bits: int) -> _Level:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    owner = grams >> bits
    first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    totals = np.add.reduceat(counts, first).astype(np.float64)
    return _Level(grams, (counts - discount).astype(np.float32), owner[first], totals, np.add.reduceat(discount, first))


def _find(table: Ints, keys: Ints) -> tuple[NDArray[np.bool_], Ints]:
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return table[index] == keys, index


class NGram:
    """An n-gram model over documents of integer symbols.

    Symbol 0 stands before the start of a document and is never predicted (bytes: NUL, which text does not hold).

    Args:
        order: length of the n-gram, context included.
        symbols: size of the alphabet; `order` symbols must fit 63 bits.
    """

    def __init__(self, order: int = 5, symbols: int = 256) -> None:
        self.order, self.symbols, self.bits = order, symbols, max(1, (symbols - 1).bit_length())
        if order < 1 or order * self.bits > 63:
            raise InputError(
                "order", order, f"expected 1 to {63 // self.bits} with {symbols} symbols: an n-gram is packed in 63 bits"
            )
        self.levels: list[_Level] = []

    def _grams(self, document: Symbols) -> Ints:
        """(T,) the n-gram of full order that ends at each symbol."""
        if len(document) and not 0 < document.min() <= document.max() < self.symbols:
            bounds = (int(document.min()), int(document.max()))
            raise InputError("symbols of the document", bounds, f"expected 1 to {self.symbols - 1}: 0 marks the start")
        keys = document.astype(np.int64)
        for back in range(1, self.order):
            keys[back:] |= document[:-back].astype(np.int64) << (self.bits * back)
        return keys

    def fit(self, documents: Iterable[Symbols]) -> NGram:
        """Count `documents` ((T,) int arrays each); returns itself."""
        keys = [self._grams(document) for document in documents]
        if not sum(map(len, keys)):
            raise InputError("documents", "empty", "expected at least one symbol to count")
        joined = np.concatenate(keys)
        del keys
        grams, counts = np.unique(joined, return_counts=True)
        levels = [_level(grams, counts, self.bits)]
        for order in range(self.order - 1, 0, -1):
            # A shorter n-gram counts once for each different symbol that was seen before it, not each time it was seen.
            grams, counts = np.unique(grams & ((1 << (self.bits * order)) - 1), return_counts=True)
            levels.append(_level(grams, counts, self.bits))
        self.levels = levels[::-1]
        return self

    def log2_probabilities(self, document: Symbols) -> Floats:
        """(T,) log2 of the probability of each symbol after all those before it."""
        keys = self._grams(document)
        probability = np.full(len(keys), 1 / (self.symbols - 1))
        for order, level in enumerate(self.levels, 1):
            gram = keys & ((1 << (self.bits * order)) - 1)
            known, at = _find(level.contexts, gram >> self.bits)
            seen, index = _find(level.grams, gram)
            mixed = np.where(seen, level.discounted[index], 0.0) + level.released[at] * probability
            probability = np.where(known, mixed / level.totals[at], probability)
        return np.log2(probability)


def ngram_bits_per_byte(train: Iterable[str], test: Iterable[str], order: int = 5) -> float:
    """Bits per byte of the `test` texts under a byte n-gram counted on the `train` texts."""
    model = NGram(order).fit(np.frombuffer(text.encode(), np.uint8) for text in train)
    bits, size = 0.0, 0
    for text in test:
        document = np.frombuffer(text.encode(), np.uint8)
        bits -= math.fsum(model.log2_probabilities(document))
        size += len(document)
    if not size:
        raise InputError("test", "empty", "expected at least one text that is not empty")
    return bits / size
