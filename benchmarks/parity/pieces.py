"""The functions between the trainers: TRL's helpers as they are, and stretches of `PPOTrainer.train` on the same tensors.

PPO's score stands one past the EOS in TRL, so the stretch of rewards and advantages is compared from TRL's rewards on, with its
mask that reaches one further; the sum of a row's rewards is the same on both sides.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity import world
from benchmarks.parity.rows import Case, Found
from benchmarks.parity.trl_code import run_between, widened
from rlhf_kit.objectives import advantages as credit
from rlhf_kit.objectives.kl import kl_estimate, shape_rewards
from rlhf_kit.objectives.language_model import linear_cross_entropy
from rlhf_kit.objectives.logprobs import linear_logprobs
from rlhf_kit.objectives.policy import clipped_surrogate, value_loss
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import pad

LENGTHS = torch.tensor([6, 4, 1, 6])
MASK = torch.arange(6) < LENGTHS.unsqueeze(1)
KL_COEF, GAMMA, LAM, CLIP, VF_COEF = 0.3, 0.97, 0.9, 0.2, 0.1


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """fp64 numbers of about unit size by formula."""
    count = int(torch.tensor(shape).prod())
    return 1.4 * torch.sin(torch.arange(count, dtype=torch.float64) ** 1.3 + phase).view(shape)


def our_tokens() -> Found:
    """Straight from hidden states and the head's weight."""
    hidden, weight, targets = wave(8, 16), wave(50, 16, phase=1.0), torch.arange(8) * 6
    logprobs, entropy = linear_logprobs(hidden, weight, targets, temperature=0.7)
    loss, _ = linear_cross_entropy(hidden / (0.7 + 1e-7), weight, targets)
    return {"logprobs": logprobs, "entropy": entropy, "cross-entropy": loss}


def their_tokens() -> Found:
    """`selective_log_softmax` and `entropy_from_logits` on all logits."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits = wave(8, 16) @ wave(50, 16, phase=1.0).T / (0.7 + 1e-7)
    logprobs = selective_log_softmax(logits, torch.arange(8) * 6)
    return {"logprobs": logprobs, "entropy": entropy_from_logits(logits), "cross-entropy": -logprobs.sum()}


def our_moments() -> Found:
    """Masked mean, variance and whitening."""
    x = wave(4, 6)
    return {
        "mean": credit.masked_mean(x, MASK),
        "variance": credit.masked_var(x, MASK),
        "whitened": credit.masked_whiten(x, MASK)[MASK],
        "whitened, mean kept": credit.masked_whiten(x, MASK, shift_mean=False)[MASK],
    }


def their_moments() -> Found:
    """The same by PPOTrainer's helpers."""
    from trl.experimental.ppo import ppo_trainer

    x = wave(4, 6)
    return {
        "mean": ppo_trainer.masked_mean(x, MASK),
        "variance": ppo_trainer.masked_var(x, MASK),
        "whitened": ppo_trainer.masked_whiten(x, MASK)[MASK],
        "whitened, mean kept": ppo_trainer.masked_whiten(x, MASK, shift_mean=False)[MASK],
    }


