"""Loop two on a world of 8 tokens: what an optimizer step is, where the score lands, what resumes, what is refused."""

import copy
import json
import math
import re
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from benchmarks.closed_form.world import LENGTH, PROMPTS, VOCAB, WorldPrompts
from recipes.ppo import PPOConfig
from rlhf_kit.batches import Rollout
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_values
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.models.loading import Lora, load_causal_lm, load_scalar_model
from rlhf_kit.rollout.experience import by_length, response_logprobs, response_values
from rlhf_kit.training import online as module
from rlhf_kit.training.algorithms import ALGORITHMS
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.learner import Learner
from rlhf_kit.training.online import minibatches, online, with_a_lesson
from rlhf_kit.training.online_config import OnlineConfig

EOS = 7


class Saves:
    """A tokenizer as far as the loop needs one."""

    pad_token_id = 0

    def save_pretrained(self, path, **_):
        """Nothing to save."""


def policy_model(dropout: float = 0.0) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=16, dropout=dropout))


def critic_model(dropout: float = 0.0) -> GPTForSequenceClassification:
    torch.manual_seed(1)
    return GPTForSequenceClassification(
        GPTConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=16, num_labels=1, dropout=dropout)
    )


def count_threes(rollout, rows):
    """One point for every token 3."""
    return ((rollout.response_ids == 3) & rollout.response_mask).sum(1).float()


BASE = OnlineConfig(
    total_steps=3, batch_size=16, micro_batch_size=5, num_epochs=2, num_minibatches=2, max_new_tokens=LENGTH + 2,
    learning_rate=1e-2, save_every=0, kl_coef=0.1, missing_eos_penalty=0.0,
)  # fmt: skip


def run(path, policy=None, critic=None, scorer=count_threes, reference="copy", prompts=None, accelerator=None, **changes):
    policy = policy or policy_model()
    config = replace(BASE, output_dir=path, **changes)
    steps = []
    result = online(
        policy,
        prompts or WorldPrompts(config.batch_size, config.group_size),
        scorer,
        config,
        accelerator or make_accelerator(),
        tokenizer=Saves(),
        eos_ids=(EOS,),
        reference=copy.deepcopy(policy) if reference == "copy" else reference,
        critic=critic or (critic_model() if config.algorithm == "ppo" else None),
        on_step=lambda step, rollout, stats: steps.append((rollout, stats)),
    )
    return policy, result, steps


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def logged(path, key):
    return [row[key] for line in (path / "metrics.jsonl").read_text().splitlines() if key in (row := json.loads(line))]


GROUPS = {"ppo": 1, "reinforce++": 1, "online_dpo": 2} | dict.fromkeys(
    ("rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "raft"), 4
)


def test_every_algorithm_of_the_table_is_tried():
    assert GROUPS.keys() == ALGORITHMS.keys() == set(get_args(get_type_hints(OnlineConfig)["algorithm"]))


@pytest.mark.parametrize(("algorithm", "group"), GROUPS.items())
def test_the_reward_rises(tmp_path, algorithm, group):
    _, _, steps = run(tmp_path, algorithm=algorithm, group_size=group, total_steps=25, batch_size=32, micro_batch_size=16)
    first, last = steps[0][1]["objective/scores"], steps[-1][1]["objective/scores"]
    assert last > first + 1.0
    assert steps[-1][1]["objective/kl"] > 0.1


def test_before_the_first_update_the_kl_is_zero_and_the_ratio_one(tmp_path):
    _, _, steps = run(tmp_path, total_steps=1, num_epochs=1, num_minibatches=1)
    stats = steps[0][1]
    assert stats["objective/kl"] == 0.0
    assert abs(stats["val/ratio"] - 1.0) < 1e-5
    assert stats["policy/approxkl_avg"] < 1e-10
    assert stats["policy/clipfrac_avg"] == 0.0
    assert stats["val/sampler_logprob_gap"] < 1e-5


def test_minibatches_are_optimizer_steps(tmp_path):
    _, result, _ = run(tmp_path, total_steps=2, num_epochs=3, num_minibatches=4)
    assert result["val/optimizer_steps"] == 2 * 3 * 4


def test_micro_batches_do_not_change_the_update(tmp_path):
    whole, _, _ = run(tmp_path / "a", micro_batch_size=16)
    parts, _, _ = run(tmp_path / "b", micro_batch_size=3)
    # Sums in another order; Adam makes of a rounding difference in a gradient near 0 one of up to the learning rate.
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-3)


