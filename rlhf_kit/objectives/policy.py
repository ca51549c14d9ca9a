"""The update: clipped surrogate, clipped value loss, and the weights that turn sums over tokens into means by name.

Every loss is a sum; whoever owns the optimizer step divides by the count of the whole step (`aggregate_units` over all
ranks and micro-batches), so that neither accumulation nor the number of ranks changes the gradient. Statistics are
sums over valid units only, with their `count`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes, valid

Aggregate = Literal["token_mean", "sequence_mean", "sequence_sum"]
Level = Literal["token", "sequence", "sequence_mean"]
_UNKNOWN_AGGREGATE = "aggregate is {!r}, expected 'token_mean', 'sequence_mean' or 'sequence_sum'"


def token_weights(mask: Tensor, aggregate: Aggregate = "token_mean", max_length: int | None = None) -> Tensor:
    """What each token's loss counts, so that `sum(weights * loss) / aggregate_units` is the mean that is named.

    `token_mean`: every token counts 1 (PPO, DAPO). `sequence_mean`: every answer counts 1, shared by its tokens (GRPO).
    `sequence_sum`: every token counts 1 / max_length (Dr. GRPO, which removes the bias towards short right answers).

    Args:
        mask: (B, R) bool. max_length: the longest answer allowed, for `sequence_sum` only.
    Returns:
        (B, R) fp32, zero where the mask is False.
    Raises:
        ValueError: an unknown name, or `sequence_sum` without a positive `max_length`.
    """
    check_rank(2, mask=mask)
    check_mask(mask)
    weights = mask.float()
    if aggregate == "token_mean":
        return weights
    if aggregate == "sequence_mean":
        return weights / weights.sum(1, keepdim=True).clamp_min(1.0)
    if aggregate == "sequence_sum":
        if max_length is None or max_length < 1:
            raise ValueError(f"max_length is {max_length}, expected the longest answer allowed, at least 1")
        return weights / max_length
    raise ValueError(_UNKNOWN_AGGREGATE.format(aggregate))


def aggregate_units(mask: Tensor, aggregate: Aggregate = "token_mean") -> Tensor:
    """What to divide by, once summed over the whole optimizer step: valid tokens, or answers that have any; a long scalar."""
    check_rank(2, mask=mask)
    check_mask(mask)
    if aggregate == "token_mean":
        return mask.sum()
    if aggregate in ("sequence_mean", "sequence_sum"):
        return mask.any(1).sum()
    raise ValueError(_UNKNOWN_AGGREGATE.format(aggregate))


def truncated_importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, cap: float = 2.0) -> Tensor:
    """`min(pi_old / pi_sampler, cap)`, for answers from a sampler that is not quite the policy (another precision or engine).

    Args:
        old_logprobs, sampler_logprobs: (B, R). mask: (B, R) bool. cap: the largest weight.
    Returns:
        (B, R) detached, to multiply `token_weights` by; zero where the mask is False.
    """
    check_shapes(old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    check_mask(mask)
    log_ratio = valid(old_logprobs.detach(), mask) - valid(sampler_logprobs.detach(), mask)
    return log_ratio.exp().clamp_max(cap) * mask


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cliprange: float = 0.2,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    log_ratio_clamp: float = 20.0,
    level: Level = "token",
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective (Schulman et al. 2017, eq. 7), as a loss: `max(-A * rho, -A * clip(rho, 1 - c, 1 + c_high))`.

    Args:
        logprobs, old_logprobs: (B, R); gradients flow to `logprobs` only.
        advantages: (B, R), or (B,) for one a response. mask: (B, R) bool.
        cliprange, cliprange_high: c below and c_high above (c if None; DAPO uses 0.2 and 0.28).
        dual_clip: more than 1; where A < 0 the loss is at most `-A * dual_clip` (Ye et al. 2020, eq. 5).
        log_ratio_clamp: bound of |log rho|, so that one absurd token cannot make the loss infinite.
        level: rho of a token; of the whole response (`sequence`, product over its tokens: RLOO); or its geometric mean
            over the tokens (`sequence_mean`: GSPO, Zheng et al. 2025).
        weights: (B, R) from `token_weights`; if None, every token counts 1, or every response at the sequence levels.
    Returns:
        weighted sum of the losses, and sums over valid tokens (over responses, at the sequence levels): `approxkl`
        ((log rho)^2 / 2), `clipfrac` (the clip binds), `ratio`, `ratio_sq`, and their `count`.
    Raises:
        ValueError: shapes that differ, a mask that is not bool, an option out of range.
    """
    check_rank(2, mask=mask)
    check_mask(mask)
    if advantages.ndim == 1 and len(advantages) == len(mask):
        advantages = advantages.unsqueeze(1).expand(mask.shape)
    check_shapes(mask=mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clips(cliprange, cliprange_high, dual_clip, log_ratio_clamp)
    advantages = valid(advantages.detach(), mask)
    log_ratio = _at_level(valid(logprobs, mask) - valid(old_logprobs.detach(), mask), mask, level)
    ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    clipped = ratio.clamp(1.0 - cliprange, 1.0 + (cliprange if cliprange_high is None else cliprange_high))

    plain_loss, clipped_loss = -advantages * ratio, -advantages * clipped
    loss = torch.maximum(plain_loss, clipped_loss)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    if weights is None:
        weights = token_weights(mask, "token_mean" if level == "token" else "sequence_mean")
    loss = loss * _checked_weights(weights, mask)

    binds = clipped_loss > plain_loss
    unit = mask if level == "token" else mask.any(1, keepdim=True)
    return loss.sum(), _ratio_sums(log_ratio, ratio, binds if level == "token" else binds.any(1, keepdim=True), unit)


def cispo_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    max_ratio: float = 5.0,
    log_ratio_clamp: float = 20.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-sg(min(rho, max_ratio)) * A * log pi`: the weight is clipped, no token loses its gradient (MiniMax 2025, eq. 4).

    Arguments, result and errors as `clipped_surrogate` at token level; `clipfrac` counts the weights that were cut.
    """
    check_rank(2, mask=mask)
    check_mask(mask)
    check_shapes(mask=mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if not max_ratio > 1:
        raise ValueError(f"max_ratio is {max_ratio}, expected more than 1")
    logprobs = valid(logprobs, mask)
    log_ratio = (logprobs - valid(old_logprobs, mask)).detach()
    ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    loss = -ratio.clamp_max(max_ratio) * valid(advantages.detach(), mask) * logprobs
    loss = loss * _checked_weights(token_weights(mask) if weights is None else weights, mask)
    return loss.sum(), _ratio_sums(log_ratio, ratio, ratio > max_ratio, mask)


def weighted_likelihood(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-A * log pi`: with A = 1 the negative log-likelihood of one's own answers (RAFT), with any A plain REINFORCE.

    Arguments, result and errors as `clipped_surrogate` at token level; nothing is clipped.
    """
    check_rank(2, mask=mask)
    check_mask(mask)
    check_shapes(mask=mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    logprobs = valid(logprobs, mask)
    loss = (
        -valid(advantages.detach(), mask) * logprobs * _checked_weights(token_weights(mask) if weights is None else weights, mask)
    )
    log_ratio = (logprobs - valid(old_logprobs, mask)).detach()
    return loss.sum(), _ratio_sums(log_ratio, log_ratio.exp(), torch.zeros_like(mask), mask)


@torch.no_grad()
def _ratio_sums(log_ratio: Tensor, ratio: Tensor, binds: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """Sums over the units, tokens or answers: how far the policy has moved since the answers were sampled."""
    stats = {"approxkl": 0.5 * log_ratio.square(), "clipfrac": binds, "ratio": ratio, "ratio_sq": ratio.square(), "count": unit}
    return {name: x.masked_fill(~unit, 0).sum() for name, x in stats.items()}


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    cliprange_value: float | None = 0.2,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)`, as in the reference PPO; `0.5 * (V - R)^2` without c.

    Args:
        values, old_values, returns: (B, R); gradients flow to `values` only. mask: (B, R) bool.
        cliprange_value: c, or None for the plain square.
        weights: (B, R) from `token_weights`, the mask itself if None.
    Returns:
        weighted sum of the losses, and sums over valid tokens: `clipfrac`, `count`.
    Raises:
        ValueError: shapes that differ, a mask that is not bool, a clip range that is not positive.
    """
    check_rank(2, mask=mask)
    check_mask(mask)
    check_shapes(mask=mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = valid(values, mask), valid(old_values.detach(), mask), valid(returns.detach(), mask)
    loss = plain = (values - returns).square()
    if cliprange_value is not None:
        if not cliprange_value > 0:
            raise ValueError(f"cliprange_value is {cliprange_value}, expected more than 0, or None not to clip")
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        loss = torch.maximum(plain, (clipped - returns).square())
    binds = (loss > plain).masked_fill(~mask, False)
    loss = loss * (mask if weights is None else _checked_weights(weights, mask))
    return 0.5 * loss.sum(), {"clipfrac": binds.sum(), "count": mask.sum()}


def _at_level(log_ratio: Tensor, mask: Tensor, level: Level) -> Tensor:
    """(B, R) at token level, (B, 1) at the sequence levels."""
    if level == "token":
        return log_ratio
    if level == "sequence":
        return log_ratio.sum(1, keepdim=True)
    if level == "sequence_mean":
        return log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
    raise ValueError(f"level is {level!r}, expected 'token', 'sequence' or 'sequence_mean'")


def _checked_weights(weights: Tensor, mask: Tensor) -> Tensor:
    check_shapes(mask=mask, weights=weights)
    return valid(weights.detach(), mask)


def _check_clips(cliprange: float, cliprange_high: float | None, dual_clip: float | None, log_ratio_clamp: float) -> None:
    if not 0 < cliprange < 1:
        raise ValueError(f"cliprange is {cliprange}, expected between 0 and 1")
    if cliprange_high is not None and not cliprange_high > 0:
        raise ValueError(f"cliprange_high is {cliprange_high}, expected more than 0, or None for the same as cliprange")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected more than 1, or None to leave it out")
    if not log_ratio_clamp > 0:
        raise ValueError(f"log_ratio_clamp is {log_ratio_clamp}, expected more than 0")
