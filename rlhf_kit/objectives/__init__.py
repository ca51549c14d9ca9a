"""Losses, advantages and estimators as pure functions of tensors. They import torch only, and compute in fp32."""

from rlhf_kit.objectives.advantages import (
    discounted_returns,
    explained_variance,
    gae,
    group_normalise,
    leave_one_out,
    masked_mean,
    masked_var,
    masked_whiten,
    reinforce_plus_plus,
)
from rlhf_kit.objectives.classification import binary_cross_entropy
from rlhf_kit.objectives.ensemble import combine, score_spread
from rlhf_kit.objectives.kl import AdaptiveKL, FixedKL, exact_kl, kl_estimate, kl_loss, shape_rewards
from rlhf_kit.objectives.language_model import language_model_loss, linear_cross_entropy, shift_labels
from rlhf_kit.objectives.logprobs import linear_logprobs, padded_logprobs
from rlhf_kit.objectives.policy import (
    aggregate_units,
    clipped_surrogate,
    token_weights,
    truncated_importance_weights,
    value_loss,
)
from rlhf_kit.objectives.preference import LOSSES, Answers, PreferenceLoss, dpo, hinge, ipo, kto, orpo, robust_dpo, simpo
from rlhf_kit.objectives.process_reward import StepScore, first_error, score_so_far, step_cross_entropy, token_rewards
from rlhf_kit.objectives.reward_model import pairwise_loss

__all__ = [
    "LOSSES",
    "AdaptiveKL",
    "Answers",
    "FixedKL",
    "PreferenceLoss",
    "StepScore",
    "aggregate_units",
    "binary_cross_entropy",
    "clipped_surrogate",
    "combine",
    "discounted_returns",
    "dpo",
    "exact_kl",
    "explained_variance",
    "first_error",
    "gae",
    "group_normalise",
    "hinge",
    "ipo",
    "kl_estimate",
    "kl_loss",
    "kto",
    "language_model_loss",
    "leave_one_out",
    "linear_cross_entropy",
    "linear_logprobs",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "orpo",
    "padded_logprobs",
    "pairwise_loss",
    "reinforce_plus_plus",
    "robust_dpo",
    "score_so_far",
    "score_spread",
    "shape_rewards",
    "shift_labels",
    "simpo",
    "step_cross_entropy",
    "token_rewards",
    "token_weights",
    "truncated_importance_weights",
    "value_loss",
]
