"""Train a yes-or-no classifier on labelled texts; its score, the log-odds of yes, is a reward for recipes/ppo.py.

python recipes/classify.py --model runs/pretrain --data reviews.jsonl --positive pos --output_dir runs/sentiment
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.common import LoraFields, encoded_batches, hold_out, lora_of, open_run
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.labelled import LabelledBatches, labelled_examples, load_labelled
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.access import unwrap
from rlhf_kit.models.loading import load_scalar_model
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import Classification


@dataclass
class ClassifyConfig(LoraFields, FitConfig):
    """A scalar model of what a text is."""

    output_dir: Path = Path("runs/classify")
    model: str = "runs/tiny/pretrain"  # a stage's output_dir or a hub name: the body to start from
    data: str = "reviews.jsonl"  # rows with `text` and `label`
    positive: str | None = None  # the label that counts as yes; None: true, or 1
    eval_data: str | None = None  # held-out rows; None: an eval_fraction of `data`
    eval_fraction: float = 0.1
    max_length: int = 128  # tokens of a text; longer ones are cut, and counted
    label_smoothing: float = 0.0  # share of labels taken to be wrong


def main(config: ClassifyConfig) -> dict[str, float]:
    """Encode, then fit on the labels."""
    check_least(config, max_length=2)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model, "--model")
    rows = load_labelled(config.data, config.positive)
    if config.eval_data is None:
        rows, held_out = hold_out(rows, config.eval_fraction)
    else:
        held_out = load_labelled(config.eval_data, config.positive)

    model = load_scalar_model(config.model, lora=lora_of(config))
    unwrap(model).config.pad_token_id = tokenizer.pad_token_id
    train, evaluated = encoded_batches(rows, held_out, labelled_examples, LabelledBatches, config, accelerator, model, tokenizer)
    stage = Classification(model, label_smoothing=config.label_smoothing)
    return fit(stage, train, config, accelerator, tokenizer=tokenizer, eval_batches=evaluated)


if __name__ == "__main__":
    run_recipe(main, ClassifyConfig)
