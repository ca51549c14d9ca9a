"""Both loops on two real processes: the same run as on one, whatever the split."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.closed_form.world import LENGTH, VOCAB, WorldPrompts
from rlhf_kit.batches import Rollout
from rlhf_kit.data.batching import ExampleBatches, PreferenceBatches, PromptBatches
from rlhf_kit.data.examples import PreferenceExample, PromptExample
from rlhf_kit.data.feedback import FeedbackBatches, FeedbackExample
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import Lora, load_causal_lm
from rlhf_kit.models.shared_critic import shared_critic
from rlhf_kit.training import online as module
from rlhf_kit.training.algorithms import ALGORITHMS
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.fit import FitConfig, fit
from rlhf_kit.training.learner import Learner
from rlhf_kit.training.online import online, rollout_stats, tensor_reducer, update
from rlhf_kit.training.online_config import OnlineConfig
from rlhf_kit.training.optim import make_optimizer
from rlhf_kit.training.preference import FeedbackOptimisation, PreferenceOptimisation
from rlhf_kit.training.stages import LanguageModelling, RewardModelling

EOS = 7


class Saves:
    """A tokenizer as far as the loops need one."""

    pad_token_id = 0

    def save_pretrained(self, path: Path, **_: Any) -> None:
        """Nothing to save."""


def shape(**changes: Any) -> GPTConfig:
    return GPTConfig(**{"vocab_size": VOCAB, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32} | changes)


def language_model(**changes: Any) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(shape(**changes))


def scalar_model() -> GPTForSequenceClassification:
    torch.manual_seed(1)
    return GPTForSequenceClassification(shape(num_labels=1))


def examples(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = rng.integers(1, VOCAB, rng.integers(3, 13))
        rows.append((ids, np.concatenate([[-100, -100], ids[2:]])))
    return rows


def pairs(count: int) -> list[PreferenceExample]:
    rng = np.random.default_rng(0)
    made = [[np.concatenate([[1], rng.integers(1, VOCAB, rng.integers(1, 9))]) for _ in range(2)] for _ in range(count)]
    return [PreferenceExample(chosen=a, rejected=b, margin=0.1, prompt_length=1) for a, b in made]


def judged(count: int) -> list[FeedbackExample]:
    """The answers of `pairs`, judged alone: two to each of the prompts."""
    texts = [side[1:] for pair in pairs(count) for side in (pair.chosen, pair.rejected)][:count]
    prompts = [np.full(1, 1 + i // 2 % 6, dtype=np.int32) for i in range(count)]
    return [FeedbackExample(p, t, np.ones(len(t), dtype=bool), i % 2 == 0) for i, (p, t) in enumerate(zip(prompts, texts))]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def logged(path: Path, *keys: str) -> list[list[float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [[row[key] for key in keys] for row in rows if keys[0] in row]


FIT = FitConfig(
    max_steps=4, epochs=1, batch_size=8, micro_batch_size=8, learning_rate=1e-2, warmup_fraction=0.0, eval_every=2, save_every=0,
    log_every=1,
)  # fmt: skip


def run_fit(kind: str, path: Path, rows: int = 24, double: bool = True, **changes: Any) -> Tensor:
    """`fit` on this process's share; the weights it ends with."""
    config = replace(FIT, output_dir=path, **changes)
    common = {"batch_size": config.batch_size, "micro_batch_size": config.micro_batch_size, "seed": 0, "pad_id": 0}
    if kind == "language":
        model: Any = language_model(tie_word_embeddings=False)
        stage: Any = LanguageModelling(model)
        train, held_out = (ExampleBatches(examples(n, seed), **common) for n, seed in ((rows, 0), (10, 9)))
    elif kind == "reward":
        model = scalar_model()
        stage = RewardModelling(model, center_coef=0.1)
        train, held_out = (PreferenceBatches(pairs(n), **common) for n in (rows, 10))
    else:
        model = language_model(tie_word_embeddings=False)
        stage = FeedbackOptimisation(model) if kind == "kto" else PreferenceOptimisation(model, kind)
        train, held_out = (
            FeedbackBatches(judged(n), **common) if kind == "kto" else PreferenceBatches(pairs(n), **common) for n in (rows, 10)
        )
    if double:
        stage.double()
    fit(stage, train, config, make_accelerator(), tokenizer=Saves(), eval_batches=held_out)
    return weights(model)


