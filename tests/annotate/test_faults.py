"""A full disk, a clock that jumps, and two admins at once, as the pages meet them."""

from __future__ import annotations

import html
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from annotate.app.judging import Judging
from annotate.app.panel import Event
from annotate.store.adjudication import Decision, decide, list_cases, send_to_adjudication
from annotate.store.database import Database, open_database
from annotate.store.projects import Project, change_project, list_projects
from annotate.store.schema import adjudication, comparison, project, user
from benchmarks.annotate_load.check import check
from benchmarks.annotate_load.people import Vote
from benchmarks.annotate_load.world import make_world, preference
from tests.annotate.world import World, pair, prefer_good


@dataclass
class LocalPerson:
    """Somebody at the panel, without a server between; chooses by the texts shown, and keeps a ledger of what was taken."""

    judging: Judging
    project: Project
    user: int
    value: dict[str, Any] = field(default_factory=dict)
    ledger: dict[str, Vote] = field(default_factory=dict)

    @classmethod
    def of(cls, database: Database, number: int) -> LocalPerson:
        with database.read() as connection:
            key = connection.execute(select(user.c.id).where(user.c.name == f"person {number}")).scalar_one()
        person = cls(Judging(database), list_projects(database)[0], key)
        person.value = person.judging.show(person.project, key, "pair")
        return person

    def vote(self) -> str:
        """Judge what is shown; the notice that comes back. Only what is taken gets into the ledger."""
        shown = self.value
        left, right = (html.unescape(re.sub(r"</?pre[^>]*>\n?", "", answer["raw"])) for answer in shown["answers"])
        strength = preference(left, right)
        said = Event("said", "preference", shown["assignment"], shown["revision"], strength=-strength)
        self.value = self.judging.judge(self.project, self.user, "pair", said)
        notice = self.value["notice"]
        if notice is None or notice["kind"] != "warning":
            self.ledger[shown["assignment"]] = Vote("preference", strength, left, right)
        return notice["text"] if notice else ""

    def work(self) -> None:
        while self.value["view"] == "task":
            self.vote()


@contextmanager
def full_disk(database: Database) -> Iterator[None]:
    """The file may not grow: SQLite's own limit, which raises the very error of a disk that is full."""
    with database.read() as connection:
        limits = [connection.exec_driver_sql("PRAGMA page_count").scalar_one()]

    def limit(raw: Any, *_: object) -> None:
        raw.execute(f"PRAGMA max_page_count = {limits[-1]}")

    event.listen(database.engine, "checkout", limit)
    yield
    limits.append(2**30)


def test_on_a_full_disk_the_page_says_so_keeps_the_pair_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    world = make_world(f"sqlite:///{tmp_path}/votes.db", people=1, pairs=300)
    database = open_database(world.url)
    person = LocalPerson.of(database, 0)
    with full_disk(database):
        notices = [""]
        while not notices[-1]:
            notices.append(person.vote())
        taken, held = len(person.ledger), person.value["assignment"]
        assert 0 < taken < 300
        assert "the disk is full and nothing of this was written" in notices[-1]
        assert "disk is full" in person.vote()  # said again, and again refused
        assert person.value["assignment"] == held
    assert person.vote() == ""
    assert held in person.ledger and len(person.ledger) == taken + 1
    person.work()
    database.close()
    found = check(world.url, person.ledger)
    assert (found.lost, found.duplicated, found.wrong_side, found.votes) == (0, 0, 0, 300)


def test_the_clock_may_jump_either_way_while_leases_are_out(database_url: str) -> None:
    world = make_world(database_url, people=4, pairs=12, overlap=2)
    now = [1_800_000_000.0]
    database = open_database(world.url, now=lambda: now[0])
    people = [LocalPerson.of(database, number) for number in range(4)]
    rng = random.Random(0)
    for jump in (7200.0, -86_400.0, 1.0, -3_600.0, 5 * 86_400.0, -40 * 86_400.0, 1800.0, 0.0):
        now[0] += jump
        for person in rng.sample(people, 4):
            if person.value["view"] == "task":
                person.vote()
    while any(person.value["view"] == "task" for person in people):
        for person in people:
            if person.value["view"] == "task":
                person.vote()
            else:  # another's lease may have run out meanwhile
                person.value = person.judging.show(person.project, person.user, "pair")
        now[0] += 2000.0
    database.close()
    ledger = {token: vote for person in people for token, vote in person.ledger.items()}
    found = check(world.url, ledger)
    assert (found.lost, found.duplicated, found.wrong_side, found.votes) == (0, 0, 0, len(ledger))
    assert found.votes >= 24  # each pair has its two


def at_once(*moves: Callable[[], object]) -> None:
    faults: list[BaseException] = []
    barrier = threading.Barrier(len(moves))

    def run(move: Callable[[], object]) -> None:
        barrier.wait()
        try:
            move()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run, args=(move,)) for move in moves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults


def test_two_admins_who_change_a_project_at_once_leave_it_as_one_of_them_wanted_and_both_on_record(database: Database) -> None:
    world = World(database)
    for turn in range(6):
        wanted = [
            replace(world.settings, guidelines=f"{turn} {name}", scale=scale) for name, scale in (("left", 1), ("right", 2))
        ]
        at_once(*(lambda settings=each: change_project(database, world.project.id, settings, by=world.admin) for each in wanted))
        [row] = world.rows(project)
        last = world.events("change_project")[-1].details
        assert (row.guidelines, row.scale) in [(each.guidelines, each.scale) for each in wanted]
        assert (row.guidelines, row.scale, row.guidelines_version) == (last["guidelines"], last["scale"], 3 + 2 * turn)
    assert len(world.events("change_project")) == 12


@pytest.mark.parametrize("other", [Decision("tie"), Decision("discard"), Decision("reopen")], ids=lambda each: each.kind)
def test_two_admins_who_decide_one_case_at_once_leave_it_as_the_later_decided_with_both_on_record(
    database: Database, other: Decision
) -> None:
    world = World(database)
    world.add(*(pair(number, overlap=2) for number in range(5)))
    second, first = world.person("second admin", role="admin"), Decision("preference", 2)
    for row in world.rows(comparison):
        task = world.protocol.claim(world.people[0])
        world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
        send_to_adjudication(database, row.id, by=world.admin, reason="look")
        at_once(
            lambda key=row.id: decide(database, key, first, by=world.admin),
            lambda key=row.id: decide(database, key, other, by=second),
        )
        made = [each for each in world.rows(adjudication) if each.comparison_id == row.id]
        assert sorted(each.decision for each in made) == sorted([first.kind, other.kind])
        state = next(each.state for each in world.rows(comparison) if each.id == row.id)
        assert state == ("open" if made[-1].decision == "reopen" else "decided")
    assert list_cases(database, world.project.id) == []
