"""The settings that both sides share, in the field's words; `ours.py` and `theirs.py` translate them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_kit.config import check_least
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.loading import load_causal_lm, load_scalar_model


@dataclass
class PPOSettings:
    """PPO as both sides run it. The loss and its coefficients are the defaults of Huang et al. 2024."""

    rollouts: int = 36
    batch_size: int = 128  # answers a rollout
    prompt_tokens: int = 8  # of every prompt, bos included
    answer_tokens: int = 32  # of every answer: nothing ends one early
    num_epochs: int = 2  # passes over a rollout
    num_minibatches: int = 2  # optimizer steps a pass
    learning_rate: float = 3e-4  # of policy and critic, falling linearly to 0 over the rollouts
    kl_coef: float = 0.13
    gamma: float = 1.0
    lam: float = 0.8  # below the field's 0.95: the critic, which starts as the reward model, knows much of a token's worth
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    adam_eps: float = 1e-5
    temperature: float = 1.0

    @property
    def micro_batch(self) -> int:
        """Answers a forward with gradient: a whole minibatch, which is where TRL's minibatches are optimizer steps."""
        return self.batch_size // self.num_minibatches

    @property
    def optimizer_steps(self) -> int:
        """In all."""
        return self.rollouts * self.num_epochs * self.num_minibatches

    @property
    def episodes(self) -> int:
        """In all."""
        return self.rollouts * self.batch_size

    def check(self) -> None:
        """Refuse by name what the two sides could not do alike."""
        check_least(self, rollouts=1, batch_size=1, prompt_tokens=1, answer_tokens=1, num_epochs=1, num_minibatches=1)
        if self.batch_size % self.num_minibatches:
            mend = f"expected a divisor of --batch_size ({self.batch_size}): TRL's minibatches are all of one size"
            raise InputError("--num_minibatches", self.num_minibatches, mend)


@dataclass
class Start:
    """Where both sides start: model directories, and the prompts of every rollout in their order."""

    reference: Path  # the policy's first weights, and what it stays near
    reward: Path  # the classifier whose log-odds are the reward, and the critic's first weights
    prompts: Tensor  # (rollouts * batch_size, prompt_tokens) long
    seed: int = 0

    def models(self) -> dict[str, Any]:
        """Fresh copies of the four models, dropout off."""
        return {
            "policy": load_causal_lm(self.reference, dropout=0.0),
            "reference": load_causal_lm(self.reference, dropout=0.0).eval().requires_grad_(False),
            "reward": load_scalar_model(self.reward, dropout=0.0, trained_as="reward").eval().requires_grad_(False),
            "critic": load_scalar_model(self.reward, dropout=0.0, trained_as="critic"),
        }

    def tokenizer(self) -> Any:
        """The one tokenizer of all models."""
        return load_tokenizer(self.reference)
