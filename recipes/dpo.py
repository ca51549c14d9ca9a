"""Improve a policy on pairs of answers with DPO or a relative; no reward model, no sampling.

python recipes/dpo.py --config recipes/configs/tiny/dpo.yaml
python recipes/dpo.py --model runs/sft --data preferences.jsonl --loss simpo --output_dir runs/simpo
python recipes/dpo.py --model runs/sft --data thumbs.jsonl --loss kto --lora_rank 16 --output_dir runs/kto
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

from recipes.common import LoraFields, encoded_batches, feedback, hold_out, lora_of, open_run, preferences
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.batching import PreferenceBatches
from rlhf_kit.data.examples import preference_examples
from rlhf_kit.data.feedback import FeedbackBatches, feedback_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.loading import load_causal_lm
from rlhf_kit.objectives.preference import LOSSES
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.preference import FeedbackOptimisation, PreferenceOptimisation

# How pairs, and answers that were judged alone, are loaded, encoded, batched and learned from.
PAIRS: tuple[Any, ...] = (preferences, preference_examples, PreferenceBatches, PreferenceOptimisation)
ANSWERS: tuple[Any, ...] = (feedback, feedback_examples, FeedbackBatches, FeedbackOptimisation)
OPTIONS = ("beta", "label_smoothing", "gamma", "desirable_weight", "undesirable_weight")


@dataclass
class DPOConfig(LoraFields, FitConfig):
    """A policy that answers as people prefer, learned from their choices alone."""

    output_dir: Path = Path("runs/tiny/dpo")
    model: str = "runs/tiny/sft"  # where the policy starts, and the reference that it is compared with
    loss: Literal["dpo", "robust", "hinge", "ipo", "simpo", "orpo", "kto"] = "dpo"
    beta: float | None = None  # None here and below: the loss's own default; a setting that it does not have is refused
    label_smoothing: float | None = None  # dpo, robust: share of choices taken to be wrong
    gamma: float | None = None  # simpo: the margin that the better answer should have
    desirable_weight: float | None = None  # kto, for classes of unequal size
    undesirable_weight: float | None = None  # kto
    data: str = "world"  # pairs: prompt, chosen, rejected; kto reads judged answers as well: prompt, completion, label
    eval_data: str | None = None  # held-out data; None: an eval_fraction of `data`
    eval_fraction: float = 0.1
    max_length: int = 256  # tokens of prompt and answer
    world_pairs: int = 4_000  # of the embedded world
    learning_rate: float = 1e-6
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "linear"
    weight_decay: float = 0.0
    adam_beta2: float = 0.999


def main(config: DPOConfig) -> dict[str, float]:
    """Encode, then fit on the preferences."""
    check_least(config, max_length=2, world_pairs=1)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model, "--model")
    load, encode, batches, make_stage = PAIRS if LOSSES[config.loss].paired else ANSWERS
    rows = load(config.data, count=config.world_pairs, seed=config.seed)
    if config.eval_data is None:
        rows, held_out = hold_out_prompts(rows, config.eval_fraction)
    else:
        held_out = load(config.eval_data, count=1_000, seed=config.seed, split="heldout")

    policy = load_causal_lm(config.model, lora=lora_of(config), dropout=0.0)
    options = {name: value for name in OPTIONS if (value := getattr(config, name)) is not None}
    stage = make_stage(policy, config.loss, **options)
    train, evaluated = encoded_batches(rows, held_out, encode, batches, config, accelerator, policy, tokenizer)
    return fit(stage, train, config, accelerator, tokenizer=tokenizer, eval_batches=evaluated)


def hold_out_prompts(rows: list[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """`hold_out` by prompt: neighbours that answer the same one stay together, or a held-out prompt were trained on."""
    kept, spared = hold_out([list(group) for _, group in groupby(rows, key=lambda row: row["prompt"])], fraction)
    return list(chain.from_iterable(kept)), list(chain.from_iterable(spared))


if __name__ == "__main__":
    run_recipe(main, DPOConfig)