@pytest.mark.parametrize("kind", ["language", "reward", "dpo", "orpo", "kto"])
def test_one_process_of_eight_is_two_of_four_is_two_of_two_twice(kind: str, run_ranks: Any, tmp_path: Path) -> None:
    whole = run_fit(kind, tmp_path / "1x8")
    keys = ["train/loss", "grad_norm"] + ["train/accuracy", "train/margin"] * (kind == "reward")
    keys += ["train/rewards/margins"] * (kind in ("dpo", "orpo", "kto")) + ["train/kl", "train/logps/rejected"] * (kind == "kto")
    for micro, name in ((4, "2x4"), (2, "2x2x2")):
        first, second = run_ranks(lambda rank, micro=micro, name=name: run_fit(kind, tmp_path / name, micro_batch_size=micro))
        assert torch.equal(first, second)
        # The objectives compute in fp32 whatever the model's type: rounding of single sums remains, and Adam spreads it.
        torch.testing.assert_close(first, whole, rtol=0, atol=1e-5)
        for key in keys:
            np.testing.assert_allclose(logged(tmp_path / name, key), logged(tmp_path / "1x8", key), rtol=2e-6, atol=1e-6)
        for key in ("eval/loss",):
            np.testing.assert_allclose(logged(tmp_path / name, key), logged(tmp_path / "1x8", key), rtol=2e-6)


@pytest.mark.parametrize("kind", ["language", "reward", "dpo", "orpo", "kto"])
def test_a_rank_that_is_left_without_rows_keeps_step_and_counts_for_nothing(kind: str, run_ranks: Any, tmp_path: Path) -> None:
    """Nine rows in steps of eight: the second step holds one, and one rank gets none."""
    whole = run_fit(kind, tmp_path / "one", rows=9)
    first, second = run_ranks(lambda rank: run_fit(kind, tmp_path / "two", rows=9, micro_batch_size=4))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        logged(tmp_path / "two", "train/loss", "grad_norm"), logged(tmp_path / "one", "train/loss", "grad_norm"), rtol=2e-6
    )


class Killed(Exception):
    """The machine went away."""


class KilledAt:
    """Batches that fail at one step on every rank, as a killed job would."""

    def __init__(self, inner: Any, step: int) -> None:
        self.inner, self.step, self.steps_per_epoch = inner, step, inner.steps_per_epoch

    def micro_batches(self, step: int, rank: int, world: int) -> Any:
        if step == self.step:
            raise Killed
        return self.inner.micro_batches(step, rank, world)


def test_fit_on_two_processes_resumes_bit_for_bit(run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int, name: str, resume: bool) -> Tensor | None:
        model = language_model(dropout=0.2)  # so that a lost random state would show
        train: Any = ExampleBatches(examples(24), batch_size=8, micro_batch_size=4, seed=0, pad_id=0)
        train = KilledAt(train, 5) if name == "killed" and not resume else train
        config = replace(FIT, output_dir=tmp_path / name, max_steps=7, save_every=2, resume=resume)
        try:
            fit(LanguageModelling(model), train, config, make_accelerator(), tokenizer=Saves())
        except Killed:
            return None
        return weights(model)

    whole = run_ranks(work, "whole", False)
    assert run_ranks(work, "killed", False) == [None, None]
    resumed = run_ranks(work, "killed", True)
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole))
    assert logged(tmp_path / "killed", "train/loss") == logged(tmp_path / "whole", "train/loss")


ONLINE = OnlineConfig(
    total_steps=2, batch_size=16, micro_batch_size=3, num_epochs=2, num_minibatches=2, max_new_tokens=LENGTH + 2,
    learning_rate=1e-2, save_every=0, kl_coef=0.1, missing_eos_penalty=0.0,
)  # fmt: skip


