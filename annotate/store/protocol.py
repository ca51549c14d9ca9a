"""Claim, answer, take back: each one transaction, so that a crash leaves all of it or nothing.

A slot is one person's place at a comparison; `overlap` says how many there are. Two ways lead beyond it by one, and both keep a
person's work rather than the exact number: a verdict after its lease ran out and the slot went to somebody else, and an undone
skip whose slot was taken meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from annotate.store import queue
from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.records import Kind, Past, Result, Status, Task, Verdict
from annotate.store.schema import assignment, comparison, export, judgment, project, user
from annotate.store.verdicts import agrees_with_gold, check_text, check_verdict, dense, to_canonical, to_shown, turn
from rlhf_kit.errors import InputError

BUSY_TRIES = 200
BUSY_PAUSE = 0.005
ACTIVE = select(user).where(user.c.id == bindparam("key"), user.c.active).with_for_update(key_share=True)
HELD = select(assignment).where(assignment.c.token == bindparam("token"), assignment.c.project_id == bindparam("project"))
HELD = HELD.with_for_update(key_share=True)
COMPARISON = select(comparison).where(comparison.c.id == bindparam("key")).with_for_update(key_share=True)
PROJECT = select(project).where(project.c.id == bindparam("key"))
INSERT_JUDGMENT = insert(judgment)


@dataclass(frozen=True)
class Protocol:
    """The protocol of one project. Safe to share between threads.

    Args:
        project: its id.
        rng: draws the order of the answers and which tasks are gold; the system's randomness, which nobody can foresee.
    """

    database: Database
    project: int
    rng: random.Random = field(default_factory=random.SystemRandom)

    def claim(self, user: int, kind: Kind = "pair") -> Task | None:
        """The person's task: the one they hold, else the next; None where nothing is left for them now."""
        for _ in range(BUSY_TRIES):
            with self.database.write() as connection:
                settings, _ = self._project(connection), _active(connection, user)
                found = queue.claim(connection, settings, user, kind, self.database.now(), self.rng)
            if not isinstance(found, queue.Busy):
                return found
            time.sleep(BUSY_PAUSE)
        return None

    def serve(self, comparison_id: int, user: int) -> Task:
        """Give one live comparison to the person whose chat it comes from, in its own order: they saw the answers being written."""
        with self.database.write() as connection:
            settings, _ = self._project(connection), _active(connection, user)
            query = select(comparison).where(comparison.c.id == comparison_id, comparison.c.project_id == self.project)
            chosen = connection.execute(query.with_for_update(key_share=True)).first()
            if chosen is None or chosen.source != "live" or chosen.done + chosen.leased >= chosen.overlap:
                raise InputError("comparison", comparison_id, "expected a live one of this project that nobody has been given")
            return queue.lease(connection, settings, user, chosen, self.database.now(), None)

    def submit(self, assignment_id: str, user: int, verdict: Verdict) -> Result:
        """Store a verdict and claim the next task. The first one for a revision wins; a repeat changes nothing.

        Raises:
            InputError: the verdict is not one that this task can get.
        """
        return self._answer(assignment_id, user, verdict.revision, verdict)

    def skip(self, assignment_id: str, user: int, revision: int, reason: str = "") -> Result:
        """Leave a task to somebody else, for good. Enough skips send it to an adjudicator."""
        return self._answer(assignment_id, user, revision, {"kind": "skip", "justification": reason})

    def flag(self, assignment_id: str, user: int, revision: int, flags: Sequence[str], reason: str = "") -> Result:
        """Say that nobody should judge this one (unsafe, broken, private data): it goes to an adjudicator at once."""
        return self._answer(assignment_id, user, revision, {"kind": "flag", "flags": list(flags), "justification": reason})

    def undo(self, assignment_id: str, user: int, *, force: bool = False) -> Result:
        """Take an answer back: the same assignment opens again in the same order, and is the result's `next`.

        Args:
            user: its owner; or an admin with `force`, who may also take back what was exported.
        """
        with self.database.write() as connection:
            settings, actor, now = self._project(connection), _active(connection, user), self.database.now()
            forced = force and actor.role == "admin"
            held = self._assignment(connection, assignment_id)
            if held is None or (held.user_id != user and not forced):
                return self._refuse(connection, "undo", assignment_id, user, "this is not yours")
            last = _last(connection, held)
            if last is not None and last.kind == "undo" and held.state == "leased":
                return Result("duplicate", queue.load_task(connection, held) if held.user_id == user else None)
            if last is None or held.state not in ("done", "skipped"):
                return self._refuse(connection, "undo", assignment_id, user, "there is no answer to take back")
            if last.id <= _exported(connection, self.project) and not forced:
                return self._refuse(connection, "undo", assignment_id, user, "it was exported")
            before = _comparison(connection, held)
            if before.state == "decided":
                return self._refuse(connection, "undo", assignment_id, user, "an adjudicator has decided it")
            values = {"kind": "undo", "late": False, "justification": "", "guidelines_version": held.guidelines_version}
            self._revise(connection, held, values, now)
            lease = {"state": "leased", "leased_at": now, "lease_until": now + settings.lease_seconds}
            row = queue.change_assignment(connection, held.id, revision=held.revision + 1, **lease)
            taken = {"skip": {"skips": -1}, "flag": {"flagged": -1}}.get(last.kind, {"done": -1})
            queue.settle(connection, settings, before, leased=1, **taken)
            details = {"assignment": held.id, "revision": row.revision, "forced": forced}
            record(connection, now, "undo", user=user, project=self.project, **details)
            return Result("accepted", queue.load_task(connection, row) if held.user_id == user else None)

    def history(self, user: int, limit: int = 20) -> list[Past]:
        """The person's own last answers, newest first, in the order they were shown. What is gold is not said."""
        query = (
            select(judgment, assignment.c.token, assignment.c.shown, assignment.c.comparison_id, assignment.c.lease_until)
            .add_columns((comparison.c.state == "decided").label("decided"))
            .join(assignment, assignment.c.id == judgment.c.assignment_id)
            .join(comparison, comparison.c.id == assignment.c.comparison_id)
            .where(judgment.c.user_id == user, judgment.c.project_id == self.project)
            .where(judgment.c.revision == assignment.c.revision, judgment.c.kind != "undo")
            .order_by(judgment.c.id.desc())
            .limit(limit)
        )
        with self.database.read() as connection:
            exported = _exported(connection, self.project)
            rows = connection.execute(query).all()
            return [_past(connection, row, exported) for row in rows]

    def _answer(self, assignment_id: str, user: int, revision: int, answer: Verdict | dict[str, Any]) -> Result:
        with self.database.write() as connection:
            settings, _, now = self._project(connection), _active(connection, user), self.database.now()
            held = self._assignment(connection, assignment_id)
            if held is None or held.user_id != user:
                return self._refuse(connection, "answer", assignment_id, user, "this is not yours")
            if revision > held.revision + 1:
                raise InputError("verdict.revision", revision, f"expected {held.revision + 1}, the task's")
            before = _comparison(connection, held)
            status: Status = "duplicate"
            if revision == held.revision + 1:
                status = self._store(connection, settings, held, before, answer, now)
            following = queue.claim(connection, settings, user, before.kind, now, self.rng)
        return Result(status, self.claim(user, before.kind) if isinstance(following, queue.Busy) else following)

    def _store(
        self, connection: Connection, settings: Row, held: Row, before: Row, answer: Verdict | dict[str, Any], now: float
    ) -> Status:
        late = held.state == "expired" or held.lease_until <= now
        values = _values(answer, before, held, settings)
        self._revise(connection, held, {**values, "late": late, "guidelines_version": held.guidelines_version}, now)
        counted = {"skip": "skips", "flag": "flagged"}.get(values["kind"], "done")
        state = "done" if counted == "done" else "skipped"
        queue.change_assignment(connection, held.id, revision=held.revision + 1, state=state)
        queue.settle(connection, settings, before, leased=-1 if held.state == "leased" else 0, **{counted: 1})
        action = values["kind"] if counted != "done" else "submit"
        details = {"assignment": held.id, "revision": held.revision + 1, "late": late}
        record(connection, now, action, user=held.user_id, project=self.project, **details)
        return "late" if late else "accepted"

    def _project(self, connection: Connection) -> Row:
        return connection.execute(PROJECT, {"key": self.project}).one()

    def _assignment(self, connection: Connection, assignment_id: str) -> Row | None:
        check_text("assignment", assignment_id)
        return connection.execute(HELD, {"token": assignment_id, "project": self.project}).first()

    def _revise(self, connection: Connection, held: Row, values: dict[str, Any], now: float) -> None:
        whose = {"assignment_id": held.id, "project_id": self.project, "user_id": held.user_id}
        connection.execute(INSERT_JUDGMENT, {**whose, "revision": held.revision + 1, "created": now, **values})

    def _refuse(self, connection: Connection, action: str, assignment_id: str, user: int, reason: str) -> Result:
        details = {"attempt": action, "assignment": assignment_id[:64], "reason": reason}
        record(connection, self.database.now(), "refuse", user=user, project=self.project, **details)
        return Result("refused", None, reason)


