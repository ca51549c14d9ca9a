"""The online algorithms: each is a line in the table, and at most one short function from (rollout, rewards) to advantages.

    score -> shape_rewards -> ADVANTAGES -> ratio -> SURROGATE -> AGGREGATE

To add one, write its function and its line; the loop (`online.py`) does not change. What a line fixes is what the paper
fixes; clip ranges, coefficients and passes are the run's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rlhf_kit.batches import Rollout
from rlhf_kit.objectives.advantages import (
    Reduce,
    best_of_group,
    gae,
    group_normalise,
    leave_one_out,
    masked_whiten,
    reinforce_plus_plus,
)
from rlhf_kit.objectives.policy import Aggregate, Level, cispo_surrogate, clipped_surrogate, weighted_likelihood
from rlhf_kit.objectives.preference import Answers, dpo

if TYPE_CHECKING:
    from rlhf_kit.training.online_config import OnlineConfig

Advantages = Callable[[Rollout, Tensor, "OnlineConfig", Reduce], tuple[Tensor, Tensor]]
Surrogate = Callable[[Tensor, Rollout, Tensor, Tensor, "Algorithm", "OnlineConfig"], tuple[Tensor, dict[str, Tensor]]]


def clipped(
    logprobs: Tensor, part: Rollout, advantages: Tensor, weights: Tensor, algorithm: Algorithm, config: OnlineConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's surrogate, at the level of the algorithm's ratio."""
    assert part.old_logprobs is not None
    return clipped_surrogate(
        logprobs,
        part.old_logprobs,
        advantages,
        part.response_mask,
        cliprange=config.cliprange,
        cliprange_high=config.cliprange_high,
        dual_clip=config.dual_clip,
        level=algorithm.ratio,
        weights=weights,
    )


