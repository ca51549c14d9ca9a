"""The loss of a yes-or-no classifier with one output: the logarithm of the odds that the answer is yes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes, real


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """`-logsigmoid(z)` where the label is True and `-logsigmoid(-z)` where it is False, summed over the rows.

    The logistic likelihood (Cox 1958). A label is taken to be wrong with chance `label_smoothing`, which then weighs the
    other term, as in `pairwise_loss`.

    Args:
        logits: (B,), the log-odds of True. labels: (B,) bool.
        label_smoothing: in [0, 0.5).
    Returns:
        loss sum in nats, and sums over rows: `accuracy` (a logit of 0 counts half), `logit`, `positive` (labels that are
        True), `rows`.
    Raises:
        ValueError: shapes that differ, labels that are not bool, an option out of range.
    """
    check_rank(1, logits=logits)
    check_shapes(logits=logits, labels=labels)
    check_mask(labels, "labels")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected at least 0 and less than 0.5")
    towards = torch.where(labels, real(logits), -real(logits))
    loss = -(1.0 - label_smoothing) * logsigmoid(towards) - label_smoothing * logsigmoid(-towards)
    with torch.no_grad():
        stats = {
            "accuracy": torch.where(towards == 0, 0.5, (towards > 0).to(towards.dtype)).sum(),
            "logit": real(logits).sum(),
            "positive": labels.sum(),
            "rows": torch.tensor(len(labels), device=labels.device),
        }
    return loss.sum(), stats