def _rollout() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, those of the reference, values, scores, and the mask that reaches one past the end."""
    one_more = torch.arange(6) <= LENGTHS.unsqueeze(1)
    logprobs, ref = (wave(4, 6, phase=phase).masked_fill(~MASK, 1.0) for phase in (2.0, 3.0))
    return logprobs, ref, wave(4, 6, phase=4.0).masked_fill(~one_more, 0.0), wave(4, phase=5.0), one_more


def _their_credit(estimator: str) -> SimpleNamespace:
    logprobs, ref_logprobs, values, scores, one_more = _rollout()
    names: dict[str, Any] = {
        "args": SimpleNamespace(kl_estimator=estimator, kl_coef=KL_COEF, whiten_rewards=False, gamma=GAMMA, lam=LAM),
        "logprobs": logprobs, "ref_logprobs": ref_logprobs, "values": values, "scores": scores, "responses": logprobs,
        "sequence_lengths": LENGTHS - 1, "sequence_lengths_p1": LENGTHS,
        "padding_mask": ~MASK, "padding_mask_p1": ~one_more,
    }  # fmt: skip
    return run_between("# 4. compute rewards", "empty_cache()", names)


def our_credit(estimator: Any) -> Found:
    """KL, rewards, advantages and returns."""
    logprobs, ref, values, scores, one_more = _rollout()
    rewards, non_score = shape_rewards(scores, logprobs, ref, MASK, KL_COEF, estimator)
    full = MASK.all(1)
    # One past the EOS is where TRL's score stands: its rewards by our rule of the last token, in its mask.
    shifted = non_score + shape_rewards(scores, torch.zeros_like(ref), torch.zeros_like(ref), one_more, 0.0)[0]
    advantages, returns = credit.gae(shifted, values, one_more, gamma=GAMMA, lam=LAM)
    return {
        "kl": kl_estimate(logprobs, ref, estimator)[MASK],
        "non_score_reward": non_score,
        "rewards, full length": rewards[full],
        "sum of rewards": rewards.sum(1),
        "returns": returns,
        "advantages": credit.masked_whiten(advantages, MASK),
    }


def their_credit(estimator: str) -> Found:
    """The lines of `PPOTrainer.train` from the KL to the whitened advantages."""
    trl = _their_credit(estimator)
    return {
        "kl": trl.kl[MASK],
        "non_score_reward": trl.non_score_reward,
        "rewards, full length": trl.rewards[MASK.all(1)],
        "sum of rewards": trl.rewards.sum(1),
        "returns": trl.returns,
        "advantages": trl.advantages,
    }


def _update() -> dict[str, Tensor]:
    draw = {name: wave(4, 6, phase=float(i)) for i, name in enumerate(("old", "advantage", "value", "return"))}
    draw["logprobs"] = (draw["old"] + 0.3 * wave(4, 6, phase=7.0)).requires_grad_()
    draw["values"] = (draw["value"] + 0.3 * wave(4, 6, phase=8.0)).requires_grad_()
    return draw


def our_losses() -> Found:
    """Both clipped losses away from ratio 1, and their gradients."""
    d, count = _update(), MASK.sum()
    policy_sum, stats = clipped_surrogate(d["logprobs"], d["old"], d["advantage"], MASK, cliprange=CLIP)
    value_sum, value_stats = value_loss(d["values"], d["value"], d["return"], MASK, cliprange_value=CLIP)
    found = torch.autograd.grad((policy_sum + VF_COEF * value_sum) / count, (d["logprobs"], d["values"]))
    return {
        "policy loss": (policy_sum / count).detach(),
        "value loss": (value_sum / count).detach(),
        "clipfrac": float(stats["clipfrac"]) / float(count),
        "value clipfrac": float(value_stats["clipfrac"]) / float(count),
        "gradients": dict(zip(("logprobs", "values"), found)),
    }


def their_losses() -> Found:
    """The lines of `PPOTrainer.train` from the clipped values to the loss."""
    from trl.experimental.ppo import ppo_trainer

    d = _update()
    names: dict[str, Any] = {
        "args": SimpleNamespace(cliprange=CLIP, cliprange_value=CLIP, vf_coef=VF_COEF),
        "new_logprobs": d["logprobs"], "mb_logprobs": d["old"], "mb_advantage": d["advantage"],
        "vpred": d["values"], "mb_values": d["value"], "mb_return": d["return"],
        "padding_mask": ~MASK, "padding_mask_p1": ~MASK, "micro_batch_inds": slice(None),
    }  # fmt: skip
    with widened("fp64"):
        trl = run_between("vpredclipped = torch.clamp(", "accelerator.backward(loss)", names)
        clipped = ppo_trainer.masked_mean((trl.pg_losses2 > trl.pg_losses).float(), MASK)
    return {
        "policy loss": trl.pg_loss.detach(),
        "value loss": trl.vf_loss.detach(),
        "clipfrac": float(clipped),
        "value clipfrac": float(trl.vf_clipfrac),
        "gradients": dict(zip(("logprobs", "values"), torch.autograd.grad(trl.loss, (d["logprobs"], d["values"])))),
    }


def _answers(eos: list[int]) -> Tensor:
    ids, mask = pad([world.tokens(3, seed) for seed in range(4)])
    return generate(
        world.language_model(), ids, mask, max_new_tokens=8, eos_ids=eos, pad_id=world.PAD, temperature=0
    ).response_ids


def _stop() -> int:
    return int(_answers([])[0, 3])


def our_truncation() -> Found:
    """Greedy answers that end at their first stop token."""
    return {"answers": _answers([_stop()])}


def their_truncation() -> Found:
    """Greedy answers that were not stopped, cut by `truncate_response`."""
    from trl.experimental.ppo.ppo_trainer import truncate_response

    return {"answers": truncate_response(_stop(), world.PAD, _answers([]))}


CASES = [
    Case("token log-probabilities", our_tokens, their_tokens, "fp64"),
    Case("masked moments", our_moments, their_moments, "fp64"),
    Case("ppo credit, k1", lambda: our_credit("k1"), lambda: their_credit("k1"), "fp64"),
    Case("ppo credit, k3", lambda: our_credit("k3"), lambda: their_credit("k3"), "fp64"),
    Case("ppo losses", our_losses, their_losses, "fp64"),
    Case("truncation", our_truncation, their_truncation, "fp64"),
]
