"""Objectives against TRL 1.12's own numbers on the same tensors.

Helpers are called as they are. What TRL computes inside a trainer is run from its own source: `_compute_loss` and
`compute_loss` on a stand-in for the trainer, and the stretches of `PPOTrainer.train` between two of its lines.
Where TRL differs on purpose, the test says so: it puts the score on the first pad after the EOS, we put it on the EOS.
"""

import inspect
import sys
import textwrap
from collections import defaultdict
from types import ModuleType, SimpleNamespace

import pytest
import torch
from trl.experimental.ppo import ppo_trainer

from rlhf_kit.objectives import advantages as ours
from rlhf_kit.objectives.kl import kl_loss, shape_rewards
from rlhf_kit.objectives.language_model import linear_cross_entropy
from rlhf_kit.objectives.logprobs import linear_logprobs
from rlhf_kit.objectives.policy import aggregate_units, cispo_surrogate, clipped_surrogate, token_weights, value_loss
from rlhf_kit.objectives.reward_model import pairwise_loss

LENGTHS = torch.tensor([6, 4, 1, 6])
MASK = torch.arange(6) < LENGTHS.unsqueeze(1)


@pytest.fixture
def grpo_trainer(monkeypatch):
    """TRL's module, without its client for a vLLM server: that imports `requests`, which comes with TRL's vllm extra."""
    client = ModuleType("trl.generation.vllm_client")
    client.__dict__["VLLMClient"] = object
    monkeypatch.setitem(sys.modules, client.__name__, client)
    from trl.trainer import grpo_trainer

    return grpo_trainer


def run_between(first, last, names):
    """Runs the lines of `PPOTrainer.train` from the one with `first` up to the one with `last`, on `names`."""
    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    stop = next(i for i, line in enumerate(lines) if i > start and last in line)
    exec(textwrap.dedent("\n".join(lines[start:stop])), vars(ppo_trainer), names)
    return SimpleNamespace(**names)


