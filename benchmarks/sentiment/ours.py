"""Our side: `rlhf_kit.training.online.online`, as recipes/ppo.py calls it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.sentiment.measure import Watch
from benchmarks.sentiment.settings import PPOSettings, Start
from rlhf_kit.batches import PromptBatch
from rlhf_kit.rollout.scoring import Row, model_scorer
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.online import online
from rlhf_kit.training.online_config import OnlineConfig


class InOrder:
    """The prompts of every rollout, as they stand."""

    def __init__(self, prompts: torch.Tensor, batch_size: int) -> None:
        self.batches = prompts.split(batch_size)

    def batch(self, step: int, rank: int, world: int) -> tuple[PromptBatch, list[Row]]:
        """Those of one rollout; there is one rank."""
        ids = self.batches[step]
        return PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(ids))), [{}] * len(ids)


def train(start: Start, settings: PPOSettings, watch: Watch) -> None:
    """PPO from `start`; `watch` sees the policy after every rollout."""
    models, tokenizer = start.models(), start.tokenizer()
    with TemporaryDirectory() as folder:
        config = OnlineConfig(
            output_dir=Path(folder),
            seed=start.seed,
            total_steps=settings.rollouts,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch,
            num_epochs=settings.num_epochs,
            num_minibatches=settings.num_minibatches,
            max_new_tokens=settings.answer_tokens,
            temperature=settings.temperature,
            missing_eos_penalty=0.0,
            kl_coef=settings.kl_coef,
            cliprange=settings.cliprange,
            cliprange_value=settings.cliprange_value,
            vf_coef=settings.vf_coef,
            gamma=settings.gamma,
            lam=settings.lam,
            learning_rate=settings.learning_rate,
            adam_eps=settings.adam_eps,
            max_grad_norm=0.0,  # TRL's PPO does not clip gradients, whatever its setting says
            save_every=0,
        )

        def on_step(done: int, rollout: Any, stats: dict[str, float]) -> None:
            watch.after_rollout(done, models["policy"])

        watch.begin(models["policy"])
        result = online(
            models["policy"],
            InOrder(start.prompts, settings.batch_size),
            model_scorer(models["reward"], tokenizer, tokenizer, micro_batch_size=settings.micro_batch),
            config,
            make_accelerator(),
            tokenizer=tokenizer,
            eos_ids=(),  # nothing ends an answer
            reference=models["reference"],
            critic=models["critic"],
            on_step=on_step,
        )
        watch.end(episodes=int(result["episode"]), optimizer_steps=int(result["val/optimizer_steps"]))
