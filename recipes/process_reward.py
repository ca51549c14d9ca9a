"""Train a process reward model on answers judged step by step; recipes/ppo.py takes it as `--reward`.

python recipes/process_reward.py --model runs/sft --data stepwise.jsonl --output_dir runs/process_reward
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.common import LoraFields, encoded_batches, hold_out, judged_steps, lora_of, open_run
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.batching import ExampleBatches
from rlhf_kit.data.stepwise import stepwise_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.access import unwrap
from rlhf_kit.models.loading import load_process_model
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import ProcessRewardModelling


@dataclass
class ProcessRewardConfig(LoraFields, FitConfig):
    """A model of which steps of an answer are correct."""

    output_dir: Path = Path("runs/tiny/process_reward")
    model: str = "runs/tiny/sft"  # a stage's output_dir or a hub name
    data: str = "arithmetic"  # rows with `prompt`, `completions` (the steps) and `labels`; `arithmetic`: generated sums
    eval_data: str | None = None  # held-out rows; None: an eval_fraction of `data`, or sums that are never trained on
    eval_fraction: float = 0.1
    max_length: int = 256  # tokens of prompt and answer; longer ones are cut, and counted
    solutions: int = 8_000  # of the generated sums


def main(config: ProcessRewardConfig) -> dict[str, float]:
    """Encode, then fit on the labels of the steps."""
    check_least(config, max_length=2, solutions=1)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model, "--model")
    rows = judged_steps(config.data, count=config.solutions, seed=config.seed)
    if config.eval_data is None and config.data != "arithmetic":
        rows, held_out = hold_out(rows, config.eval_fraction)
    else:  # a share of the generated rows would ask what the others ask
        held_out = judged_steps(config.eval_data or config.data, count=1_000, seed=config.seed, split="heldout")

    model = load_process_model(config.model, lora=lora_of(config))
    unwrap(model).config.pad_token_id = tokenizer.pad_token_id
    train, evaluated = encoded_batches(rows, held_out, stepwise_examples, ExampleBatches, config, accelerator, model, tokenizer)
    return fit(ProcessRewardModelling(model), train, config, accelerator, tokenizer=tokenizer, eval_batches=evaluated)


if __name__ == "__main__":
    run_recipe(main, ProcessRewardConfig)
