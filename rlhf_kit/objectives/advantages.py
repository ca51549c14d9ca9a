"""Credit for each token: masked moments, generalised advantages, and the critic-free baselines.

Functions that need moments of the whole batch take `reduce`, which sums a small tensor over all ranks; nothing here
knows how. Left out (None), the batch is this process's own. Advantages are data: they carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes, real, valid

Reduce = Callable[[Tensor], Tensor]  # the sum over ranks of a small tensor, the same on every rank


def masked_mean(x: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """Mean of the valid elements, over all ranks.

    Args:
        x: any shape, anything (NaN too) where `mask` is False. mask: bool of that shape.
    Returns:
        a scalar.
    Raises:
        ValueError: shapes that differ, a mask that is not bool, no valid element on any rank.
    """
    return _moments(x, mask, reduce, "mean")[0]


def masked_var(x: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """Unbiased variance (divided by n - 1) of the valid elements, over all ranks.

    Args and errors as `masked_mean`, and at least two valid elements.
    """
    return _moments(x, mask, reduce, "variance")[1]


def masked_whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce | None = None) -> Tensor:
    """`(x - mean) / sqrt(var + 1e-8)`, plus the mean again unless `shift_mean`.

    Advantages lose their mean; rewards keep it, since it says whether answering was worth it.

    Args and errors as `masked_var`.
    Returns:
        the shape of `x`, zero where the mask is False.
    """
    mean, variance = _moments(x, mask, reduce, "variance")
    whitened = (real(x) - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)


def _moments(x: Tensor, mask: Tensor, reduce: Reduce | None, wanted: str) -> tuple[Tensor, Tensor]:
    check_shapes(x=x, mask=mask)
    check_mask(mask)
    total = reduce or (lambda local: local)
    x = valid(x, mask)
    sum_, count = total(torch.stack([x.sum(), mask.sum().to(x.dtype)])).unbind()
    need = 1 if wanted == "mean" else 2
    if int(count) < need:  # the same on every rank, so that all of them stop
        raise ValueError(f"mask has {int(count)} valid elements over all ranks, expected at least {need} for a {wanted}")
    mean = sum_ / count
    if wanted == "mean":
        return mean, mean.new_zeros(())
    # A second pass round the mean: the sum of squares alone cancels in fp32 when the mean is large.
    squares = total((x - mean).masked_fill(~mask, 0.0).square().sum())
    return mean, squares / (count - 1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over padded responses.

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = delta_t + gamma * lam * A_{t+1}`, `R_t = A_t + V_t`, V = 0 past the end.

    Args:
        rewards, values: (B, R), anything where `mask` is False.
        mask: (B, R) bool, one contiguous run a row.
    Returns:
        advantages, returns: (B, R) detached, zero where the mask is False.
    Raises:
        ValueError: shapes that differ, a mask that is not bool.
    """
    rewards, values = _padded(mask, rewards=rewards, values=values)
    advantages = torch.zeros_like(rewards)
    next_value, next_advantage = rewards.new_zeros(2, len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # On the right of the run everything is 0 already; on its left nothing may leak out of it.
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, torch.where(mask, advantages + values, 0.0)


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return to go, `G_t = r_t + gamma * G_{t+1}`. Arguments, result and errors as `gae`: (B, R)."""
    (rewards,) = _padded(mask, rewards=rewards)
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def reinforce_plus_plus(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0, reduce: Reduce | None = None) -> Tensor:
    """REINFORCE++ (Hu 2025): the return to go, whitened over every token of the batch. Arguments as `gae`; returns (B, R)."""
    return masked_whiten(discounted_returns(rewards, mask, gamma=gamma), mask, reduce=reduce)


def leave_one_out(scores: Tensor, group_ids: Tensor) -> Tensor:
    """RLOO (Ahmadian et al. 2024): each score less the mean of the others in its group.

    Args:
        scores: (B,). group_ids: (B,) long, equal for answers to one prompt, in any order; a group is whole on its rank.
    Returns:
        (B,) advantages, detached.
    Raises:
        ValueError: a group of one has no others.
    """
    scores, group, size, total = _groups(scores, group_ids)
    return scores - (total[group] - scores) / (size[group] - 1)


def group_normalise(scores: Tensor, group_ids: Tensor, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """GRPO (Shao et al. 2024): `(score - mean) / (std + eps)` within each group, std unbiased; Dr. GRPO with `scale=False`.

    A group whose scores are all equal gets zeros. Arguments, result and errors as `leave_one_out`.
    """
    scores, group, size, total = _groups(scores, group_ids)
    centred = scores - (total / size)[group]
    if not scale:
        return centred
    variance = torch.zeros_like(total).index_add_(0, group, centred.square()) / (size - 1)
    return centred / (variance.sqrt() + eps)[group]


def best_of_group(scores: Tensor, group_ids: Tensor, *, worst: float = 0.0) -> Tensor:
    """1 for the best of each group, `worst` for its worst, 0 in between; all 0 in a group whose scores are equal.

    Of answers that share the best or the worst score the first counts. Arguments, result and errors as `leave_one_out`.
    """
    scores, group, _, total = _groups(scores, group_ids)
    ranks = torch.zeros_like(scores)
    for index in range(len(total)):
        members = (group == index).nonzero()[:, 0]
        found = scores[members]
        if found.max() > found.min():
            ranks[members[found.argmin()]] = worst
            ranks[members[found.argmax()]] = 1.0
    return ranks


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """`1 - Var(returns - values) / Var(returns)`: 1 for a perfect critic, 0 for a constant one, over all ranks; a scalar."""
    values, returns = _padded(mask, values=values, returns=returns)
    return 1.0 - masked_var(returns - values, mask, reduce=reduce) / masked_var(returns, mask, reduce=reduce)


def _padded(mask: Tensor, **tensors: Tensor) -> list[Tensor]:
    """The tensors (B, R), checked, detached, and zero where the mask is False."""
    check_rank(2, mask=mask)
    check_mask(mask)
    check_shapes(mask=mask, **tensors)
    return [valid(x.detach(), mask) for x in tensors.values()]


def _groups(scores: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (B,), the index of each one's group (B,), and of every group its size and the sum of its scores."""
    check_rank(1, scores=scores)
    check_shapes(scores=scores, group_ids=group_ids)
    scores = real(scores.detach())
    names, group, size = group_ids.unique(return_inverse=True, return_counts=True)
    if bool((size < 2).any()):
        raise ValueError(f"group {int(names[size < 2][0])} has 1 answer, expected at least 2: sample more answers to each prompt")
    total = torch.zeros(len(names), dtype=scores.dtype, device=scores.device).index_add_(0, group, scores)
    return scores, group, size.to(scores.dtype), total
