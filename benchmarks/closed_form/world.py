"""The world: its reference, its reward, and by enumeration everything that can be known about them.

A vocabulary of 8, answers of exactly 4 tokens (4,096 of them), 4 prompts of 1 to 3 tokens. The reference is a 2-layer
GPT fitted to a Markov chain; the reward is a random table over tokens and neighbouring pairs, standardised under the
reference. The optimum of `E[r] - beta * KL(pi || ref)` is `pi* = ref * exp(r / beta) / Z`, and what is reported is the
exact `KL(pi || pi*)`, averaged over the prompts: `J* - J(pi) = beta * KL(pi || pi*)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.batches import PromptBatch
from rlhf_kit.models.access import hidden_states, output_head
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM

VOCAB, LENGTH, BETA = 8, 4, 0.5
PROMPTS = ((1,), (2, 3), (4, 5, 6), (7, 0))
EPISODES = 12_800  # answers that an algorithm may ask the world about


@dataclass
class World:
    """The reference, the reward, and the optimum that follows from them."""

    seed: int
    reference: GPTForCausalLM
    answers: Tensor  # (S, LENGTH) long, every answer there is, in counting order
    rewards: Tensor  # (S,) float, one table for all prompts
    ref_logprobs: Tensor  # (P, S) float
    optimum: Tensor  # (P, S) float, log pi*

    def reward_of(self, responses: Tensor) -> Tensor:
        """(B,) float for (B, LENGTH) answers."""
        return self.rewards[index_of(responses)]

    def kl_to_optimum(self, policy: Any) -> float:
        """Exact KL(pi || pi*) in nats, mean over the prompts."""
        return divergence(enumerate_logprobs(policy), self.optimum)


def index_of(responses: Tensor) -> Tensor:
    """(B,) long: the places of (B, LENGTH) answers in counting order."""
    return (responses * VOCAB ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)


def divergence(logprobs: Tensor, others: Tensor) -> float:
    """KL(p || q) in nats of (P, S) log-probabilities, mean over the prompts."""
    return float((logprobs.exp() * (logprobs - others)).sum(1).mean())


def make_world(seed: int = 0) -> World:
    """The world of one seed: chain, fitted reference, reward table, optimum."""
    generator = torch.Generator().manual_seed(seed)
    answers = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    chain = torch.softmax(torch.randn(VOCAB, VOCAB, generator=generator), 1)
    torch.manual_seed(seed)
    reference = fit_to_chain(chain, generator)
    unigram = torch.randn(LENGTH, VOCAB, generator=generator)
    bigram = torch.randn(VOCAB, VOCAB, generator=generator)
    rewards = sum(unigram[i, answers[:, i]] for i in range(LENGTH)) + sum(
        bigram[answers[:, i], answers[:, i + 1]] for i in range(LENGTH - 1)
    )
    ref_logprobs = enumerate_logprobs(reference)
    weight = ref_logprobs.exp().mean(0)
    mean = (weight * rewards).sum()
    rewards = (rewards - mean) / ((weight * (rewards - mean) ** 2).sum().sqrt())
    return World(seed, reference, answers, rewards, ref_logprobs, torch.log_softmax(ref_logprobs + rewards / BETA, 1))


def fit_to_chain(chain: Tensor, generator: torch.Generator, steps: int = 200) -> GPTForCausalLM:
    """A 2-layer GPT trained on samples of a Markov chain (V, V)."""
    config = GPTConfig(vocab_size=VOCAB, d_model=64, n_layers=2, n_heads=4, max_seq_len=16, position="learned")
    model = GPTForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        tokens = torch.randint(VOCAB, (128, 1), generator=generator)
        for _ in range(7):
            tokens = torch.cat([tokens, torch.multinomial(chain[tokens[:, -1]], 1, generator=generator)], 1)
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def enumerate_logprobs(policy: Any) -> Tensor:
    """(P, S) log-probabilities of every answer to every prompt; answers that begin alike share a row of the forward."""
    beginnings = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH - 1)))
    weight, _ = output_head(policy)
    rows = []
    for prompt in PROMPTS:
        ids = torch.cat([torch.tensor(prompt).expand(len(beginnings), -1), beginnings], 1)
        states = hidden_states(policy, ids)[:, len(prompt) - 1 :]
        logprobs = torch.log_softmax(states @ weight.T, -1)
        begun = logprobs[:, :-1].gather(2, beginnings.unsqueeze(2)).squeeze(2).sum(1)
        rows.append((begun.unsqueeze(1) + logprobs[:, -1]).flatten())
    return torch.stack(rows)


def sample_answers(logprobs: Tensor, prompts: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) places of answers drawn for (N,) prompts from (P, S) log-probabilities."""
    cumulative = logprobs.exp().cumsum(1)
    draws = torch.rand(len(prompts), generator=generator) * cumulative[prompts, -1]
    found = torch.empty_like(prompts)
    for prompt in range(len(logprobs)):  # not one search over (N, S), which fills the memory
        here = prompts == prompt
        found[here] = torch.searchsorted(cumulative[prompt], draws[here])
    return found.clamp_max(logprobs.shape[1] - 1)


def left_padded(prompts: Sequence[tuple[int, ...]], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """`(ids, mask)`, (B, Q) each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    return ids, torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])


class WorldPrompts:
    """The four prompts in turn, `group_size` answers to each."""

    def __init__(self, batch_size: int, group_size: int) -> None:
        self.batch_size, self.group_size = batch_size, group_size

    def batch(self, step: int, rank: int, world: int) -> tuple[PromptBatch, list[dict[str, Any]]]:
        """This rank's share of a step's prompts."""
        groups = self.batch_size // self.group_size
        chosen = [PROMPTS[(step * groups + g) % len(PROMPTS)] for g in range(rank, groups, world) for _ in range(self.group_size)]
        ids, mask = left_padded(chosen)
        return PromptBatch(ids, mask, torch.arange(len(chosen)) // self.group_size), [{"prompt": ""}] * len(chosen)


@dataclass
class Pairs:
    """Answers drawn from the reference and judged by a person who chooses as Bradley and Terry say."""

    prompts: Tensor  # (N,) long, which of PROMPTS
    chosen: Tensor  # (N,) long, places of answers
    rejected: Tensor  # (N,) long

    def rows(self, which: Any) -> Pairs:
        """Some of them."""
        return Pairs(self.prompts[which], self.chosen[which], self.rejected[which])


def judged_pairs(world: World, count: int, seed: int) -> Pairs:
    """`count` pairs; the first answer is chosen with probability `sigmoid(r_first - r_second)`."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.arange(count) % len(PROMPTS)
    first, second = (sample_answers(world.ref_logprobs, prompts, generator) for _ in range(2))
    likely = torch.sigmoid(world.rewards[first] - world.rewards[second])
    won = torch.rand(count, generator=generator) < likely
    return Pairs(prompts, torch.where(won, first, second), torch.where(won, second, first))
