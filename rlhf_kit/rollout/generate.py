"""Batched sampling with a key/value cache: any `transformers` causal LM, plain or inside peft, and our GPT.

Against `model.generate` it deviates where RL gains: identical prompts share one prefill; rows that ended leave the
batch; sampling costs one pass over the vocabulary and returns the log-probability that the update will compute again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_kit.batches import Record
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import positions_of, unwrap
from rlhf_kit.rollout.cache import BlockCache, make_cache, padded_length, select_rows
from rlhf_kit.rollout.kernels import fast_kernels
from rlhf_kit.rollout.sampling import sample, wide_dtype


@dataclass
class Generation(Record):
    """Sampled answers, padded on the right and trimmed to the longest."""

    response_ids: Tensor  # (B, R) long
    response_mask: Tensor  # (B, R) bool, the EOS included, also where pad == eos
    logprobs: Tensor  # (B, R) float32, of each token under the distribution it was sampled from; 0 on padding
    ended: Tensor  # (B,) bool, True where an EOS was sampled


@torch.no_grad()
def generate(
    model: nn.Module,
    query_ids: Tensor,
    query_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    min_new_tokens: int = 0,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Sample an answer to every prompt.

    A row's answer depends on its prompt, the generator's state and its place in the batch, not on which other rows
    have ended: every step draws one number for each of the B rows. Runs without gradient and dropout; under
    `torch.autocast` it decodes in that dtype with weights cast once.

    Args:
        model: a causal LM; its training mode is put back afterwards.
        query_ids, query_mask: (B, Q) long and bool, padded on the left.
        max_new_tokens: where an answer is cut.
        eos_ids: tokens that end an answer; may be empty.
        pad_id: what fills the rest; may be one of `eos_ids`.
        temperature: logits are divided by T + 1e-7; 0 is greedy, with log-probabilities at temperature 1.
        top_k, top_p: truncations for chat and evaluation; log-probabilities are then of the truncated distribution.
        min_new_tokens: EOS has probability 0 before this many tokens, and log-probabilities account for it.
        on_token: called with every token as it is sampled, for a batch of one.
    Raises:
        InputError: an empty batch or prompt, padding on the right, more positions than the model has, a value out of range.
    """
    query_ids, query_mask = _checked(model, query_ids, query_mask, max_new_tokens, temperature, top_k, top_p, on_token)
    batch, device = len(query_ids), query_ids.device
    eos = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
    response_ids = torch.full((batch, max_new_tokens), pad_id, dtype=torch.long, device=device)
    response_mask = torch.zeros(batch, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = torch.zeros(batch, max_new_tokens, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    rows = torch.arange(batch, device=device)  # which row of the result each row still being decoded is
    decoder = _Decoder(model, query_ids, query_mask, max_new_tokens)
    with _no_dropout(model), fast_kernels(model, batch * (query_ids.shape[1] + max_new_tokens)):
        logits = decoder.prefill()
        for step in range(max_new_tokens):
            # 1. Sample a token for every row that goes on.
            if step < min_new_tokens:
                logits[:, eos] = -torch.inf
            where = generator.device if generator else device
            uniform = torch.rand(batch, dtype=wide_dtype(where), generator=generator, device=where)
            uniform = uniform.to(device, wide_dtype(device))
            tokens, token_logprobs = sample(logits, uniform[rows], temperature=temperature, top_k=top_k, top_p=top_p)
            response_ids[rows, step], logprobs[rows, step], response_mask[rows, step] = tokens, token_logprobs, True
            if on_token is not None:
                on_token(int(tokens))
            # 2. Let the rows that ended leave.
            done = torch.isin(tokens, eos)
            ended[rows] = done
            if bool(done.any()):
                kept = _fill_holes(~done)
                if not len(kept):
                    break
                rows, tokens = rows[kept], tokens[kept]
                decoder.select(kept)
            # 3. Decode the others one step further; the last token needs no successor.
            if step + 1 < max_new_tokens:
                logits = decoder.step(tokens)
    longest = int(response_mask.sum(1).max())
    return Generation(response_ids[:, :longest], response_mask[:, :longest], logprobs[:, :longest], ended)


class _Decoder:
    """The model with its cache and mask: prompts in, last logits out, then one token a row at a time."""

    def __init__(self, model: nn.Module, query_ids: Tensor, query_mask: Tensor, max_new_tokens: int) -> None:
        self.model = unwrap(model)
        self.accepts = inspect.signature(self.model.forward).parameters
        # Answers to the same prompt share its prefill. -1 stands for padding, so that what lies there does not matter.
        distinct, self.group = query_ids.masked_fill(~query_mask, -1).unique(dim=0, return_inverse=True)
        if len(distinct) == len(query_ids):
            self.query_ids, self.query_mask, self.group = query_ids, query_mask, None
        else:
            self.query_ids, self.query_mask = distinct.clamp_min(0), distinct >= 0
        self.length = query_ids.shape[1]
        self.positions = self.query_mask.sum(1, keepdim=True)
        self.cache = make_cache(self.model.config)
        room = padded_length(self.length + max_new_tokens) - self.length
        self.seen = torch.nn.functional.pad(self.query_mask, (0, room))  # (N, T) the keys that a row attends to

    def prefill(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        mask = None if bool(self.query_mask.all()) else self.query_mask  # attention without a mask is faster
        logits = self._forward(self.query_ids, mask, positions_of(self.query_mask))
        if self.group is not None:
            logits = logits[self.group]
            self.select(self.group)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (N, V) after one more token (N,) a row."""
        self.seen[:, self.length] = True
        self.length += 1
        if isinstance(self.cache, BlockCache):
            mask = self.seen[:, None, None, : padded_length(self.length)]
        else:
            mask = self.seen[:, : self.length]
        logits = self._forward(tokens.unsqueeze(1), mask, self.positions)
        self.positions = self.positions + 1
        return logits

    def select(self, index: Tensor) -> None:
        """Go on with row `index[i]` as row i."""
        select_rows(self.cache, index)
        self.positions, self.seen = self.positions[index], self.seen[index]

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        options: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        options = {name: value for name, value in options.items() if name in self.accepts}
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **options)
        return out.logits[:, -1].float()


def _fill_holes(kept: Tensor) -> Tensor:
    """The kept rows, in an order that moves the fewest: the last ones into the places of those that left.

    Args:
        kept: (N,) bool.
    Returns:
        (kept.sum(),) long.
    """
    count = int(kept.sum())
    index = torch.arange(count, device=kept.device)
    index[~kept[:count]] = count + kept[count:].nonzero()[:, 0]
    return index


@contextmanager
def _no_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while open; afterwards every module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _checked(
    model: nn.Module,
    query_ids: Tensor,
    query_mask: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    on_token: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor]:
    """The prompts without the padding that all of them share, once everything is found in order."""
    if query_ids.dim() != 2 or query_ids.shape != query_mask.shape or not query_ids.numel():
        shapes = (tuple(query_ids.shape), tuple(query_mask.shape))
        raise InputError("shapes of query_ids and query_mask", shapes, "expected two equal (B, Q) with B and Q above 0")
    query_mask = query_mask.bool()
    if not bool(query_mask[:, -1].all()):
        row = int((~query_mask[:, -1]).nonzero()[0])
        raise InputError("query_mask row", row, "expected a valid last token: pad prompts on the left and drop empty ones")
    if bool((query_mask[:, 1:] < query_mask[:, :-1]).any()):
        row = int((query_mask[:, 1:] < query_mask[:, :-1]).any(1).nonzero()[0])
        raise InputError("query_mask row", row, "expected padding on the left only, found a gap")
    if max_new_tokens < 1:
        raise InputError("max_new_tokens", max_new_tokens, "expected at least 1")
    if not 0 <= temperature < math.inf:
        raise InputError("temperature", temperature, "expected 0 (greedy) or more")
    if top_k < 0:
        raise InputError("top_k", top_k, "expected 0 (off) or more")
    if not 0 < top_p <= 1:
        raise InputError("top_p", top_p, "expected a number in (0, 1], 1 is off")
    if on_token is not None and len(query_ids) != 1:
        raise InputError("batch size with on_token", len(query_ids), "expected 1: stream one conversation at a time")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise InputError("model", "a prompt-learning adapter", "expected weights or LoRA: virtual tokens are not supported")
    longest = int(query_mask.sum(1).max())
    limit = getattr(unwrap(model).config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and longest + max_new_tokens > limit:
        mend = f"expected at most {limit}, the model's positions: shorten the prompts or lower max_new_tokens"
        raise InputError(f"prompt tokens + max_new_tokens ({longest} + {max_new_tokens})", longest + max_new_tokens, mend)
    return query_ids[:, -longest:], query_mask[:, -longest:]
