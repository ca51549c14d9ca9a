"""Logits a chunk at a time, shared by the objectives that end in the vocabulary.

Two sizes, for two reasons. A chunk of rows goes through the matrix products: not too small, because every chunk reads the
whole head and adds to its whole gradient. A slice of a chunk goes through the softmax: small enough to stay in cache.
One buffer holds the logits of the chunk at hand and, in their place, their gradient; no (N, V) tensor is ever built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 64 * 2**20}  # logits of one chunk, at most
# Measured on one core: fresh memory costs more than products in cache, as long as enough rows pay for reading the head again.
CHUNK_BYTES_CACHED, CHUNK_ROWS = 16 * 2**20, 256
CHUNK_BYTES_ACCELERATOR = 256 * 2**20
SLICE_BYTES = {"cpu": 8 * 2**20}  # fp32 logits of one softmax; accelerators take a chunk at once


def matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the products run in: the autocast dtype where autocast is on, otherwise the wider of the two."""
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    device = hidden.device.type
    if wider != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return wider


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """What everything between the products runs in: fp64 for fp64, otherwise fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def most_chunk_rows(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows whose logits fill the device's budget, at least 16: what may be kept for a backward."""
    return max(16, CHUNK_BYTES.get(device.type, CHUNK_BYTES_ACCELERATOR) // (vocabulary * dtype.itemsize))


def default_chunk_rows(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows a chunk: within the budget and, on CPU, few enough for the logits to be in cache when their softmax is taken."""
    most = most_chunk_rows(vocabulary, dtype, device)
    return min(most, max(CHUNK_ROWS, CHUNK_BYTES_CACHED // (vocabulary * dtype.itemsize))) if device.type == "cpu" else most


def spans(length: int, size: int) -> Iterator[slice]:
    """`range(length)` cut into slices of `size`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int, into: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, logits of these rows). The logits live in one buffer that the next chunk overwrites, or stay in `into`.

    Args:
        hidden: (N, D), weight: (V, D), bias: (V,) or None, all of one dtype.
        rows: the most rows a chunk.
        into: (N, V), filled with all logits where given.
    """
    buffer = hidden.new_empty(min(rows, len(hidden)), len(weight)) if into is None else into
    for span in spans(len(hidden), rows):
        logits = buffer[: span.stop - span.start] if into is None else buffer[span]
        if bias is None:
            torch.mm(hidden[span], weight.T, out=logits)
        else:
            torch.addmm(bias, hidden[span], weight.T, out=logits)
        yield span, logits


def softmax_spans(logits: Tensor) -> Iterator[slice]:
    """Slices of a chunk, each small enough for its softmax to stay in cache."""
    budget = SLICE_BYTES.get(logits.device.type)
    yield from spans(len(logits), len(logits) if budget is None else max(1, budget // (4 * logits.shape[1])))


class HeadGradients:
    """Gradients of a linear head and of its input, gathered chunk by chunk; what is not wanted is not computed.

    Args:
        hidden, weight, bias: the head, already in the dtype of the products.
        wanted: which of the three need a gradient.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> None:
        wide = softmax_dtype(weight.dtype)
        self.wide, self.inputs, self.weights = wide, hidden, weight
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
        # Half-precision products are summed in fp32, through one buffer: a fresh one a chunk costs as much as the sum.
        self._product = torch.empty_like(weight) if wanted[1] and weight.dtype != wide else None

    def add(self, span: slice, grad_logits: Tensor) -> None:
        """Add the part of the rows `span`, whose logits have the gradient `grad_logits` (n, V)."""
        if self.hidden is not None:
            torch.mm(grad_logits, self.weights, out=self.hidden[span])
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=self.wide)
        if self.weight is not None and self._product is None:
            self.weight.addmm_(grad_logits.T, self.inputs[span])
        elif self.weight is not None:
            self.weight += torch.mm(grad_logits.T, self.inputs[span], out=self._product)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden, weight and bias, None where not wanted."""
        return self.hidden, self.weight, self.bias


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk_rows: int | None) -> None:
    """Shapes of a linear head and what it is asked for: hidden (N, D), weight (V, D), targets (N,), bias (V,).

    Raises:
        ValueError: names the tensor that does not fit.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}, expected (N, D) and (V, D): "
            "flatten the hidden states and pass the head of the same model"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected ({len(hidden)},): one for each row of hidden")
    if targets.dtype != torch.long:
        raise ValueError(f"targets have dtype {targets.dtype}, expected torch.int64: pass targets.long()")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({len(weight)},): one for each row of weight")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}, expected at least 1")


def check_targets(targets: Tensor, vocabulary: int) -> None:
    """Every target must be a row of the head.

    Raises:
        ValueError: a target lies outside the vocabulary.
    """
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= vocabulary):
        raise ValueError(
            f"targets reach from {int(targets.min())} to {int(targets.max())}, expected 0 to {vocabulary - 1}: "
            "the tokenizer and the model do not belong together"
        )
