"""Distance from the reference policy: per-token estimators, the controllers of its price, and the rewards it is paid in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_kit.objectives.shapes import check_mask, check_rank, check_shapes, real, valid

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """Single-sample estimates of KL(policy || reference) at tokens drawn from the policy (Schulman 2020, "Approximating KL").

    With d = logprobs - ref_logprobs: k1 = d, unbiased, any sign; k2 = d^2 / 2, biased, its gradient is that of the KL;
    k3 = exp(-d) - 1 + d, unbiased and never negative, of unbounded variance where the reference is much likelier.

    Args:
        logprobs, ref_logprobs: any one shape.
    Returns:
        that shape, fp32 (fp64 given fp64).
    Raises:
        ValueError: shapes that differ, an unknown estimator.
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = real(logprobs) - real(ref_logprobs)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kl_estimator is {estimator!r}, expected 'k1', 'k2' or 'k3'")


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) summed over the last dimension: what the estimators estimate, where everything can be enumerated.

    Args:
        log_p, log_q: (..., V) log-probabilities; -inf in `log_p` contributes 0.
    Returns:
        (...) in nats.
    """
    check_shapes(log_p=log_p, log_q=log_q)
    log_p, log_q = real(log_p), real(log_q)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: Estimator = "k3",
    weights: Tensor | None = None,
    old_logprobs: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The KL as a term of the loss (GRPO), to be scaled by its coefficient. The KL in the reward is `shape_rewards`; never both.

    The gradient of an estimate is not an estimate of the gradient: the tokens were drawn from the policy, too. Weighed by
    pi / pi_old, through which the gradient flows, it is (DeepSeek-AI 2025, DeepSeek-V3.2).

    Args:
        logprobs, ref_logprobs: (B, R), gradients flow to `logprobs` only.
        mask: (B, R) bool. weights: (B, R) from `token_weights`, the mask itself if None.
        old_logprobs: (B, R) of the policy that drew the tokens; None: estimates are not weighed.
    Returns:
        weighted sum, and sums over valid tokens: `kl`, `count`.
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    check_mask(mask)
    kl = kl_estimate(valid(logprobs, mask), valid(ref_logprobs.detach(), mask), estimator)
    if old_logprobs is not None:
        check_shapes(mask=mask, old_logprobs=old_logprobs)
        kl = kl * (valid(logprobs, mask) - valid(old_logprobs.detach(), mask)).clamp(-20.0, 20.0).exp()
    weighted = kl
    if weights is not None:
        check_shapes(mask=mask, weights=weights)
        weighted = kl * valid(weights.detach(), mask)
    return weighted.sum(), {"kl": kl.detach().sum(), "count": mask.sum()}


def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    kl_coef: float,
    estimator: Estimator = "k1",
    token_rewards: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`r_t = -kl_coef * k_t + [t is the last token] * score`. The last real token carries the score, also where no EOS came.

    With token rewards w, `r_t = -kl_coef * k_t + w_t + [t is the last token] * (score - sum(w))`: they say where the score is
    paid and never how much, so that a row sums to its score less the price of its KL either way.

    Args:
        scores: (B,). logprobs, ref_logprobs: (B, R), at the temperature of the sampler.
        mask: (B, R) bool. A row without a single token gets no reward at all.
        token_rewards: (B, R), the part of the score that is paid at a token of its own; None: the last one carries all of it.
    Returns:
        rewards, non_score_reward: (B, R) detached, zero where the mask is False.
    Raises:
        ValueError: shapes that do not fit, an unknown estimator.
    """
    check_rank(1, scores=scores)
    check_rank(2, mask=mask)
    check_mask(mask)
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    if len(scores) != len(mask):
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected ({len(mask)},): one for each response")
    logprobs, ref_logprobs = valid(logprobs.detach(), mask), valid(ref_logprobs.detach(), mask)
    non_score_reward = -kl_coef * kl_estimate(logprobs, ref_logprobs, estimator)
    # A token is the last one if it is valid and no later one is.
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    rewards = non_score_reward + torch.where(last, real(scores.detach()).unsqueeze(1), 0.0)
    if token_rewards is not None:
        check_shapes(mask=mask, token_rewards=token_rewards)
        paid = valid(token_rewards.detach(), mask)
        rewards = rewards + paid - torch.where(last, paid.sum(1, keepdim=True), 0.0)
    return rewards, non_score_reward


@dataclass
class FixedKL:
    """A constant price of the KL."""

    coef: float = 0.05

    def update(self, kl: float, episodes: int) -> None:
        """Nothing to adapt."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self.coef = float(state["coef"])


@dataclass
class AdaptiveKL:
    """A price that holds the KL near a target: `coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon`.

    Source: Ziegler et al. 2019, section 2.2.

    Args:
        coef: the price now.
        target: KL of a whole response, in nats.
        horizon: episodes over which the price can change by a fifth.
    Raises:
        ValueError: a target or horizon that is not positive, an update with a KL that is not finite.
    """

    coef: float = 0.05
    target: float = 6.0
    horizon: float = 10_000

    def __post_init__(self) -> None:
        for name in ("target", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"kl {name} is {getattr(self, name)}, expected more than 0")

    def update(self, kl: float, episodes: int) -> None:
        """Adapt to the mean KL of `episodes` responses, the same number on every rank."""
        if not math.isfinite(kl):
            raise ValueError(f"objective/kl is {kl}, expected a finite number: the policy or the reference has diverged")
        self.coef *= 1.0 + max(-0.2, min(0.2, kl / self.target - 1.0)) * episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps. Target and horizon belong to the configuration."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self.coef = float(state["coef"])
