"""What an online run looks like from outside: one rollout as numbers, under TRL's names, averaged over all ranks.

TRL's averages include padding; these count valid tokens and answers only.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf_kit.batches import Rollout
from rlhf_kit.training.distributed import reduce_sum


def rollout_stats(
    rollout: Rollout, returns: Tensor, non_score: Tensor, entropy: Tensor, gold: Tensor | None, accelerator: Accelerator
) -> dict[str, float]:
    """What a rollout looks like, averaged over all ranks: means over answers, or over valid tokens where said."""
    mask = rollout.response_mask
    assert rollout.old_logprobs is not None
    assert rollout.ref_logprobs is not None
    assert rollout.scores is not None
    log_ratio = (rollout.old_logprobs - rollout.ref_logprobs) * mask
    error = (returns - rollout.values) * mask if rollout.values is not None else torch.zeros_like(returns)
    gap = ((rollout.sampler_logprobs - rollout.old_logprobs).abs() * mask).sum()
    sums = {
        "answers": torch.tensor(len(mask), device=mask.device),
        "tokens": mask.sum(),
        "kl": log_ratio.sum(),
        "entropy": -(rollout.old_logprobs * mask).sum(),
        "token_entropy": (entropy * mask).sum(),
        "non_score": non_score.sum(),
        "scores": rollout.scores.sum(),
        "ended": rollout.ended.sum(),
        "gap": gap,
        "returns": returns.sum(),
        "returns_sq": returns.square().sum(),
        "error": error.sum(),
        "error_sq": error.square().sum(),
    }
    if gold is not None:
        sums["gold"] = gold.sum()
    total = reduce_sum(accelerator, sums)
    answers, tokens = total["answers"], total["tokens"]
    variance = total["returns_sq"] / tokens - (total["returns"] / tokens) ** 2
    residual = total["error_sq"] / tokens - (total["error"] / tokens) ** 2
    stats = {
        "objective/kl": total["kl"] / answers,
        "objective/entropy": total["entropy"] / answers,
        "objective/non_score_reward": total["non_score"] / answers,
        "objective/scores": total["scores"] / answers,
        "objective/rlhf_reward": (total["scores"] + total["non_score"]) / answers,
        "val/num_eos_tokens": total["ended"],
        "val/sampler_logprob_gap": total["gap"] / tokens,
        "response/length": tokens / answers,
        "response/eos_rate": total["ended"] / answers,
        "units": tokens,
    }
    if rollout.values is not None and bool((rollout.values != 0).any()):
        stats["val/explained_variance"] = 1.0 - residual / max(variance, 1e-8)
    if gold is not None:
        stats["eval/gold_score"] = total["gold"] / answers
    return stats
