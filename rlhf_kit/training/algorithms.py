"""The online algorithms: each is one function from (rollout, rewards) to advantages, and a line in the table.

    score -> shape_rewards -> ADVANTAGES -> ratio -> clipped surrogate -> aggregate

To add one, write its function and its line; the loop (`online.py`) does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rlhf_kit.batches import Rollout
from rlhf_kit.objectives.advantages import Reduce, gae, leave_one_out, masked_whiten

if TYPE_CHECKING:
    from rlhf_kit.training.online_config import OnlineConfig


@dataclass(frozen=True)
class Algorithm:
    """One line of the table.

    `advantages(rollout, rewards (B, R), config, reduce)` returns `(advantages (B, R), returns (B, R))`; `ratio` says
    whether the importance ratio is a token's or the whole answer's; `critic` whether values are learned.
    """

    advantages: Callable[[Rollout, Tensor, OnlineConfig, Reduce], tuple[Tensor, Tensor]]
    ratio: Literal["token", "sequence"]
    critic: bool


def ppo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """GAE against the critic, whitened over every rank's valid tokens (Schulman et al. 2017)."""
    assert rollout.values is not None
    mask = rollout.response_mask
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
    return masked_whiten(advantages, mask, reduce=reduce), returns


def rloo(rollout: Rollout, rewards: Tensor, config: OnlineConfig, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Each answer's return minus the mean return of the others to its prompt (Ahmadian et al. 2024, eq. 8)."""
    advantages = leave_one_out(rewards.sum(1), rollout.group_ids)
    return advantages.unsqueeze(1) * rollout.response_mask, torch.zeros_like(rewards)


ALGORITHMS = {
    "ppo": Algorithm(ppo, ratio="token", critic=True),
    "rloo": Algorithm(rloo, ratio="sequence", critic=False),
}