def test_reported_reward_is_score_minus_the_price_of_the_kl(tmp_path):
    _, _, steps = run(tmp_path, total_steps=4)
    for rollout, stats in steps:
        kl = ((rollout.old_logprobs - rollout.ref_logprobs) * rollout.response_mask).sum(1)
        assert stats["objective/kl"] == pytest.approx(float(kl.mean()), abs=1e-6)
        assert stats["objective/rlhf_reward"] == pytest.approx(float((rollout.scores - 0.1 * kl).mean()), abs=1e-5)


def test_the_eos_is_trained_and_carries_the_score(tmp_path):
    """With a reward for stopping at once, only a policy whose EOS gets gradient learns to stop."""

    def stop_early(rollout, rows):
        return -rollout.lengths.float()

    _, _, steps = run(tmp_path, scorer=stop_early, total_steps=20, batch_size=32, kl_coef=0.0)
    assert steps[-1][1]["response/length"] < 0.6 * steps[0][1]["response/length"]
    assert steps[-1][1]["response/eos_rate"] > 0.95
    rollout = steps[0][0]
    last = rollout.lengths - 1
    stopped = rollout.response_ids.gather(1, last[:, None])[:, 0] == EOS
    assert torch.equal(stopped, rollout.ended)


def test_an_answer_that_never_stops_pays(tmp_path):
    _, _, steps = run(tmp_path, total_steps=1, missing_eos_penalty=5.0)
    rollout = steps[0][0]
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended)
    assert torch.equal(rollout.scores, count_threes(rollout, []) - 5.0 * (~rollout.ended))


class Killed(Exception):
    """The machine went away."""


class KilledAt(WorldPrompts):
    """Prompts that fail at one step, as a killed process would."""

    def batch(self, step, rank, world):
        if step == 5:
            raise Killed
        return super().batch(step, rank, world)


@pytest.mark.parametrize(("algorithm", "group"), [("ppo", 1), ("rloo", 2)])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, algorithm, group):
    options = {
        "algorithm": algorithm,
        "group_size": group,
        "total_steps": 7,
        "save_every": 2,
        "kl_target": 0.05,
        "kl_horizon": 50.0,
    }
    whole_critic, critic = critic_model(), critic_model()
    whole, _, _ = run(tmp_path / "whole", critic=whole_critic if algorithm == "ppo" else None, **options)
    with pytest.raises(Killed):
        run(tmp_path / "killed", prompts=KilledAt(16, group), **options)
    resumed, _, steps = run(tmp_path / "killed", critic=critic if algorithm == "ppo" else None, resume=True, **options)
    assert len(steps) == 3  # from the checkpoint of step 4
    assert torch.equal(weights(resumed), weights(whole))
    if algorithm == "ppo":
        assert torch.equal(weights(critic), weights(whole_critic))
    for key in ("objective/scores", "objective/kl_coef", "val/optimizer_steps"):
        assert logged(tmp_path / "killed", key) == logged(tmp_path / "whole", key)
    assert len(set(logged(tmp_path / "whole", "objective/kl_coef"))) > 1  # the controller did move


