"""Records -> token ids: what a stage trains on, with counts of what was cut or left out and why.

A record is what `records.py` reads. Nothing leaves in silence: every example that is not kept is counted, and no example at
all is an error that names the cause and its mend.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_kit.batches import IGNORE
from rlhf_kit.data.packing import Example
from rlhf_kit.data.records import Record
from rlhf_kit.data.tokenizer import ControlTokenError, encode_chat, encode_prompt
from rlhf_kit.errors import InputError

logger = logging.getLogger(__name__)


@dataclass
class EncodingStats:
    """What became of the records: how many were kept, cut or left out, and why; tokens of the kept ones."""

    records: int = 0
    kept: int = 0
    truncated: int = 0  # kept, cut to max_length
    untrained: int = 0  # left out: no trained token within max_length
    too_long: int = 0  # left out: a pair or a prompt over max_length
    identical: int = 0  # left out: a pair whose answers are the same
    control_tokens: int = 0  # left out: a message spells a control token
    tokens: int = 0
    trained_tokens: int = 0

    def __str__(self) -> str:
        """The counts that are not zero, on one line."""
        counts = {name: count for name, count in asdict(self).items() if count}
        return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()) or "nothing"

    def report(self, what: str, max_length: int, field: str = "max_length") -> None:
        """Log the counts that are not zero.

        Raises:
            InputError: nothing was kept.
        """
        counts = {name: count for name, count in asdict(self).items() if count}
        logger.info("%s: %s", what, self)
        if not self.kept:
            mends = {
                f"raise {field} from {max_length} tokens": self.untrained + self.too_long,
                "give pairs whose answers differ": self.identical,
                "remove the control tokens from the messages": self.control_tokens,
            }
            mend = ", ".join(text for text, count in mends.items() if count)
            raise InputError(f"{what}: kept", 0, f"expected at least one of {counts}: {mend or 'give some'}")


@dataclass
class PreferenceExample:
    """A pair as whole sequences; the first `prompt_length` tokens of both are the prompt.

    An answer of several turns holds words of others, too: the masks say what the assistant wrote.
    """

    chosen: np.ndarray  # (n,) int32
    rejected: np.ndarray  # (m,) int32
    prompt_length: int
    margin: float | None = None
    chosen_answer: np.ndarray | None = None  # (n,) bool, the assistant's tokens after the prompt; None: all after the prompt
    rejected_answer: np.ndarray | None = None  # (m,) bool

    def __len__(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen), len(self.rejected))


@dataclass
class PromptExample:
    """A prompt with its generation prompt, and the record it came from."""

    ids: np.ndarray  # (n,) int32
    row: Record


def sft_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Example], EncodingStats]:
    """`(ids, labels)` of each demonstration, labels IGNORE outside the assistant's tokens, and the counts.

    A longer one keeps its first `max_length` tokens.

    Raises:
        InputError: nothing is left, or the chat template cannot tell the answers apart.
    """
    stats, examples = EncodingStats(records=len(records)), []
    for record in records:
        try:
            ids, mask = encode_chat(tokenizer, record["messages"])
        except ControlTokenError:
            stats.control_tokens += 1
            continue
        input_ids = np.asarray(ids[:max_length], dtype=np.int32)
        labels = np.where(mask[:max_length], input_ids, np.int32(IGNORE))
        trained = int((labels[1:] != IGNORE).sum())  # nothing predicts the first token
        if not trained:
            stats.untrained += 1
            continue
        stats.truncated += len(ids) > max_length
        stats.kept += 1
        stats.tokens += len(input_ids)
        stats.trained_tokens += trained
        examples.append((input_ids, labels))
    stats.report("demonstrations", max_length)
    return examples, stats


def preference_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[PreferenceExample], EncodingStats]:
    """Each pair as two token sequences up to the stop token, and the counts.

    A pair with a side over `max_length` is left out, not cut: its score would be read in the middle of a sentence.

    Raises:
        InputError: nothing is left, or a prompt is not a prefix of its answered chat.
    """
    stats, examples = EncodingStats(records=len(records)), []
    for record in records:
        try:
            prompt = encode_prompt(tokenizer, record["prompt"])
            chats = [encode_chat(tokenizer, [*record["prompt"], *record[column]]) for column in ("chosen", "rejected")]
        except ControlTokenError:
            stats.control_tokens += 1
            continue
        sides = [ids for ids, _ in chats]
        check_prefix(record, prompt, *sides)
        if max(map(len, sides)) > max_length:
            stats.too_long += 1
        elif sides[0] == sides[1]:
            stats.identical += 1
        else:
            stats.kept += 1
            stats.tokens += sum(map(len, sides))
            answers = [np.asarray(mask) & (np.arange(len(mask)) >= len(prompt)) for _, mask in chats]
            stats.trained_tokens += sum(int(answer.sum()) for answer in answers)
            chosen, rejected = (np.asarray(side, dtype=np.int32) for side in sides)
            examples.append(PreferenceExample(chosen, rejected, len(prompt), record.get("margin"), *answers))
    stats.report("comparisons", max_length)
    return examples, stats


def check_prefix(record: Record, prompt: list[int], *answered: list[int]) -> None:
    """Refuse a chat template under which the tokens of a prompt do not open those of its answered chats."""
    if any(ids[: len(prompt)] != prompt for ids in answered):
        raise InputError("chat_template", record["prompt"][-1]["content"], "whose prompt is not a prefix of its answered chat")


def prompt_examples(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[PromptExample], EncodingStats]:
    """Each prompt with its generation prompt, those over `max_length` left out, and the counts.

    Raises:
        InputError: nothing is left.
    """
    stats, examples = EncodingStats(records=len(records)), []
    for record in records:
        try:
            ids = encode_prompt(tokenizer, record["prompt"])
        except ControlTokenError:
            stats.control_tokens += 1
            continue
        if len(ids) > max_length:
            stats.too_long += 1
            continue
        stats.kept += 1
        stats.tokens += len(ids)
        examples.append(PromptExample(np.asarray(ids, dtype=np.int32), record))
    stats.report("prompts", max_length, "max_prompt_length")
    return examples, stats
