"""Cross-entropy straight from hidden states, for pretraining and supervised fine-tuning.

Differs from `cross_entropy(hidden @ weight.T, labels)` in three ways: rows that are not trained are dropped before
the product, logits exist a chunk at a time, and the gradient is formed while the logits are at hand, so that the
backward costs one multiplication. The price is memory for the weight's gradient during the forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_kit.batches import IGNORE
from rlhf_kit.objectives.chunked import (
    HeadGradients,
    check_head,
    check_targets,
    default_chunk_rows,
    logit_chunks,
    matmul_dtype,
    softmax_dtype,
    softmax_spans,
)
from rlhf_kit.objectives.shapes import check_rank, check_shapes


def shift_labels(labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """The target of each position: the label of the next one.

    Args:
        labels: (B, T) long, standing where their tokens stand, IGNORE where nothing is trained.
        position_ids: (B, T) long of a packed batch; a document's first token (position 0) is then nobody's target.
    Returns:
        (B, T) long, IGNORE at the last position.
    """
    check_rank(2, labels=labels)
    if position_ids is not None:
        check_shapes(labels=labels, position_ids=position_ids)
        labels = labels.masked_fill(position_ids == 0, IGNORE)
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    return targets


def language_model_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, position_ids: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Next-token cross-entropy, summed over the trained tokens.

    Args:
        hidden: (B, T, D) final hidden states.
        weight, bias: (V, D) and (V,) or None, the output head.
        labels: (B, T) long where the input ids stand (shifted here), IGNORE where nothing is trained.
        position_ids: (B, T) long of a packed batch, so that no document predicts the next one's first token.
    Returns:
        loss sum in nats, and sums: `tokens` trained, `mean_token_accuracy` (tokens whose argmax is right).
    Raises:
        ValueError: shapes that do not fit, or a label outside the vocabulary.
    """
    check_rank(3, hidden=hidden)
    if hidden.shape[:2] != labels.shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, expected {tuple(hidden.shape[:2])}: one for each position")
    targets = shift_labels(labels, position_ids)
    loss_sum, correct = linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), bias)
    return loss_sum, {"tokens": (targets != IGNORE).sum(), "mean_token_accuracy": correct}


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """`cross_entropy(hidden @ weight.T + bias, labels, reduction="sum")` without the (N, V) logits.

    Products run in the autocast dtype if autocast is on, the softmax in fp32, and the weight's gradient adds up in fp32.
    Not differentiable twice.

    Args:
        hidden: (N, D), weight: (V, D), bias: (V,) or None; those that need no gradient cost none.
        labels: (N,) long, IGNORE for rows to leave out.
        chunk_rows: rows whose logits exist at once; chosen for the device if None.
    Returns:
        loss sum in nats (fp32, or fp64 given fp64), and the number of rows whose label has the one largest logit.
    Raises:
        ValueError: shapes that do not fit, or a label outside the vocabulary.
    """
    check_head(hidden, weight, labels, bias, chunk_rows)
    trained = (labels != IGNORE).nonzero().squeeze(1)
    if len(trained) < len(labels):
        hidden, labels = hidden[trained], labels[trained]
    check_targets(labels, len(weight))
    dtype = matmul_dtype(hidden, weight)
    rows = chunk_rows or default_chunk_rows(len(weight), dtype, hidden.device)
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, dtype, rows, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        dtype: torch.dtype,
        rows: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            grads, losses, correct = _forward_with_gradients(hidden, weight, bias, labels, dtype, rows, wanted)
        ctx.save_for_backward(*grads)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        loss_sum, correct = losses.sum(), correct.sum()
        ctx.mark_non_differentiable(correct)
        return loss_sum, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Out of place: the same gradients serve a second backward through a retained graph.
        scaled = [None if g is None else (g * grad_loss.to(g.dtype)).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes)]
        return *scaled, None, None, None, None


def _forward_with_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype, rows: int, wanted: list[bool]
) -> tuple[tuple[Tensor | None, ...], Tensor, Tensor]:
    """Gradients of the loss sum (of hidden, weight, bias, None where not wanted), the (N,) losses, the (N,) hits."""
    hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    wide = softmax_dtype(dtype)
    losses = hidden.new_empty(len(hidden), dtype=wide)
    correct = torch.empty_like(labels, dtype=torch.bool)
    grads = HeadGradients(hidden, weight, bias, wanted)
    for span, logits in logit_chunks(hidden, weight, bias, rows):
        for part in softmax_spans(logits):
            at = slice(span.start + part.start, span.start + part.stop)
            losses[at], correct[at] = _cross_entropy_(logits[part], labels[at], wide, any(wanted))
        if any(wanted):
            grads.add(span, logits)  # by now `logits` holds their gradient
    return grads.results(), losses, correct


def _cross_entropy_(logits: Tensor, labels: Tensor, wide: torch.dtype, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Losses and hits, (n,) each; `logits` (n, V) become softmax minus one-hot if `with_grad`, and are spent otherwise."""
    index = labels.unsqueeze(1)
    x = logits.to(wide)
    own = x.gather(1, index)
    rival = x.scatter_(1, index, -torch.inf).amax(1, keepdim=True)
    x.scatter_(1, index, own)
    probabilities = torch.softmax(x, 1)
    # The largest probability is at least 1/V: its logarithm gives log-sum-exp without a second pass of exponentials.
    log_normaliser = torch.maximum(own, rival) - probabilities.amax(1, keepdim=True).log()
    if with_grad:
        probabilities.scatter_add_(1, index, torch.full_like(own, -1.0))
        logits.copy_(probabilities)
    return (log_normaliser - own).squeeze(1), (own > rival).squeeze(1)
