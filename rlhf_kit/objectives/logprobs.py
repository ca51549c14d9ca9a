"""Log-probabilities and entropy of given tokens straight from hidden states, for rollouts and their updates.

The gradient depends on what is done with the log-probabilities, so unlike the cross-entropy it cannot be formed in
the forward. Logits that fit the budget are kept for the backward, otherwise each chunk is computed again: memory stays
below a constant, whatever N and V.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_kit.objectives.chunked import (
    HeadGradients,
    check_head,
    check_targets,
    default_chunk_rows,
    logit_chunks,
    matmul_dtype,
    most_chunk_rows,
    softmax_dtype,
    softmax_spans,
    spans,
)
from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float | None = 1.0,
    with_entropy: bool = True,
    entropy_grad: bool = False,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`log_softmax(z / (temperature + 1e-7))` at `targets`, and the entropy of that distribution, z = hidden @ weight.T + bias.

    Sampler, policy, reference and update must all use this temperature, or their ratio is not 1 at the first step.
    Products run in the autocast dtype if autocast is on, the softmax in fp32. Not differentiable twice.

    Args:
        hidden: (N, D), weight: (V, D), bias: (V,) or None; those that need no gradient cost none.
        targets: (N,) long.
        temperature: that of the sampler; None where there was none, for the model's own distribution to the last digit.
        with_entropy: False saves a pass and returns zeros for the entropy.
        entropy_grad: True for an entropy bonus; otherwise the entropy is detached.
        chunk_rows: rows whose logits exist at once; chosen for the device if None.
    Returns:
        logprobs, entropy: (N,) in nats, fp32 (fp64 given fp64).
    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary, a temperature that is not positive.
    """
    check_head(hidden, weight, targets, bias, chunk_rows)
    check_targets(targets, len(weight))
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected more than 0: greedy answers have no gradient")
    if entropy_grad and not with_entropy:
        raise ValueError("entropy_grad is True, expected False where with_entropy is False")
    dtype = matmul_dtype(hidden, weight)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    keep = wanted and len(hidden) <= (chunk_rows or most_chunk_rows(len(weight), dtype, hidden.device))
    rows = chunk_rows or default_chunk_rows(len(weight), dtype, hidden.device)
    scale = 1.0 if temperature is None else 1.0 / (temperature + 1e-7)
    return _LinearLogprobs.apply(hidden, weight, bias, targets, scale, with_entropy, entropy_grad, dtype, rows, keep)


def padded_logprobs(
    hidden: Tensor,
    weight: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float | None = 1.0,
    with_entropy: bool = True,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """`linear_logprobs` of padded responses; padding is never computed.

    Args:
        hidden: (B, R, D), the states that predict the response tokens (one position before each).
        weight, bias: (V, D) and (V,) or None, the output head.
        response_ids: (B, R) long, response_mask: (B, R) bool.
    Returns:
        logprobs, entropy: (B, R), zero where the mask is False.
    Raises:
        ValueError: as `linear_logprobs`.
    """
    check_rank(3, hidden=hidden)
    check_mask(response_mask, "response_mask")
    check_shapes(response_ids=response_ids, response_mask=response_mask)
    if hidden.shape[:2] != response_ids.shape:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected {(*response_ids.shape, hidden.shape[2])}")
    flat = linear_logprobs(
        hidden[response_mask],
        weight,
        response_ids[response_mask],
        bias,
        temperature=temperature,
        with_entropy=with_entropy,
        entropy_grad=entropy_grad,
    )
    logprobs, entropy = (x.new_zeros(response_mask.shape).masked_scatter(response_mask, x) for x in flat)
    return logprobs, entropy


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        with_entropy: bool,
        entropy_grad: bool,
        dtype: torch.dtype,
        rows: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = softmax_dtype(dtype)
        kept = hidden.new_empty(len(hidden), len(weight), dtype=dtype) if keep else None
        logprobs = hidden.new_empty(len(hidden), dtype=wide)
        entropy = torch.zeros_like(logprobs)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            for span, logits in logit_chunks(h, w, b, rows, into=kept):
                for part in softmax_spans(logits):
                    at = slice(span.start + part.start, span.start + part.stop)
                    logs = torch.log_softmax(logits[part].to(wide) * scale, 1)
                    logprobs[at] = logs.gather(1, targets[at].unsqueeze(1)).squeeze(1)
                    if with_entropy:
                        entropy[at] = -logs.exp().mul_(logs).sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy if entropy_grad else None, kept)
        ctx.scale, ctx.dtype, ctx.rows = scale, dtype, rows
        ctx.set_materialize_grads(False)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, kept = ctx.saved_tensors
        wide = softmax_dtype(ctx.dtype)
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(targets, dtype=wide)
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = hidden.to(ctx.dtype), weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
            grads = HeadGradients(h, w, b, ctx.needs_input_grad)
            # What autograd keeps is not ours to write on.
            own_buffer = None if kept is None else kept.new_empty(min(ctx.rows, len(h)), len(w))
            chunks = logit_chunks(h, w, b, ctx.rows) if kept is None else ((s, kept[s]) for s in spans(len(h), ctx.rows))
            for span, logits in chunks:
                grad_logits = logits if own_buffer is None else own_buffer[: len(logits)]
                for part in softmax_spans(logits):
                    at = slice(span.start + part.start, span.start + part.stop)
                    x = logits[part].to(wide) * ctx.scale
                    own = grad_logprobs[at].unsqueeze(1).mul(ctx.scale)
                    if grad_entropy is None:
                        grad = torch.softmax(x, 1).mul_(-own)
                    else:
                        # dH/dz = -p (log p + H)
                        logs = torch.log_softmax(x, 1)
                        pull = grad_entropy[at].unsqueeze(1).mul(ctx.scale)
                        grad = logs.exp().mul_((logs + entropy[at].unsqueeze(1)).mul_(-pull).sub_(own))
                    grad_logits[part] = grad.scatter_add_(1, targets[at].unsqueeze(1), own)
                grads.add(span, grad_logits)
        found = [None if g is None else g.to(x.dtype) for g, x in zip(grads.results(), (hidden, weight, bias))]
        return *found, None, None, None, None, None, None, None
