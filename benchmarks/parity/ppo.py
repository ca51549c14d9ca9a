"""Loop two beside TRL 1.12's `PPOTrainer`, the last that TRL has: two rollouts of three epochs, metrics, gradients, weights.

Nothing is sampled: the answers are given to both, and are such that the differences of docs/parity.md make none here:
- all answers are of full length, without an EOS: its score would stand one past the EOS, its metrics would count padding;
- one minibatch an epoch, in one piece: more minibatches would add no optimizer steps, and in the last batch of
  the dataset every micro-batch is a step of its own (accelerate ends an accumulation where the dataloader ends);
- no clipping of gradients: it would be ignored;
- k1: its `objective/kl` is of the estimator, ours always the log-ratio;
- `val/ratio_var` is left out: TRL's is that of the epochs' means, ours that of the tokens.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from benchmarks.parity.rows import Case, Found
from benchmarks.parity.trl_code import widened
from benchmarks.parity.world import DTYPES, EOS, PAD, filled
from rlhf_kit.batches import PromptBatch
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.rollout import experience
from rlhf_kit.rollout.experience import join
from rlhf_kit.training import online as loop
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.metrics import read_metrics
from rlhf_kit.training.online_config import OnlineConfig

ANSWERS, QUERY, LENGTH, VOCAB, STEPS = 8, 3, 5, 16, 2
# Under TRL's names; NAMES has ours where they differ. Adam's eps of 1e-3 keeps rounding out of the weights.
SETTINGS: dict[str, Any] = {
    "temperature": 0.7, "missing_eos_penalty": 0.3, "kl_coef": 0.2, "kl_estimator": "k1", "cliprange": 0.1,
    "cliprange_value": 0.05, "vf_coef": 0.3, "gamma": 0.9, "lam": 0.8, "whiten_rewards": True, "num_ppo_epochs": 3,
    "num_mini_batches": 1, "learning_rate": 1e-2, "adam_epsilon": 1e-3, "adam_beta1": 0.8, "adam_beta2": 0.95,
    "weight_decay": 0.0,
}  # fmt: skip
NAMES = {"num_ppo_epochs": "num_epochs", "num_mini_batches": "num_minibatches", "adam_epsilon": "adam_eps"}
METRICS = (
    "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
    "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
    "val/ratio", "val/num_eos_tokens", "lr", "episode",
)  # fmt: skip


def models(precision: str) -> dict[str, Any]:
    """Small Llamas: the policy, its reference (another model, so that there is a KL), the critic, the reward model."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None,
    }  # fmt: skip
    language, scalar = LlamaConfig(**shape), LlamaConfig(**(shape | {"num_labels": 1}))
    made: dict[str, tuple[Any, float]] = {
        "policy": (LlamaForCausalLM(language), 0.0),
        "reference": (LlamaForCausalLM(language), 0.1),
        "critic": (LlamaForSequenceClassification(scalar), 1.0),
        "reward": (LlamaForSequenceClassification(scalar), 2.0),
    }
    return {name: filled(model.to(DTYPES[precision]), phase) for name, (model, phase) in made.items()}


def queries() -> Tensor:
    """(ANSWERS, QUERY) long, neither padding nor EOS among them."""
    rows, columns = torch.meshgrid(torch.arange(ANSWERS), torch.arange(QUERY), indexing="ij")
    return 2 + (5 * rows + 3 * columns + rows * columns) % (VOCAB - 2)


def answers_to(asked: Tensor, step: int) -> Tensor:
    """(B, LENGTH) long: the answers to some of the queries, in any order, at one step."""
    columns = torch.arange(LENGTH)
    return 2 + (asked.sum(1, keepdim=True) * (columns + 2) + asked[:, :1] * 7 + columns**2 + 5 * step) % (VOCAB - 2)


Answers = Callable[[Tensor, int], Tensor]  # (B, QUERY) queries and the step -> (B, LENGTH) answers


class Recorder:
    """The loss and the gradients of each optimizer step, summed over its micro-batches."""

    def __init__(self, learned: dict[str, Any]) -> None:
        self.learned = {name: learned[name] for name in ("policy", "critic")}
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        self.pending = 0.0

    def watch(self, accelerator: Any, *, every_backward_steps: bool) -> None:
        """Have every backward pass recorded."""
        backward = accelerator.backward

        def recorded(loss: Tensor, **kwargs: Any) -> None:
            backward(loss, **kwargs)
            self.pending += float(loss.detach())
            if every_backward_steps:
                self.step()

        accelerator.backward = recorded

    def step(self) -> None:
        """A step is about to be taken."""
        self.gradients |= {f"{len(self.losses)}.{name}": p.grad.clone() for name, p in self._parameters() if p.grad is not None}
        self.losses.append(self.pending)
        self.pending = 0.0

    def found(self, logged: list[dict[str, float]]) -> Found:
        """Everything that is compared."""
        weights = {name: p.detach().clone() for name, p in self._parameters()}
        metrics: Found = {name: [row[name] for row in logged] for name in METRICS}
        return {"loss": self.losses, "gradients": self.gradients, "weights": weights, **metrics}

    def _parameters(self) -> list[tuple[str, Any]]:
        return [(f"{name}.{p}", w) for name, model in self.learned.items() for p, w in model.named_parameters()]


