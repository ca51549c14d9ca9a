"""Answers to many prompts, outside of training; and of several to each, the one that scores highest (best-of-n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rlhf_kit.batches import Rollout
from rlhf_kit.errors import InputError
from rlhf_kit.rollout.experience import Sampler
from rlhf_kit.rollout.generate import generate
from rlhf_kit.rollout.scoring import Row, Scorer, pad


def sample_in_batches(
    model: Any,
    queries: Sequence[Any],
    sampler: Sampler,
    *,
    batch_size: int,
    generator: torch.Generator | None = None,
    bf16: bool = False,
) -> list[Rollout]:
    """One answer to every query (token ids), in order, in batches of `batch_size`; `bf16` decodes in that type."""
    parts = []
    for start in range(0, len(queries), batch_size):
        ids, mask = pad(queries[start : start + batch_size], side="left", device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            answer = generate(
                model,
                ids,
                mask,
                max_new_tokens=sampler.max_new_tokens,
                eos_ids=sampler.eos_ids,
                pad_id=sampler.pad_id,
                temperature=sampler.temperature,
                generator=generator,
            )
        parts.append(
            Rollout(
                query_ids=ids,
                query_mask=mask,
                response_ids=answer.response_ids,
                response_mask=answer.response_mask,
                ended=answer.ended,
                group_ids=torch.arange(start, start + len(ids), device=model.device),
                sampler_logprobs=answer.logprobs,
            )
        )
    return parts


def best_of_n(
    model: Any,
    queries: Sequence[Any],
    rows: Sequence[Row],
    scorer: Scorer,
    sampler: Sampler,
    *,
    n: int,
    batch_size: int,
    generator: torch.Generator | None = None,
    bf16: bool = False,
) -> list[Rollout]:
    """Of `n` answers to every query the one that `scorer` likes best: what a reward can get out of a policy untrained.

    The answer y is drawn from `p_n(y) = F(y)^n - F(y-)^n`, F(y) the policy's chance of a score of at most y's and F(y-) of
    less (Stiennon et al. 2020; Gao et al. 2022). `n = 1` is `sample_in_batches`, to the draw. Ties go to the first.

    Args:
        queries: token ids, one a prompt. rows: their records, for the scorer.
        batch_size: answers decoded at once.
    Returns:
        Rollouts with `scores`, one answer a query, in the order of the queries. `sampler_logprobs` are the policy's, not p_n's.
    Raises:
        InputError: `n` below 1, or what the scorer refuses.
    """
    if n < 1:
        raise InputError("n", n, "expected at least 1")
    asked = [pair for pair in zip(queries, rows, strict=True) for _ in range(n)]
    parts = sample_in_batches(
        model, [query for query, _ in asked], sampler, batch_size=batch_size, generator=generator, bf16=bf16
    )
    for start, part in zip(range(0, len(asked), batch_size), parts, strict=True):
        part.scores = scorer(part, [row for _, row in asked[start : start + batch_size]])
    scores = torch.cat([part.scores for part in parts if part.scores is not None])
    best = scores.view(-1, n).argmax(1) + n * torch.arange(len(queries), device=scores.device)
    won = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, best, True)
    chosen = [part.rows(wins.nonzero()[:, 0]) for part, wins in zip(parts, won.split(batch_size), strict=True)]
    for part in chosen:
        part.group_ids = part.group_ids // n  # the number of the query
    return [part for part in chosen if len(part.response_ids)]


def best_of_n_kl(n: int) -> float:
    """`log n - (n - 1) / n`: at most so many nats is best-of-n away from the policy it samples.

    It is the divergence where no two answers score the same and none is likely (Stiennon et al. 2020, appendix G.3), and an
    upper bound on it otherwise (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n