def test_the_critic_is_saved_and_reads_the_reward_at_its_start(tmp_path):
    reward_model = critic_model()
    reward_model.config.score_bias = 0.75
    reward_model.save_pretrained(tmp_path / "reward")
    critic = load_scalar_model(tmp_path / "reward")
    ids = torch.tensor([PROMPTS[2] + (1, 2, EOS)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    score = reward_model(input_ids=ids, attention_mask=mask).logits[0, 0]
    torch.testing.assert_close(scalar_values(critic, ids, mask)[0, -1], score)
    run(tmp_path / "ppo", critic=critic, total_steps=2)
    saved = load_scalar_model(tmp_path / "ppo" / "critic")
    assert torch.equal(weights(saved), weights(critic))
    assert not torch.equal(weights(saved), weights(reward_model))
    assert saved.config.score_bias == 0.75


def test_dropout_is_off_in_every_forward(tmp_path):
    policy, critic = policy_model(dropout=0.5), critic_model(dropout=0.5)
    assert policy.training and critic.training  # as they come
    _, _, steps = run(tmp_path, policy=policy, critic=critic, total_steps=1, learning_rate=0.0)
    rollout, stats = steps[0]
    assert abs(stats["val/ratio"] - 1.0) < 1e-5
    assert stats["objective/kl"] == 0.0  # nor in the reference
    assert stats["val/clipfrac_avg"] == 0.0  # nor in the critic: it did not move
    first, second = (response_logprobs(policy, rollout, temperature=1.0)[0] for _ in range(2))
    assert torch.equal(first, second)
    first, second = (response_values(critic, rollout) for _ in range(2))
    assert torch.equal(first, second)


def test_bf16_computes_in_bf16_over_fp32_weights(tmp_path, monkeypatch):
    """Sampling, all three prices and the update; and the gradient is that of fp32, but for its rounding."""
    policy, critic = policy_model(), critic_model()
    reference, used = copy.deepcopy(policy), {}

    def watch(name, model):
        for part in model.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_hook(
                    lambda _, __, output: used.setdefault((name, output.requires_grad), set()).add(output.dtype)
                )

    for name, model in (("policy", policy), ("critic", critic), ("reference", reference)):
        watch(name, model)
    once = {"total_steps": 1, "num_epochs": 1, "num_minibatches": 1}
    _, _, steps = run(
        tmp_path / "bf16", policy=policy, critic=critic, reference=reference, accelerator=make_accelerator("bf16"), **once
    )
    sampled, learned = {("policy", False), ("critic", False), ("reference", False)}, {("policy", True), ("critic", True)}
    assert used == {key: {torch.bfloat16} for key in sampled | learned}
    assert {p.dtype for model in (policy, critic) for p in model.parameters()} == {torch.float32}
    rollout, stats = steps[0]
    assert stats["objective/kl"] == 0.0
    assert stats["val/sampler_logprob_gap"] < 0.02  # the sampler sees a token at a time: other roundings, of 2^-8 each

    monkeypatch.setattr(module, "collect", lambda *_, **__: rollout)
    _, _, ((_, plain),) = run(tmp_path / "fp32", **once)
    for key in ("grad_norm", "grad_norm/critic", "loss/value_avg"):
        assert stats[key] != plain[key]
        assert stats[key] == pytest.approx(plain[key], rel=3e-2)


def test_the_defaults_are_those_of_the_paper():
    """Huang et al. 2024: Adam's eps 1e-5 and a rate of 3e-6 that falls to 0 by equal steps, 4 epochs; no decay, no warmup."""
    for config in (OnlineConfig(), PPOConfig()):
        assert (config.adam_eps, config.learning_rate, config.critic_learning_rate) == (1e-5, 3e-6, None)
        assert (config.schedule, config.final_lr_fraction, config.warmup_fraction) == ("linear", 0.0, 0.0)
        assert (config.num_epochs, config.num_minibatches, config.weight_decay) == (4, 1, 0.0)
        assert (config.kl_coef, config.kl_estimator, config.kl_target, config.temperature) == (
            0.05,
            None,
            None,
            1.0,
        )  # k1 in the reward
        assert (config.cliprange, config.cliprange_value, config.vf_coef, config.gamma, config.lam) == (0.2, 0.2, 0.1, 1.0, 0.95)
        assert (config.whiten_rewards, config.missing_eos_penalty) == (False, 1.0)


def test_every_tracker_is_told_of_settings_and_numbers(tmp_path):
    run(tmp_path, total_steps=1, trackers=("tensorboard",))
    (events,) = tmp_path.glob("tensorboard/events.*")
    assert b"objective/kl" in events.read_bytes()
    assert any(b"cliprange_value" in path.read_bytes() for path in tmp_path.glob("tensorboard/**/events.*"))


def test_lora_moves_the_adapter_alone_and_its_base_is_the_reference(tmp_path):
    policy_model().save_pretrained(tmp_path / "base")
    policy = load_causal_lm(tmp_path / "base", lora=Lora(rank=4))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    _, _, steps = run(tmp_path / "out", policy=policy, reference=None, algorithm="rloo", group_size=4, total_steps=6)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert steps[0][1]["objective/kl"] == 0.0
    assert steps[-1][1]["objective/kl"] != 0.0
    merged = load_causal_lm(tmp_path / "out")
    rollout = steps[-1][0]
    expected, _ = response_logprobs(policy, rollout, temperature=1.0)
    found, _ = response_logprobs(merged, rollout, temperature=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # merging adds the product to the weight: another rounding


def test_gradients_of_policy_and_critic_are_clipped_each_by_its_own_norm(tmp_path, monkeypatch):
    clipped = []

    def record(parameters, max_norm):
        norm = original(parameters, max_norm)
        clipped.append((norm, float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())))
        return norm

    original = module.clip_grad_norm
    monkeypatch.setattr(module, "clip_grad_norm", record)
    run(tmp_path, total_steps=1, max_grad_norm=1e-3)
    assert len(clipped) == 2 * 2 * 2
    for before, after in clipped:
        assert after == pytest.approx(min(before, 1e-3), rel=1e-3)


def test_the_critic_has_its_own_learning_rate(tmp_path):
    critic = critic_model()
    start = weights(critic).clone()
    policy = policy_model()
    begin = weights(policy).clone()
    run(tmp_path, policy=policy, critic=critic, total_steps=1, critic_learning_rate=1e-9)
    assert (weights(critic) - start).abs().max() < 1e-7
    assert (weights(policy) - begin).abs().max() > 1e-3


def test_a_monitor_is_watched_and_never_trained_on(tmp_path):
    config = replace(BASE, output_dir=tmp_path, total_steps=2)
    policy = policy_model()
    result = online(
        policy, WorldPrompts(16, 1), count_threes, config, make_accelerator(), tokenizer=Saves(), eos_ids=(EOS,),
        reference=copy.deepcopy(policy), critic=critic_model(), monitor=lambda rollout, rows: torch.full((16,), 2.5),
    )  # fmt: skip
    assert (result["eval/gold_score"], result["eval/gold_reward_corr"]) == (2.5, 0.0)  # a constant goes along with nothing
    plain, _, _ = run(tmp_path / "without", total_steps=2)
    assert torch.equal(weights(policy), weights(plain))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "rloo", "group_size": 1}, "--group_size is 1, expected at least 2"),
        ({"batch_size": 15, "group_size": 2, "algorithm": "rloo"}, "--batch_size is 15, expected a multiple"),
        ({"num_minibatches": 99}, "--num_minibatches is 99, expected at most"),
        ({"temperature": 0.0}, "--temperature is 0.0, expected a positive"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path, prompts=WorldPrompts(16, 1), **changes)


