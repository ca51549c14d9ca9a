"""Sample two answers to each prompt, ready to be judged; with `--annotators world`, judged by the world's simulated people.

python recipes/sample_pairs.py --model runs/quickstart/sft --pairs 2000 --output runs/quickstart/pairs.jsonl --annotators world
python recipes/sample_pairs.py --model runs/quickstart/ppo --reward runs/rm1,runs/rm2,runs/rm3 --output runs/pairs.jsonl

Beside the answers to be judged stands where they come from and, with `--reward`, what each reward model says of them, so that
`python -m annotate import --choose N` can put those to people on which the models disagree.
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
from rlhf_kit.errors import InputError
from rlhf_kit.models.loading import fingerprint
from rlhf_kit.rollout.best_of_n import sample_in_batches
from rlhf_kit.rollout.experience import Sampler
from rlhf_kit.rollout.judges import Ensemble, judged, load_scorer
from rlhf_kit.rollout.scoring import Row, prompt_text, response_texts
from rlhf_kit.training.precision import Precision, resolve_precision


@dataclass
class SamplePairsConfig:
    """Pairs of answers from one policy."""

    model: str = "runs/tiny/sft"  # a stage's output_dir or a hub name
    data: str = "world"  # prompts
    output: Path = Path("runs/tiny/pairs.jsonl")
    pairs: int = 2_000
    reward: str | None = None  # reward models or callables, a,b,c: each one's score of each answer is written beside it
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
    if config.reward is not None and config.annotators != "none":
        raise InputError("--reward", config.reward, "expected none beside --annotators: scores help to choose what to label")
    model, tokenizer = load_policy(config.model)
    rows = spread(prompts(config.data, count=config.pairs, seed=config.seed, split=config.split), config.pairs)
    examples, counts = prompt_examples(rows, tokenizer, config.max_prompt_length)
    print(f"prompts: {counts}")
    asked = [example for example in examples for _ in range(2)]
    rollouts = sample_rollouts(model, tokenizer, [example.ids for example in asked], config)
    answers = [text for part in rollouts for text in response_texts(part, tokenizer)]
    first, second = answers[0::2], answers[1::2]
    if config.annotators == "world":
        records = labelled_by_world([e.row for e in examples], first, second, config.seed)
    else:
        sides = [answer_columns("a", text) | answer_columns("b", other) for text, other in zip(first, second)]
        records = [{"prompt": e.row["prompt"], **pair, **origin(config)} for e, pair in zip(examples, sides)]
    if config.reward is not None:
        scores = member_scores(config, tokenizer, rollouts, [example.row for example in asked], model.device)
        for i, record in enumerate(records):
            record |= score_columns("a", scores[:, 2 * i]) | score_columns("b", scores[:, 2 * i + 1])
    with config.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    print(f"{len(records)} pairs -> {config.output}")
    return records


def labelled_by_world(rows: list[Row], first: list[str], second: list[str], seed: int) -> list[dict[str, Any]]:
    """{prompt, chosen, rejected} by the world's annotators; a person is never asked to choose between twins."""
    labels = world.Annotators(seed=seed).label([prompt_text(row) for row in rows], first, second)
    records = []
    for row, a, b, label in zip(rows, first, second, labels):
        if a != b:
            chosen, rejected = (a, b) if label == "a" else (b, a)
            records.append({"prompt": row["prompt"], "chosen": [_said(chosen)], "rejected": [_said(rejected)]})
    return records


def answer_columns(side: str, text: str) -> dict[str, Any]:
    """An answer to be judged."""
    return {f"response_{side}": [_said(text)]}


def score_columns(side: str, scores: torch.Tensor) -> dict[str, Any]:
    """What each reward model (M,) says of an answer, and their mean."""
    return {f"rm_score_{side}": float(scores.mean()), f"member_scores_{side}": scores.tolist()}


def origin(config: SamplePairsConfig) -> dict[str, Any]:
    """Where both answers come from: the model, which weights those were, and how they were drawn."""
    sampling = {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens}
    return {"model": config.model, "checkpoint": fingerprint(config.model), "sampling": sampling}


def member_scores(
    config: SamplePairsConfig, tokenizer: Any, rollouts: list[Rollout], rows: list[Row], device: Any
) -> torch.Tensor:
    """(M, B): what each judge of `--reward` says of each answer."""
    scorer, _ = load_scorer(str(config.reward), tokenizer, micro_batch_size=config.batch_size, device=device)
    parts, start = [], 0
    for rollout in rollouts:
        here = rows[start : start + len(rollout.ended)]
        start += len(here)
        if isinstance(scorer, Ensemble):
            parts.append(scorer.member_scores(rollout, here))
        else:
            parts.append(judged(scorer, rollout, here).scores[None])
    return torch.cat(parts, 1)


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


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
