"""The loss of loop two: policy and critic as one module whose forward is a micro-batch's share of an optimizer step."""

from __future__ import annotations

from torch import Tensor, nn

from rlhf_kit.batches import Rollout
from rlhf_kit.objectives.kl import kl_loss
from rlhf_kit.objectives.policy import token_weights, value_loss
from rlhf_kit.rollout.experience import response_prices
from rlhf_kit.training.algorithms import Algorithm
from rlhf_kit.training.online_config import OnlineConfig


class Learner(nn.Module):
    """Policy and critic as one module, so that one `prepare` wraps both; its forward is the loss of a micro-batch.

    A critic that is an `nn.Linear` is a head on the policy's trunk, into which the gradient of the value loss then flows.
    """

    def __init__(self, policy: nn.Module, critic: nn.Module | None, algorithm: Algorithm, config: OnlineConfig) -> None:
        super().__init__()
        self.policy, self.critic, self.algorithm, self.config = policy, critic, algorithm, config

    @property
    def shares_trunk(self) -> bool:
        """Whether the critic is a head on the policy."""
        return isinstance(self.critic, nn.Linear)

    def forward(
        self, part: Rollout, advantages: Tensor, returns: Tensor, units: float, tokens: float, kl_coef: float, learns: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch as its share of the global minibatch, and statistics as sums.

        Args:
            advantages, returns: (B, R) float, 0 where `part.response_mask` is False.
            units: terms of the policy loss (tokens or answers) in the whole minibatch, over all ranks.
            tokens: valid tokens in the whole minibatch, over all ranks.
            kl_coef: the price of distance now, where it is a term of the loss.
            learns: False while only the critic does.
        """
        config, algorithm, mask = self.config, self.algorithm, part.response_mask
        assert part.ref_logprobs is not None
        logprobs, entropy, values = response_prices(self.policy, self.critic, part, temperature=config.temperature)
        weights = token_weights(mask, algorithm.aggregate, max_length=config.max_new_tokens)
        policy_sum, stats = algorithm.surrogate(logprobs, part, advantages, weights, algorithm, config)
        stats |= {"policy_loss": policy_sum.detach(), "entropy": (entropy.detach() * mask).sum()}
        if algorithm.kl == "loss":
            estimator = config.kl_estimator or "k3"
            corrected = config.use_bias_correction_kl and estimator != "k2"  # k2's own gradient is right already
            old = part.old_logprobs if corrected else None
            kl_sum, _ = kl_loss(logprobs, part.ref_logprobs, mask, estimator=estimator, weights=weights, old_logprobs=old)
            policy_sum = policy_sum + kl_coef * kl_sum
            stats["kl_loss"] = kl_sum.detach()
        loss = policy_sum / units * float(learns)
        if values is not None:
            assert part.values is not None
            value_sum, value_stats = value_loss(values, part.values, returns, mask, cliprange_value=config.cliprange_value)
            loss = loss + config.vf_coef * value_sum / tokens
            stats |= {"value_loss": value_sum.detach(), "value_clipfrac": value_stats["clipfrac"]}
        return loss, stats