def test_ppo_without_a_critic_is_refused(tmp_path):
    with pytest.raises(InputError, match="critic is None"):
        online(
            policy_model(), WorldPrompts(16, 1), count_threes, replace(BASE, output_dir=tmp_path), make_accelerator(),
            tokenizer=Saves(), eos_ids=(EOS,), reference=policy_model(), critic=None,
        )  # fmt: skip


class Poisoned(nn.Module):
    """Scores that poison the loss from the first step."""

    def __call__(self, rollout, rows):
        return torch.full((len(rollout.response_ids),), float("nan"))


def test_a_diverged_run_is_given_up_by_name(tmp_path):
    with pytest.raises(InputError, match=r"grad_norm is nan"):
        run(tmp_path, scorer=Poisoned(), total_steps=5, num_epochs=4)


def canned(scores, group=2):
    """A rollout of 4 answers of 3 tokens (the last has 2), as `algorithm.advantages` sees it."""
    mask = torch.tensor([[True] * 3] * 3 + [[True, True, False]])
    zeros = torch.zeros(4, 3)
    ids = torch.randint(1, VOCAB, (4, 3), generator=torch.Generator().manual_seed(0))
    return Rollout(
        query_ids=ids[:, :2], query_mask=torch.ones(4, 2, dtype=torch.bool), response_ids=ids, response_mask=mask,
        ended=torch.ones(4, dtype=torch.bool), group_ids=torch.arange(4) // group, sampler_logprobs=zeros, old_logprobs=zeros,
        ref_logprobs=zeros, scores=torch.tensor(scores),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("rloo", [-2.0, 2.0, 0.0, 0.0]),
        ("grpo", [-(0.5**0.5), 0.5**0.5, 0.0, 0.0]),
        ("dr_grpo", [-1.0, 1.0, 0.0, 0.0]),
        ("raft", [0.0, 1.0, 0.0, 0.0]),
        ("online_dpo", [-1.0, 1.0, 0.0, 0.0]),
    ],
)
def test_advantages_by_hand(algorithm, expected):
    rollout = canned([1.0, 3.0, 5.0, 5.0])
    last = torch.zeros(4, 3)
    last[torch.arange(4), rollout.lengths - 1] = rollout.scores
    advantages, returns = ALGORITHMS[algorithm].advantages(rollout, last, replace(BASE, algorithm=algorithm), lambda x: x)
    # grpo divides by the deviation, sqrt(2), plus 1e-4
    torch.testing.assert_close(advantages, torch.tensor(expected)[:, None] * rollout.response_mask, rtol=1e-4, atol=0)
    assert not returns.any()


