"""Sample two answers to each prompt, ready to be judged; with `--annotators world`, judged by the world's simulated people.

What is to be judged says beside each pair what the preference app (`python -m annotate import`) keeps: the model, its weights'
fingerprint, how it was sampled, and with `--reward` what that reward thinks of each answer.

python recipes/sample_pairs.py --model runs/quickstart/sft --pairs 2000 --output runs/quickstart/pairs.jsonl --annotators world
"""

from __future__ import annotations

import hashlib
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
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import load_scorer, pad, prompt_text, response_texts
from rlhf_kit.training.precision import Precision, resolve_precision


@dataclass
class SamplePairsConfig:
    """Pairs of answers from one policy."""

    model: str = "runs/tiny/sft"  # a stage's output_dir or a hub name
    data: str = "world"  # prompts
    output: Path = Path("runs/tiny/pairs.jsonl")
    pairs: int = 2_000
    annotators: Literal["none", "world"] = "none"  # none: {prompt, response_a, response_b}; world: {prompt, chosen, rejected}
    reward: str | None = None  # a reward model's directory or a callable, for rm_score_a and rm_score_b
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
    parts = sample_rollouts(model, tokenizer, [e.ids for e in examples for _ in range(2)], config)
    answers = [text for part in parts for text in response_texts(part, tokenizer)]
    first, second = answers[0::2], answers[1::2]
    scores = reward_scores(parts, [e.row for e in examples for _ in range(2)], tokenizer, config)
    origin = {
        "model": config.model,
        "checkpoint": fingerprint(config.model),
        "sampling": {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens},
    }
    texts = [prompt_text(e.row) for e in examples]
    labels = world.Annotators(seed=config.seed).label(texts, first, second) if config.annotators == "world" else None
    records = []
    for i, row in enumerate(e.row for e in examples):
        a, b = ([{"role": "assistant", "content": text}] for text in (first[i], second[i]))
        if labels is None:
            rated = {f"rm_score_{side}": scores[2 * i + j] for j, side in enumerate("ab")} if scores else {}
            records.append({"prompt": row["prompt"], "response_a": a, "response_b": b, **origin, **rated})
        elif first[i] != second[i]:  # a person is never asked to choose between twins
            chosen, rejected = (a, b) if labels[i] == "a" else (b, a)
            records.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    with config.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    print(f"{len(records)} pairs -> {config.output}")
    return records


def reward_scores(parts: list[Rollout], rows: list[Any], tokenizer: Any, config: SamplePairsConfig) -> list[float]:
    """What `config.reward` gives each answer to its prompt's row; empty where there is none."""
    if config.reward is None:
        return []
    score, _ = load_scorer(config.reward, tokenizer, micro_batch_size=config.batch_size, device=parts[0].response_ids.device)
    sizes = [len(part.response_ids) for part in parts]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [x for part, at, size in zip(parts, starts, sizes) for x in score(part, rows[at : at + size]).tolist()]


def fingerprint(model: str) -> str:
    """The first 12 digits of a hash of a directory's weights, which tells checkpoints of one name apart; "" of a hub name."""
    files = sorted(Path(model).glob("*.safetensors"))
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12] if files else ""


def sample_rollouts(model: Any, tokenizer: Any, queries: list[Any], config: Any) -> list[Rollout]:
    """Answers in batches of `config.batch_size`; `config` has max_new_tokens, temperature, precision and seed."""
    generator = torch.Generator().manual_seed(config.seed)
    precision = resolve_precision(config.precision, model.device)
    parts = []
    for start in range(0, len(queries), config.batch_size):
        ids, mask = pad(queries[start : start + config.batch_size], side="left")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            answer = generate(
                model,
                ids.to(model.device),
                mask.to(model.device),
                max_new_tokens=config.max_new_tokens,
                eos_ids=stop_tokens(model, tokenizer),
                pad_id=tokenizer.pad_token_id,
                temperature=config.temperature,
                generator=generator,
            )
        parts.append(
            Rollout(
                query_ids=ids.to(model.device),
                query_mask=mask.to(model.device),
                response_ids=answer.response_ids,
                response_mask=answer.response_mask,
                ended=answer.ended,
                group_ids=torch.arange(start, start + len(ids), device=model.device),
                sampler_logprobs=answer.logprobs,
            )
        )
    return parts


if __name__ == "__main__":
    run_recipe(main, SamplePairsConfig)
