"""Feedback on single answers, liked or not, from raw rows to batches (KTO).

Read: TRL's unpaired format, `prompt` + `completion` + `label` (true or false), plain or conversational; and every format
of comparisons that `records` reads, a pair being one answer that was liked and one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import FeedbackBatch
from rlhf_kit.data.dealing import Epochs, Flat, check_positive, check_rank, deal, no_row
from rlhf_kit.data.examples import EncodingStats, check_prefix
from rlhf_kit.data.files import iter_rows
from rlhf_kit.data.records import Record, at_least_one, read_answer, read_preference, read_prompt, said_in, unknown_columns
from rlhf_kit.data.tokenizer import ControlTokenError, encode_chat, encode_prompt
from rlhf_kit.errors import InputError


def load_feedback(source: str | Path) -> list[Record]:
    """Judged answers: `{"prompt": [...], "completion": [...], "label": bool, ...}`, both labels among them.

    `prompt` ends before the answer, `completion` begins and ends with an assistant message. A row of a comparison becomes
    two records, side by side.

    Raises:
        InputError: unreadable source, unknown columns, a wrong value, an empty completion, one label only.
    """
    records = at_least_one([record for where, row in iter_rows(source) for record in _feedback(where, row)], source)
    labels = {record["label"] for record in records}
    if len(labels) == 1:
        only = labels.pop()
        raise InputError(
            f"{source}: column 'label'", only, "in every row, expected both: add answers that people judged otherwise"
        )
    return records


def unpair(records: Sequence[Record]) -> list[Record]:
    """Comparisons as judged answers: the chosen one with label True, then the rejected one with label False."""
    unpaired = []
    for record in records:
        rest = {k: v for k, v in record.items() if k not in ("chosen", "rejected", "margin")}
        unpaired += [{**rest, "completion": record[c], "label": c == "chosen"} for c in ("chosen", "rejected")]
    return unpaired


def _feedback(where: str, row: Record) -> list[Record]:
    if "label" not in row or "completion" not in row:
        if {"chosen", "rejected"} <= row.keys():
            return unpair([read_preference(where, row)])
        raise unknown_columns(where, row, "prompt + completion + label, or chosen + rejected")
    found = read_prompt(where, row)
    if found is None:
        raise unknown_columns(where, row, "prompt + completion + label")
    prompt, used = found
    completion = read_answer(where, "completion", said_in(row, "completion"), prompt)
    if completion[-1]["role"] != "assistant":
        raise InputError(f"{where}, column 'completion'", completion[-1], "expected an assistant message at the end")
    if not completion[-1]["content"].strip():
        mend = "expected an answer that is not empty: mend or remove the row"
        raise InputError(f"{where}, column 'completion'", completion[-1]["content"], mend)
    if not isinstance(row["label"], bool):
        raise InputError(f"{where}, column 'label'", row["label"], "expected true (people liked the answer) or false")
    return [{k: v for k, v in row.items() if k not in used} | {"prompt": prompt, "completion": completion}]


@dataclass
class FeedbackExample:
    """A judged answer."""

    prompt: np.ndarray  # (n,) int32, generation prompt included
    completion: np.ndarray  # (m,) int32
    answer: np.ndarray  # (m,) bool, which tokens of the completion the assistant wrote
    desirable: bool

    def __len__(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


def feedback_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[FeedbackExample], EncodingStats]:
    """Each judged answer in tokens up to the stop token, those over `max_length` with their prompt left out, and the counts.

    Raises:
        InputError: nothing is left, or a prompt is not a prefix of its answered chat.
    """
    stats, examples = EncodingStats(records=len(records)), []
    for record in records:
        try:
            prompt = encode_prompt(tokenizer, record["prompt"])
            ids, mask = encode_chat(tokenizer, [*record["prompt"], *record["completion"]])
        except ControlTokenError:
            stats.control_tokens += 1
            continue
        check_prefix(record, prompt, ids)
        if len(ids) > max_length:
            stats.too_long += 1
            continue
        stats.kept += 1
        stats.tokens += len(ids)
        answer = np.asarray(mask[len(prompt) :])
        stats.trained_tokens += int(answer.sum())
        begin, end = (np.asarray(half, dtype=np.int32) for half in (prompt, ids[len(prompt) :]))
        examples.append(FeedbackExample(begin, end, answer, record["label"]))
    stats.report("judged answers", max_length)
    return examples, stats


class FeedbackBatches:
    """Judged answers, similar lengths together, each with an answer to another prompt of its step for KTO's baseline.

    The partners are the same answers in another order, as in the paper and in TRL, which moves them on by one place; here
    no answer meets its own prompt unless more than half of the step answers that one, and then counts for nothing. A row
    of prompt and partner that is longer than every example is cut to the longest. The partners are those of the whole
    step, whatever the ranks and micro-batches.

    A rank left without answers gets one row whose masks are all False.

    Args:
        examples: from `feedback_examples`.
        batch_size: answers an optimizer step, over all ranks; at least 2.
        micro_batch_size: answers a forward at most.
        seed: of the order of answers.
        pad_id: what stands where nothing is.
        drop_last: drop the smaller last step of an epoch.
    Raises:
        InputError: no examples, a step of one answer, which has no other prompt.
    """

    def __init__(
        self,
        examples: Sequence[FeedbackExample],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        pad_id: int,
        *,
        drop_last: bool = False,
    ) -> None:
        check_positive(micro_batch_size=micro_batch_size)
        if batch_size < 2:
            raise InputError(
                "batch_size", batch_size, "expected 2 or more: KTO compares with answers to other prompts of the step"
            )
        self.examples, self.micro_batch_size, self.pad_id = examples, micro_batch_size, pad_id
        numbers: dict[bytes, int] = {}
        self._prompts = np.array([numbers.setdefault(e.prompt.tobytes(), len(numbers)) for e in examples], dtype=np.int64)
        lengths = np.array([len(e) for e in examples], dtype=np.int64)
        self._epochs = Epochs(lengths, batch_size, seed, drop_last)
        self.longest = int(lengths.max())  # tokens
        self.steps_per_epoch = self._epochs.steps

    def micro_batches(self, step: int, rank: int, world: int) -> list[FeedbackBatch]:
        """The answers of one rank at one step."""
        check_rank(rank, world)
        members = self._epochs.members(step)
        partners = self._partners(members)
        dealt = deal(np.arange(len(members)), self.micro_batch_size, rank, world)
        return [self._batch(members[group], partners[group]) for group in dealt]

    def _partners(self, members: np.ndarray) -> np.ndarray:
        """(n,) whose answer stands behind each member's prompt in the baseline.

        By prompt in order, moved on by the size of the largest group: no group then meets itself, if none is over half.
        """
        own = self._prompts[members]
        order = np.argsort(own, kind="stable")
        partners = np.empty_like(members)
        partners[order] = np.roll(members[order], np.unique(own, return_counts=True)[1].max())
        return partners

    def _batch(self, members: np.ndarray, partners: np.ndarray) -> FeedbackBatch:
        if not len(members):
            (ids, mask), (kl_ids, kl_mask) = no_row(self.pad_id), no_row(self.pad_id)
            return FeedbackBatch(ids, mask, mask.clone(), mask[:, 0].clone(), kl_ids, kl_mask, kl_mask.clone())
        input_ids, attention_mask, answer = self._joined(members, members)
        kl_ids, kl_mask, kl_answer = self._joined(members, partners)
        kl_answer &= torch.from_numpy(self._prompts[members] != self._prompts[partners])[:, None]
        desirable = torch.tensor([self.examples[i].desirable for i in members.tolist()])
        return FeedbackBatch(input_ids, attention_mask, answer, desirable, kl_ids, kl_mask, kl_answer)

    def _joined(self, prompts: np.ndarray, completions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(ids, mask, answer)`, (B, T) each: the prompts of some rows, the completions of others."""
        rows: list[Any] = [(self.examples[i], self.examples[j]) for i, j in zip(prompts.tolist(), completions.tolist())]
        whole = [np.concatenate([a.prompt, b.completion])[: self.longest] for a, b in rows]
        written = [np.concatenate([np.zeros(len(a.prompt), dtype=bool), b.answer])[: self.longest] for a, b in rows]
        every = np.arange(len(rows))
        ids, mask = Flat(whole).gather(every, self.pad_id)
        return ids, mask, Flat(written).gather(every, 0)[0].bool()