def learner_loss(algorithm, rollout, advantages, config, units, kl_coef=0.0):
    policy = policy_model()
    learner = Learner(policy, None, ALGORITHMS[algorithm], config)
    loss, stats = learner(rollout, advantages, torch.zeros_like(advantages), units, 1.0, kl_coef, True)
    logprobs, _ = response_logprobs(policy, rollout, temperature=1.0)
    return loss, stats, logprobs


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "raft"])
def test_the_losses_of_the_group_algorithms_by_a_naive_loop(algorithm):
    rollout, advantages = canned([0.0] * 4), torch.tensor([0.7, -1.3, 0.4, -0.2])[:, None].expand(4, 3)
    config = replace(BASE, algorithm=algorithm, max_new_tokens=6, cliprange_high=0.3, kl_coef=0.5)
    rollout = replace(rollout, old_logprobs=-2.0 * rollout.response_mask, ref_logprobs=-2.3 * rollout.response_mask)
    loss, _, logprobs = learner_loss(algorithm, rollout, advantages * rollout.response_mask, config, 4.0, kl_coef=0.5)
    total = 0.0
    for row in range(4):
        length, tokens = int(rollout.lengths[row]), []
        moved = [float(logprobs[row, t]) + 2.0 for t in range(length)]
        for t in range(length):
            a, logprob = float(advantages[row, t]), float(logprobs[row, t])
            ratio = math.exp(sum(moved) / length if algorithm == "gspo" else moved[t])
            if algorithm == "cispo":
                policy = -min(ratio, 1.3) * a * logprob
            elif algorithm == "raft":
                policy = -a * logprob
            else:
                policy = max(-a * ratio, -a * min(max(ratio, 0.8), 1.3))
            away = -2.3 - logprob
            kl = math.exp(moved[t]) * (math.exp(away) - 1 - away)
            tokens.append(policy + (0.0 if algorithm == "raft" else 0.5 * kl))
        divisor = {"grpo": length, "gspo": length, "dr_grpo": 6}.get(algorithm, 1)
        total += sum(tokens) / divisor
    assert float(loss.detach()) == pytest.approx(total / 4.0, rel=1e-5)


def test_online_dpo_is_dpo_on_its_own_pairs_and_a_tie_teaches_nothing():
    rollout = replace(canned([0.0] * 4), ref_logprobs=-2.0 * canned([0.0] * 4).response_mask)
    advantages = torch.tensor([-1.0, 1.0, 0.0, 0.0])[:, None] * rollout.response_mask
    loss, _, logprobs = learner_loss("online_dpo", rollout, advantages, replace(BASE, algorithm="online_dpo", kl_coef=0.3), 2.0)
    h = [float((logprobs[row] - rollout.ref_logprobs[row]).sum()) for row in (0, 1)]
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(-0.3 * (h[1] - h[0]))) / 2.0, rel=1e-5)


def test_answers_without_a_lesson_leave_the_count_of_dapo(tmp_path):
    """Groups of equal scores: their tokens are not in the mean, so the others' gradient is as large as without them."""
    rollout = canned([1.0, 3.0, 5.0, 5.0])
    advantages = torch.tensor([-1.0, 1.0, 0.0, 0.0])[:, None] * rollout.response_mask
    assert with_a_lesson(rollout, advantages).response_mask.sum(1).tolist() == [3, 3, 0, 0]
    _, result, _ = run(tmp_path, scorer=lambda r, _: torch.ones(len(r.response_ids)), algorithm="dapo", group_size=4, kl_coef=0.0)
    assert result["grad_norm"] == 0.0  # nothing to learn at all, and nothing breaks


