"""What people said, as it stands: of each answer its last revision, and none where that took it back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from annotate.quality.labels import Judgment
from annotate.store.schema import adjudication, assignment, candidate, comparison, item, judgment, response, user

CHUNK = 500  # comparisons read at a time: a project may be larger than memory
VOTES = ("preference", "tie", "both_bad", "rank")


@dataclass(frozen=True)
class Vote:
    """What one person said of a comparison, in canonical order; `kind` is a verdict's. `shown` as in the assignment."""

    annotator: str
    kind: str
    strength: int
    ranking: Sequence[int] | None
    flags: Sequence[str]
    edits: Mapping[int, str]
    late: bool
    visible_ms: int | None
    shown: Sequence[int]
    guidelines_version: int
    created: float


@dataclass(frozen=True)
class Answer:
    """An answer and where it comes from."""

    text: str
    model: str
    checkpoint: str
    sampling: Mapping[str, Any]
    rm_score: float | None


@dataclass(frozen=True)
class Judged:
    """A comparison with its votes, in the order in which they came, and an adjudicator's last word where there is one.

    `decision` has a `kind` (a verdict's, or `discard`), a `strength` and a `ranking`; None also where it was reopened.
    """

    id: int
    hash: str
    prompt_hash: str
    kind: Literal["pair", "rank"]
    source: str
    state: str
    gold: Mapping[str, Any] | None
    propensity: float | None
    sampled_by: str
    messages: Sequence[Mapping[str, Any]]
    answers: Sequence[Answer]
    votes: Sequence[Vote]
    decision: Row | None = field(compare=False)


def last_judgment(connection: Connection, project_id: int) -> int:
    """The id of the newest judgment of a project, 0 where there is none."""
    query = select(func.coalesce(func.max(judgment.c.id), 0)).where(judgment.c.project_id == project_id)
    return connection.execute(query).scalar_one()


def one_moment(connection: Connection) -> None:
    """Let all that this transaction reads be of one moment, as on SQLite it is anyway. Call it first."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def judged(connection: Connection, project_id: int, up_to: int | None = None) -> Iterator[Judged]:
    """Every comparison of a project on which somebody has voted or an adjudicator decided, by id.

    Args:
        up_to: as things stood after the judgment with this id; as they stand now where None.
    """
    key = 0
    while True:
        query = select(comparison, item.c.messages, item.c.hash.label("prompt_hash")).join(
            item, item.c.id == comparison.c.item_id
        )
        query = query.where(comparison.c.project_id == project_id, comparison.c.id > key).order_by(comparison.c.id).limit(CHUNK)
        rows = connection.execute(query).all()
        if not rows:
            return
        first, key = rows[0].id, rows[-1].id
        span = (project_id, first, key)
        votes, answers, decisions = _votes(connection, span, up_to), _answers(connection, span), _decisions(connection, span)
        for row in rows:
            if row.id in votes or row.id in decisions:
                yield _judged(row, answers[row.id], votes[row.id], decisions.get(row.id))


def quality_judgments(found: Judged) -> Iterator[Judgment]:
    """A pair's votes in the form that `annotate.quality` measures; both bad counts as a tie, rankings are left out."""
    if found.kind != "pair":
        return
    first, second = found.answers
    for vote in found.votes:
        yield Judgment(
            item=found.id,
            annotator=vote.annotator,
            strength=vote.strength,
            first_on_left=vote.shown[0] == 0,
            seconds=None if vote.visible_ms is None else vote.visible_ms / 1000,
            words=(len(first.text.split()), len(second.text.split())),
            prompt_words=sum(len(str(message["content"]).split()) for message in found.messages),
            models=(first.model, second.model),
            gold=found.gold["strength"] if found.gold else None,
            at=vote.created,
            group=found.prompt_hash,
        )


def _judged(row: Row, answers: Sequence[Answer], votes: Sequence[Vote], decision: Row | None) -> Judged:
    names = ("id", "hash", "prompt_hash", "kind", "source", "state", "gold", "propensity", "sampled_by", "messages")
    decision = None if decision is None or decision.kind == "reopen" else decision
    return Judged(**{name: getattr(row, name) for name in names}, answers=answers, votes=votes, decision=decision)


def _within(span: tuple[int, int, int]) -> Any:
    project_id, first, last = span
    return (comparison.c.project_id == project_id) & comparison.c.id.between(first, last)


def _votes(connection: Connection, span: tuple[int, int, int], up_to: int | None) -> dict[int, list[Vote]]:
    query = (
        select(judgment, assignment.c.comparison_id, assignment.c.shown, user.c.name)
        .join(assignment, assignment.c.id == judgment.c.assignment_id)
        .join(comparison, comparison.c.id == assignment.c.comparison_id)
        .join(user, user.c.id == judgment.c.user_id)
        .where(_within(span))
        .order_by(judgment.c.id)
    )
    if up_to is not None:
        query = query.where(judgment.c.id <= up_to)
    # Revisions come in the order of their ids, so that the last one of each assignment stays.
    last = {row.assignment_id: row for row in connection.execute(query)}
    votes: dict[int, list[Vote]] = defaultdict(list)
    for row in sorted(last.values(), key=lambda row: row.id):
        if row.kind in VOTES:
            votes[row.comparison_id].append(_vote(row))
    return votes


def _vote(row: Row) -> Vote:
    return Vote(
        row.name,
        row.kind,
        row.strength or 0,
        row.ranking,
        row.flags or (),
        {int(position): words for position, words in (row.edits or {}).items()},
        row.late,
        row.visible_ms,
        row.shown,
        row.guidelines_version,
        row.created,
    )


def _answers(connection: Connection, span: tuple[int, int, int]) -> dict[int, list[Answer]]:
    query = (
        select(candidate.c.comparison_id, response)
        .join(response, response.c.id == candidate.c.response_id)
        .join(comparison, comparison.c.id == candidate.c.comparison_id)
        .where(_within(span))
        .order_by(candidate.c.comparison_id, candidate.c.position)
    )
    answers: dict[int, list[Answer]] = defaultdict(list)
    for row in connection.execute(query):
        answers[row.comparison_id].append(Answer(row.text, row.model, row.checkpoint, row.sampling, row.rm_score))
    return answers


def _decisions(connection: Connection, span: tuple[int, int, int]) -> dict[int, Row]:
    query = select(adjudication, adjudication.c.decision.label("kind"))
    query = query.join(comparison, comparison.c.id == adjudication.c.comparison_id).where(_within(span))
    return {row.comparison_id: row for row in connection.execute(query.order_by(adjudication.c.id))}
