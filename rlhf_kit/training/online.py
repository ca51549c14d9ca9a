"""LOOP TWO: learn from one's own samples. PPO, RLOO, GRPO and the others are this loop with another advantage or surrogate.

Deviations from TRL 1.12's PPO, each with its test: the score lands on the EOS, which is trained; minibatches are always
optimizer steps; gradients are clipped (policy and critic each by its own norm, a shared trunk by one); losses and
metrics average valid tokens over all ranks; the critic is saved and a killed run resumes exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf_kit.batches import PromptBatch, Rollout
from rlhf_kit.config import plain_settings, save_config
from rlhf_kit.errors import InputError
from rlhf_kit.models.shared_critic import standalone_critic
from rlhf_kit.objectives.kl import AdaptiveKL, FixedKL, shape_rewards
from rlhf_kit.objectives.policy import aggregate_units
from rlhf_kit.rollout.experience import Sampler, by_length, collect
from rlhf_kit.rollout.judges import judged
from rlhf_kit.rollout.scoring import Row, Scorer
from rlhf_kit.training.algorithms import ALGORITHMS
from rlhf_kit.training.checkpoint import Checkpoints, load_trained_state, save_model_dir, stopped_at, trained_state
from rlhf_kit.training.distributed import StopSignal, no_sync, reduce_sum, seed_everything_for_step, step_generator
from rlhf_kit.training.learner import Learner
from rlhf_kit.training.metrics import Metrics
from rlhf_kit.training.online_config import OnlineConfig, check_online_config
from rlhf_kit.training.optim import clip_grad_norm, lr_at, make_optimizer
from rlhf_kit.training.rollout_stats import rollout_stats


class Prompts(Protocol):
    """Prompts as a function of the step (`rlhf_kit.data.batching.PromptBatches`)."""

    def batch(self, step: int, rank: int, world: int) -> tuple[PromptBatch, list[Row]]:
        """This rank's prompts at one step, padded, and the records they came from."""
        ...


