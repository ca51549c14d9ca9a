"""Loop two against itself written out: one answer at a time, plain numbers, one unpadded forward, every setting off its default.

What it prints and what it leaves in the weights must be this, to rounding: a setting that is not read, a statistic of another
thing or a loss with another denominator has nowhere to hide.
"""

import copy
import itertools
import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.closed_form.world import VOCAB, WorldPrompts
from rlhf_kit.batches import Rollout
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.training import online as module
from rlhf_kit.training.distributed import make_accelerator, step_generator
from rlhf_kit.training.metrics import read_metrics
from rlhf_kit.training.online_config import OnlineConfig

ANSWERS, LONGEST = 14, 6
SETTINGS = OnlineConfig(
    seed=5, total_steps=3, batch_size=ANSWERS, micro_batch_size=2, num_epochs=2, num_minibatches=3, max_new_tokens=LONGEST,
    temperature=0.8, missing_eos_penalty=0.7, kl_coef=0.3, kl_target=0.2, kl_horizon=100.0, kl_estimator="k3", cliprange=0.1,
    cliprange_value=0.05, vf_coef=0.3, gamma=0.9, lam=0.8, whiten_rewards=True, learning_rate=2e-3, critic_learning_rate=1e-2,
    schedule="cosine", warmup_fraction=0.4, final_lr_fraction=0.2, weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.95,
    adam_eps=1e-3, max_grad_norm=1.5, log_every=3, save_every=0,
)  # fmt: skip
FACTORS = (0.5, 1.0, 0.2 + 0.8 / 2)  # of the learning rate: one step of warmup, the peak, halfway down the cosine to a fifth


class Saves:
    """A tokenizer as far as the loop needs one."""

    pad_token_id = 0

    def save_pretrained(self, path, **_):
        """Nothing to save."""


def models() -> tuple[GPTForCausalLM, GPTForSequenceClassification]:
    """Policy and critic as they come, in train mode and with a dropout that would spoil everything."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 16, "bias": True, "dropout": 0.5}
    policy = GPTForCausalLM(GPTConfig(**shape, init_std=0.3)).train()
    return policy, GPTForSequenceClassification(GPTConfig(**shape, num_labels=1, score_bias=0.25)).train()


def one(policy: Any, critic: Any, rollout: Rollout, i: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and values, (tokens,) each, of one answer, from forwards of it alone."""
    query, answer = rollout.query_ids[i][rollout.query_mask[i]], rollout.response_ids[i][rollout.response_mask[i]]
    ids = torch.cat([query, answer])[None]
    logprobs = (policy(input_ids=ids).logits[0, len(query) - 1 : -1] / temperature).log_softmax(-1)
    values = critic.score(critic.model(input_ids=ids)[0])[0, len(query) - 1 : -1, 0] + critic.config.score_bias
    return logprobs.gather(1, answer[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(1), values


@torch.no_grad()
def canned(policy: Any, critic: Any, group: int, off: float) -> list[Rollout]:
    """Three rollouts of answers with 1 to 6 tokens, `off` nats a token off the policy, so that every clip binds somewhere."""
    policy, critic = copy.deepcopy(policy).eval(), copy.deepcopy(critic).eval()
    draw = torch.Generator().manual_seed(3)
    made = []
    for _ in range(SETTINGS.total_steps):
        lengths = torch.randint(1, LONGEST + 1, (ANSWERS,), generator=draw)
        mask = torch.arange(LONGEST)[None] < lengths[:, None]
        rollout = Rollout(
            query_ids=torch.randint(1, VOCAB, (ANSWERS, 3), generator=draw),
            query_mask=torch.arange(3)[None] >= torch.randint(0, 3, (ANSWERS, 1), generator=draw),
            response_ids=torch.randint(1, VOCAB, (ANSWERS, LONGEST), generator=draw) * mask,
            response_mask=mask,
            ended=(lengths < LONGEST) | (torch.arange(ANSWERS) < 3),
            group_ids=torch.arange(ANSWERS) // group,
            sampler_logprobs=torch.zeros(ANSWERS, LONGEST),
        )
        noise = off * torch.randn(4, ANSWERS, LONGEST, generator=draw)
        old, sampler, ref, values = noise * mask
        for i, length in enumerate(lengths):
            logprobs, _, first_values = one(policy, critic, rollout, i, SETTINGS.temperature)
            old[i, :length] += logprobs
            values[i, :length] += first_values
        rollout.old_logprobs, rollout.values = old, values
        rollout.sampler_logprobs, rollout.ref_logprobs = old + 0.01 * sampler, old + 3 * ref
        made.append(rollout)
    return made


def raw_scores(rollout: Rollout) -> Tensor:
    return rollout.response_ids.sum(1) / 5.0 - 2.0


def whiten(rows: list[list[float]], keep_mean: bool) -> list[list[float]]:
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1) + 1e-8)
    return [[(x - mean) / deviation + mean * keep_mean for x in row] for row in rows]