def rollout(count: int, group: int = 1) -> Rollout:
    """Answers of many lengths, as a sampler that is far from the policy might have given them."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 7, (count,), generator=generator)
    mask = torch.arange(6)[None] < lengths[:, None]

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(count, 6, generator=generator) * mask

    old = -2.0 + noise(0.3)
    return Rollout(
        query_ids=torch.randint(1, VOCAB, (count, 3), generator=generator),
        query_mask=torch.ones(count, 3, dtype=torch.bool),
        response_ids=torch.randint(1, VOCAB, (count, 6), generator=generator) * mask,
        response_mask=mask,
        ended=lengths < 6,
        group_ids=torch.arange(count) // group,
        sampler_logprobs=old * mask,
        old_logprobs=old * mask,
        ref_logprobs=(old + noise(0.2)) * mask,
        values=noise(1.0),
        scores=torch.randn(count, generator=generator),
        score_spread=torch.rand(count, generator=generator),
    )


def learner_of(policy: Any, algorithm: str, config: OnlineConfig, shared: bool) -> Learner:
    apart = scalar_model() if algorithm == "ppo" else None
    return Learner(policy, shared_critic(policy) if shared else apart, ALGORITHMS[algorithm], config)


def one_update(
    algorithm: str, rank: int, world: int, config: OnlineConfig, shared: bool = False
) -> tuple[dict[str, float], Tensor]:
    """Advantages, the update and the statistics of this rank's groups of one fixed rollout, as `online` calls them."""
    accelerator = make_accelerator()
    group = config.group_size
    whole = rollout(16, group)
    own = torch.cat([torch.arange(16).split(group)[g] for g in range(rank, 16 // group, world)])
    part = whole.rows(own)
    raw = learner_of(language_model(), algorithm, config, shared)
    raw.eval()
    optimizer = make_optimizer(raw, learning_rate=1e-2, eps=1e-3)  # Adam would make steps of rounding errors in gradients near 0
    learner, optimizer = accelerator.prepare(raw, optimizer)
    assert part.old_logprobs is not None
    assert part.ref_logprobs is not None
    rewards, non_score = module.shape_rewards(
        part.scores, part.old_logprobs, part.ref_logprobs, part.response_mask, kl_coef=0.1, estimator="k1"
    )
    advantages, returns = ALGORITHMS[algorithm].advantages(part, rewards, config, tensor_reducer(accelerator))
    stats = update(learner, raw, part, advantages, returns, optimizer, accelerator, 0, kl_coef=0.1)
    gold = part.scores.square()  # type: ignore[union-attr]
    stats |= rollout_stats(part, returns, non_score, gold, accelerator, tensor_reducer(accelerator))
    total = torch.tensor([float((advantages * part.response_mask).sum())], dtype=torch.float64)
    stats["advantages"] = float(accelerator.reduce(total, reduction="sum"))
    return stats, weights(raw)


@pytest.mark.parametrize(("algorithm", "group"), [("ppo", 1), ("rloo", 4), ("dr_grpo", 4), ("dapo", 2), ("online_dpo", 2)])
def test_the_update_on_a_split_rollout_is_that_on_the_whole(
    algorithm: str, group: int, run_ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the order of the rollout, the halves of two ranks' shares are the shares of the whole's halves.
    monkeypatch.setattr(module.torch, "randperm", lambda n, generator: torch.arange(n))
    config = replace(
        ONLINE, algorithm=algorithm, group_size=group, num_epochs=2, num_minibatches=2, whiten_rewards=True, micro_batch_size=4
    )
    expected, whole = one_update(algorithm, 0, 1, config)
    (stats, first), (others, second) = run_ranks(lambda rank: one_update(algorithm, rank, 2, config))
    assert torch.equal(first, second)
    assert stats == others
    assert expected["reward/ensemble_spread"] == pytest.approx(float(rollout(16).score_spread.mean()), rel=1e-6)
    assert expected["units"] == stats["units"] == float(rollout(16).response_mask.sum())
    for name, value in expected.items():
        assert stats[name] == pytest.approx(value, rel=1e-5, abs=2e-6), name
    torch.testing.assert_close(first, whole, rtol=0, atol=2e-6)  # fp32: the sums run in another order


def count_threes(rollout: Rollout, rows: list[Any]) -> Tensor:
    return ((rollout.response_ids == 3) & rollout.response_mask).sum(1).float()


def run_online(
    path: Path, policy: Any = None, scorer: Any = count_threes, prompts: Any = None, shared: bool = False, **changes: Any
) -> dict[str, Any]:
    """`online` on this process's share: the weights, the rollouts and the last statistics."""
    config = replace(ONLINE, output_dir=path, **changes)
    policy = policy or language_model()
    critic = learner_of(policy, config.algorithm, config, shared).critic
    reference = None if hasattr(policy, "peft_config") else copy.deepcopy(policy)
    seen: list[Rollout] = []
    stats = online(
        policy, prompts or WorldPrompts(config.batch_size, config.group_size), scorer, config, make_accelerator(),
        tokenizer=Saves(), eos_ids=(EOS,), reference=reference, critic=critic,
        on_step=lambda step, rollout, stats: seen.append(rollout),
    )  # fmt: skip
    return {"policy": weights(policy), "critic": critic and weights(critic), "rollouts": seen, "stats": stats}


def test_ranks_answer_different_prompts_and_draw_differently(run_ranks: Any, tmp_path: Path) -> None:
    queries = [PromptExample(np.array([1 + i // 5, 1 + i % 5, 2]), {"prompt": str(i)}) for i in range(16)]

    def work(rank: int, same: bool) -> Any:
        asked: list[str] = []

        def scorer(rollout: Rollout, rows: list[Any]) -> Tensor:
            asked.extend(row["prompt"] for row in rows)
            return count_threes(rollout, rows)

        prompts: Any = WorldPrompts(16, 16) if same else PromptBatches(queries, batch_size=16, seed=0, pad_id=0)
        if same:
            prompts.batch = lambda step, rank, world: WorldPrompts(8, 8).batch(0, 0, 1)
        found = run_online(tmp_path / f"{same}", scorer=scorer, prompts=prompts, total_steps=1, max_new_tokens=6)
        return asked, found["rollouts"][0].response_ids.tolist()

    (first, _), (second, _) = run_ranks(work, False)
    assert sorted(map(int, first + second)) == list(range(16))
    (_, here), (_, there) = run_ranks(work, True)
    assert here != there  # the same prompt on both, and other answers


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_answers_that_end_at_once_on_one_rank_hold_nobody_up(algorithm: str, run_ranks: Any, tmp_path: Path) -> None:
    def work(rank: int) -> dict[str, Any]:
        real = module.collect

        def collect(*arguments: Any, **options: Any) -> Any:
            made = real(*arguments, **options)
            if rank == 1:  # every answer is the stop token alone
                for name in ("response_ids", "response_mask", "sampler_logprobs", "old_logprobs", "ref_logprobs", "values"):
                    setattr(made, name, None if getattr(made, name) is None else getattr(made, name)[:, :1])
                made.response_ids.fill_(EOS)
                made.ended.fill_(True)
            return made

        module.collect = collect
        return run_online(tmp_path / "run", algorithm=algorithm, group_size=2)

    first, second = run_ranks(work)
    assert torch.equal(first["policy"], second["policy"])
    assert second["rollouts"][0].response_mask.shape[1] == 1
    assert first["stats"]["response/length"] == second["stats"]["response/length"] > 1


@pytest.mark.parametrize(("algorithm", "group"), [("ppo", 1), ("rloo", 2)])
def test_online_on_two_processes_resumes_bit_for_bit(algorithm: str, group: int, run_ranks: Any, tmp_path: Path) -> None:
    class Fails(WorldPrompts):
        def batch(self, step: int, rank: int, world: int) -> Any:
            if step == 3:
                raise Killed
            return super().batch(step, rank, world)

    def work(rank: int, name: str, resume: bool) -> Any:
        prompts = Fails(16, group) if name == "killed" and not resume else None
        options = {"algorithm": algorithm, "group_size": group, "total_steps": 5, "save_every": 2, "kl_target": 0.05}
        try:
            found = run_online(tmp_path / name, prompts=prompts, resume=resume, **options)
        except Killed:
            return None
        return found["policy"], found["critic"]

    whole = run_ranks(work, "whole", False)
    assert run_ranks(work, "killed", False) == [None, None]
    resumed = run_ranks(work, "killed", True)
    for found, expected in zip(resumed, whole):
        assert torch.equal(found[0], expected[0])
        assert found[1] is expected[1] is None or torch.equal(found[1], expected[1])
    assert logged(tmp_path / "killed", "objective/scores") == logged(tmp_path / "whole", "objective/scores")


def test_lora_moves_alike_on_both_ranks_and_nothing_else_moves(run_ranks: Any, tmp_path: Path) -> None:
    language_model().save_pretrained(tmp_path / "base")

    def work(rank: int) -> Any:
        torch.manual_seed(rank)  # fresh adapters are drawn differently: rank 0's must win
        policy = load_causal_lm(tmp_path / "base", lora=Lora(rank=2))
        before = {name: p.detach().clone() for name, p in policy.named_parameters()}
        found = run_online(tmp_path / "out", policy=policy, algorithm="rloo", group_size=2)
        moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
        return found["policy"], moved == {name for name in before if "lora_" in name}

    (first, only_adapters), (second, _) = run_ranks(work)
    assert torch.equal(first, second)
    assert only_adapters