def online(
    policy: Any,
    prompts: Prompts,
    scorer: Scorer,
    config: OnlineConfig,
    accelerator: Accelerator,
    *,
    tokenizer: Any,
    eos_ids: tuple[int, ...],
    reference: nn.Module | None,
    critic: nn.Module | None = None,
    monitor: Scorer | None = None,
    on_step: Callable[[int, Rollout, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Improve `policy` against `scorer`; leave it in `config.output_dir`, and the critic in `output_dir/critic`.

    Args:
        reference: the policy to stay near, frozen here; None for a LoRA policy, whose base it then is.
        critic: for algorithms that learn values: a scalar-head model, or a `shared_critic(policy)`.
        monitor: a second scorer that is watched (`eval/gold_score`) and never trained on.
        on_step: called after each step with the rollout, for those who want to look.
    Returns:
        The last step's metrics.
    Raises:
        InputError: a setting that does not fit the algorithm, or training that diverged.
    """
    algorithm = ALGORITHMS[config.algorithm]
    check_online_config(config, algorithm, critic, accelerator.num_processes)
    algorithm = replace(algorithm, kl=config.kl_in or algorithm.kl)
    rank, world = accelerator.process_index, accelerator.num_processes
    sampler = Sampler(config.max_new_tokens, eos_ids, int(tokenizer.pad_token_id), config.temperature)

    for name, model in (("policy", policy), ("critic", critic)):
        if model is not None and not any(p.requires_grad for p in model.parameters()):
            raise InputError(name, type(model).__name__, "expected a parameter that requires a gradient: is its adapter frozen?")
    raw = Learner(policy, critic, algorithm, config)
    raw.eval()  # no dropout anywhere in RL: two forwards of the same tokens must agree
    optimizer = make_optimizer(
        raw,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )
    rates = split_rates(optimizer, critic, config)
    learner, optimizer = accelerator.prepare(raw, optimizer)
    if reference is not None:
        reference = reference.to(accelerator.device).eval().requires_grad_(False)
    kl = FixedKL(config.kl_coef) if config.kl_target is None else AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)

    checkpoints = Checkpoints(config.output_dir / "trainer_state", accelerator, keep=config.keep_checkpoints)
    start, optimizer_steps = 0, 0
    window: list[dict[str, float]] = []  # since the last report
    if not config.resume:
        checkpoints.refuse_existing()
    elif (found := checkpoints.load_latest()) is not None:
        start, shared, _ = found
        load_trained_state(raw, shared["learner"])
        optimizer.load_state_dict(shared["optimizer"])
        kl.load_state_dict(shared["kl"])
        optimizer_steps, window = shared["optimizer_steps"], shared["window"]
    if accelerator.is_main_process:
        save_config(config, config.output_dir / "run_config.yaml")
    metrics = Metrics(
        accelerator,
        config.output_dir,
        config.total_steps,
        trackers=config.trackers,
        resume_step=start if config.resume else None,
        settings=plain_settings(config),
    )
    reduce = tensor_reducer(accelerator)
    stats: dict[str, float] = {}

    with StopSignal(accelerator) as stop:
        for step in range(start, config.total_steps):
            seed_everything_for_step(config.seed, step, rank)  # for rewards that draw
            # 1. Sample answers, and price them under the policy, the reference and the critic.
            batch, rows = prompts.batch(step, rank, world)
            generator = step_generator(config.seed, step, rank, "sample", accelerator.device)
            with accelerator.autocast():
                rollout = collect(
                    policy,
                    reference,
                    critic,
                    batch.to(accelerator.device),
                    sampler,
                    micro_batch_size=config.micro_batch_size,
                    generator=generator,
                )
                # 2. Judge them; an answer that never stopped pays for it.
                verdict = judged(scorer, rollout, rows)
                rollout.score_spread, rollout.token_rewards = verdict.spread, verdict.token_rewards
                rollout.scores = verdict.scores - config.missing_eos_penalty * (~rollout.ended)
                gold = judged(monitor, rollout, rows).scores if monitor is not None else None
            assert rollout.old_logprobs is not None
            assert rollout.ref_logprobs is not None
            rewards, non_score = shape_rewards(
                rollout.scores,
                rollout.old_logprobs,
                rollout.ref_logprobs,
                rollout.response_mask,
                kl_coef=kl.coef if algorithm.kl == "reward" else 0.0,
                estimator=config.kl_estimator or "k1",
                token_rewards=rollout.token_rewards,
            )

            # 3. Credit each token.
            advantages, returns = algorithm.advantages(rollout, rewards, config, reduce)
            learned = with_a_lesson(rollout, advantages) if algorithm.skip_zero else rollout

            # 4. Several passes over the same answers, clipped so that none strays too far.
            factor = lr_at(
                step,
                config.total_steps,
                warmup_steps=min(round(config.warmup_fraction * config.total_steps), config.total_steps - 1),
                schedule=config.schedule,
                final_fraction=config.final_lr_fraction,
            )
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor
            updated = update(learner, raw, learned, advantages, returns, optimizer, accelerator, step, kl.coef)
            optimizer_steps += int(updated.pop("optimizer_steps"))

            # 5. Report, adapt, save.
            done = step + 1
            stats = (
                rollout_stats(rollout, returns, non_score, gold, accelerator, reduce) | updated | {"objective/kl_coef": kl.coef}
            )
            window.append(stats)
            kl.update(stats["objective/kl"], config.batch_size)
            if on_step is not None:
                on_step(done, rollout, stats)
            if done % config.log_every == 0 or done in (1, config.total_steps):  # the first one shows the run's health
                stats = window_means(window)
                stats |= {
                    "lr": config.learning_rate * factor,
                    "episode": float(done * config.batch_size),
                    "eps": (done - start) * config.batch_size / max(metrics.seconds, 1e-9),
                    "val/optimizer_steps": float(optimizer_steps),
                }
                metrics.log(done, stats, units=len(window) * stats.pop("units"))
                window = []
            stopping, saved = stop.requested(), False
            if stopping or (config.save_every > 0 and done % config.save_every == 0 and done < config.total_steps):
                state = {
                    "learner": trained_state(raw),
                    "optimizer": optimizer.state_dict(),
                    "kl": kl.state_dict(),
                    "optimizer_steps": optimizer_steps,
                    "window": window,
                }
                with metrics.aside():
                    saved = checkpoints.save(done, shared=state, local={})
            if stopping:
                metrics.close()
                raise KeyboardInterrupt(stopped_at(done, saved))

    save_model_dir(policy, tokenizer, config.output_dir, accelerator)
    if critic is not None:
        critic = standalone_critic(critic, config.output_dir) if raw.shares_trunk else critic
        save_model_dir(critic, tokenizer, config.output_dir / "critic", accelerator)
    metrics.close()
    return stats


def update(
    learner: nn.Module,
    raw: Learner,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    optimizer: Any,
    accelerator: Accelerator,
    step: int,
    kl_coef: float,
) -> dict[str, float]:
    """At most `num_epochs * num_minibatches` optimizer steps on one rollout.

    Every answer is used once an epoch; minibatches differ by epoch and are a function of (seed, step, rank, epoch).

    Returns:
        Averages over all valid tokens (or answers, where those are the terms of the loss) of all passes, under TRL's
        names, with `optimizer_steps`.
    Raises:
        InputError: no gradient of the whole rollout was finite.
    """
    config, algorithm, world = raw.config, raw.algorithm, accelerator.num_processes
    policy_parameters = [p for p in raw.policy.parameters() if p.requires_grad]
    critic_parameters = [] if raw.critic is None else [p for p in raw.critic.parameters() if p.requires_grad]
    # A trunk that both losses move has one gradient, and so one norm.
    clipped = [policy_parameters + critic_parameters, []] if raw.shares_trunk else [policy_parameters, critic_parameters]
    together = 2 if algorithm.pairs else 1  # neighbours that no minibatch may part
    sums: dict[str, Tensor] = {}
    norms: list[tuple[float, float]] = []  # of the policy's and the critic's gradients
    norm, passes = 0.0, 0
    for minibatch in minibatches(len(rollout.response_ids), step, config, accelerator, together):
        part = rollout.rows(minibatch)
        count = {"units": aggregate_units(part.response_mask, algorithm.aggregate), "tokens": part.response_mask.sum()}
        total = {name: max(value, 1.0) / world for name, value in reduce_sum(accelerator, count).items()}
        sums = added(sums, count)
        micro_batches = by_length(part, config.micro_batch_size, together)
        approxkl: dict[str, Tensor] = {}
        for i, micro in enumerate(micro_batches):
            rows = minibatch[micro]
            with no_sync(accelerator, learner, enabled=i + 1 < len(micro_batches)):
                with accelerator.autocast():
                    loss, stats = learner(
                        part.rows(micro),
                        advantages[rows],
                        returns[rows],
                        total["units"],
                        total["tokens"],
                        kl_coef,
                        step >= config.critic_warmup,
                    )
                accelerator.backward(loss)
            sums = added(sums, stats)
            approxkl = added(approxkl, {name: stats[name] for name in ("approxkl", "count")})
        if not passes:  # nothing has moved yet
            sums = added(sums, {f"first_{name}": value for name, value in approxkl.items()})
        if step < config.critic_warmup:  # a gradient of 0 would not do: weight decay and the moments would still move
            for parameter in policy_parameters:
                parameter.grad = None
        norm, critic_norm = (clip_grad_norm(part, config.max_grad_norm or None) for part in clipped)  # 0 where there is none
        passes += 1
        if math.isfinite(norm) and math.isfinite(critic_norm):  # the same on all ranks
            optimizer.step()
            norms.append((norm, critic_norm))
        optimizer.zero_grad(set_to_none=True)
        if config.target_approxkl is not None:
            moved = reduce_sum(accelerator, approxkl)
            if moved["approxkl"] > config.target_approxkl * moved["count"]:
                break
    if not norms:
        mend = "expected a finite one in some step of the rollout: lower --learning_rate or check the reward"
        raise InputError("grad_norm", norm, mend)
    totals = reduce_sum(accelerator, sums)
    units, terms, tokens = (max(totals[name], 1.0) for name in ("units", "count", "tokens"))
    ratio = totals["ratio"] / terms
    result = {
        "loss/policy_avg": totals["policy_loss"] / units,
        "policy/approxkl_avg": totals["approxkl"] / terms,
        "policy/approxkl_first": totals["first_approxkl"] / max(totals["first_count"], 1.0),
        "policy/clipfrac_avg": totals["clipfrac"] / terms,
        "policy/entropy_avg": totals["entropy"] / tokens,
        "val/ratio": ratio,
        "val/ratio_var": max(totals["ratio_sq"] / terms - ratio**2, 0.0),
        "grad_norm": sum(norm for norm, _ in norms) / len(norms),
        "val/skipped_steps": float(passes - len(norms)),
        "optimizer_steps": float(len(norms)),
    }
    if algorithm.kl == "loss":
        result["loss/kl_avg"] = totals["kl_loss"] / units
    if raw.critic is not None:
        result |= {
            "loss/value_avg": totals["value_loss"] / tokens,
            "val/clipfrac_avg": totals["value_clipfrac"] / tokens,
        }
        if not raw.shares_trunk:
            result["grad_norm/critic"] = sum(norm for _, norm in norms) / len(norms)
    return result


def minibatches(answers: int, step: int, config: OnlineConfig, accelerator: Accelerator, together: int) -> Iterator[Tensor]:
    """Indices of this rank's answers, for each optimizer step; `together` neighbours stay neighbours."""
    for epoch in range(config.num_epochs):
        generator = step_generator(config.seed, step, accelerator.process_index, f"minibatch-{epoch}", "cpu")
        order = torch.randperm(answers // together, generator=generator).to(accelerator.device)
        for part in order.tensor_split(config.num_minibatches):
            yield (part.unsqueeze(1) * together + torch.arange(together, device=part.device)).flatten()


def with_a_lesson(rollout: Rollout, advantages: Tensor) -> Rollout:
    """The rollout without the tokens of answers whose advantages are all 0: they teach nothing, and must not count."""
    return replace(rollout, response_mask=rollout.response_mask & (advantages != 0).any(1, keepdim=True))


def added(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both dictionaries, their common entries added up; nothing waits for the device."""
    return sums | {name: value.detach() + sums.get(name, 0) for name, value in more.items()}


def window_means(window: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over the rollouts that have it; all rollouts hold as many answers."""
    names = dict.fromkeys(name for stats in window for name in stats)
    columns = {name: [stats[name] for stats in window if name in stats] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def split_rates(optimizer: Any, critic: nn.Module | None, config: OnlineConfig) -> list[float]:
    """Give the critic's parameters groups of their own, and return the peak learning rate of every group, in order."""
    if critic is None:
        return [config.learning_rate] * len(optimizer.param_groups)
    ours = {id(p) for p in critic.parameters()}
    groups, rates = [], []
    for group in optimizer.param_groups:
        for of_critic in (False, True):
            members = [p for p in group["params"] if (id(p) in ours) == of_critic]
            if members:
                groups.append({**group, "params": members})
                own = config.critic_learning_rate if of_critic else None
                rates.append(config.learning_rate if own is None else own)
    optimizer.param_groups[:] = groups
    return rates


def tensor_reducer(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """A sum over ranks for small tensors, as the objectives ask for it."""
    if accelerator.num_processes == 1:
        return lambda tensor: tensor
    return lambda tensor: accelerator.reduce(tensor, reduction="sum")
