"""Prompts -> Rollout: sample answers, and price them under policy, reference and critic.

Sampling pads prompts on the left. Everything after it works on joined rows: query and answer side by side with all
padding on the right. No position moves, no attention mask is needed, and only answer positions reach the output head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_kit.batches import PromptBatch, Rollout
from rlhf_kit.models.access import hidden_states, output_head, scalar_values
from rlhf_kit.objectives.logprobs import linear_logprobs
from rlhf_kit.rollout.generate import generate


@dataclass(frozen=True)
class Sampler:
    """How answers are drawn. PPO needs the whole distribution: no top-k, no top-p (ALGORITHMS, row 1)."""

    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0


@dataclass
class Joined:
    """Query and answer as one right-padded row; `rows, cols, slots` address the answer's tokens.

    Token `response_ids[rows[i], slots[i]]` stands at `ids[rows[i], cols[i]]`.
    """

    ids: Tensor  # (B, T) long
    mask: Tensor  # (B, T) bool
    rows: Tensor  # (N,) long
    cols: Tensor  # (N,) long
    slots: Tensor  # (N,) long


def join(rollout: Rollout) -> Joined:
    """Move all padding of [query | response] to the right, and trim what no row needs."""
    ids = torch.cat([rollout.query_ids, rollout.response_ids], 1)
    mask = torch.cat([rollout.query_mask, rollout.response_mask], 1)
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]
    rows, slots = rollout.response_mask.nonzero(as_tuple=True)
    cols = rollout.query_mask.sum(1)[rows] + slots
    return Joined(ids.gather(1, order), mask.gather(1, order), rows, cols, slots)


def response_logprobs(
    policy: nn.Module, rollout: Rollout, *, temperature: float, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers' tokens, and the policy's entropy there (0 without `with_entropy`).

    Returns:
        logprobs, entropy: (B, R) fp32, nats, 0 where `response_mask` is False. Under the sampling distribution,
        `log_softmax(z / (temperature + 1e-7))`. Differentiable in the policy through `logprobs`.
    """
    logprobs, entropy, _ = response_prices(policy, None, rollout, temperature=temperature, with_entropy=with_entropy)
    return logprobs, entropy


def response_values(critic: nn.Module, rollout: Rollout) -> Tensor:
    """The critic's estimate before each answer token is drawn, (B, R) fp32, 0 where `response_mask` is False."""
    joined = join(rollout)
    values = scalar_values(critic, joined.ids, joined.mask)
    return _scatter(values[joined.rows, joined.cols - 1], joined, rollout)


def response_prices(
    policy: nn.Module, critic: nn.Module | None, rollout: Rollout, *, temperature: float, with_entropy: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What policy and critic say of each answer token: `response_logprobs`, and `response_values` (None without a critic).

    Args:
        critic: a scalar-head model; or an `nn.Linear(D, 1)` on the policy's own last hidden states, and then one forward of
            the trunk serves both, as in lm-human-preferences (Ziegler et al. 2019).
    """
    joined = join(rollout)
    before = hidden_states(policy, joined.ids, joined.mask)[joined.rows, joined.cols - 1]
    weight, bias = output_head(policy)
    targets = joined.ids[joined.rows, joined.cols]
    logprobs, entropy = linear_logprobs(before, weight, targets, bias, temperature=temperature, with_entropy=with_entropy)
    if isinstance(critic, nn.Linear):
        values: Tensor | None = _scatter(critic(before).squeeze(-1).float(), joined, rollout)
    else:
        values = None if critic is None else response_values(critic, rollout)
    return _scatter(logprobs, joined, rollout), _scatter(entropy, joined, rollout), values


def _scatter(flat: Tensor, joined: Joined, rollout: Rollout) -> Tensor:
    full = flat.new_zeros(rollout.response_ids.shape)
    return full.index_put((joined.rows, joined.slots), flat)


@contextmanager
def reference_of(policy: Any, reference: nn.Module | None) -> Iterator[nn.Module]:
    """The reference policy: the model given, or the policy with its adapters off."""
    if reference is not None:
        yield reference
    else:
        with policy.disable_adapter():
            yield policy


@torch.no_grad()
def collect(
    policy: Any,
    reference: nn.Module | None,
    critic: nn.Module | None,
    prompts: PromptBatch,
    sampler: Sampler,
    *,
    micro_batch_size: int,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Sample an answer to every prompt and take the three prices of it.

    `old_logprobs` come from the same forward that the update uses, so the first ratio is 1 by construction;
    `sampler_logprobs` stay beside them as a check on the sampler.

    Returns:
        The rollout without scores.
    """
    answer = generate(
        policy,
        prompts.query_ids,
        prompts.query_mask,
        max_new_tokens=sampler.max_new_tokens,
        eos_ids=sampler.eos_ids,
        pad_id=sampler.pad_id,
        temperature=sampler.temperature,
        generator=generator,
    )
    rollout = Rollout(
        query_ids=prompts.query_ids,
        query_mask=prompts.query_mask,
        response_ids=answer.response_ids,
        response_mask=answer.response_mask,
        ended=answer.ended,
        group_ids=prompts.group_ids,
        sampler_logprobs=answer.logprobs,
    )
    zeros = torch.zeros_like(rollout.sampler_logprobs, dtype=torch.float32)
    old, ref = zeros.clone(), zeros.clone()
    values = None if critic is None else zeros.clone()
    for index in by_length(rollout, micro_batch_size):
        part = rollout.rows(index)
        prices = response_prices(policy, critic, part, temperature=sampler.temperature, with_entropy=False)
        old[index] = prices[0]
        if values is not None and prices[2] is not None:
            values[index] = prices[2]
        with reference_of(policy, reference) as ref_policy:
            ref[index], _ = response_logprobs(ref_policy, part, temperature=sampler.temperature, with_entropy=False)
    rollout.old_logprobs, rollout.ref_logprobs, rollout.values = old, ref, values
    return rollout


def by_length(rollout: Rollout, size: int, together: int = 1) -> list[Tensor]:
    """Row indices in micro-batches of `size`, rows of like length together: padding is work.

    `together` neighbouring rows stay neighbours; `size` is a multiple of it.
    """
    lengths = rollout.query_mask.sum(1) + rollout.response_mask.sum(1)
    order = lengths.view(-1, together).amax(1).argsort(dim=0, stable=True)
    return list((order.unsqueeze(1) * together + torch.arange(together, device=order.device)).flatten().split(size))
