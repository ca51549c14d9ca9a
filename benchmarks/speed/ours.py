"""Our side: the real loops, `fit` and `online`, and the real sampler. The clock stops before the model is saved."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.speed import work
from benchmarks.speed.measure import Clock, Run, Setup
from benchmarks.speed.work import PAD, Size
from rlhf_kit.batches import LMBatch
from rlhf_kit.data.batching import Batches, ExampleBatches, PreferenceBatches, PromptBatches
from rlhf_kit.data.examples import PreferenceExample, PromptExample
from rlhf_kit.models.shared_critic import shared_critic
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import model_scorer
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import FitConfig, evaluate, fit
from rlhf_kit.training.online import online
from rlhf_kit.training.online_config import OnlineConfig
from rlhf_kit.training.optim import clip_grad_norm, make_optimizer
from rlhf_kit.training.stages import LanguageModelling, RewardModelling, Stage

LEARNING_RATE = 1e-3


def bf16(enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
    """What `--precision bf16` is on CPU: bf16 products over fp32 weights."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


class Steps:
    """Ready-made optimizer steps, as `fit` asks for them."""

    def __init__(self, batches: list[list[Any]]) -> None:
        self.batches, self.steps_per_epoch = batches, len(batches)

    def micro_batches(self, step: int, rank: int, world: int) -> list[Any]:
        """Those of one step."""
        return self.batches[step]


class NoTokenizer:
    """A tokenizer as far as saving goes."""

    pad_token_id = PAD

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Nothing to save."""


def fitting(stage: Stage, batches: Batches, precision: str) -> Run:
    """One pass of `fit` over `batches`."""

    def run(clock: Clock) -> None:
        with TemporaryDirectory() as folder:
            config = FitConfig(
                output_dir=Path(folder),
                max_steps=batches.steps_per_epoch,
                learning_rate=LEARNING_RATE,
                precision=precision,  # type: ignore[arg-type]
                eval_every=0,
                save_every=0,
            )
            accelerator = make_accelerator("bf16" if precision == "bf16" else "no")
            fit(stage, batches, config, accelerator, tokenizer=NoTokenizer(), before_save=clock.stop)

    return run


def pretraining(size: Size, precision: str) -> Setup:
    """`fit` on full rows."""

    def setup() -> Run:
        batches = Steps(
            [[LMBatch(part, part.clone()) for part in rows.split(size.micro_batch)] for rows in work.token_rows(size)]
        )
        return fitting(LanguageModelling(work.our_model(size)), batches, precision)

    return setup


def bare_loop(size: Size, precision: str) -> Setup:
    """The same model, loss and optimizer without `fit`: what the loop itself costs."""

    def setup() -> Run:
        stage = LanguageModelling(work.our_model(size)).train()
        batches = [LMBatch(rows, rows.clone()) for rows in work.token_rows(size)]

        def run(clock: Clock) -> None:
            optimizer = make_optimizer(stage, learning_rate=LEARNING_RATE, weight_decay=0.1)
            for batch in batches:
                with bf16(precision == "bf16"):
                    loss, _ = stage(batch)
                (loss / stage.units(batch)).backward()
                clip_grad_norm(stage.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return run

    return setup


def sft(size: Size, precision: str) -> Setup:
    """`fit` on length buckets."""

    def setup() -> Run:
        rows = [(ids, ids.astype("int64")) for ids in work.examples(size)]
        batches = ExampleBatches(rows, size.batch, size.micro_batch, seed=0, pad_id=PAD)
        return fitting(LanguageModelling(work.our_model(size)), batches, precision)

    return setup


def reward(size: Size, precision: str) -> Setup:
    """`fit` on pairs."""

    def setup() -> Run:
        sides = work.examples(size, 0), work.examples(size, 1)
        pairs = [PreferenceExample(chosen, rejected, 1) for chosen, rejected in zip(*sides)]
        batches = PreferenceBatches(pairs, size.batch, size.micro_batch, seed=0, pad_id=PAD)
        return fitting(RewardModelling(work.our_model(size, scalar=True)), batches, precision)

    return setup


def generation(size: Size, precision: str, stop_after: int | None = None) -> Setup:
    """The sampler the online loop uses."""

    def setup() -> Run:
        model, ids = work.our_model(size).eval(), work.prompts(size)
        stops = () if stop_after is None else work.stop_tokens(size, stop_after)

        def run(clock: Clock) -> None:
            with bf16(precision == "bf16"):
                mask = torch.ones_like(ids, dtype=torch.bool)
                generate(model, ids, mask, max_new_tokens=size.answer, eos_ids=stops, pad_id=PAD)

        return run

    return setup


def ppo(size: Size, precision: str, stop_after: int | None = None, *, shared: bool = False) -> Setup:
    """One iteration of `online`, with a reference and a reward model of the policy's size; so is the critic, or on its trunk."""

    def setup() -> Run:
        policy, tokenizer = work.our_model(size), work.tokenizer(size)
        reference, judge = copy.deepcopy(policy), work.our_model(size, scalar=True)
        critic = shared_critic(policy) if shared else work.our_model(size, scalar=True)
        prompts = [PromptExample(row.numpy(), {"prompt": ""}) for row in work.prompts(size)]

        def run(clock: Clock) -> None:
            with TemporaryDirectory() as folder:
                config = OnlineConfig(
                    output_dir=Path(folder),
                    total_steps=1,
                    batch_size=size.answers,
                    micro_batch_size=size.micro_batch,
                    num_epochs=size.epochs,
                    max_new_tokens=size.answer,
                    precision=precision,  # type: ignore[arg-type]
                    save_every=0,
                )
                online(
                    policy,
                    PromptBatches(prompts, size.answers, seed=0, pad_id=PAD),
                    model_scorer(judge.eval(), tokenizer, tokenizer, micro_batch_size=size.micro_batch),
                    config,
                    make_accelerator("bf16" if precision == "bf16" else "no"),
                    tokenizer=NoTokenizer(),
                    eos_ids=() if stop_after is None else work.stop_tokens(size, stop_after),
                    reference=reference,
                    critic=critic,
                    on_step=lambda *_: clock.stop(),
                )

        return run

    return setup


def loss_after_training(size: Size, precision: str) -> float:
    """Held-out loss in nats, computed in fp32, of a model fitted to a Markov chain."""
    generator = torch.Generator().manual_seed(0)
    chain = torch.softmax(3 * torch.randn(size.vocab, size.vocab, generator=generator), 1)

    def rows() -> LMBatch:
        tokens = torch.randint(size.vocab, (size.batch, 1), generator=generator)
        for _ in range(size.length - 1):
            tokens = torch.cat([tokens, torch.multinomial(chain[tokens[:, -1]], 1, generator=generator)], 1)
        return LMBatch(tokens, tokens.clone())

    held_out = [[rows()] for _ in range(8)]
    stage = LanguageModelling(work.our_model(size))
    fitting(stage, Steps([[rows()] for _ in range(size.steps)]), precision)(Clock())
    return evaluate(stage, Steps(held_out), make_accelerator())["eval/loss"]
