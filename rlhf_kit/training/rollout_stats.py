"""What an online run looks like from outside: one rollout as numbers, under TRL's names where it has one, over all ranks.

TRL's averages include padding; these count valid tokens and answers only. What no average over ranks could give (distinct
n-grams, a correlation) is computed on the gathered rollout, so that two ranks say what one would.
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
    """What a rollout looks like, over all ranks: means over answers, or over valid tokens where said."""
    mask = rollout.response_mask
    assert rollout.old_logprobs is not None
    assert rollout.ref_logprobs is not None
    assert rollout.scores is not None
    log_ratio = (rollout.old_logprobs - rollout.ref_logprobs) * mask
    gap = (rollout.sampler_logprobs - rollout.old_logprobs).abs() * mask
    groups, spreadless = groups_without_spread(rollout.scores, rollout.group_ids)
    sums = {
        "answers": torch.tensor(len(mask), device=mask.device),
        "tokens": mask.sum(),
        "kl": log_ratio.sum(),
        "entropy": -(rollout.old_logprobs * mask).sum(),
        "non_score": non_score.sum(),
        "scores": rollout.scores.sum(),
        "ended": rollout.ended.sum(),
        "gap": gap.sum(),
        "groups": groups,
        "spreadless": spreadless,
    }
    if rollout.score_spread is not None:
        sums["spread"] = rollout.score_spread.sum()
    total = reduce_sum(accelerator, sums)
    answers, tokens = total["answers"], max(total["tokens"], 1.0)
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
    if total["groups"] < answers:  # several answers to a prompt
        stats["frac_reward_zero_std"] = total["spreadless"] / total["groups"]
    if rollout.values is not None:
        stats["val/explained_variance"] = float(explained_variance(rollout.values, returns, mask, reduce=reduce))
    if rollout.score_spread is not None:
        stats["reward/ensemble_spread"] = total["spread"] / answers

    table = torch.stack([rollout.scores, rollout.lengths.float(), gap.amax(1)], 1)
    scores, lengths, largest = accelerator.gather(table).cpu().double().unbind(1)
    if gold is not None:
        golds = accelerator.gather(gold).cpu().double()
        stats |= {"eval/gold_score": float(golds.mean()), "eval/gold_reward_corr": correlation(golds, scores)}
    stats |= {
        "objective/scores_std": float(scores.std()) if len(scores) > 1 else 0.0,
        "objective/scores_max": float(scores.max()),
        "response/length_reward_corr": correlation(lengths, scores),
        "val/sampler_logprob_gap_max": float(largest.max()),
    }
    ids = rollout.response_ids.masked_fill(~mask, -1)
    ids = accelerator.gather(accelerator.pad_across_processes(ids, dim=1, pad_index=-1))
    distinct = {f"response/distinct_{n}": distinct_share(ids, n) for n in (1, 2)}
    return stats | {name: share for name, share in distinct.items() if share is not None}


def groups_without_spread(scores: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """`(groups, those of them whose answers all score the same)`, scalars: where nothing is to be learned by comparing.

    Args:
        scores: (B,) float. group_ids: (B,) long.
    """
    names, group = group_ids.unique(return_inverse=True)
    low, high = (
        scores.new_zeros(len(names)).scatter_reduce(0, group, scores, which, include_self=False) for which in ("amin", "amax")
    )
    return torch.tensor(len(names), device=scores.device), (low == high).sum()


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of two (N,) float64 tensors; 0 where either is constant, since it then explains nothing."""
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def distinct_share(ids: Tensor, n: int) -> float | None:
    """Distinct-n: different n-grams over all n-grams (Li et al. 2016, section 5), within answers and over the whole rollout.

    It falls as answers repeat themselves or each other, and a little as they get longer. None without a single n-gram.

    Args:
        ids: (B, R) long token ids, -1 past the end.
    """
    if ids.shape[1] < n:
        return None
    grams = ids.unfold(1, n, 1)  # (B, R - n + 1, n)
    grams = grams[(grams >= 0).all(2)]
    if not len(grams):
        return None
    base = int(grams.max()) + 1  # a gram as one number: far faster to sort than rows
    codes = grams[:, 0]
    for column in range(1, n):
        codes = codes * base + grams[:, column]
    return len(codes.unique()) / len(codes)
