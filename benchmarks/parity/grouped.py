"""GRPO's family and RLOO: `Learner` and the table of algorithms beside TRL's trainers, from rewards to gradients.

TRL's trainers are constructed; only what they would sample is given to them. Their `_generate_and_score_completions` makes
advantages of the rewards and takes the log-probabilities of policy and reference; then the policy moves, and `_compute_loss`
is taken where no ratio is 1. Prompts are of different lengths and padded on the left.

TRL divides logits by the temperature, we by the temperature + 1e-7, as its PPOTrainer does: it is given ours.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity import world
from benchmarks.parity.rows import Case, Found, gradients
from benchmarks.parity.sft import tokenizer
from benchmarks.parity.trl_code import metrics_of, widened
from rlhf_kit.batches import Rollout
from rlhf_kit.objectives.kl import shape_rewards
from rlhf_kit.objectives.policy import aggregate_units
from rlhf_kit.rollout.experience import response_logprobs
from rlhf_kit.rollout.scoring import pad
from rlhf_kit.training.algorithms import ALGORITHMS
from rlhf_kit.training.learner import Learner
from rlhf_kit.training.online import with_a_lesson
from rlhf_kit.training.online_config import OnlineConfig

TEMPERATURE, LONGEST, GROUP = 0.7, 7, 4
# The phases of the policy that sampled, of the policy that is updated, and of the reference.
SAMPLED, UPDATED, REFERENCE = 0.0, 0.03, 0.5
PROMPTS = [world.tokens(length, 20 + length) for length in (2, 5) for _ in range(GROUP)]
ANSWERS = [world.tokens(length, 30 + i) for i, length in enumerate((7, 3, 1, 5, 6, 7, 2, 4))]
SCORES = (0.5, -1.0, 2.0, 0.3, 1.5, 0.0, -0.75, 1.0)
# Settings under our names; CISPO's largest weight is 1.28 on both sides, which TRL calls epsilon_high.
CLIP = {"cliprange": 0.05, "cliprange_high": 0.28}
NARROW, TRL_NARROW = {"cliprange": 0.002, "cliprange_high": 0.002}, {"epsilon": 0.002, "epsilon_high": 0.002}  # means move less

# name: (our algorithm, our settings, TRL's settings). BNPO is DAPO's mean where the batch is the whole step.
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grpo": ("grpo", {}, {"loss_type": "grpo"}),
    "bnpo": ("dapo", {}, {"loss_type": "bnpo"}),
    "dr_grpo": ("dr_grpo", {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": ("dapo", {}, {"loss_type": "dapo"}),
    "cispo": ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 1.28}),
    "gspo": ("gspo", NARROW, {"loss_type": "grpo", "importance_sampling_level": "sequence"} | TRL_NARROW),
    "grpo, no KL": ("grpo", {"kl_coef": 0.0}, {"loss_type": "grpo", "beta": 0.0}),
    "grpo, two-sided clip": ("grpo", {"dual_clip": 1.3}, {"loss_type": "grpo", "delta": 1.3}),
    "rloo": ("rloo", {}, {}),
}


def rollout_of(policy: Any, reference: Any) -> Rollout:
    """The answers with both prices of them."""
    query_ids, query_mask = pad(PROMPTS, side="left")
    response_ids, response_mask = pad(ANSWERS)
    rollout = Rollout(
        query_ids, query_mask, response_ids, response_mask, ended=torch.zeros(len(ANSWERS), dtype=torch.bool),
        group_ids=torch.arange(len(ANSWERS)) // GROUP, sampler_logprobs=torch.zeros(response_ids.shape),
    )  # fmt: skip
    with torch.no_grad():
        old, ref = (response_logprobs(model, rollout, temperature=TEMPERATURE)[0] for model in (policy, reference))
    return replace(rollout, old_logprobs=old, ref_logprobs=ref, scores=torch.tensor(SCORES))


def ours(name: str, precision: str) -> Found:
    """The loop's steps 2 to 4 on these answers, up to the gradient."""
    key, settings, _ = SETTINGS[name]
    algorithm = ALGORITHMS[key]
    config = OnlineConfig(
        output_dir=Path(),
        max_new_tokens=LONGEST,
        temperature=TEMPERATURE,
        **({"kl_coef": 0.04, "use_bias_correction_kl": key != "gspo"} | CLIP | settings),
    )
    with widened(precision):
        policy = world.language_model(SAMPLED, precision)
        rollout = rollout_of(policy, world.language_model(REFERENCE, precision))
        assert rollout.scores is not None and rollout.old_logprobs is not None and rollout.ref_logprobs is not None
        mask, coef = rollout.response_mask, config.kl_coef
        price = coef if algorithm.kl == "reward" else 0.0
        rewards, _ = shape_rewards(rollout.scores, rollout.old_logprobs, rollout.ref_logprobs, mask, price)
        advantages, returns = algorithm.advantages(rollout, rewards, config, lambda x: x)
        world.filled(policy, UPDATED)
        learned = with_a_lesson(rollout, advantages) if algorithm.skip_zero else rollout
        mask = learned.response_mask
        units, tokens = float(aggregate_units(mask, algorithm.aggregate)), float(mask.sum())
        learner = Learner(policy, None, algorithm, config)
        loss, stats = learner(learned, advantages, returns, units, tokens, coef, True)
        found: Found = {"advantages": advantages[:, 0], "loss": loss.detach(), "gradients": gradients(loss, policy)}
        found["entropy"] = float(stats["entropy"]) / tokens
        if key != "cispo":
            found["clip_ratio/region_mean"] = float(stats["clipfrac"]) / float(stats["count"])
        if algorithm.kl == "loss" and algorithm.aggregate == "token_mean":  # elsewhere ours is weighted as the loss is
            found["kl"] = float(stats["kl_loss"]) / tokens
        return found


