"""Sample two answers to each prompt, ready to be judged; with `--annotators world`, judged by the world's simulated people.

python recipes/sample_pairs.py --model runs/quickstart/sft --pairs 2000 --output runs/quickstart/pairs.jsonl --annotators world
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from recipes.common import load_policy, prompts, spread, writable
from recipes.ppo import stop_tokens
from rlhf_kit.batches import Rollout
from rlhf_kit.config import check_least, run_recipe
from rlhf_kit.data import world
from rlhf_kit.data.examples import prompt_examples
from rlhf_kit.rollout.best_of_n import sample_in_batches
from rlhf_kit.rollout.experience import Sampler
from rlhf_kit.rollout.scoring import prompt_text, response_texts
from rlhf_kit.training.precision import Precision, resolve_precision


@dataclass
class SamplePairsConfig:
    """Pairs of answers from one policy."""

    model: str = "runs/tiny/sft"  # a stage's output_dir or a hub name
    data: str = "world"  # prompts
    output: Path = Path("runs/tiny/pairs.jsonl")
    pairs: int = 2_000
    annotators: Literal["none", "world"] = "none"  # none: {prompt, response_a, response_b}; world: {prompt, chosen, rejected}
    split: Literal["train", "heldout"] = "train"  # of the embedded world
    max_prompt_length: int = 192
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch_size: int = 256
    precision: Precision = "fp32"
    seed: int = 0


def main(config: SamplePairsConfig) -> list[dict[str, Any]]:
    """Sample, label where asked, write JSONL."""
    check_least(config, pairs=1, max_prompt_length=1, max_new_tokens=1, batch_size=1, seed=0)
    writable(config.output.parent, "--output")
    model, tokenizer = load_policy(config.model)
    rows = spread(prompts(config.data, count=config.pairs, seed=config.seed, split=config.split), config.pairs)
    examples, counts = prompt_examples(rows, tokenizer, config.max_prompt_length)
    print(f"prompts: {counts}")
    answers = sample_answers(model, tokenizer, [e.ids for e in examples for _ in range(2)], config)
    first, second = answers[0::2], answers[1::2]
    texts = [prompt_text(e.row) for e in examples]
    labels = world.Annotators(seed=config.seed).label(texts, first, second) if config.annotators == "world" else None
    records = []
    for i, row in enumerate(e.row for e in examples):
        a, b = ([{"role": "assistant", "content": text}] for text in (first[i], second[i]))
        if labels is None:
            records.append({"prompt": row["prompt"], "response_a": a, "response_b": b})
        elif first[i] != second[i]:  # a person is never asked to choose between twins
            chosen, rejected = (a, b) if labels[i] == "a" else (b, a)
            records.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    with config.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    print(f"{len(records)} pairs -> {config.output}")
    return records


def sample_answers(model: Any, tokenizer: Any, queries: list[Any], config: Any) -> list[str]:
    """One answer as text to every query (token ids), in order."""
    return [text for part in sample_rollouts(model, tokenizer, queries, config) for text in response_texts(part, tokenizer)]


def sample_rollouts(model: Any, tokenizer: Any, queries: list[Any], config: Any) -> list[Rollout]:
    """Answers in batches of `config.batch_size`; `config` has max_new_tokens, temperature, precision and seed."""
    return sample_in_batches(model, queries, **sampling(model, tokenizer, config))


def sampling(model: Any, tokenizer: Any, config: Any) -> dict[str, Any]:
    """How `config` wants answers sampled, as `rlhf_kit.rollout.best_of_n` asks for it."""
    return {
        "sampler": Sampler(config.max_new_tokens, stop_tokens(model, tokenizer), tokenizer.pad_token_id, config.temperature),
        "batch_size": config.batch_size,
        "generator": torch.Generator().manual_seed(config.seed),
        "bf16": resolve_precision(config.precision, model.device) == "bf16",
    }


if __name__ == "__main__":
    run_recipe(main, SamplePairsConfig)
