"""Measure a model: against the one it came from, against a reward, on texts, on pairs. Writes evaluation.json and samples.jsonl.

python recipes/evaluate.py --model runs/tiny/ppo --reference runs/tiny/sft --reward runs/tiny/reward
python recipes/evaluate.py --model runs/sft --best_of 16 --reward runs/reward --reference runs/ppo --gold my_rewards.py:judge
python recipes/evaluate.py --model runs/small/pretrain --texts books_val.jsonl.xz --reference none
python recipes/evaluate.py --reward runs/reward --preferences held_out.jsonl --reference none
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recipes.common import EnsembleFields, best_device, documents, load_policy, preferences, prompts, spread, writable
from recipes.sample_pairs import sample_rollouts, sampling
from rlhf_kit.batches import Rollout
from rlhf_kit.config import check_least, run_recipe, save_config
from rlhf_kit.data.batching import PreferenceBatches
from rlhf_kit.data.examples import preference_examples, prompt_examples
from rlhf_kit.data.tokenizer import load_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.generation import (
    describe_answers,
    judge_both_orders,
    length_controlled_win_rate,
    outcomes_from_scores,
    sequence_kl,
    win_rate,
)
from rlhf_kit.evaluation.perplexity import evaluate_documents, xz_bits_per_byte
from rlhf_kit.evaluation.reward import PreferenceScores, accuracy, score_preferences, summarize_preferences
from rlhf_kit.models.loading import check_fits, load_scalar_model
from rlhf_kit.objectives.process_reward import StepScore
from rlhf_kit.rollout.best_of_n import best_of_n, best_of_n_kl
from rlhf_kit.rollout.experience import by_length, response_logprobs
from rlhf_kit.rollout.judges import load_scorer
from rlhf_kit.rollout.scoring import Scorer, load_function, prompt_text, response_texts
from rlhf_kit.training.precision import Precision

WORLD_PAIRS = 4_000  # of the embedded world, for the reward model's accuracy


@dataclass
class EvaluateConfig(EnsembleFields):
    """What to measure; each part runs where its fields are given."""

    output_dir: Path = Path("runs/tiny/evaluation")
    model: str | None = "runs/tiny/ppo"  # the policy; None: evaluate a reward model alone
    reference: str | None = "runs/tiny/sft"  # the model it is compared with, on the same prompts; None: no comparison
    reward: str | None = None  # a reward model's directory, a callable, or several of them (a,b,c): the proxy
    best_of: int = 1  # answers that the policy gives to each prompt, of which the proxy chooses one
    step_score: StepScore = "min"  # of a process reward model: what its steps add up to
    gold: str | None = None  # a callable the policy was not trained on
    judge: str | None = None  # a callable (prompt, a, b) -> 1 | 0 | -1, asked in both orders
    attributes: str | None = None  # a callable (prompt, response) -> {name: number}, averaged before and after
    data: str = "world"  # prompts of the comparison
    split: Literal["train", "heldout"] = "heldout"  # of the embedded world
    prompts: int = 256
    max_prompt_length: int = 192
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch_size: int = 64
    precision: Precision = "fp32"
    preferences: str | None = None  # held-out pairs for the reward model
    preference_groups: str | None = None  # a column of theirs: accuracy also for each of its values
    texts: str | None = None  # held-out documents for perplexity and bits per byte
    sequence_length: int = 256  # of a window over a document
    stride: int = 128
    max_documents: int = 1_000
    samples: int = 24  # answers kept side by side in samples.jsonl
    seed: int = 0


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Run the parts that are asked for, print and save what they found."""
    check_least(
        config, prompts=1, max_prompt_length=1, max_new_tokens=1, batch_size=1, sequence_length=2, stride=1, max_documents=1
    )
    check_least(config, samples=0, temperature=0, seed=0, best_of=1, ensemble_variance_coef=0)
    if config.best_of > 1 and config.reward is None:
        raise InputError("--reward", None, "expected a reward model or a callable: --best_of chooses by it")
    if config.best_of > 1 and None in (config.model, config.reference):
        mend = "expected both: --best_of compares the best answers of one with the answers of the other"
        raise InputError("--model, --reference", (config.model, config.reference), mend)
    if config.best_of > 1 and config.temperature == 0:
        raise InputError("--temperature", 0, "expected more than 0: greedy answers are all alike, and --best_of has no choice")
    writable(config.output_dir)
    result: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    policy = load_policy(config.model)[0] if config.model else None
    if policy is not None and config.reference is not None:
        compared, samples = compare(policy, config)
        result |= compared
    if config.preferences is not None:
        result |= evaluate_reward(config)
    if config.texts is not None:
        if policy is None:
            raise InputError("--model", None, "expected a language model: --texts measures one")
        texts = list(documents(config.texts, count=config.max_documents, seed=config.seed + 1))[: config.max_documents]
        tokenizer = load_tokenizer(str(config.model))
        check_fits(policy, tokenizer, longest=config.sequence_length, field="--sequence_length")
        result |= evaluate_documents(policy, tokenizer, texts, config.sequence_length, config.stride)
        result["baselines"] = {"xz": xz_bits_per_byte("\n".join(texts))}
    if not result:
        raise InputError("--reference, --preferences, --texts", None, "expected at least one: nothing was asked for")
    (config.output_dir / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with (config.output_dir / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    save_config(config, config.output_dir / "run_config.yaml")
    print(summary(result))
    return result


def compare(policy: Any, config: EvaluateConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Policy and reference answer the same prompts; whoever is asked says which answer is better."""
    assert config.model is not None
    assert config.reference is not None
    tokenizer, reference = load_tokenizer(config.model), load_policy(config.reference)[0]
    check_fits(reference, tokenizer)
    rows = prompts(config.data, count=config.prompts, seed=config.seed + 1, split=config.split)
    examples, counts = prompt_examples(rows, tokenizer, config.max_prompt_length)
    examples = spread(examples, config.prompts)
    print(f"prompts: {counts}")
    queries, rows = [e.ids for e in examples], [e.row for e in examples]
    asked = [prompt_text(row) for row in rows]
    proxy = proxy_of(config, tokenizer, policy.device)
    parts = {
        "after": best_answers(policy, tokenizer, queries, rows, proxy, config),
        "before": sample_rollouts(reference, tokenizer, queries, config),
    }
    answers = {side: [text for part in parts[side] for text in response_texts(part, tokenizer)] for side in parts}
    lengths = {side: torch.cat([part.lengths for part in parts[side]]).cpu().numpy() for side in parts}

    result: dict[str, Any] = {}
    if config.best_of > 1:  # what the proxy chose is no sample of the policy either
        result["best_of_kl_bound"] = best_of_n_kl(config.best_of)
    elif config.temperature > 0:  # greedy answers are no sample of either
        result["kl"] = answer_kl(policy, reference, parts["after"], config)
    ids = [row[mask].tolist() for part in parts["after"] for row, mask in zip(part.response_ids, part.response_mask)]
    result |= describe_answers(ids, torch.cat([part.ended for part in parts["after"]]).cpu().numpy())
    result["baseline_mean_length"] = float(lengths["before"].mean())

    scores: dict[str, dict[str, np.ndarray]] = {}
    if config.gold is not None:
        gold = load_function(config.gold, "--gold")
        scores["gold"] = {side: np.asarray(gold(asked, answers[side])) for side in answers}
    if proxy is not None:
        scores["proxy"] = {side: score_parts(proxy, parts[side], rows) for side in parts}
    for name, found in scores.items():
        outcomes = outcomes_from_scores(found["after"], found["before"])
        result[f"{name}_win_rate"] = win_rate(outcomes)
        controlled = length_controlled_win_rate(outcomes, lengths["after"], lengths["before"])
        result[f"{name}_length_controlled_win_rate"] = controlled.as_dict()
        result[f"{name}_score"] = {side: float(values.mean()) for side, values in found.items()}
    if config.judge is not None:
        judgement = judge_both_orders(load_function(config.judge, "--judge"), asked, answers["after"], answers["before"])  # type: ignore[arg-type]
        result["judge_win_rate"] = win_rate(judgement.outcomes) | {
            "consistency": judgement.consistency,
            "first_rate": judgement.first_rate,
        }
        controlled = length_controlled_win_rate(judgement.outcomes, lengths["after"], lengths["before"])
        result["judge_length_controlled_win_rate"] = controlled.as_dict()
    if config.attributes is not None:
        measure: Any = load_function(config.attributes, "--attributes")
        measured = {side: [measure(p, a) for p, a in zip(asked, answers[side])] for side in answers}
        result["attributes"] = [
            {"name": name, **{side: float(np.mean([row[name] for row in measured[side]])) for side in ("before", "after")}}
            for name in measured["after"][0]
        ]
    samples = []
    for i, prompt in enumerate(asked[: config.samples]):
        sample: dict[str, Any] = {"prompt": prompt, "before": answers["before"][i], "after": answers["after"][i]}
        sample |= {f"{name}_{side}": float(scores[name][side][i]) for name in scores for side in ("before", "after")}
        samples.append(sample)
    return result, samples


def proxy_of(config: EvaluateConfig, tokenizer: Any, device: torch.device) -> Scorer | None:
    """The scorer that `--reward` names, or None."""
    if config.reward is None:
        return None
    options: dict[str, Any] = {"ensemble": config.ensemble, "variance_coef": config.ensemble_variance_coef}
    options["step_score"] = config.step_score
    return load_scorer(config.reward, tokenizer, micro_batch_size=config.batch_size, device=device, **options)[0]


def best_answers(
    policy: Any, tokenizer: Any, queries: list[Any], rows: list[Any], proxy: Scorer | None, config: EvaluateConfig
) -> list[Rollout]:
    """The policy's answers, chosen by the proxy where `--best_of` asks for more than one to a prompt."""
    if proxy is None or config.best_of == 1:
        return sample_rollouts(policy, tokenizer, queries, config)
    return best_of_n(policy, queries, rows, proxy, n=config.best_of, **sampling(policy, tokenizer, config))


@torch.no_grad()
def answer_kl(policy: Any, reference: Any, parts: list[Rollout], config: EvaluateConfig) -> dict[str, float]:
    """KL(policy || reference) in nats an answer, with its interval, on the policy's own answers."""
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    for part in parts:
        for index in by_length(part, config.batch_size):
            rows = part.rows(index)
            pad = (0, config.max_new_tokens - rows.response_mask.shape[1])
            for model, found in ((policy, ours), (reference, theirs)):
                found.append(torch.nn.functional.pad(response_logprobs(model, rows, temperature=config.temperature)[0], pad))
            masks.append(torch.nn.functional.pad(rows.response_mask, pad))
    return sequence_kl(torch.cat(ours), torch.cat(theirs), torch.cat(masks)).as_dict()


def score_parts(scorer: Any, parts: list[Rollout], rows: list[dict[str, Any]]) -> np.ndarray:
    """The scorer's verdict on every answer, (N,)."""
    scores, start = [], 0
    for part in parts:
        scores.append(scorer(part, rows[start : start + len(part.response_ids)]))
        start += len(part.response_ids)
    return torch.cat(scores).cpu().numpy()


def evaluate_reward(config: EvaluateConfig) -> dict[str, Any]:
    """Accuracy, calibration and length bias of the reward model on held-out pairs."""
    if config.reward is None or not Path(config.reward).is_dir():
        raise InputError("--reward", config.reward, "expected a reward model's directory: --preferences measures one")
    tokenizer, model = load_tokenizer(config.reward), load_scalar_model(config.reward, trained_as="--reward").to(best_device())
    rows = preferences(str(config.preferences), count=WORLD_PAIRS, seed=config.seed + 1, split="heldout")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1_024
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get(config.preference_groups)) if config.preference_groups else "", []).append(row)
    parts, found, size = [], {}, config.batch_size
    for name, part in groups.items():
        examples, counts = preference_examples(part, tokenizer, min(positions, 1_024))
        print(f"pairs{name and ' ' + name}: {counts}")
        batches = PreferenceBatches(examples, batch_size=size, micro_batch_size=size, seed=0, pad_id=tokenizer.pad_token_id)
        pairs = (batch for step in range(batches.steps_per_epoch) for batch in batches.micro_batches(step, 0, 1))
        parts.append(score_preferences(model, pairs))
        if name:
            found[f"accuracy_{name}"] = accuracy(parts[-1].chosen, parts[-1].rejected).as_dict()
    return summarize_preferences(PreferenceScores(*map(np.concatenate, zip(*parts)))) | found


def summary(result: dict[str, Any]) -> str:
    """The figures as lines for the terminal."""
    lines = []
    for name, value in result.items():
        if isinstance(value, dict) and "estimate" in value:
            lines.append(f"{name:36} {value['estimate']:8.3f}   95 % interval {value['low']:.3f} to {value['high']:.3f}")
        elif isinstance(value, (int, float)):
            lines.append(f"{name:36} {value:8.3f}")
    for row in result.get("attributes", []):
        lines.append(f"{'  ' + row['name']:36} {row['before']:8.3f} -> {row['after']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_recipe(main, EvaluateConfig)
