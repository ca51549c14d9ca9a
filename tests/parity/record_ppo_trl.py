"""Records what TRL 1.12's `PPOTrainer` makes of two rollouts: its metrics and its weights, in `ppo_trl.json`.

python -m tests.parity.record_ppo_trl

The last TRL with PPO is 1.12.0; the numbers outlive it. The rollouts are given to it (it samples nothing), and are such
that its differences from us, listed in ALGORITHMS.md and in `training/online.py`, make none here:
- all answers are of full length, without an EOS: its score would stand one past the EOS, its metrics would count padding;
- one minibatch an epoch, in one piece: more minibatches would add no optimizer steps, and in the last batch of
  the dataset every micro-batch is a step of its own (accelerate ends an accumulation where the dataloader ends);
- no clipping of gradients: it would be ignored;
- k1: its `objective/kl` is of the estimator, ours always the log-ratio;
- `val/ratio_var` is left out: TRL's is that of the epochs' means, ours that of the tokens.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

GOLDEN = Path(__file__).with_name("ppo_trl.json")
ANSWERS, QUERY, LENGTH, VOCAB, STEPS, PAD, EOS = 8, 3, 5, 16, 2, 0, 1
# Under TRL's names.
SETTINGS: dict[str, Any] = {
    "temperature": 0.7, "missing_eos_penalty": 0.3, "kl_coef": 0.2, "kl_estimator": "k1", "cliprange": 0.1,
    "cliprange_value": 0.05, "vf_coef": 0.3, "gamma": 0.9, "lam": 0.8, "whiten_rewards": True, "num_ppo_epochs": 3,
    "num_mini_batches": 1, "learning_rate": 1e-2, "adam_epsilon": 1e-3, "adam_beta1": 0.8, "adam_beta2": 0.95,
    "weight_decay": 0.0,
}  # fmt: skip
METRICS = (
    "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
    "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
    "val/ratio", "val/num_eos_tokens", "lr", "episode",
)  # fmt: skip


@torch.no_grad()
def filled(model: Any, phase: float) -> Any:
    """Weights from a formula, the same in every version of everything."""
    for i, p in enumerate(model.parameters()):
        if p.ndim > 1:
            p.copy_((0.4 * torch.sin(torch.arange(p.numel()).double() * (1.7 + 0.1 * i) + phase)).view_as(p))
    return model


def models() -> dict[str, Any]:
    """Small Llamas: the policy, its reference (another model, so that there is a KL), the critic, the reward model."""
    shape = {
        "vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None,
    }  # fmt: skip
    language, scalar = LlamaConfig(**shape), LlamaConfig(**shape, num_labels=1)
    return {
        "policy": filled(LlamaForCausalLM(language), 0.0),
        "reference": filled(LlamaForCausalLM(language), 0.1),
        "critic": filled(LlamaForSequenceClassification(scalar), 1.0),
        "reward": filled(LlamaForSequenceClassification(scalar), 2.0),
    }


def queries() -> Tensor:
    """(ANSWERS, QUERY) long, neither padding nor EOS among them."""
    rows, columns = torch.meshgrid(torch.arange(ANSWERS), torch.arange(QUERY), indexing="ij")
    return 2 + (5 * rows + 3 * columns + rows * columns) % (VOCAB - 2)


def answers_to(asked: Tensor, step: int) -> Tensor:
    """(B, LENGTH) long: the answers to some of the queries, in any order, at one step."""
    columns = torch.arange(LENGTH)
    return 2 + (asked.sum(1, keepdim=True) * (columns + 2) + asked[:, :1] * 7 + columns**2 + 5 * step) % (VOCAB - 2)


def fingerprint(model: nn.Module) -> list[float]:
    """Two numbers a parameter, which between them notice any change of it."""
    flat = [p.detach().double().flatten() for p in model.parameters()]
    waves = [torch.cos(torch.arange(len(p)).double() ** 1.1) for p in flat]
    return [float(x) for p, wave in zip(flat, waves) for x in (p.sum() / math.sqrt(len(p)), p @ wave / math.sqrt(len(p)))]


def record() -> dict[str, Any]:
    """TRL's own numbers."""
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    found: list[dict[str, float]] = []
    them = models()
    step = 0

    def generation(model: Any, asked: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        nonlocal step
        both = torch.cat([asked, answers_to(asked, step)], 1)
        step += 1
        logits = ppo_trainer.forward(model, both, PAD).logits[:, QUERY - 1 : -1]
        return both, logits / (SETTINGS["temperature"] + 1e-7)

    with tempfile.TemporaryDirectory() as folder, patch.object(ppo_trainer, "batch_generation", generation):
        config = PPOConfig(
            output_dir=folder, total_episodes=STEPS * ANSWERS, per_device_train_batch_size=ANSWERS, response_length=LENGTH,
            local_rollout_forward_batch_size=ANSWERS, stop_token_id=EOS, lr_scheduler_type="linear", warmup_steps=0, bf16=False,
            use_cpu=True, num_sample_generations=0, save_strategy="no", logging_steps=1, report_to=[], **SETTINGS,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=config, processing_class=SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS), model=them["policy"],
            ref_model=them["reference"], reward_model=them["reward"], value_model=them["critic"],
            train_dataset=Dataset.from_dict({"input_ids": queries().tolist()}),
            data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
        )  # fmt: skip
        trainer.log = found.append
        trainer.train()
    return {
        "trl": trl.__version__,
        "metrics": [{name: row[name] for name in METRICS} for row in found],
        "policy": fingerprint(them["policy"]),
        "critic": fingerprint(them["critic"]),
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
