"""Loop two on answers without a token, models that cannot learn, prompts that break a group, and rewards that fail."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.closed_form.world import WorldPrompts
from rlhf_kit.batches import Rollout
from rlhf_kit.errors import InputError
from rlhf_kit.models.loading import Lora, load_causal_lm, load_scalar_model
from rlhf_kit.rollout.scoring import function_scorer
from rlhf_kit.training import online as module
from tests.unit.test_online import count_threes, critic_model, logged, policy_model, run, weights


def emptied(rows: list[int]) -> Any:
    """`collect` whose answers in `rows` lost all their tokens."""
    collect = module.collect

    def lossy(*arguments: Any, **options: Any) -> Rollout:
        rollout = collect(*arguments, **options)
        mask = rollout.response_mask.clone()
        mask[rows] = False
        return replace(rollout, response_mask=mask, ended=rollout.ended & mask.any(1))

    return lossy


@pytest.mark.parametrize(
    ("algorithm", "group"),
    [("ppo", 1), ("reinforce++", 1), ("rloo", 4), ("grpo", 4), ("dapo", 4), ("raft", 4), ("online_dpo", 2)],
)
def test_an_answer_without_a_token_counts_for_nothing_and_the_run_goes_on(
    algorithm: str, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if algorithm == "online_dpo":  # a pair is lost as a whole
        monkeypatch.setattr(module, "collect", emptied([4, 5]))
    else:
        monkeypatch.setattr(module, "collect", emptied([0, 5]))
    options: dict[str, Any] = {"algorithm": algorithm, "group_size": group, "micro_batch_size": 2}
    policy, stats, steps = run(tmp_path, **options)
    assert weights(policy).isfinite().all()
    assert all(value == value for value in stats.values())
    rollout, told = steps[-1]
    assert told["units"] == float(rollout.response_mask.sum())
    assert told["response/length"] == pytest.approx(float(rollout.lengths.float().mean()), rel=1e-6)


def test_a_rollout_without_any_token_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "collect", emptied(list(range(16))))
    with pytest.raises(ValueError, match="mask has 0 valid elements over all ranks, expected at least 2"):
        run(tmp_path)


def test_a_batch_of_one_answer_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--batch_size is 1, expected at least 2"):
        run(tmp_path, batch_size=1, num_minibatches=1)
    assert not (tmp_path / "metrics.jsonl").exists()


class Breaking(WorldPrompts):
    """Prompts whose last group lacks an answer."""

    def batch(self, step: int, rank: int, world: int) -> Any:
        batch, rows = super().batch(step, rank, world)
        return batch.rows(torch.arange(len(rows) - 3)), rows[:-3]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_last_group_that_is_broken_to_one_answer_is_refused_by_name(algorithm: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group 3 has 1 answer, expected at least 2: sample more answers to each prompt"):
        run(tmp_path, algorithm=algorithm, group_size=4, prompts=Breaking(16, 4))


@pytest.mark.parametrize("which", ["policy", "critic"])
def test_a_policy_or_a_critic_whose_adapter_is_frozen_is_refused_by_name(which: str, tmp_path: Path) -> None:
    policy_model().save_pretrained(tmp_path / "policy")
    critic_model().save_pretrained(tmp_path / "critic")
    models = {
        "policy": load_causal_lm(tmp_path / "policy", lora=Lora(rank=2)),
        "critic": load_scalar_model(tmp_path / "critic", lora=Lora(rank=2)),
    }
    models[which].requires_grad_(False)
    with pytest.raises(InputError, match=f"{which} is 'Peft.*', expected a parameter that requires a gradient: is its adapter"):
        run(tmp_path / "out", reference=None, **models)
    assert not (tmp_path / "out").exists()


class Words:
    """A tokenizer as far as a reward on text needs one."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def threes(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response.split().count("3")) for response in responses]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (RuntimeError("no server"), "my_reward is 'RuntimeError: no server', raised"),
        ([float("nan")] * 16, "my_reward: score of row 0, .* is nan, expected a finite number"),
        ([float("inf")] * 16, "is inf, expected a finite number"),
        ([None] * 16, "is None, expected a finite number"),
        ([1.0] * 15, "my_reward: number of scores is 15, expected 16"),
    ],
)
def test_a_reward_that_fails_midway_is_named_and_the_run_resumes_bit_for_bit(tmp_path: Path, failure: Any, said: str) -> None:
    calls = 0

    def fails(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls <= 5:
            return threes(prompts, responses)
        if isinstance(failure, Exception):
            raise failure
        return list(failure)

    options: dict[str, Any] = {"total_steps": 7, "save_every": 2}
    whole, _, _ = run(tmp_path / "whole", scorer=function_scorer(threes, Words()), **options)
    with pytest.raises(InputError, match=said):
        run(tmp_path / "failed", scorer=function_scorer(fails, Words(), name="my_reward"), **options)
    assert not (tmp_path / "failed" / "model.safetensors").exists()
    resumed, _, steps = run(tmp_path / "failed", scorer=function_scorer(threes, Words()), resume=True, **options)
    assert len(steps) == 3  # from the checkpoint of step 4
    assert torch.equal(weights(resumed), weights(whole))
    assert logged(tmp_path / "failed", "objective/scores") == logged(tmp_path / "whole", "objective/scores")


def test_scores_of_another_shape_are_refused_and_never_broadcast(tmp_path: Path) -> None:
    def column(rollout: Rollout, rows: Any) -> Tensor:
        return count_threes(rollout, rows).unsqueeze(1)

    def few(rollout: Rollout, rows: Any) -> Tensor:
        return count_threes(rollout, rows)[:1]

    for scorer, shape in ((column, r"\(16, 1\)"), (few, r"\(1,\)")):
        policy = policy_model()
        before = copy.deepcopy(weights(policy))
        with pytest.raises(InputError, match=rf"shape of the scores is {shape}, expected \(16,\): one for each answer"):
            run(tmp_path / shape, policy=policy, scorer=scorer)
        assert torch.equal(weights(policy), before)