def test_pairs_stay_together_in_minibatches_and_forwards():
    config = replace(BASE, num_epochs=3, num_minibatches=3)
    epochs = list(minibatches(16, 5, config, make_accelerator(), 2))
    assert len(epochs) == 9
    for epoch in range(3):
        rows = torch.cat(epochs[3 * epoch : 3 * epoch + 3])
        assert sorted(rows.tolist()) == list(range(16))
    assert all((part[0::2] % 2 == 0).all() and (part[1::2] == part[0::2] + 1).all() for part in epochs)
    rollout = canned([0.0] * 4)
    assert [part.tolist() for part in by_length(rollout, 2, together=2)] == [[0, 1], [2, 3]]


def test_passes_end_once_the_policy_has_moved_far_enough(tmp_path):
    _, short, _ = run(tmp_path / "a", num_epochs=4, total_steps=1, target_approxkl=1e-6)
    _, whole, _ = run(tmp_path / "b", num_epochs=4, total_steps=1, target_approxkl=1e6)
    assert 1 < short["val/optimizer_steps"] < whole["val/optimizer_steps"] == 8


def test_while_the_critic_warms_up_the_policy_stands_still(tmp_path):
    before = weights(policy_model())
    policy, result, _ = run(tmp_path, total_steps=2, critic_warmup=2)
    assert torch.equal(weights(policy), before)
    assert result["loss/value_avg"] > 0


def test_the_price_of_distance_stands_in_the_reward_or_in_the_loss_never_in_both(tmp_path):
    for algorithm, group in (("rloo", 4), ("grpo", 4), ("online_dpo", 2)):
        _, _, steps = run(tmp_path / algorithm, algorithm=algorithm, group_size=group, total_steps=4, micro_batch_size=4)
        in_reward, in_loss = steps[-1][1]["objective/non_score_reward"], steps[-1][1].get("loss/kl_avg")
        assert (in_reward != 0, in_loss is not None) == {"rloo": (True, False), "grpo": (False, True)}.get(
            algorithm, (False, False)
        )
    for algorithm, kl_in in (("rloo", "loss"), ("grpo", "reward")):  # where the run says so, the other way round
        changes = {"algorithm": algorithm, "group_size": 4, "total_steps": 4, "kl_in": kl_in}
        _, _, steps = run(tmp_path / f"{algorithm}-{kl_in}", **changes)
        in_reward, in_loss = steps[-1][1]["objective/non_score_reward"], steps[-1][1].get("loss/kl_avg")
        assert (in_reward != 0, in_loss is not None) == (kl_in == "reward", kl_in == "loss")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "grpo"}, "--group_size is 1, expected at least 2: grpo compares"),
        ({"algorithm": "online_dpo", "group_size": 4}, "--group_size is 4, expected 2: online_dpo learns from pairs"),
        ({"algorithm": "online_dpo", "group_size": 2}, "--micro_batch_size is 5, expected an even number"),
        ({"algorithm": "online_dpo", "group_size": 2, "micro_batch_size": 4, "kl_coef": 0.0}, "--kl_coef is 0"),
        ({"algorithm": "online_dpo", "group_size": 2, "micro_batch_size": 4, "kl_in": "loss"}, "--kl_in is 'loss'"),
        ({"critic_lam": 1.5}, "--critic_lam is 1.5, expected a number from 0 to 1"),
        ({"algorithm": "rloo", "group_size": 4, "critic_warmup": 3}, "--critic_warmup is 3, expected 0"),
        ({"dual_clip": 0.5}, "--dual_clip is 0.5, expected a finite number above 1"),
        ({"cliprange_high": -0.1}, "--cliprange_high is -0.1"),
        ({"kl_coef": 0.0, "kl_target": 3.0}, "--kl_coef is 0, expected more than 0 with --kl_target"),
        ({"cliprange": 1.5}, "--cliprange is 1.5, expected less than 1"),
    ],
)
def test_settings_that_do_not_fit_an_algorithm_are_refused(tmp_path, changes, said):
    with pytest.raises(InputError, match=re.escape(said)):
        run(tmp_path, **changes)