def theirs(name: str, precision: str) -> Found:
    """TRL's trainer on the same answers and scores."""
    with widened(precision), tempfile.TemporaryDirectory() as folder:
        key, _, settings = SETTINGS[name]
        policy = world.language_model(SAMPLED, precision)
        trainer, inputs = scored(folder, policy, world.language_model(REFERENCE, precision), settings, rloo=name == "rloo")
        world.filled(policy, UPDATED)
        loss = trainer._compute_loss(policy, inputs)
        logged = metrics_of(trainer)
        found: Found = {"advantages": inputs["advantages"], "loss": loss.detach(), "gradients": gradients(loss, policy)}
        found["entropy"] = logged["entropy"]
        if key != "cispo":  # it counts the weights that were cut where the advantage is positive only
            found["clip_ratio/region_mean"] = logged["clip_ratio/region_mean"]
        if name in ("bnpo", "dapo", "cispo"):
            found["kl"] = logged["kl"]
        return found


def scored(folder: str, policy: Any, reference: Any, settings: dict[str, Any], *, rloo: bool) -> tuple[Any, dict[str, Tensor]]:
    """TRL's trainer, and what it makes of the answers and their scores before an update."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    logging.getLogger("trl").setLevel(logging.ERROR)
    config_class: Any = RLOOConfig if rloo else GRPOConfig
    trainer_class: Any = RLOOTrainer if rloo else GRPOTrainer
    options: dict[str, Any] = {
        "beta": 0.04,
        # At sequence level TRL weighs a token's KL by the ratio of the whole answer, which is no correction.
        "use_bias_correction_kl": settings.get("importance_sampling_level") != "sequence",
        "epsilon": CLIP["cliprange"],
        "epsilon_high": CLIP["cliprange_high"],
    } | settings
    beta = options.pop("beta")
    if rloo:  # its KL is in the reward
        del options["use_bias_correction_kl"]
    config = config_class(
        output_dir=folder, per_device_train_batch_size=len(ANSWERS), num_generations=GROUP, max_completion_length=LONGEST,
        temperature=TEMPERATURE + 1e-7, num_iterations=2, beta=0.0, use_cpu=True, bf16=False, report_to=[],
        gradient_checkpointing=False, **options,
    )  # fmt: skip
    rows = [{"prompt": "a prompt"} for _ in ANSWERS]
    trainer = trainer_class(
        model=policy, reward_funcs=lambda **_: list(SCORES), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.beta, trainer.ref_model = beta, reference  # it would load the reference from a hub
    trainer.current_gradient_accumulation_steps = 1
    trainer._tokenize_prompts = lambda prompts: (PROMPTS, None, {})
    trainer._generate_single_turn = lambda *_: ANSWERS if rloo else (ANSWERS, None)
    policy.train()
    inputs = trainer._generate_and_score_completions(rows)
    trainer._metrics["train"].clear()
    return trainer, inputs


ROUNDED = (5e-6, "fp32: ratios of log-probabilities, and advantages of both signs that nearly cancel")
CASES = [
    Case(
        name,
        partial(ours, name, precision),
        partial(theirs, name, precision),
        precision,
        {"loss": ROUNDED, "gradients": ROUNDED} if precision == "fp32" else {},
    )
    for precision in ("fp64", "fp32")
    for name in SETTINGS
]
