"""Which votes are exported, and as what rows. Pure functions of what was judged and of the settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from annotate.aggregate import Outcome, Rule, outcomes
from annotate.standing import Judged, Vote
from rlhf_kit.errors import InputError

Row = dict[str, Any]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, and how.

    Args:
        prompt: `explicit`: a column of its own; `implicit`: at the beginning of chosen and rejected (both are TRL's).
        style: `conversational`: lists of messages; `plain`: texts, which conversations of several messages cannot become.
        format: `jsonl`; `parquet`; `datasets`: a `DatasetDict` in the folder `dataset`, and the rest as JSON lines.
        aggregate: how several votes become one, see `annotate.aggregate`.
        margin: whether rows carry how much better the chosen answer is.
        test_fraction: the share of prompts that go to the test split; a prompt stays on its side as the data grows.
        without: names of people whose votes are left out.
        late: keep votes that came after their lease had run out.
        flagged: keep votes with marks beside them ("unsafe", ...).
        gold: keep gold items, whose answers were known before.
        min_votes: comparisons with fewer votes are left out, unless an adjudicator decided them.
    """

    prompt: Literal["explicit", "implicit"] = "explicit"
    style: Literal["conversational", "plain"] = "conversational"
    format: Literal["jsonl", "parquet", "datasets"] = "jsonl"
    aggregate: Rule = "mean"
    margin: bool = True
    test_fraction: float = 0.1
    without: tuple[str, ...] = ()
    late: bool = True
    flagged: bool = True
    gold: bool = False
    min_votes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise InputError("--test_fraction", self.test_fraction, "expected a share from 0 to below 1")
        if self.min_votes < 1:
            raise InputError("--min_votes", self.min_votes, "expected at least 1")


def kept_votes(found: Judged, settings: ExportSettings) -> list[Vote]:
    """The votes that count."""
    return [
        vote
        for vote in found.votes
        if vote.annotator not in settings.without and (settings.late or not vote.late) and (settings.flagged or not vote.flags)
    ]


def why_left_out(found: Judged, votes: Sequence[Vote], settings: ExportSettings) -> str:
    """The reason why a comparison is not exported, "" where it is."""
    if found.source == "gold" and not settings.gold:
        return "gold items"
    if found.decision is not None:
        return "discarded by an adjudicator" if found.decision.kind == "discard" else ""
    if found.state == "adjudicate":
        return "waiting for an adjudicator"
    return "" if len(votes) >= settings.min_votes else "too few votes"


def split_of(found: Judged, settings: ExportSettings) -> str:
    """The split of a comparison's prompt: a fixed function of the prompt alone."""
    return "test" if int(found.prompt_hash[:13], 16) / 16**13 < settings.test_fraction else "train"


def preference_rows(found: Judged, votes: Sequence[Vote], settings: ExportSettings) -> Iterator[tuple[str, Row]]:
    """`(file, row)` for each outcome: a preference to its split, ties and both bad to files of their own, which import again."""
    split = split_of(found, settings)
    for outcome in outcomes(found, votes, settings.aggregate):
        about = {"group_id": found.hash[:16], "votes": len(votes), "adjudicated": found.decision is not None}
        if outcome.kind == "preference":
            yield split, _chosen_and_rejected(found, outcome, settings) | about
        else:
            yield (
                {"tie": "ties", "both_bad": "both_bad"}[outcome.kind],
                _undecided(found, outcome, settings) | about | {"split": split},
            )


def edit_rows(found: Judged, votes: Sequence[Vote], settings: ExportSettings) -> Iterator[tuple[str, Row]]:
    """`(file, row)` for each answer that somebody corrected: a demonstration, in the split of its prompt."""
    seen = {answer.text for answer in found.answers}
    for vote in votes:
        for position, text in sorted(vote.edits.items()):
            if text.strip() and text not in seen:
                seen.add(text)
                messages = [*_messages(found), _said(text)]
                row = {"messages": messages, "group_id": found.hash[:16], "corrected": found.answers[position].text}
                yield f"sft_{split_of(found, settings)}", row


def _chosen_and_rejected(found: Judged, outcome: Outcome, settings: ExportSettings) -> Row:
    better, worse = found.answers[outcome.better], found.answers[outcome.worse]
    if settings.style == "plain":
        prompt: Any = _plain_prompt(found)
        chosen, rejected = better.text, worse.text
        whole: Any = (f"{prompt}\n\n{chosen}", f"{prompt}\n\n{rejected}")
    else:
        prompt = _messages(found)
        chosen, rejected = [_said(better.text)], [_said(worse.text)]  # type: ignore[assignment]
        whole = ([*prompt, *chosen], [*prompt, *rejected])
    if settings.prompt == "explicit":
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    else:
        row = {"chosen": whole[0], "rejected": whole[1]}
    margin = {"margin": outcome.margin} if settings.margin else {}
    return row | margin | {"chosen_model": better.model, "rejected_model": worse.model}


def _undecided(found: Judged, outcome: Outcome, settings: ExportSettings) -> Row:
    a, b = found.answers[outcome.better], found.answers[outcome.worse]
    plain = settings.style == "plain"
    prompt: Any = _plain_prompt(found) if plain else _messages(found)
    said: Any = [each.text if plain else [_said(each.text)] for each in (a, b)]
    return {"prompt": prompt, "response_a": said[0], "response_b": said[1], "model_a": a.model, "model_b": b.model}


def _plain_prompt(found: Judged) -> str:
    if len(found.messages) != 1:
        roles = [message["role"] for message in found.messages]
        raise InputError("--style", "plain", f"but a conversation has the messages {roles}: export it as conversational")
    return str(found.messages[0]["content"])


def _messages(found: Judged) -> list[dict[str, Any]]:
    return [dict(message) for message in found.messages]


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
