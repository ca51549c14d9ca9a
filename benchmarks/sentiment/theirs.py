"""TRL 1.12's `PPOTrainer` on the same models and prompts, set up as one who knows its quirks would.

- Its `num_mini_batches` are optimizer steps only where nothing is accumulated: a batch is one "device batch", and a
  minibatch of it is a forward. Otherwise accelerate takes one step a pass, however many minibatches there are.
- Its dataloader shuffles: here it hands out the prompts in their order.
- It finds answers' ends by comparing with the pad token, which a policy may sample: a number that no token has.
- bf16 and gradient checkpointing are on by default, and off here; generation is one batch, where the default is 64 rows.
"""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from benchmarks.sentiment.measure import Watch
from benchmarks.sentiment.settings import PPOSettings, Start

NO_TOKEN = -1


class AfterRollout(TrainerCallback):
    """Shows the policy to the watch."""

    def __init__(self, watch: Watch, policy: Any) -> None:
        self.watch, self.policy = watch, policy

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL's step is a rollout."""
        self.watch.after_rollout(state.global_step, self.policy)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """(B, Q) prompts."""
    return {"input_ids": torch.stack([row["input_ids"] for row in rows])}


def train(start: Start, settings: PPOSettings, watch: Watch) -> None:
    """PPO from `start`; `watch` sees the policy after every rollout."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    logging.getLogger("trl").setLevel(logging.ERROR)
    AcceleratorState._reset_state(True)  # accelerate keeps the precision of whoever came first
    models, tokenizer = start.models(), start.tokenizer()
    rows = [{"input_ids": ids} for ids in start.prompts]
    with TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder,
            seed=start.seed,
            total_episodes=settings.episodes,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=1,
            num_mini_batches=settings.num_minibatches,
            num_ppo_epochs=settings.num_epochs,
            local_rollout_forward_batch_size=settings.batch_size,
            response_length=settings.answer_tokens,
            stop_token_id=None,
            missing_eos_penalty=None,
            temperature=settings.temperature,
            kl_coef=settings.kl_coef,
            kl_estimator="k1",
            cliprange=settings.cliprange,
            cliprange_value=settings.cliprange_value,
            vf_coef=settings.vf_coef,
            gamma=settings.gamma,
            lam=settings.lam,
            whiten_rewards=False,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0,
            adam_epsilon=settings.adam_eps,
            weight_decay=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            num_sample_generations=0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        processing: Any = SimpleNamespace(pad_token_id=NO_TOKEN, eos_token_id=tokenizer.eos_token_id)
        collator: Any = collate
        trainer: Any = PPOTrainer(
            args=arguments,
            processing_class=processing,
            model=models["policy"],
            ref_model=models["reference"],
            reward_model=models["reward"],
            value_model=models["critic"],
            train_dataset=rows,
            eval_dataset=rows[:1],
            data_collator=collator,
            callbacks=[AfterRollout(watch, models["policy"])],
        )
        trainer.remove_callback(PrinterCallback)
        in_order: Any = DataLoader(rows, batch_size=settings.batch_size, collate_fn=collate)  # type: ignore[arg-type]
        trainer.dataloader = trainer.accelerator.prepare(in_order)
        steps = count_steps(trainer.optimizer)
        watch.begin(models["policy"])
        trainer.train()
        watch.end(episodes=trainer.state.episode, optimizer_steps=steps())


def count_steps(optimizer: Any) -> Any:
    """A function that says how often the weights have moved since now."""
    count = 0

    def one_more(*_: Any) -> None:
        nonlocal count
        count += 1

    optimizer.optimizer.register_step_post_hook(one_more)
    return lambda: count
