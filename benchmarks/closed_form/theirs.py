"""Their side: TRL 1.12's trainers on the same world, with the same budget, learning rate schedule and Adam.

All take the 8 optimizer steps on each 64 answers that ours take. PPOTrainer's minibatches are steps only where nothing is
accumulated and a rollout is one batch of the device, as here.
"""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from benchmarks.closed_form.ours import BATCH, EPOCHS, GROUP, MINIBATCHES, Curve, make_critic
from benchmarks.closed_form.world import BETA, EPISODES, LENGTH, PROMPTS, VOCAB, World, index_of, judged_pairs, left_padded

OUTSIDE = VOCAB  # a token that no model here knows: what ends an answer never comes, and what pads is no answer
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"learning_rate": 1e-3, "lam": 1.0, "vf_coef": 1.0},
    "rloo": {"learning_rate": 1e-3},
    "grpo": {"learning_rate": 1e-3, "loss_type": "grpo"},
    "dr_grpo": {"learning_rate": 1e-3, "loss_type": "dr_grpo", "scale_rewards": "none"},
    "dpo": {"learning_rate": 2e-3, "per_device_train_batch_size": 128, "num_train_epochs": 4, "dataloader_drop_last": True},
}


def run(algorithm: str, world: World, folder: Path) -> dict[str, Any]:
    """What TRL's trainer makes of the budget in `world`: see `Curve.result`."""
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    settings = {
        "output_dir": str(folder),
        "seed": world.seed,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_epsilon": 1e-5,
        "max_grad_norm": 1.0,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    } | SETTINGS[algorithm]
    if algorithm == "ppo":
        return run_ppo(world, settings)
    return run_dpo(world, settings) if algorithm == "dpo" else run_group(algorithm, world, settings)


def trained(trainer: Any, curve: Curve) -> dict[str, Any]:
    """The result of a trainer that prints nothing."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return curve.result()


class Look(TrainerCallback):
    """Tells the curve of each step; `episodes` are the answers of one."""

    def __init__(self, curve: Curve, episodes: float) -> None:
        self.curve, self.episodes = curve, episodes

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Building the trainer is not training."""
        self.curve.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at what the steps so far have made."""
        self.curve.look(round(state.global_step * self.episodes))


class TableReward(nn.Module):
    """The world's reward as PPOTrainer wants a reward model: at each place, the score of the last four tokens."""

    base_model_prefix = "backbone"

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.backbone = world, LastTokens()

    def score(self, windows: Tensor) -> Tensor:
        """(B, T, 1) for (B, T, LENGTH) windows of tokens."""
        return self.world.rewards[index_of(windows.clamp(0, VOCAB - 1))].unsqueeze(-1)


class LastTokens(nn.Module):
    """A backbone whose state at each place is the last `LENGTH` tokens."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        """`hidden_states[-1]`: (B, T, LENGTH) long."""
        padded = nn.functional.pad(input_ids, (LENGTH - 1, 0))
        return type("Output", (), {"hidden_states": [padded.unfold(1, LENGTH, 1)]})


def run_ppo(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """`trl.experimental.ppo`, the last there is."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    config = PPOConfig(
        **settings,
        total_episodes=EPISODES,
        per_device_train_batch_size=BATCH,
        local_rollout_forward_batch_size=BATCH,
        num_ppo_epochs=EPOCHS,
        num_mini_batches=MINIBATCHES,
        response_length=LENGTH,
        temperature=1.0,
        kl_coef=BETA,
        missing_eos_penalty=None,
        num_sample_generations=0,
    )
    rows = {"input_ids": [list(PROMPTS[i % len(PROMPTS)]) for i in range(EPISODES)]}
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    curve = Curve(world, policy)
    reward: Any = TableReward(world)
    collator: Any = collated
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer(pad=OUTSIDE),
        model=policy,
        ref_model=world.reference,
        reward_model=reward,
        value_model=make_critic(world),
        train_dataset=datasets.Dataset.from_dict(rows),
        data_collator=collator,
        callbacks=[Look(curve, BATCH)],
    )
    return trained(trainer, curve)


def collated(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Prompts padded on the left with what is no token."""
    return {"input_ids": left_padded([tuple(row["input_ids"]) for row in rows], OUTSIDE)[0]}


def run_group(algorithm: str, world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """RLOOTrainer and GRPOTrainer: 4 iterations of two steps on each generated batch."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    options = settings | {
        "per_device_train_batch_size": BATCH // MINIBATCHES,
        "steps_per_generation": MINIBATCHES,
        "num_iterations": EPOCHS,
        "num_generations": GROUP,
        "max_completion_length": LENGTH,
        "max_steps": EPISODES // BATCH * EPOCHS * MINIBATCHES,
        "temperature": 1.0,
        "beta": BETA,
        "shuffle_dataset": False,
    }
    # Both load their reference by name, so it needs a place on the disk.
    folder = Path(settings["output_dir"]) / "reference"
    world.reference.save_pretrained(folder)
    policy = type(world.reference).from_pretrained(folder)  # trainable, and known by its place
    curve = Curve(world, policy)

    def reward(completion_ids: list[list[int]], **_: Any) -> Any:
        return world.reward_of(torch.tensor(completion_ids)).tolist()

    make: tuple[Any, Any] = (RLOOConfig, RLOOTrainer) if algorithm == "rloo" else (GRPOConfig, GRPOTrainer)
    rows = {"prompt": [text(PROMPTS[i % len(PROMPTS)]) for i in range(EPISODES // GROUP)]}
    trainer = make[1](
        model=policy,
        reward_funcs=reward,
        args=make[0](**options),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer(pad=0),
        callbacks=[Look(curve, BATCH / (EPOCHS * MINIBATCHES))],
    )
    return trained(trainer, curve)


def run_dpo(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    """DPOTrainer on the pairs that ours learns from; its rows are ready tokens, since its own preparation adds an EOS."""
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    pairs = judged_pairs(world, EPISODES // 2, world.seed)
    steps = settings["num_train_epochs"] * (EPISODES // 2 // settings["per_device_train_batch_size"])
    rows = {
        "prompt_ids": [list(PROMPTS[i]) for i in pairs.prompts.tolist()],
        "chosen_ids": world.answers[pairs.chosen].tolist(),
        "rejected_ids": world.answers[pairs.rejected].tolist(),
    }
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    curve = Curve(world, policy)
    trainer = Prepared(
        model=policy,
        ref_model=world.reference,
        args=DPOConfig(**settings, beta=BETA, max_length=None),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer(pad=0),
        callbacks=[Look(curve, EPISODES / steps)],
    )
    return trained(trainer, curve)


def tokenizer(pad: int) -> PreTrainedTokenizerFast:
    """A letter for each token; the ninth ends answers, and pads where `pad` says so."""
    letters = {letter: i for i, letter in enumerate("abcdefghi")}
    words = Tokenizer(models.WordLevel(letters, unk_token="i"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="i", pad_token="abcdefghi"[pad], padding_side="left")


def text(ids: tuple[int, ...]) -> str:
    """What the tokenizer reads back as `ids`."""
    return " ".join("abcdefghi"[i] for i in ids)
