"""Train a reward model on pairs of answers.

python recipes/reward.py --config recipes/configs/tiny/reward.yaml
python recipes/reward.py --model runs/sft --data preferences.jsonl --output_dir runs/reward
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.common import LoraFields, demonstrations, encoded_batches, hold_out, lora_of, open_run, preferences, spread
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data.batching import PreferenceBatches
from rlhf_kit.data.examples import preference_examples, sft_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.models.access import scalar_scores, unwrap
from rlhf_kit.models.loading import load_scalar_model
from rlhf_kit.rollout.scoring import pad
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.stages import RewardModelling


@dataclass
class RewardConfig(LoraFields, FitConfig):
    """A scalar model of what people prefer."""

    output_dir: Path = Path("runs/tiny/reward")
    model: str = "runs/tiny/sft"  # a stage's output_dir or a hub name
    data: str = "world"  # pairs: prompt, chosen, rejected (margin)
    eval_data: str | None = None  # held-out pairs; None: an eval_fraction of `data`
    eval_fraction: float = 0.1
    demonstrations: str | None = "world"  # texts whose mean score becomes 0 after training; None: leave the scores as they are
    max_length: int = 256  # tokens of prompt and answer
    center_coef: float = 0.0  # weight of (r_chosen + r_rejected)^2
    label_smoothing: float = 0.0  # share of labels taken to be wrong
    world_pairs: int = 4_000  # of the embedded world


def main(config: RewardConfig) -> dict[str, float]:
    """Encode, fit on the pairs, and set the offset that makes a demonstration's mean score 0."""
    check_least(config, max_length=2, world_pairs=1)
    accelerator = open_run(config)
    tokenizer = load_tokenizer(config.model, "--model")
    rows = preferences(config.data, count=config.world_pairs, seed=config.seed)
    if config.eval_data is None:
        rows, held_out = hold_out(rows, config.eval_fraction)
    else:
        held_out = preferences(config.eval_data, count=1_000, seed=config.seed, split="heldout")

    model = load_scalar_model(config.model, lora=lora_of(config))
    unwrap(model).config.pad_token_id = tokenizer.pad_token_id
    train, evaluated = encoded_batches(
        rows, held_out, preference_examples, PreferenceBatches, config, accelerator, model, tokenizer
    )

    def center() -> None:
        if config.demonstrations is not None:
            shown = spread(demonstrations(config.demonstrations, count=256, seed=config.seed), 256)
            texts = [ids for ids, _ in sft_examples(shown, tokenizer, config.max_length)[0]]
            center_scores(model, texts, accelerator)

    stage = RewardModelling(model, center_coef=config.center_coef, label_smoothing=config.label_smoothing)
    return fit(stage, train, config, accelerator, tokenizer=tokenizer, eval_batches=evaluated, before_save=center)


@torch.no_grad()
def center_scores(model: Any, texts: list[Any], accelerator: Any) -> None:
    """Set `config.score_bias` so that the mean score of `texts` is 0; it is saved with the model (Stiennon et al. 2020)."""
    model.eval()
    scores = []
    for start in range(0, len(texts), 32):
        ids, mask = pad(texts[start : start + 32], device=accelerator.device)
        scores.append(scalar_scores(model, ids, mask))
    base = unwrap(model).config
    base.score_bias = getattr(base, "score_bias", 0.0) - float(torch.cat(scores).mean())


if __name__ == "__main__":
    run_recipe(main, RewardConfig)
