"""What an online run looks like from outside: one rollout as numbers, under TRL's names, averaged over all ranks.

TRL's averages include padding; these count valid tokens and answers only.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf_kit.batches import Rollout
from rlhf_kit.objectives.advantages import Reduce, explained_variance
from rlhf_kit.training.distributed import reduce_sum


def rollout_stats(
    rollout: Rollout, returns: Tensor, non_score: Tensor, gold: Tensor | None, accelerator: Accelerator, reduce: Reduce
) -> dict[str, float]:
    """What a rollout looks like, averaged over all ranks: means over answers, or over valid tokens where said."""
    mask = rollout.response_mask
    assert rollout.old_logprobs is not None
    assert rollout.ref_logprobs is not None
    assert rollout.scores is not None
    log_ratio = (rollout.old_logprobs - rollout.ref_logprobs) * mask
    gap = ((rollout.sampler_logprobs - rollout.old_logprobs).abs() * mask).sum()
    sums = {
        "answers": torch.tensor(len(mask), device=mask.device),
        "tokens": mask.sum(),
        "kl": log_ratio.sum(),
        "entropy": -(rollout.old_logprobs * mask).sum(),
        "non_score": non_score.sum(),
        "scores": rollout.scores.sum(),
        "ended": rollout.ended.sum(),
        "gap": gap,
    }
    if gold is not None:
        sums["gold"] = gold.sum()
    total = reduce_sum(accelerator, sums)
    answers, tokens = total["answers"], total["tokens"]
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
        "response/truncated_rate": 1.0 - total["ended"] / answers,
        "units": tokens,
    }
    if rollout.values is not None:
        stats["val/explained_variance"] = float(explained_variance(rollout.values, returns, mask, reduce=reduce))
    if gold is not None:
        stats["eval/gold_score"] = total["gold"] / answers
    return stats