def variance(xs: list[float]) -> float:
    return sum((x - sum(xs) / len(xs)) ** 2 for x in xs) / (len(xs) - 1)


def credit(rewards: list[list[float]], values: list[list[float]], c: OnlineConfig) -> tuple[list[list[float]], list[list[float]]]:
    """GAE and returns by the definition: `A_t` is the sum of `(gamma lam)^k delta_(t+k)`, and `return_t - V_t` too."""
    credits: list[list[list[float]]] = []
    for lam in (c.lam, c.lam if c.critic_lam is None else c.critic_lam):
        credits.append([])
        for r, v in zip(rewards, values):
            deltas = [r[t] + c.gamma * ([*v, 0.0][t + 1]) - v[t] for t in range(len(r))]
            credits[-1].append([sum((c.gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(r))])
    return credits[0], [[a + x for a, x in zip(row, v)] for row, v in zip(credits[1], values)]


def adamw(model: Any, rate: float, c: OnlineConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": c.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(c.adam_beta1, c.adam_beta2), eps=c.adam_eps, foreach=False)


def clip(model: Any, longest: float) -> float:
    """Scales the gradient of one model to a norm of at most `longest`; the norm before."""
    norm = float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    for p in model.parameters():
        if p.grad is not None:
            p.grad *= min(1.0, longest / (norm + 1e-6))  # as torch does
    return norm


def by_hand(policy: Any, critic: Any, rollouts: list[Rollout], c: OnlineConfig) -> list[dict[str, float]]:
    """Train both models; the statistics of each step."""
    is_ppo, group = c.algorithm == "ppo", c.group_size
    learners = [(policy, c.learning_rate), (critic, c.critic_learning_rate or 0.0)][: 2 if is_ppo else 1]
    optimizers = [adamw(model.eval(), rate, c) for model, rate in learners]
    coef, told, every_norm = c.kl_coef, [], []
    critic.eval()
    for step, rollout in enumerate(rollouts):
        lengths, ended = rollout.response_mask.sum(1).tolist(), rollout.ended.tolist()
        old, ref, sampler, values = (
            [row[:n] for row, n in zip(x.tolist(), lengths)]
            for x in (rollout.old_logprobs, rollout.ref_logprobs, rollout.sampler_logprobs, rollout.values)
        )
        scores = [s - c.missing_eos_penalty * (not e) for s, e in zip(raw_scores(rollout).tolist(), ended)]
        priced = [[-coef * (math.exp(b - a) - 1 + a - b) for a, b in zip(*rows)] for rows in zip(old, ref)]
        rewards = [[*row[:-1], row[-1] + score] for row, score in zip(priced, scores)]
        if is_ppo:
            advantages, returns = credit(whiten(rewards, keep_mean=True), values, c)
            advantages = whiten(advantages, keep_mean=False)
        else:
            totals = [sum(row) for row in rewards]
            family = [totals[i - i % group : i - i % group + group] for i in range(ANSWERS)]
            advantages = [[t - (sum(f) - t) / (group - 1)] * n for t, f, n in zip(totals, family, lengths)]
            returns = [[0.0] * n for n in lengths]

        for optimizer, (_, rate) in zip(optimizers, learners):
            for options in optimizer.param_groups:
                options["lr"] = rate * FACTORS[step]
        first: list[float] = []  # log-ratios before the first optimizer step
        terms: list[float] = []  # of each token, or of each answer where the ratio is an answer's: all over all passes
        ratios, log_ratios, bound, entropies, value_terms, value_bound = [], [], [], [], [], []
        norms: list[list[float]] = []  # of the gradients, policy's and critic's
        for epoch in range(c.num_epochs):
            order = torch.randperm(ANSWERS, generator=step_generator(c.seed, step, 0, f"minibatch-{epoch}")).tolist()
            for part in (order[:5], order[5:10], order[10:]):  # none of the 14 is left out
                policy_losses, value_losses = [], []
                for i in part:
                    logprobs, entropy, now = one(policy, critic, rollout, i, c.temperature)
                    entropies += entropy.tolist()
                    differences = [now_ - before for now_, before in zip(logprobs, old[i])]
                    for difference, a in zip(differences if is_ppo else [sum(differences)], advantages[i]):
                        ratio = difference.exp()
                        plain, clipped = -a * ratio, -a * ratio.clamp(1 - c.cliprange, 1 + c.cliprange)
                        policy_losses.append(max(plain, clipped))
                        ratios.append(ratio.item())
                        log_ratios.append(difference.item())
                        bound.append(bool(clipped > plain))
                    for v, before, target in zip(now, values[i], returns[i]):
                        held = before + (v - before).clamp(-c.cliprange_value, c.cliprange_value)
                        value_losses.append(max((v - target) ** 2, (held - target) ** 2) / 2)
                        value_bound.append(bool((held - target) ** 2 > (v - target) ** 2))
                loss = sum(policy_losses) / len(policy_losses)
                if is_ppo:
                    loss = loss + c.vf_coef * sum(value_losses) / len(value_losses)
                first = first or list(log_ratios)
                loss.backward()
                norms.append([clip(model, c.max_grad_norm) for model, _ in learners])
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                terms += [x.item() for x in policy_losses]
                value_terms += [x.item() for x in value_losses]

        tokens = sum(lengths)
        mean_ratio = sum(ratios) / len(ratios)
        kl = sum(a - b for rows in zip(old, ref) for a, b in zip(*rows)) / ANSWERS
        non_score = sum(map(sum, priced)) / ANSWERS
        gaps = [abs(a - b) for rows in zip(old, sampler) for a, b in zip(*rows)]
        words = [row[:n] for row, n in zip(rollout.response_ids.tolist(), lengths)]
        single, pairs = [w for row in words for w in row], [pair for row in words for pair in itertools.pairwise(row)]
        stats = {
            "objective/kl": kl,
            "objective/entropy": -sum(map(sum, old)) / ANSWERS,
            "objective/non_score_reward": non_score,
            "objective/scores": sum(scores) / ANSWERS,
            "objective/rlhf_reward": sum(scores) / ANSWERS + non_score,
            "objective/kl_coef": coef,
            "val/num_eos_tokens": sum(ended),
            "val/sampler_logprob_gap": sum(gaps) / tokens,
            "val/sampler_logprob_gap_max": max(gaps),
            "objective/scores_std": statistics.stdev(scores),
            "objective/scores_max": max(scores),
            "response/length_reward_corr": statistics.correlation(lengths, scores),
            "response/distinct_1": len(set(single)) / len(single),
            "response/distinct_2": len(set(pairs)) / len(pairs),
            "response/length": tokens / ANSWERS,
            "response/eos_rate": sum(ended) / ANSWERS,
            "response/truncated_rate": (ANSWERS - sum(ended)) / ANSWERS,
            "units": tokens,
            "loss/policy_avg": sum(terms) / len(terms),
            "policy/approxkl_avg": sum(x * x for x in log_ratios) / len(log_ratios) / 2,
            "policy/approxkl_first": sum(x * x for x in first) / len(first) / 2,
            "policy/clipfrac_avg": sum(bound) / len(bound),
            "policy/entropy_avg": sum(entropies) / len(entropies),
            "val/ratio": mean_ratio,
            "val/ratio_var": sum((x - mean_ratio) ** 2 for x in ratios) / len(ratios),
            "val/skipped_steps": 0.0,
            "grad_norm": sum(n[0] for n in norms) / len(norms),
        }
        if is_ppo:
            residuals = [r - v for rows in zip(returns, values) for r, v in zip(*rows)]
            stats |= {
                "loss/value_avg": sum(value_terms) / len(value_terms),
                "val/clipfrac_avg": sum(value_bound) / len(value_bound),
                "val/explained_variance": 1 - variance(residuals) / variance([r for row in returns for r in row]),
                "grad_norm/critic": sum(n[1] for n in norms) / len(norms),
            }
        else:
            stats["frac_reward_zero_std"] = 0.0  # no two of these scores are equal
        told.append(stats)
        every_norm += norms
        coef *= 1 + min(max(kl / (c.kl_target or 1.0) - 1, -0.2), 0.2) * ANSWERS / c.kl_horizon
    for own in zip(*every_norm):
        assert min(own) < c.max_grad_norm < max(own)  # the clip of each model binds at some steps and not at others
    return told


# The ratio of an answer strays further than that of a token, and its gradient is that much larger.
@pytest.mark.parametrize(
    ("changes", "off"),
    [
        ({"algorithm": "ppo"}, 0.15),
        ({"algorithm": "ppo", "critic_lam": 0.3}, 0.15),
        ({"algorithm": "rloo", "group_size": 2, "cliprange": 0.3, "max_grad_norm": 25.0}, 0.05),
    ],
    ids=["ppo", "ppo, critic_lam", "rloo"],
)
def test_three_steps_are_the_algorithm_written_out(tmp_path, monkeypatch, changes, off):
    config = replace(SETTINGS, output_dir=tmp_path, **changes)
    is_ppo, group = config.algorithm == "ppo", config.group_size
    policy, critic = models()
    mine, my_critic = copy.deepcopy(policy), copy.deepcopy(critic)
    rollouts = canned(policy, critic, group, off)
    queue = [replace(rollout, values=rollout.values if is_ppo else None) for rollout in rollouts]
    monkeypatch.setattr(module, "collect", lambda *_, **__: queue.pop(0))
    seen: list[dict[str, float]] = []
    module.online(
        policy, WorldPrompts(ANSWERS, group), lambda rollout, rows: raw_scores(rollout), config, make_accelerator(),
        tokenizer=Saves(), eos_ids=(7,), reference=copy.deepcopy(policy), critic=critic if is_ppo else None,
        on_step=lambda step, rollout, stats: seen.append(stats),
    )  # fmt: skip
    wanted = by_hand(mine, my_critic, rollouts, config)
    for found, stats in zip(seen, wanted, strict=True):
        assert found == pytest.approx(stats, rel=1e-5, abs=1e-6)  # fp32 against fp64, some as differences of like numbers
        assert 0.05 < found["policy/clipfrac_avg"] < 0.95
    # Adam's eps of 1e-3 keeps rounding out of the weights; they moved by about 1e-1.
    for model, twin in [(policy, mine), (critic, my_critic)]:
        for (name, p), q in zip(model.named_parameters(), twin.parameters()):
            torch.testing.assert_close(p, q, rtol=0, atol=2e-6, msg=lambda said, name=name: f"{name}: {said}")

    # A report is of the rollouts since the last one: the first alone, and then as many as there are.
    reports = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["episode"], row["val/optimizer_steps"]) for row in reports] == [(1, 14, 6), (3, 42, 18)]
    assert [row["lr"] for row in reports] == pytest.approx([1e-3, 1.2e-3])
    for name in stats.keys() - {"units"}:
        first, second, third = (stats[name] for stats in wanted)
        assert [row[name] for row in reports] == pytest.approx([first, (second + third) / 2], rel=1e-5, abs=1e-6), name
