"""Answers judged step by step, from raw rows to token labels: what a process reward model learns from, and where it is read.

Read: TRL's stepwise supervision, rows with `prompt`, `completions` (the steps) and `labels` (whether each is correct), in
any form that `files` reads. A step is a line: newlines inside become spaces, and an answer is its steps with a newline between
them, in the chat as the policy would have written it. A step ends at the token that holds its newline, the last one at the
stop token. Answers that a policy samples are cut by the same rule (`StepEnds`), so that a model is read where it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import IGNORE
from rlhf_kit.data.examples import EncodingStats
from rlhf_kit.data.files import iter_rows
from rlhf_kit.data.packing import Example
from rlhf_kit.data.records import Record, at_least_one, read_prompt, unknown_columns
from rlhf_kit.data.tokenizer import ControlTokenError, encode_chat
from rlhf_kit.errors import InputError

_BREAK = re.compile(r"\s*\n\s*")


def load_stepwise(source: str | Path) -> list[Record]:
    """`{"prompt": [...], "completions": [str, ...], "labels": [bool, ...], ...}`, both labels among them; other columns stay.

    Raises:
        InputError: unreadable source, missing columns, an empty step, a label that is neither true nor false, not one label for
            each step, one label only.
    """
    records = at_least_one([_stepwise(where, row) for where, row in iter_rows(source)], source)
    labels = {label for record in records for label in record["labels"]}
    if len(labels) == 1:
        mend = "of every step, expected both: add answers with steps of the other kind"
        raise InputError(f"{source}: column 'labels'", labels.pop(), mend)
    return records


def _stepwise(where: str, row: Record) -> Record:
    found = read_prompt(where, row) if {"prompt", "completions", "labels"} <= row.keys() else None
    if found is None:
        raise unknown_columns(where, row, "prompt + completions + labels")
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not steps:
        raise InputError(f"{where}, column 'completions'", steps, "expected a list of texts, one for each step: mend the row")
    for number, step in enumerate(steps, 1):
        if not isinstance(step, str) or not step.strip():
            mend = "expected a text that is not empty: mend or remove the row"
            raise InputError(f"{where}, column 'completions', step {number}", step, mend)
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise InputError(f"{where}, column 'labels'", labels, f"expected {len(steps)}, one for each step: mend the row")
    for number, label in enumerate(labels, 1):
        if label not in (0, 1):  # true and false are among them
            mend = "expected true where the step is correct, else false"
            raise InputError(f"{where}, column 'labels', step {number}", label, mend)
    lines = [_BREAK.sub(" ", step.strip()) for step in steps]
    return {**row, "prompt": found[0], "completions": lines, "labels": [bool(label) for label in labels]}


class StepEnds:
    """Where the steps of an answer end, in the tokens of one tokenizer.

    A step ends at the token that holds the newline behind it, the last one at the answer's last token. Lines without a word are
    no steps; an answer without any is one step.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        ids = sorted(tokenizer.get_vocab().values())
        # A newline is one byte and no part of another character: a token alone shows whether it holds one.
        texts = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.tokenizer, self.newlines = tokenizer, frozenset(i for i, text in zip(ids, texts) if "\n" in text)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Positions in `ids`, the tokens of an answer, in order; a token that holds several newlines ends one step."""
        ends, start, opened = [], 0, ""
        for t in [t for t, token in enumerate(ids) if token in self.newlines]:
            said, _, rest = (opened + self._text(ids[start : t + 1])).rpartition("\n")
            if said.strip():
                ends.append(t)
            start, opened = t + 1, rest
        if len(ids) and ((opened + self._text(ids[start:])).strip() or not ends):
            ends.append(len(ids) - 1)
        return ends

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def stepwise_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Example], EncodingStats]:
    """`(ids, labels)` of each answer in its chat, and the counts.

    Labels stand at the last token of each step: 1 where it is correct, 0 where it is not, IGNORE everywhere else. A longer answer
    keeps its first `max_length` tokens and the steps that end there.

    Raises:
        InputError: nothing is left, or a tokenizer or a chat template that loses the newlines between steps.
    """
    stats, examples, step_ends = EncodingStats(records=len(records)), [], StepEnds(tokenizer)
    for record in records:
        answer = {"role": "assistant", "content": "\n".join(record["completions"])}
        try:
            ids, mask = encode_chat(tokenizer, [*record["prompt"], answer])
        except ControlTokenError:
            stats.control_tokens += 1
            continue
        first = last_answer(mask)
        ends = [first + t for t in step_ends(ids[first:])]
        if len(ends) != len(record["labels"]):
            mend = f"expected {len(record['labels'])}, a line each: use a tokenizer and a chat template that keep newlines"
            raise InputError(f"steps of the encoded answer {answer['content'][:60]!r}", len(ends), mend)
        labels = np.full(len(ids), IGNORE, dtype=np.int32)
        labels[ends] = record["labels"]
        stats.truncated += len(ids) > max_length
        labels = labels[:max_length]
        trained = int((labels != IGNORE).sum())
        if not trained:
            stats.untrained += 1
            stats.truncated -= 1
            continue
        stats.kept += 1
        stats.tokens += len(labels)
        stats.trained_tokens += trained
        examples.append((np.asarray(ids[:max_length], dtype=np.int32), labels))
    stats.report("judged solutions", max_length)
    return examples, stats


def last_answer(mask: Sequence[bool]) -> int:
    """Where the last run of True begins: the first token of a chat's last answer."""
    end = len(mask) - 1 - list(mask)[::-1].index(True)
    return next((t + 1 for t in range(end, -1, -1) if not mask[t]), 0)
