"""Improve a policy against a reward with PPO (or RLOO: `--algorithm rloo --group_size 4`).

python recipes/ppo.py --config recipes/configs/tiny/ppo.yaml
python recipes/ppo.py --model runs/sft --reward my_rewards.py:shorter_is_better --data prompts.jsonl
python recipes/ppo.py --model runs/sft --reward runs/reward1,runs/reward2,runs/reward3 --ensemble min
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.common import EnsembleFields, LoraFields, lora_of, open_run, prompts
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.batching import PromptBatches
from rlhf_kit.data.examples import prompt_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.loading import check_fits, load_causal_lm, load_scalar_model
from rlhf_kit.models.shared_critic import shared_critic
from rlhf_kit.objectives.process_reward import StepScore
from rlhf_kit.rollout.chat import stop_tokens
from rlhf_kit.rollout.judges import load_scorer, reward_members
from rlhf_kit.rollout.scoring import function_scorer, load_function
from rlhf_kit.training.algorithms import ALGORITHMS
from rlhf_kit.training.online import online
from rlhf_kit.training.online_config import OnlineConfig


@dataclass
class PPOConfig(EnsembleFields, LoraFields, OnlineConfig):
    """A policy that earns more reward without straying far."""

    output_dir: Path = Path("runs/tiny/ppo")
    model: str = "runs/tiny/sft"  # where the policy starts, and the reference it stays near
    reward: str = (
        "runs/tiny/reward"  # a reward model's directory, a callable `module:function`, `file.py:function`, or several: a,b,c
    )
    step_score: StepScore = "min"  # of a process reward model: what its steps add up to
    token_rewards: bool = False  # of a process reward model: pay at each step's last token what the step adds to the score
    gold: str | None = None  # a callable that is logged as eval/gold_score and never trained on
    critic: str | None = None  # where it starts (None: the first reward model, or the policy with a zero head), or `shared`
    data: str = "world"  # prompts
    max_prompt_length: int = 192  # tokens; longer prompts are left out, and counted
    world_prompts: int = 4_000  # of the embedded world


def main(config: PPOConfig) -> dict[str, float]:
    """Load policy, reference, critic and reward, then run the online loop."""
    check_least(config, max_prompt_length=1, world_prompts=1, ensemble_variance_coef=0)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model, "--model")
    rows = prompts(config.data, count=config.world_prompts, seed=config.seed)
    examples, counts = prompt_examples(rows, tokenizer, config.max_prompt_length)
    accelerator.print(f"prompts: {counts}")
    batches = PromptBatches(
        examples,
        batch_size=config.batch_size,
        group_size=config.group_size,
        seed=config.seed,
        pad_id=tokenizer.pad_token_id,
    )

    lora = lora_of(config)
    policy = load_causal_lm(config.model, lora=lora, dropout=0.0).to(accelerator.device)
    longest = max(len(e.ids) for e in examples) + config.max_new_tokens
    check_fits(policy, tokenizer, longest=longest, field="--max_prompt_length or --max_new_tokens")
    reference = copy.deepcopy(policy) if lora is None else None
    scorer, reward_model = load_scorer(
        config.reward,
        tokenizer,
        micro_batch_size=config.micro_batch_size,
        device=accelerator.device,
        ensemble=config.ensemble,
        variance_coef=config.ensemble_variance_coef,
        step_score=config.step_score,
        token_rewards=config.token_rewards,
    )
    critic: Any = None
    if ALGORITHMS[config.algorithm].critic and config.critic == "shared":  # a head on the policy's own trunk
        critic = shared_critic(policy)
    elif ALGORITHMS[config.algorithm].critic:
        critic = make_critic(config, tokenizer, reward_model, lora)
        check_fits(critic, tokenizer, longest=longest, field="--max_prompt_length or --max_new_tokens")
    return online(
        policy,
        batches,
        scorer,
        config,
        accelerator,
        tokenizer=tokenizer,
        eos_ids=stop_tokens(policy, tokenizer),
        reference=reference,
        critic=critic,
        monitor=function_scorer(load_function(config.gold, "--gold"), tokenizer, name=config.gold) if config.gold else None,
    )


def make_critic(config: PPOConfig, tokenizer: Any, reward_model: Any, lora: Any) -> Any:
    """The critic's start: what is asked for, else the first reward model, else the policy's body with a zero head.

    A reward model with a vocabulary of its own is no start: the critic reads the policy's token ids.
    """
    start = config.critic or config.model
    if config.critic is None and reward_model is not None:
        first = next(member for member in reward_members(config.reward) if Path(member).is_dir())
        start = first if load_tokenizer(first).get_vocab() == tokenizer.get_vocab() else config.model
    return load_scalar_model(start, lora=lora, dropout=0.0, zero_head=True)


if __name__ == "__main__":
    run_recipe(main, PPOConfig)
