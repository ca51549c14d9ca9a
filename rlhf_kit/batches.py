"""The typed records that cross module boundaries. Shapes: B batch, T time, Q query, R response.

Masks are bool and True means valid, everywhere. Prompts are padded on the left, everything else on the right.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

IGNORE = -100  # a label that is not trained on, as in transformers


@dataclass
class Record:
    """A dataclass of tensors that moves and slices as one."""

    def to(self, device: torch.device | str) -> Self:
        """The same record on `device`."""
        return replace(self, **{f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)})

    def rows(self, index: Tensor) -> Self:
        """The rows `index` ((N,) long) of every tensor."""
        return replace(self, **{f.name: v[index] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)})


@dataclass
class LMBatch(Record):
    """A language-modelling batch: pretraining and SFT.

    `labels` stand where `input_ids` stand (the objective shifts them by one), IGNORE where nothing is trained.
    A padded batch has `attention_mask` and no `position_ids`; a packed one has `position_ids` that restart at 0
    with every document and no `attention_mask`, which is how both our GPT and transformers keep documents apart.
    """

    input_ids: Tensor  # (B, T) long
    labels: Tensor  # (B, T) long
    attention_mask: Tensor | None = None  # (B, T) bool
    position_ids: Tensor | None = None  # (B, T) long


@dataclass
class PreferenceBatch(Record):
    """Pairs of whole sequences (prompt + answer), the people's choice first; padded on the right.

    The `answer`s are what the policy wrote and is trained on (DPO and its relatives); a reward model needs none.
    """

    chosen_ids: Tensor  # (B, T) long
    chosen_mask: Tensor  # (B, T) bool
    rejected_ids: Tensor  # (B, U) long
    rejected_mask: Tensor  # (B, U) bool
    margin: Tensor | None = None  # (B,) float
    chosen_answer: Tensor | None = None  # (B, T) bool, True on the assistant's tokens after the prompt, its stop token included
    rejected_answer: Tensor | None = None  # (B, U) bool


@dataclass
class LabelledBatch(Record):
    """Texts that are one thing or are not, padded on the right: classification."""

    input_ids: Tensor  # (B, T) long
    attention_mask: Tensor  # (B, T) bool; all False in a row that counts for nothing
    labels: Tensor  # (B,) bool


@dataclass
class FeedbackBatch(Record):
    """Single answers that people liked or did not (KTO), each with an answer to another prompt; padded on the right.

    `kl_ids` are the prompts of `input_ids`, followed by the answers of other rows: how far the policy has moved there is
    the point from which KTO counts. A row whose `kl_answer` is all False has no such partner.
    """

    input_ids: Tensor  # (B, T) long
    attention_mask: Tensor  # (B, T) bool
    answer: Tensor  # (B, T) bool, True on the assistant's tokens after the prompt, its stop token included
    desirable: Tensor  # (B,) bool
    kl_ids: Tensor  # (B, U) long
    kl_mask: Tensor  # (B, U) bool
    kl_answer: Tensor  # (B, U) bool


@dataclass
class PromptBatch(Record):
    """Prompts ready to be answered: padded on the left. `rows` are the source records, for rewards that read text."""

    query_ids: Tensor  # (B, Q) long
    query_mask: Tensor  # (B, Q) bool
    group_ids: Tensor  # (B,) long, equal for answers to the same prompt


@dataclass
class Rollout(Record):
    """Answers sampled from the policy and everything the update needs to know about them.

    `response_mask` is True from the first response token to the EOS, EOS included (also where pad == eos).
    """

    query_ids: Tensor  # (B, Q) long, left-padded
    query_mask: Tensor  # (B, Q) bool
    response_ids: Tensor  # (B, R) long, right-padded
    response_mask: Tensor  # (B, R) bool
    ended: Tensor  # (B,) bool, True where an EOS was sampled
    group_ids: Tensor  # (B,) long
    sampler_logprobs: Tensor  # (B, R) float, of the sampled tokens under the sampling distribution
    old_logprobs: Tensor | None = None  # (B, R) float, from the update's own forward before the first step
    ref_logprobs: Tensor | None = None  # (B, R) float
    values: Tensor | None = None  # (B, R) float
    scores: Tensor | None = None  # (B,) float
    score_spread: Tensor | None = None  # (B,) float, how far several judges were apart
    token_rewards: Tensor | None = None  # (B, R) float, the part of `scores` that is paid at a token of its own

    @property
    def lengths(self) -> Tensor:
        """(B,) long: response tokens, EOS included."""
        return self.response_mask.sum(1)