def run_ours(precision: str, answers: Answers = answers_to, **settings: Any) -> Found:
    """Our loop on the given answers; each ends at its first EOS. `settings` are OnlineConfig fields."""
    with widened(precision), tempfile.TemporaryDirectory() as folder:
        us, steps, accelerator = models(precision), iter(range(STEPS)), make_accelerator()
        options = {NAMES.get(name, name): value for name, value in SETTINGS.items()} | settings
        config = OnlineConfig(
            output_dir=Path(folder), total_steps=STEPS, batch_size=ANSWERS, max_new_tokens=LENGTH, save_every=0,
            **({"micro_batch_size": 3, "max_grad_norm": 0.0} | options),
        )  # fmt: skip
        everything = torch.ones(ANSWERS, QUERY, dtype=torch.bool)
        batch: Any = PromptBatch(queries(), everything, torch.arange(ANSWERS)), [{}] * ANSWERS
        recorder = Recorder(us)
        recorder.watch(accelerator, every_backward_steps=False)
        clip = loop.clip_grad_norm

        def generate(policy: Any, query_ids: Tensor, query_mask: Tensor, **_: Any) -> SimpleNamespace:
            ids = answers(query_ids, next(steps))
            ends = ids == EOS
            mask = ends.long().cumsum(1) - ends.long() == 0
            return SimpleNamespace(response_ids=ids, response_mask=mask, ended=ends.any(1), logprobs=torch.zeros(ids.shape))

        def score(rollout: Any, rows: Any) -> Tensor:
            joined = join(rollout)
            with torch.no_grad():
                return scalar_scores(us["reward"], joined.ids, joined.mask)

        def clipped(parameters: Any, bound: Any) -> float:
            if parameters[0] is next(us["policy"].parameters()):
                recorder.step()
            return clip(parameters, bound)

        with (
            patch.object(experience, "generate", generate),
            patch.object(loop, "clip_grad_norm", clipped),
            redirect_stderr(io.StringIO()),
        ):
            loop.online(
                us["policy"], SimpleNamespace(batch=lambda step, rank, world: batch), score, config, accelerator,
                tokenizer=SimpleNamespace(pad_token_id=PAD, save_pretrained=lambda *_, **__: None), eos_ids=(EOS,),
                reference=us["reference"], critic=us["critic"],
            )  # fmt: skip
        return recorder.found(read_metrics(Path(folder) / "metrics.jsonl"))


def run_theirs(precision: str, answers: Answers = answers_to, *, pad: int = PAD, repeat: int = 1, **settings: Any) -> Found:
    """TRL's trainer on the given answers. `settings` are PPOConfig fields; the queries stand `repeat` times in its dataset."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, ppo_trainer

    logged: list[dict[str, float]] = []
    steps = iter(range(STEPS))

    def generation(model: Any, asked: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        both = torch.cat([asked, answers(asked, next(steps))], 1)
        output: Any = ppo_trainer.forward(model, both, pad)
        logits = output.logits[:, QUERY - 1 : -1]
        return both, logits / (SETTINGS["temperature"] + 1e-7)

    with widened(precision), tempfile.TemporaryDirectory() as folder, patch.object(ppo_trainer, "batch_generation", generation):
        them = models(precision)
        config = PPOConfig(
            output_dir=folder, response_length=LENGTH, local_rollout_forward_batch_size=ANSWERS, stop_token_id=EOS,
            lr_scheduler_type="linear", warmup_steps=0, bf16=False, use_cpu=True, num_sample_generations=0, save_strategy="no",
            logging_steps=1, report_to=[], disable_tqdm=True,
            **({"total_episodes": STEPS * ANSWERS, "per_device_train_batch_size": ANSWERS} | SETTINGS | settings),
        )  # fmt: skip
        make: Any = ppo_trainer.PPOTrainer
        trainer = make(
            args=config, processing_class=SimpleNamespace(pad_token_id=pad, eos_token_id=EOS), model=them["policy"],
            ref_model=them["reference"], reward_model=them["reward"], value_model=them["critic"],
            train_dataset=Dataset.from_dict({"input_ids": queries().tolist() * repeat}),
            data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
        )  # fmt: skip
        trainer.log = logged.append
        recorder = Recorder(them)
        recorder.watch(trainer.accelerator, every_backward_steps=True)
        with redirect_stdout(io.StringIO()):
            trainer.train()
        return recorder.found(logged)


DRIFT = (1e-5, "fp32: from the second update on both start from weights that were rounded apart")
SMALL = (5e-6, "fp32: a small difference of large sums")
LOOSE = {"gradients": DRIFT} | dict.fromkeys(("objective/kl", "objective/non_score_reward", "loss/policy_avg"), SMALL)
CASES = [
    Case("ppo", partial(run_ours, precision), partial(run_theirs, precision), precision, LOOSE if precision == "fp32" else {})
    for precision in ("fp64", "fp32")
]
