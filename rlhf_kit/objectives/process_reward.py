"""The process reward model: the loss of its steps, and what an answer's steps add up to."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes, real, valid

StepScore = Literal["min", "product", "last", "sum"]


def step_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`-log softmax(z)[label]` of each step, summed over the steps.

    Sources: Uesato et al. 2022, section 2.4; Lightman et al. 2023, section 2.6. Two outputs, as in TRL.

    Args:
        logits: (N, 2), of wrong and correct. labels: (N,) bool, True where the step is correct.
    Returns:
        loss sum in nats, and sums over steps: `accuracy` (equal logits count half), `positive` (labels that are True), `steps`.
    Raises:
        ValueError: shapes that do not fit, labels that are not bool.
    """
    check_rank(2, logits=logits)
    check_rank(1, labels=labels)
    if logits.shape != (len(labels), 2):
        raise ValueError(f"logits have shape {tuple(logits.shape)}, expected ({len(labels)}, 2): wrong and correct of each step")
    check_mask(labels, "labels")
    loss = cross_entropy(real(logits), labels.long(), reduction="sum")
    with torch.no_grad():
        towards = torch.where(labels, 1.0, -1.0) * (real(logits)[:, 1] - real(logits)[:, 0])
        stats = {
            "accuracy": torch.where(towards == 0, 0.5, (towards > 0).to(towards.dtype)).sum(),
            "positive": labels.sum(),
            "steps": torch.tensor(len(labels), device=labels.device),
        }
    return loss, stats


def first_error(wrong: Tensor) -> Tensor:
    """(B,) long: the position of the first True of each row of `wrong`, (B, T) bool; T where there is none."""
    check_rank(2, wrong=wrong)
    check_mask(wrong, "wrong")
    T = wrong.shape[1]
    return torch.where(wrong, torch.arange(T, device=wrong.device), T).amin(1)


def score_so_far(correct: Tensor, ends: Tensor, how: StepScore) -> Tensor:
    """The score of an answer up to and including each token: what its steps so far add up to.

    Of the probabilities p that each step is correct: `product`, that all are, if they were independent (Lightman et al. 2023,
    section 2.6); `min`, the worst step (Wang et al. 2024, Math-Shepherd, section 3.3); `last`, the latest step; `sum`, which
    grows with the number of steps. The last column is the score of the answer; what a token adds to it is its reward:
    `token_rewards`.

    Args:
        correct: (B, R), probabilities where `ends` is True, anything elsewhere. ends: (B, R) bool, True at a step's last token.
    Returns:
        (B, R), 0 before the first step ends.
    Raises:
        ValueError: shapes that differ, ends that are not bool, an unknown `how`.
    """
    check_rank(2, ends=ends)
    check_mask(ends, "ends")
    check_shapes(ends=ends, correct=correct)
    p = valid(correct, ends)
    if how == "min":
        found = p.masked_fill(~ends, math.inf).cummin(1).values
    elif how == "product":
        found = p.masked_fill(~ends, 1.0).cumprod(1)
    elif how == "sum":
        found = p.cumsum(1)
    elif how == "last":
        columns = torch.arange(ends.shape[1], device=ends.device).expand_as(ends)
        found = p.gather(1, torch.where(ends, columns, 0).cummax(1).values)
    else:
        raise ValueError(f"how is {how!r}, expected 'min', 'product', 'last' or 'sum'")
    return torch.where(ends.cumsum(1) > 0, found, 0.0)


def token_rewards(correct: Tensor, ends: Tensor, how: StepScore) -> Tensor:
    """What each token adds to the score of the answer: 0 but where a step ends. Arguments, result and errors as `score_so_far`.

    The first step is paid its score and each later one the change, so that a row sums to the answer's score whatever `how`: with
    `sum` each step is paid its own probability, with `min` a step that is worse than all before costs the difference.
    """
    so_far = score_so_far(correct, ends, how)
    return torch.diff(so_far, dim=1, prepend=torch.zeros_like(so_far[:, :1]))