def test_log_probabilities_and_entropy_equal_trl_and_its_temperature():
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    hidden, weight, targets = torch.randn(8, 16), torch.randn(50, 16), torch.randint(0, 50, (8,))
    logits = hidden @ weight.T / (0.7 + 1e-7)
    logprobs, entropy = linear_logprobs(hidden, weight, targets, temperature=0.7)
    # Logits reach about 20 in fp32, and both sides round them.
    torch.testing.assert_close(logprobs, selective_log_softmax(logits, targets), rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(entropy, entropy_from_logits(logits), rtol=1e-5, atol=2e-6)
    loss, _ = linear_cross_entropy(hidden / (0.7 + 1e-7), weight, targets)
    torch.testing.assert_close(loss, -selective_log_softmax(logits, targets).sum(), rtol=1e-6, atol=0)


def test_masked_moments_and_whitening_equal_trl():
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(ours.masked_mean(x, MASK), ppo_trainer.masked_mean(x, MASK), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.masked_var(x, MASK), ppo_trainer.masked_var(x, MASK), rtol=1e-12, atol=0)
    for shift_mean in (True, False):
        got, want = ours.masked_whiten(x, MASK, shift_mean=shift_mean), ppo_trainer.masked_whiten(x, MASK, shift_mean)
        torch.testing.assert_close(got[MASK], want[MASK], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_advantages_and_returns_equal_the_ppo_trainer(estimator):
    padding, padding_p1 = ~MASK, torch.arange(6) > LENGTHS.unsqueeze(1)
    logprobs, ref_logprobs = (torch.randn(4, 6, dtype=torch.float64).masked_fill(padding, 1.0) for _ in range(2))
    values = torch.randn(4, 6, dtype=torch.float64).masked_fill(padding_p1, 0.0)
    scores = torch.randn(4, dtype=torch.float64)
    names = {
        "args": SimpleNamespace(kl_estimator=estimator, kl_coef=0.3, whiten_rewards=False, gamma=0.97, lam=0.9),
        "logprobs": logprobs, "ref_logprobs": ref_logprobs, "values": values, "scores": scores, "responses": logprobs,
        "sequence_lengths": LENGTHS - 1, "sequence_lengths_p1": LENGTHS,
        "padding_mask": padding, "padding_mask_p1": padding_p1,
    }  # fmt: skip
    trl = run_between("# 4. compute rewards", "empty_cache()", names)

    rewards, non_score = shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.3, estimator)
    torch.testing.assert_close(non_score, trl.non_score_reward, rtol=1e-12, atol=1e-14)
    full = LENGTHS == 6
    torch.testing.assert_close(rewards[full], trl.rewards[full], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(rewards.sum(1), trl.rewards.sum(1), rtol=1e-12, atol=1e-14)  # one slot earlier, the same sum
    # From TRL's rewards on, with its mask that reaches one past the EOS, everything is equal.
    advantages, returns = ours.gae(trl.rewards, values, ~padding_p1, gamma=0.97, lam=0.9)
    torch.testing.assert_close(returns, trl.returns, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.masked_whiten(advantages, MASK), trl.advantages, rtol=1e-12, atol=1e-14)


def test_both_losses_and_their_gradients_equal_the_ppo_trainer_away_from_ratio_one():
    draw = {name: torch.randn(4, 6, dtype=torch.float64) for name in ("old", "advantage", "value", "return")}
    logprobs = (draw["old"] + 0.4 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    values = (draw["value"] + 0.4 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    names = {
        "args": SimpleNamespace(cliprange=0.2, cliprange_value=0.2, vf_coef=0.1),
        "new_logprobs": logprobs, "mb_logprobs": draw["old"], "mb_advantage": draw["advantage"],
        "vpred": values, "mb_values": draw["value"], "mb_return": draw["return"],
        "padding_mask": ~MASK, "padding_mask_p1": ~MASK, "micro_batch_inds": slice(None),
    }  # fmt: skip
    trl = run_between("vpredclipped = torch.clamp(", "accelerator.backward(loss)", names)

    policy_sum, stats = clipped_surrogate(logprobs, draw["old"], draw["advantage"], MASK)
    value_sum, value_stats = value_loss(values, draw["value"], draw["return"], MASK)
    count = MASK.sum()
    torch.testing.assert_close(policy_sum / count, trl.pg_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(value_sum / count, trl.vf_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close((value_stats["clipfrac"] / count), trl.vf_clipfrac, rtol=1e-6, atol=0)  # TRL counts in fp32
    clipped = ppo_trainer.masked_mean((trl.pg_losses2 > trl.pg_losses).float(), MASK)
    torch.testing.assert_close(stats["clipfrac"] / count, clipped, rtol=1e-6, atol=0)
    assert 0 < stats["clipfrac"] < count
    mine = torch.autograd.grad((policy_sum + 0.1 * value_sum) / count, (logprobs, values))
    for a, b in zip(mine, torch.autograd.grad(trl.loss, (logprobs, values))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("loss_type", "aggregate", "level", "beta", "delta"),
    [
        ("bnpo", "token_mean", "token", 0.0, None),
        ("bnpo", "token_mean", "token", 0.04, None),
        ("bnpo", "token_mean", "token", 0.0, 1.5),
        ("grpo", "sequence_mean", "token", 0.04, None),
        ("grpo", "sequence_mean", "sequence", 0.0, None),
        ("dr_grpo", "sequence_sum", "token", 0.0, None),
        ("dapo", "token_mean", "token", 0.04, None),
        ("cispo", "token_mean", "token", 0.04, None),
    ],
)
def test_the_surrogate_equals_grpo_in_each_of_its_variants(grpo_trainer, loss_type, aggregate, level, beta, delta):
    old, ref, advantages = (torch.randn(4, 6, dtype=torch.float64) for _ in range(3))
    if level == "sequence":
        advantages = advantages[:, :1].expand(4, 6)
    logprobs = (old + 0.4 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros(4, 6), None),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=9,
        _entropy_bonus_enabled=False,
    )
    ids = torch.zeros(4, 6, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": MASK.long(),
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": ref, "num_items_in_batch": MASK.sum(),
    }  # fmt: skip
    want = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)

    weights = token_weights(MASK, aggregate, 9 if aggregate == "sequence_sum" else None)
    options = {"cliprange": 0.2, "cliprange_high": 0.28, "dual_clip": delta, "weights": weights}
    options["level"] = "token" if level == "token" else "sequence_mean"
    if loss_type == "cispo":
        loss, _ = cispo_surrogate(logprobs, old, advantages, MASK, max_ratio=1.28, weights=weights)
    else:
        loss, _ = clipped_surrogate(logprobs, old, advantages, MASK, **options)
    loss = (loss + beta * kl_loss(logprobs, ref, MASK, weights=weights)[0]) / aggregate_units(MASK, aggregate)
    # Our weights are fp32: a seventh digit for thirds and ninths, nothing for whole numbers.
    rtol = 1e-12 if aggregate == "token_mean" else 1e-6
    torch.testing.assert_close(loss, want, rtol=rtol, atol=0)
    (mine,), (theirs,) = torch.autograd.grad(loss, logprobs), torch.autograd.grad(want, logprobs)
    torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-15)


@pytest.mark.parametrize("with_margin", [True, False])
def test_the_pairwise_loss_and_its_metrics_equal_the_reward_trainer(with_margin):
    from trl.trainer.reward_trainer import RewardTrainer

    scores, margin = torch.randn(10, 1, requires_grad=True), torch.rand(5)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=0.01),
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x),
        _total_train_tokens=0,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {"attention_mask": torch.ones(10, 3)} | ({"margin": margin} if with_margin else {})
    want = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), inputs)

    chosen, rejected = scores.squeeze(-1).chunk(2)
    loss, stats = pairwise_loss(chosen, rejected, margin if with_margin else None, center_coef=0.01)
    torch.testing.assert_close(loss / 5, want, rtol=1e-6, atol=0)
    (mine,), (theirs,) = torch.autograd.grad(loss / 5, scores), torch.autograd.grad(want, scores)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    for name in ("accuracy", "margin", "mean_reward"):
        assert stats[name].item() / 5 == pytest.approx(trainer._metrics["train"][name][0], rel=1e-5, abs=1e-7)
