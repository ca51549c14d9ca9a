"""What the recipes hand on: settings reach the objective, stop tokens the sampler, and every figure is of the side it names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recipes import evaluate, ppo, reward
from rlhf_kit.batches import Rollout
from rlhf_kit.data.examples import preference_examples, sft_examples
from rlhf_kit.data.records import load_sft
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.evaluation.generation import length_controlled_win_rate
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import load_scalar_model
from rlhf_kit.rollout.scoring import pad
from rlhf_kit.training.metrics import read_metrics


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["tell me, is the answer good or bad?"] * 10, 300)


def save(
    tokenizer: Any, path: Path, *, scalar: bool = False, seed: int = 0, stop: list[int] | None = None, **changes: Any
) -> str:
    """A small model's directory."""
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tokenizer), "d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 96, "init_std": 0.2}
    config = GPTConfig(**shape | changes, **({"num_labels": 1} if scalar else {}))
    model: Any = (GPTForSequenceClassification if scalar else GPTForCausalLM)(config)
    if stop is not None:
        model.generation_config.eos_token_id = stop
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIRS = [{"prompt": f"is it {i}?", "chosen": "good " * (i + 1), "rejected": "bad " * (4 - i)} for i in range(4)]
DEMONSTRATIONS = [{"prompt": f"tell me {i}", "completion": "good or bad " * (i + 1)} for i in range(5)]


@torch.no_grad()
def scores_of(model: Any, rows: list[Any]) -> torch.Tensor:
    return scalar_scores(model.eval(), *pad(rows))


@pytest.mark.parametrize("bias", [0.0, 0.75])
def test_a_reward_models_scores_of_demonstrations_average_to_zero_and_its_loss_is_what_the_config_asks_for(
    tokenizer: Any, tmp_path: Path, bias: float
) -> None:
    start = save(tokenizer, tmp_path / "start", scalar=True, score_bias=bias)
    shown = write(tmp_path / "shown.jsonl", DEMONSTRATIONS)
    reward.main(
        reward.RewardConfig(
            output_dir=tmp_path / "reward", model=start, data=write(tmp_path / "pairs.jsonl", PAIRS), demonstrations=shown,
            eval_fraction=0.0, max_steps=1, learning_rate=0.0, center_coef=0.3, label_smoothing=0.2, log_every=1,
        )
    )  # fmt: skip
    before, after = load_scalar_model(start), load_scalar_model(tmp_path / "reward")
    texts = [ids for ids, _ in sft_examples(load_sft(shown), tokenizer, 256)[0]]
    assert scores_of(before, texts).mean().abs() > 0.1
    assert scores_of(after, texts).mean().abs() < 1e-6
    pairs, _ = preference_examples(reward.preferences(str(tmp_path / "pairs.jsonl"), count=4, seed=0), tokenizer, 256)
    good, bad = (scores_of(before, [getattr(pair, side) for pair in pairs]).double() for side in ("chosen", "rejected"))
    loss = 0.8 * torch.log1p((bad - good).exp()) + 0.2 * torch.log1p((good - bad).exp()) + 0.3 * (good + bad) ** 2
    assert read_metrics(tmp_path / "reward" / "metrics.jsonl")[0]["train/loss"] == pytest.approx(float(loss.mean()), rel=1e-5)


def test_ppo_stops_at_every_token_the_model_names_computes_as_told_and_drops_nothing_out(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def online(policy: Any, prompts: Any, scorer: Any, config: Any, accelerator: Any, **options: Any) -> dict[str, float]:
        given.update(options, policy=policy, accelerator=accelerator)
        return {}

    monkeypatch.setattr(ppo, "online", online)
    load = ppo.load_scorer

    def load_scorer(*arguments: Any, **options: Any) -> Any:
        scorer, given["reward"] = load(*arguments, **options)
        return scorer, given["reward"]

    monkeypatch.setattr(ppo, "load_scorer", load_scorer)
    model = save(tokenizer, tmp_path / "sft", stop=[33, 44], dropout=0.5)
    judge = save(tokenizer, tmp_path / "reward", scalar=True, dropout=0.5)
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"tell me {i}"} for i in range(8)])
    ppo.main(ppo.PPOConfig(output_dir=tmp_path / "ppo", model=model, reward=judge, data=prompts, batch_size=8, precision="bf16"))
    assert given["accelerator"].mixed_precision == "bf16"
    assert given["eos_ids"] == (tokenizer.eos_token_id, 33, 44)
    ids = torch.arange(20).view(2, 10)
    for name in ("policy", "reference", "critic", "reward"):
        first, second = (given[name].train()(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second), name


@pytest.mark.parametrize(("named", "stops"), [(None, (1,)), (44, (1, 44)), ([33, 1, 44], (1, 33, 44))])
def test_the_tokenizers_stop_token_comes_first_and_none_twice(named: Any, stops: tuple[int, ...]) -> None:
    policy = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))
    assert ppo.stop_tokens(policy, SimpleNamespace(eos_token_id=1)) == stops


ASKED = ["one?", "two?", "three?", "four?", "five?", "six?"]
SAID = {
    "after": ["good " * n for n in (5, 4, 6, 3, 8, 7)],
    "before": ["bad " * n for n in (2, 3, 1, 2, 4, 1)],
}
REWARDS = """
def gold(prompts, answers):  # one for each good word
    return [float(a.count("good")) for a in answers]

def proxy(prompts, answers):  # would rather have it bad, and dislikes long prompts
    return [a.count("bad") - len(p) for p, a in zip(prompts, answers)]

def judge(prompt, first, second):
    assert prompt in {asked}
    return ("good" in first) - ("good" in second)

def attributes(prompt, answer):
    return {"words": len(answer.split()), "bad": "bad" in answer}
"""


