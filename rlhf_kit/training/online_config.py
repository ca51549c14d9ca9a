"""The settings of loop two (`online.py`), and the refusal by name of those that cannot work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from rlhf_kit.config import check_least
from rlhf_kit.errors import InputError
from rlhf_kit.training.algorithms import Algorithm
from rlhf_kit.training.precision import Precision


@dataclass
class OnlineConfig:
    """How to learn from one's own samples. Defaults are PPO's in Huang et al. 2024 where they name one."""

    output_dir: Path = Path("runs/ppo")  # where the policy, the critic, metrics and checkpoints go
    seed: int = 0
    algorithm: Literal["ppo", "reinforce++", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "raft", "online_dpo"] = (
        "ppo"  # rlhf_kit/training/algorithms.py
    )
    total_steps: int = 100  # rollouts; each is followed by num_epochs * num_minibatches optimizer steps
    batch_size: int = 64  # answers a rollout, over all devices
    group_size: int = 1  # answers to the same prompt; algorithms that compare them need at least 2
    micro_batch_size: int = 16  # answers a forward
    num_epochs: int = 4  # passes over each rollout
    num_minibatches: int = 1  # optimizer steps a pass
    max_new_tokens: int = 64
    temperature: float = 1.0
    missing_eos_penalty: float = 1.0  # subtracted from the score of an answer that never stopped
    kl_coef: float = 0.05  # beta: the price of a nat of distance from the reference
    kl_target: float | None = None  # nats an answer; where given, beta adapts to hold it
    kl_horizon: float = 10_000.0  # episodes over which the adaptive beta moves
    kl_in: Literal["reward", "loss"] | None = None  # where that price is paid; None: where the algorithm's paper has it
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # None: k1 where the KL is in the reward, k3 where it is in the loss
    use_bias_correction_kl: bool = True  # KL in the loss: weigh it by pi / pi_old, so that its gradient is the KL's own
    cliprange: float = 0.2
    cliprange_high: float | None = None  # above 1, where it differs (DAPO: 0.28; CISPO: its largest weight less 1)
    dual_clip: float | None = None  # bound of the loss where the advantage is negative, above 1
    target_approxkl: float | None = None  # the passes over a rollout end once the last minibatch moved further than this
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    critic_warmup: int = 0  # rollouts from which only the critic learns; where it shares the policy's trunk, its head
    gamma: float = 1.0
    lam: float = 0.95
    critic_lam: float | None = None  # of the returns that the critic learns; None: lam. 1: what came, and no value of its own
    whiten_rewards: bool = False
    learning_rate: float = 3e-6
    critic_learning_rate: float | None = None  # None: learning_rate
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "linear"
    warmup_fraction: float = 0.0
    final_lr_fraction: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-5
    max_grad_norm: float = 1.0  # of policy and critic, each by its own norm, a shared trunk by one; 0: no clipping
    precision: Precision = "fp32"  # as in FitConfig
    log_every: int = 1
    save_every: int = 50  # steps between checkpoints; 0: none
    keep_checkpoints: int = 2
    resume: bool = False
    trackers: tuple[str, ...] = ()


def check_online_config(config: OnlineConfig, algorithm: Algorithm, critic: nn.Module | None, world: int) -> None:
    """Refuse by name what cannot work."""
    check_least(config, batch_size=2)  # advantages are whitened over the batch, and one token has no variance
    check_least(config, total_steps=1, group_size=1, micro_batch_size=1, num_epochs=1, num_minibatches=1)
    check_least(config, max_new_tokens=1, log_every=1, save_every=0, keep_checkpoints=1, kl_coef=0, vf_coef=0, max_grad_norm=0)
    check_least(
        config, critic_warmup=0, learning_rate=0, critic_learning_rate=0, weight_decay=0, adam_eps=0, missing_eos_penalty=0
    )
    for name in ("cliprange", "cliprange_high", "cliprange_value", "kl_target", "kl_horizon", "target_approxkl"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name}", value, "expected a finite number above 0")
    if config.cliprange >= 1:
        raise InputError("--cliprange", config.cliprange, "expected less than 1: a ratio is never negative")
    if config.dual_clip is not None and not 1 < config.dual_clip < math.inf:
        raise InputError("--dual_clip", config.dual_clip, "expected a finite number above 1, or null")
    if config.kl_target is not None and config.kl_coef == 0:
        raise InputError("--kl_coef", 0, "expected more than 0 with --kl_target: a factor cannot move it from 0")
    for name in ("gamma", "lam", "critic_lam"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{name}", value, "expected a number from 0 to 1")
    for name in ("adam_beta1", "adam_beta2", "warmup_fraction"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"--{name}", getattr(config, name), "expected a number from 0 to below 1")
    if algorithm.critic and critic is None:
        raise InputError("critic", None, f"expected a scalar-head model: --algorithm {config.algorithm} learns values")
    if algorithm.grouped and config.group_size < 2:
        mend = f"expected at least 2: {config.algorithm} compares answers to the same prompt"
        raise InputError("--group_size", config.group_size, mend)
    if algorithm.pairs and config.group_size != 2:
        raise InputError("--group_size", config.group_size, f"expected 2: {config.algorithm} learns from pairs")
    if algorithm.pairs and config.micro_batch_size % 2:
        raise InputError("--micro_batch_size", config.micro_batch_size, "expected an even number: a pair stays together")
    if algorithm.kl == "surrogate" and config.kl_coef == 0:
        raise InputError("--kl_coef", 0, f"expected more than 0: it is the beta of {config.algorithm}")
    if config.kl_in is not None and algorithm.kl == "surrogate":
        raise InputError("--kl_in", config.kl_in, f"expected null: the loss of {config.algorithm} has its own price of distance")
    if config.critic_warmup and not algorithm.critic:
        raise InputError("--critic_warmup", config.critic_warmup, f"expected 0: {config.algorithm} has no critic")
    if config.batch_size % (world * config.group_size):
        raise InputError(
            "--batch_size", config.batch_size, f"expected a multiple of group_size * processes = {config.group_size * world}"
        )
    most = config.batch_size // world // (2 if algorithm.pairs else 1)
    if config.num_minibatches > most:
        what = "pairs" if algorithm.pairs else "answers"
        raise InputError("--num_minibatches", config.num_minibatches, f"expected at most the {most} {what} of a process")
    if config.temperature <= 0:
        raise InputError("--temperature", config.temperature, "expected a positive number: RL needs samples, not the argmax")
