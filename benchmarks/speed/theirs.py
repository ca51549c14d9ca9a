"""The peers: transformers, TRL and a small compiled GPT, each as its own documentation would have it run on a CPU.

Where a default hurts a peer for no reason (tokenising again, saving, a progress bar), it is switched off; what costs
it time by design (padding, full logits) stays.
"""

from __future__ import annotations

import copy
import logging
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from benchmarks.speed import work
from benchmarks.speed.measure import Clock, Run, Setup
from benchmarks.speed.ours import LEARNING_RATE, bf16
from benchmarks.speed.work import EOS, Size


def gpt2_pretraining(size: Size, precision: str) -> Setup:
    """transformers' GPT-2 in the Trainer's steps: its own loss, fused AdamW, clipping."""

    def setup() -> Run:
        model, batches = work.gpt2(size).train(), work.token_rows(size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True)

        def run(clock: Clock) -> None:
            for rows in batches:
                for part in rows.split(size.micro_batch):
                    with bf16(precision == "bf16"):
                        loss = model(input_ids=part, labels=part, use_cache=False).loss
                    (loss * len(part) / len(rows)).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run

    return setup


class PlainGPT(nn.Module):
    """A GPT-2 as people write it to learn and to compile: one fused qkv, SDPA, full logits, `F.cross_entropy`."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        d, self.heads = size.d_model, size.n_heads
        self.tokens, self.positions = nn.Embedding(size.vocab, d), nn.Embedding(size.length, d)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(d),
                    "qkv": nn.Linear(d, 3 * d),
                    "out": nn.Linear(d, d),
                    "norm2": nn.LayerNorm(d),
                    "up": nn.Linear(d, 4 * d),
                    "down": nn.Linear(4 * d, d),
                }
            )
            for _ in range(size.n_layers)
        )
        self.norm = nn.LayerNorm(d)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Mean next-token loss of (B, T) ids."""
        B, T = ids.shape
        x = self.tokens(ids) + self.positions(torch.arange(T))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in block["qkv"](block["norm1"](x)).chunk(3, -1))
            x = x + block["out"](F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def plain_pretraining(size: Size, precision: str, *, compiled: bool = True) -> Setup:
    """`PlainGPT` with AdamW; compilation and its first step are not timed."""

    def setup() -> Run:
        torch.manual_seed(0)
        model = PlainGPT(size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
        step = torch.compile(model) if compiled else model
        batches = work.token_rows(size)

        def train(rows: Tensor) -> None:
            with bf16(precision == "bf16"):
                loss = step(rows)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if compiled:
            train(batches[0])

        def run(clock: Clock) -> None:
            for rows in batches:
                train(rows)

        return run

    return setup


def trl_sft(size: Size, **settings: Any) -> Setup:
    """TRL's SFTTrainer on ready token ids; `settings` are SFTConfig fields."""

    def setup() -> Run:
        from trl import SFTConfig, SFTTrainer

        rows = {"input_ids": [ids.tolist() for ids in work.examples(size)]}
        options = {"max_length": size.length, "per_device_train_batch_size": size.batch, **settings}
        return trainer_run(
            lambda arguments: SFTTrainer(
                model=work.gpt2(size),
                args=SFTConfig(**arguments, **options),
                train_dataset=datasets.Dataset.from_dict(rows),
                processing_class=work.tokenizer(size),
            ),
            learning_rate=LEARNING_RATE,
            num_train_epochs=1,
        )

    return setup


def trl_reward(size: Size, **settings: Any) -> Setup:
    """TRL's RewardTrainer on ready token ids."""

    def setup() -> Run:
        from trl import RewardConfig, RewardTrainer

        sides = {name: [ids.tolist() for ids in work.examples(size, i)] for i, name in enumerate(("chosen_ids", "rejected_ids"))}
        return trainer_run(
            lambda arguments: RewardTrainer(
                model=work.gpt2(size, scalar=True),
                args=RewardConfig(
                    **arguments, max_length=size.length, per_device_train_batch_size=size.batch, disable_dropout=True, **settings
                ),
                train_dataset=datasets.Dataset.from_dict(sides),
                processing_class=work.tokenizer(size),
            ),
            learning_rate=LEARNING_RATE,
            num_train_epochs=1,
        )

    return setup


def trl_ppo(size: Size, stop_after: int | None = None, **settings: Any) -> Setup:
    """One iteration of TRL's PPOTrainer, with a reference, a value and a reward model of the policy's size."""

    def setup() -> Run:
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        policy = work.gpt2(size, stop_after=stop_after)
        options = {
            "response_length": size.answer,
            "stop_token_id": None if stop_after is None else EOS,
            "per_device_train_batch_size": size.micro_batch,
            "gradient_accumulation_steps": size.answers // size.micro_batch,
            "num_ppo_epochs": size.epochs,
            "total_episodes": size.answers,
            "temperature": 1.0,
            "missing_eos_penalty": 1.0,
            "num_sample_generations": 0,
            **settings,
        }
        return trainer_run(
            lambda arguments: PPOTrainer(
                args=PPOConfig(**arguments, **options),
                processing_class=work.tokenizer(size),
                model=policy,
                ref_model=copy.deepcopy(policy),
                reward_model=work.gpt2(size, scalar=True),
                value_model=work.gpt2(size, scalar=True),
                train_dataset=datasets.Dataset.from_dict({"input_ids": work.prompts(size).tolist()}),
                eval_dataset=datasets.Dataset.from_dict({"input_ids": work.prompts(size).tolist()}),
            )
        )

    return setup


def trainer_run(make: Any, **arguments: Any) -> Run:
    """`train()` of a Trainer that neither reports nor saves; it is built outside the clock."""
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    AcceleratorState._reset_state(True)  # accelerate keeps the precision of whoever came first
    folder = TemporaryDirectory()
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    trainer = make({"output_dir": folder.name, **quiet, **arguments})

    def run(clock: Clock) -> None:
        trainer.train()
        clock.stop()
        folder.cleanup()

    return run


def transformers_generation(size: Size, precision: str, stop_after: int | None = None) -> Setup:
    """`model.generate` on plain sampling; bf16 means bf16 weights, which is faster for it than autocast."""

    def setup() -> Run:
        model = work.gpt2(size).eval().to(torch.bfloat16 if precision == "bf16" else torch.float32)
        ids = work.prompts(size)
        stops = [-1] if stop_after is None else list(work.stop_tokens(size, stop_after))
        model.generation_config.eos_token_id = stops

        def run(clock: Clock) -> None:
            mask = torch.ones_like(ids)
            with torch.no_grad():
                model.generate(
                    ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=size.answer
                )

        return run

    return setup
