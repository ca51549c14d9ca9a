"""Fine-tune a language model on demonstrations.

python recipes/sft.py --config recipes/configs/tiny/sft.yaml
python recipes/sft.py --model HuggingFaceTB/SmolLM2-135M --data demonstrations.jsonl --lora_rank 16 --output_dir runs/sft
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.common import LoraFields, demonstrations, encoded_batches, hold_out, lora_of, open_run
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.batching import ExampleBatches
from rlhf_kit.data.examples import sft_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.loading import load_causal_lm
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import LanguageModelling


@dataclass
class SFTConfig(LoraFields, FitConfig):
    """A language model that answers as it is shown."""

    output_dir: Path = Path("runs/tiny/sft")
    model: str = "runs/tiny/pretrain"  # a stage's output_dir or a hub name
    data: str = "world"  # demonstrations: messages, prompt + completion, or instruction + output
    eval_data: str | None = None  # held-out demonstrations; None: an eval_fraction of `data`
    eval_fraction: float = 0.05
    max_length: int = 256  # tokens of an example; longer ones are cut, and counted
    packing: bool = False  # several examples a row, without attention between them
    world_demonstrations: int = 8_000  # of the embedded world


def main(config: SFTConfig) -> dict[str, float]:
    """Encode, then fit on the assistant's tokens."""
    check_least(config, max_length=2, world_demonstrations=1)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model, "--model")
    rows = demonstrations(config.data, count=config.world_demonstrations, seed=config.seed)
    if config.eval_data is None:
        rows, held_out = hold_out(rows, config.eval_fraction)
    else:
        held_out = demonstrations(config.eval_data, count=1_000, seed=config.seed, split="heldout")

    model = load_causal_lm(config.model, lora=lora_of(config))
    packed = {"packed_length": config.max_length} if config.packing else {}
    train, evaluated = encoded_batches(
        rows, held_out, sft_examples, ExampleBatches, config, accelerator, model, tokenizer, **packed
    )
    return fit(LanguageModelling(model), train, config, accelerator, tokenizer=tokenizer, eval_batches=evaluated)


if __name__ == "__main__":
    run_recipe(main, SFTConfig)
