"""From what the panel says to the store and back: no Gradio here, so that a test needs no server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import func, select

from annotate.app.panel import Event, PanelTask, Progress, panel_value
from annotate.store.database import Database
from annotate.store.progress import VOTES, project_progress
from annotate.store.projects import Project
from annotate.store.protocol import Protocol
from annotate.store.records import Kind, Result, Task, Verdict
from annotate.store.schema import assignment, judgment
from rlhf_kit.errors import InputError

K = TypeVar("K")
V = TypeVar("V")
PROGRESS_SECONDS = 5.0  # how old the project's counts may be: they sum over all its comparisons
LATE = "Saved. Your time for it had run out, so somebody else may have judged it too."


@dataclass
class Judging:
    """What people do on the judging pages of all projects. Safe to share between threads."""

    database: Database
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = Counts(self.database)

    def show(self, project: Project, user: int, kind: Kind, **more: Any) -> dict[str, Any]:
        """The panel with the person's task: the one they hold, else the next."""
        return self.value(project, user, Protocol(self.database, project.id).claim(user, kind), **more)

    def judge(self, project: Project, user: int, kind: Kind, said: Event) -> dict[str, Any]:
        """Store what was said and give the next task. What is not stored is answered with the same task and the reason."""
        protocol = Protocol(self.database, project.id)
        reply = {"reply_to": said.event_id}
        try:
            result = self._store(protocol, user, said)
        except InputError as error:
            return self.show(project, user, kind, notice=f"Not saved: {error}", notice_kind="warning", **reply)
        if said.kind == "undo":
            self.counts.forget(project.id, user)
        elif said.kind in VOTES and result.status in ("accepted", "late"):
            self.counts.add(project.id, user)
        if result.status == "refused":
            return self.show(project, user, kind, notice=f"Not saved: {result.reason}.", notice_kind="warning", **reply)
        if said.kind == "undo":
            return self.value(project, user, result.next, notice="Taken back: judge it again.", **reply)
        if result.status == "duplicate":
            return self.value(project, user, result.next, **reply)
        notice = LATE if result.status == "late" else ""
        return self.value(project, user, result.next, last=said.assignment, notice=notice, **reply)

    def _store(self, protocol: Protocol, user: int, said: Event) -> Result:
        if said.kind == "undo":
            return protocol.undo(said.undo or "", user)
        if said.assignment is None or said.revision is None:
            raise InputError("event.assignment", said.assignment, "expected the task that was judged")
        if said.kind == "skip":
            return protocol.skip(said.assignment, user, said.revision, said.justification)
        if said.kind == "flag":
            return protocol.flag(said.assignment, user, said.revision, said.flags, said.justification)
        verdict = Verdict(
            revision=said.revision,
            kind=said.kind,
            strength=said.first_better,
            ranking=said.ranking,
            aspects=said.aspects_first_better,
            flags=said.flags,
            edits=said.edits,
            justification=said.justification,
            visible_ms=said.visible_ms,
        )
        return protocol.submit(said.assignment, user, verdict)

    def value(self, project: Project, user: int, task: Task | None, *, last: str | None = None, **more: Any) -> dict[str, Any]:
        """The panel's value for a task, with progress, guidelines and what Undo would take back.

        Args:
            last: the assignment that was answered just now; None: look up which was the last.
        """
        settings = project.settings
        if last is None and (past := Protocol(self.database, project.id).history(user, limit=1)):
            last = past[0].task.assignment if past[0].undoable else None
        shown = None
        if task is not None:
            shown = PanelTask(
                assignment=task.assignment,
                revision=task.revision,
                messages=[{"role": str(m["role"]), "content": str(m["content"])} for m in task.messages],
                responses=task.responses,
                scale=settings.scale,
                aspects=settings.aspects if task.kind == "pair" else (),
            )
        return panel_value(
            shown,
            self.counts.progress(project.id, user),
            guidelines=settings.guidelines,
            guidelines_version=project.guidelines_version,
            undo=last,
            **more,
        )


@dataclass
class Counts:
    """How far a person and the project are, remembered between votes: counting anew for each would cost more than the vote."""

    database: Database
    _people: dict[tuple[int, int], tuple[int, int, float]] = field(default_factory=dict)  # (judged, today, midnight)
    _projects: dict[int, tuple[float, int, float | None]] = field(default_factory=dict)  # (when, open slots, eta)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def progress(self, project: int, user: int) -> Progress:
        """Judged by this person, with what is open to everybody as the rest of the way."""
        now = self.database.now()
        midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        judged, today, _ = self._remembered(
            self._people,
            (project, user),
            lambda kept: kept[2] == midnight,
            lambda: (*self._count(project, user, midnight), midnight),
        )
        _, left, eta = self._remembered(
            self._projects, project, lambda kept: abs(now - kept[0]) < PROGRESS_SECONDS, lambda: (now, *self._open(project))
        )
        return Progress(done=judged, total=judged + left, today=today, eta_seconds=eta)

    def add(self, project: int, user: int) -> None:
        """One more vote of this person's."""
        with self._lock:
            if kept := self._people.get((project, user)):
                self._people[project, user] = (kept[0] + 1, kept[1] + 1, kept[2])

    def forget(self, project: int, user: int) -> None:
        """Count this person's votes anew when they are next asked for."""
        with self._lock:
            self._people.pop((project, user), None)

    def _remembered(self, kept: dict[K, V], key: K, fresh: Callable[[V], bool], make: Callable[[], V]) -> V:
        with self._lock:
            found = kept.get(key)
        if found is None or not fresh(found):
            found = make()
            with self._lock:
                kept[key] = found
        return found

    def _count(self, project: int, user: int, midnight: float) -> tuple[int, int]:
        standing = (
            select(func.count(), func.count().filter(judgment.c.created >= midnight))
            .select_from(judgment)
            .join(assignment, (assignment.c.id == judgment.c.assignment_id) & (assignment.c.revision == judgment.c.revision))
            .where(judgment.c.user_id == user, judgment.c.project_id == project, judgment.c.kind.in_(VOTES))
        )
        with self.database.read() as connection:
            judged, today = connection.execute(standing).one()
        return judged, today

    def _open(self, project: int) -> tuple[int, float | None]:
        found = project_progress(self.database, project)
        return max(found.slots - found.slots_done, 0), found.eta_seconds