def test_after_is_the_model_and_before_its_reference_in_every_figure(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always wins and says more, against its reference, both with answers that are given to them."""

    def sample_rollouts(model: Any, tokenizer: Any, queries: list[Any], config: Any) -> list[Rollout]:
        side = Path(model.name_or_path).name
        answers = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in SAID[side]]
        parts = []
        for start in (0, 4):  # in two batches
            query, response = pad(queries[start : start + 4], side="left"), pad(answers[start : start + 4])
            ended = torch.tensor([side == "after"] * len(query[0]))
            ended[0] = False
            parts.append(Rollout(*query, *response, ended, torch.arange(len(ended)), torch.zeros(response[0].shape)))
        return parts

    splits = []

    def prompts(data: str, *, count: int, seed: int, split: str) -> list[dict[str, Any]]:
        splits.append(split)
        return [{"prompt": [{"role": "user", "content": text}]} for text in ASKED]

    monkeypatch.setattr("recipes.common.best_device", lambda: torch.device("cpu"))  # where the given answers are
    monkeypatch.setattr(evaluate, "sample_rollouts", sample_rollouts)
    monkeypatch.setattr(evaluate, "prompts", prompts)
    (tmp_path / "asked.py").write_text(REWARDS.replace("{asked}", repr(ASKED)))
    model, reference = save(tokenizer, tmp_path / "after", seed=1), save(tokenizer, tmp_path / "before", seed=2)
    found = evaluate.main(
        evaluate.EvaluateConfig(
            output_dir=tmp_path / "out", model=model, reference=reference, samples=2, batch_size=4,
            **{name: f"{tmp_path}/asked.py:{name}" for name in ("gold", "judge", "attributes")},
            reward=f"{tmp_path}/asked.py:proxy",
        )
    )  # fmt: skip
    assert splits == ["heldout"]
    shares = {"win": 1.0, "tie": 0.0, "loss": 0.0}
    assert found["gold_win_rate"].items() >= (shares | {"estimate": 1.0, "n": 6}).items()
    assert found["judge_win_rate"].items() >= (shares | {"consistency": 1.0, "first_rate": 0.5}).items()
    assert found["proxy_win_rate"].items() >= {"win": 0.0, "tie": 0.0, "loss": 1.0, "estimate": 0.0}.items()
    words = {side: [len(text.split()) for text in texts] for side, texts in SAID.items()}
    assert found["gold_score"] == {"after": np.mean(words["after"]), "before": 0.0}
    cost = np.mean([len(prompt) for prompt in ASKED])
    assert found["proxy_score"] == pytest.approx({"after": -cost, "before": np.mean(words["before"]) - cost})
    assert found["attributes"] == [
        {"name": "words", "before": np.mean(words["before"]), "after": np.mean(words["after"])},
        {"name": "bad", "before": 1.0, "after": 0.0},
    ]
    tokens = {side: [len(tokenizer.encode(text)) + 1 for text in texts] for side, texts in SAID.items()}
    assert found["mean_length"] == np.mean(tokens["after"])
    assert found["baseline_mean_length"] == np.mean(tokens["before"])
    assert found["eos_rate"] == pytest.approx(4 / 6)
    for name, outcomes in (("gold", np.ones(6)), ("judge", np.ones(6)), ("proxy", np.zeros(6))):
        expected = length_controlled_win_rate(outcomes, tokens["after"], tokens["before"]).as_dict()
        assert found[f"{name}_length_controlled_win_rate"] == expected
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert samples == [
        {
            "prompt": ASKED[i], "before": SAID["before"][i], "after": SAID["after"][i], "gold_before": 0.0,
            "gold_after": words["after"][i], "proxy_before": words["before"][i] - len(ASKED[i]),
            "proxy_after": -len(ASKED[i]),
        }
        for i in range(2)
    ]  # fmt: skip

    # KL(model || reference) on the model's own answers, from unpadded forwards.
    gaps = []
    parts = sample_rollouts(SimpleNamespace(name_or_path="after"), tokenizer, [e.ids for e in examples(tokenizer)], None)
    sides = [evaluate.load_policy(path)[0] for path in (model, reference)]
    for part in parts:
        for i in range(len(part.response_ids)):
            query, answer = part.query_ids[i][part.query_mask[i]], part.response_ids[i][part.response_mask[i]]
            ids = torch.cat([query, answer])[None]
            with torch.no_grad():
                ours, theirs = (m(input_ids=ids).logits[0, len(query) - 1 : -1].log_softmax(-1) for m in sides)
            gaps.append(float((ours - theirs).gather(1, answer[:, None]).sum()))
    assert found["kl"]["estimate"] == pytest.approx(np.mean(gaps), rel=1e-4)


def examples(tokenizer: Any) -> list[Any]:
    """ASKED, encoded."""
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ASKED]
    return evaluate.prompt_examples(rows, tokenizer, 192)[0]


def test_pairs_and_prompts_of_an_evaluation_are_held_out(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []

    def preferences(data: str, *, count: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
        splits.append(split)
        return [
            {"prompt": [{"role": "user", "content": "is it?"}]}
            | {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "good"), ("rejected", "bad"))}
        ]

    monkeypatch.setattr(evaluate, "preferences", preferences)
    model = save(tokenizer, tmp_path / "reward", scalar=True)
    found = evaluate.main(
        evaluate.EvaluateConfig(output_dir=tmp_path / "out", model=None, reference=None, reward=model, preferences="world")
    )
    assert splits == ["heldout"]
    assert found["accuracy"]["n"] == 1
    assert evaluate.EvaluateConfig().split == "heldout"