def _active(connection: Connection, key: int) -> Row:
    # Locked, so that one person's requests go one after the other even from two tabs.
    found = connection.execute(ACTIVE, {"key": key}).first()
    if found is None:
        raise InputError("user", key, "expected an active user: an admin can enable it again")
    return found


def _comparison(connection: Connection, held: Row) -> Row:
    return connection.execute(COMPARISON, {"key": held.comparison_id}).one()


def _last(connection: Connection, held: Row) -> Row | None:
    this = (judgment.c.assignment_id == held.id) & (judgment.c.revision == held.revision)
    return connection.execute(select(judgment).where(this)).first()


def _exported(connection: Connection, key: int) -> int:
    query = select(func.coalesce(func.max(export.c.last_judgment), 0)).where(export.c.project_id == key)
    return connection.execute(query).scalar_one()


def _values(answer: Verdict | dict[str, Any], before: Row, held: Row, settings: Row) -> dict[str, Any]:
    if isinstance(answer, dict):
        for words in (answer["justification"], *answer.get("flags", ())):
            check_text("reason and flags", words)
        return answer
    check_verdict(answer, before.kind, len(held.shown), settings.scale, settings.aspects)
    values = asdict(answer)
    del values["revision"]
    pair = before.kind == "pair"
    values["strength"] = turn(answer.strength, held.shown) if pair else None
    values["aspects"] = {aspect: turn(strength, held.shown) for aspect, strength in answer.aspects.items()}
    values["ranking"] = to_canonical(dense(answer.ranking), held.shown) if answer.ranking is not None else None
    values["edits"] = {str(held.shown[place]): words for place, words in answer.edits.items()}
    values["flags"] = list(answer.flags)
    if before.gold is not None:
        values["gold_correct"] = agrees_with_gold(before.gold, values["strength"], values["ranking"])
    return values


def _past(connection: Connection, row: Row, exported: int) -> Past:
    return Past(
        task=queue.load_task(connection, row),
        kind=row.kind,
        strength=None if row.strength is None else turn(row.strength, row.shown),
        ranking=None if row.ranking is None else to_shown(row.ranking, row.shown),
        justification=row.justification,
        late=row.late,
        created=row.created,
        undoable=row.id > exported and not row.decided,
    )
