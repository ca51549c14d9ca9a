"""The reward model's loss: people's choices as a Bradley-Terry likelihood."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_kit.objectives.shapes import check_rank, check_shapes, real


def pairwise_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    margin: Tensor | None = None,
    *,
    center_coef: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-logsigmoid(r_w - r_l - margin) + center_coef * (r_w + r_l)^2`, summed over the pairs.

    Sources: Ouyang et al. 2022, eq. 1; Touvron et al. 2023 (Llama 2), eq. 2 for the margin; Eisenstein et al. 2023 for the
    centring, which pins the level that the likelihood leaves free.

    Args:
        chosen_scores, rejected_scores: (B,). margin: (B,) or None.
        label_smoothing: the chance that a choice is the wrong way round, in [0, 0.5).
    Returns:
        loss sum, and sums over pairs: `accuracy` (ties count half), `margin` (r_w - r_l), `mean_reward`,
        `pairs`.
    Raises:
        ValueError: shapes that differ, an option out of range.
    """
    check_rank(1, chosen_scores=chosen_scores)
    check_shapes(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected at least 0 and less than 0.5")
    if center_coef < 0.0:
        raise ValueError(f"center_coef is {center_coef}, expected at least 0")
    chosen, rejected = real(chosen_scores), real(rejected_scores)
    difference = chosen - rejected
    logits = difference
    if margin is not None:
        check_shapes(chosen_scores=chosen_scores, margin=margin)
        logits = difference - real(margin)
    loss = -(1.0 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
    loss = loss + center_coef * (chosen + rejected).square()
    with torch.no_grad():
        stats = {
            "accuracy": torch.where(difference == 0, 0.5, (difference > 0).to(difference.dtype)).sum(),
            "margin": difference.sum(),
            "mean_reward": 0.5 * (chosen + rejected).sum(),
            "pairs": torch.tensor(len(chosen), device=chosen.device),
        }
    return loss.sum(), stats