def clipped_weight(
    logprobs: Tensor, part: Rollout, advantages: Tensor, weights: Tensor, algorithm: Algorithm, config: OnlineConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """CISPO's; the largest weight is 1 + cliprange_high, 5 where that is not given."""
    assert part.old_logprobs is not None
    most = 1.0 + (4.0 if config.cliprange_high is None else config.cliprange_high)
    return cispo_surrogate(logprobs, part.old_logprobs, advantages, part.response_mask, max_ratio=most, weights=weights)


def likelihood(
    logprobs: Tensor, part: Rollout, advantages: Tensor, weights: Tensor, algorithm: Algorithm, config: OnlineConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fine-tuning on the answers that were kept."""
    assert part.old_logprobs is not None
    return weighted_likelihood(logprobs, part.old_logprobs, advantages, part.response_mask, weights=weights)


def dpo_on_pairs(
    logprobs: Tensor, part: Rollout, advantages: Tensor, weights: Tensor, algorithm: Algorithm, config: OnlineConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO on neighbouring rows, the one with the positive advantage preferred; a tie teaches nothing. beta is `kl_coef`."""
    assert part.old_logprobs is not None
    assert part.ref_logprobs is not None
    mask, lengths = part.response_mask, part.lengths
    won = advantages.sum(1) > 0
    first = torch.arange(0, len(won), 2, device=won.device)
    first = first[won[0::2] | won[1::2]]
    better, worse = torch.where(won[first], first, first + 1), torch.where(won[first], first + 1, first)
    logps, ref_logps = (logprobs * mask).sum(1), (part.ref_logprobs * mask).sum(1)
    chosen, rejected = (Answers(logps[rows], lengths[rows], ref_logps[rows]) for rows in (better, worse))
    loss, _ = dpo(chosen, rejected, beta=config.kl_coef)
    zeros = torch.zeros_like(logprobs)
    _, stats = clipped_surrogate(logprobs.detach(), part.old_logprobs, zeros, mask, level="sequence")
    return loss + 0.0 * logps.sum(), stats  # the 0 lets a micro-batch of ties reach every parameter


@dataclass(frozen=True)
class Algorithm:
    """One line of the table.

    `advantages(rollout, rewards (B, R), config, reduce)` returns `(advantages (B, R), returns (B, R))`, 0 where nothing is
    to be learned; `surrogate(logprobs, part, advantages, weights, algorithm, config)` the loss, summed, and its statistics.
    """

    advantages: Advantages
    surrogate: Surrogate = clipped
    ratio: Level = "token"  # of a token, of the whole answer, or its geometric mean
    aggregate: Aggregate = "token_mean"
    critic: bool = False  # values are learned
    kl: Literal["reward", "loss", "surrogate"] = "reward"  # where distance from the reference is priced, once
    grouped: bool = False  # compares answers to the same prompt: group_size of 2 or more
    pairs: bool = False  # two answers to a prompt are one term of the loss and stay together: group_size of 2
    skip_zero: bool = False  # answers whose advantages are all 0 leave the update, and its count


def ppo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """GAE against the critic, whitened over every rank's valid tokens (Schulman et al. 2017).

    With `critic_lam` the critic learns returns of a lambda of its own (Yuan et al. 2025, VC-PPO: "decoupled GAE").
    """
    assert rollout.values is not None
    mask = rollout.response_mask
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
    if config.critic_lam is not None:
        _, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=config.critic_lam)
    return masked_whiten(advantages, mask, reduce=reduce), returns


def reinforce(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """REINFORCE++: the return to go of each token, whitened over the batch (Hu 2025)."""
    advantages = reinforce_plus_plus(rewards, rollout.response_mask, gamma=config.gamma, reduce=reduce)
    return advantages, torch.zeros_like(rewards)


def rloo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Each answer's return minus the mean return of the others to its prompt (Ahmadian et al. 2024, eq. 8)."""
    return _a_response(rollout, leave_one_out(rewards.sum(1), rollout.group_ids))


def grpo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Each answer's return, normalised within its group by mean and deviation (Shao et al. 2024, section 4.1.2)."""
    return _a_response(rollout, group_normalise(rewards.sum(1), rollout.group_ids))


def dr_grpo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """GRPO without the deviation, which weighs prompts by how alike their answers score (Liu et al. 2025, Dr. GRPO)."""
    return _a_response(rollout, group_normalise(rewards.sum(1), rollout.group_ids, scale=False))


def best_of_n(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """1 for the best answer of each group and 0 for the rest: RAFT fine-tunes on best-of-n (Dong et al. 2023)."""
    return _a_response(rollout, best_of_group(rewards.sum(1), rollout.group_ids, worst=0.0))


def online_dpo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """1 for the better of two answers, -1 for the other, 0 for a tie (Guo et al. 2024)."""
    return _a_response(rollout, best_of_group(rewards.sum(1), rollout.group_ids, worst=-1.0))


def _a_response(rollout: Rollout, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) advantages on every token of their answer; no returns, since no critic learns."""
    spread = advantages.unsqueeze(1) * rollout.response_mask
    return spread, torch.zeros_like(spread)


ALGORITHMS = {
    "ppo": Algorithm(ppo, critic=True),
    "reinforce++": Algorithm(reinforce),
    "rloo": Algorithm(rloo, ratio="sequence", aggregate="sequence_mean", grouped=True),
    "grpo": Algorithm(grpo, aggregate="sequence_mean", kl="loss", grouped=True),
    "dr_grpo": Algorithm(dr_grpo, aggregate="sequence_sum", kl="loss", grouped=True),
    "dapo": Algorithm(grpo, kl="loss", grouped=True, skip_zero=True),  # and in the paper --cliprange_high 0.28 --kl_coef 0
    "gspo": Algorithm(grpo, ratio="sequence_mean", aggregate="sequence_mean", kl="loss", grouped=True),
    "cispo": Algorithm(grpo, clipped_weight, kl="loss", grouped=True),
    "raft": Algorithm(best_of_n, likelihood, grouped=True, skip_zero=True),
    "online_dpo": Algorithm(
        online_dpo, dpo_on_pairs, ratio="sequence", aggregate="sequence_mean", kl="surrogate", grouped=True, pairs=True
    ),
}
