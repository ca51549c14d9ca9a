"""Many people at once, several processes, and a process that is killed while it writes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from annotate.store.projects import Settings
from annotate.store.protocol import Protocol
from annotate.store.records import NewComparison
from annotate.store.schema import assignment, comparison, judgment
from tests.annotate.world import World, pair, prefer_good

WORKER = """
import sys, time
from annotate.store.database import open_database
from annotate.store.protocol import Protocol
from tests.annotate.world import prefer_good
url, project, person = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
protocol = Protocol(open_database(url, now=lambda: 1_800_000_000.0), project)
task = protocol.claim(person)
while task is not None:
    print("claimed", task.assignment, flush=True)
    result = protocol.submit(task.assignment, person, prefer_good(task))
    print(result.status, task.assignment, flush=True)
    task = result.next
"""


def start(world: World, url: str, person: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, url, str(world.project.id), str(person)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def busy_world(database, overlap: int, pairs: int) -> World:
    world = World(database, Settings(overlap=overlap, gold_share=0.0, skips_before_adjudication=99))
    world.add(*(pair(number) for number in range(pairs)))
    world.people += [world.person(f"more {number}") for number in range(4)]
    return world


def assert_sound(world: World) -> None:
    votes = Counter(row.comparison_id for row in world.rows(assignment) if row.state == "done")
    leases = Counter(row.comparison_id for row in world.rows(assignment) if row.state == "leased")
    for row in world.rows(comparison):
        assert (row.done, row.leased) == (votes[row.id], leases[row.id])
        assert row.done + row.leased <= row.overlap
    assert {row.strength for row in world.rows(judgment) if row.kind == "preference"} <= {2}


@pytest.mark.parametrize("overlap", [1, 3])
def test_people_at_once_never_get_more_than_the_overlap_and_leave_nothing_unjudged(database, overlap):
    world = busy_world(database, overlap, pairs=24)
    faults, barrier = [], threading.Barrier(len(world.people))

    def work(person: int) -> None:
        try:
            protocol = Protocol(database, world.project.id, random.Random(person))
            barrier.wait()
            task = protocol.claim(person)
            while task is not None:
                task = protocol.submit(task.assignment, person, prefer_good(task)).next
        except Exception as fault:
            faults.append(fault)

    run_all([threading.Thread(target=work, args=(person,)) for person in world.people])
    assert not faults
    assert_sound(world)
    # Who found only work that others held left; when those had voted, none was left over.
    assert {(row.done, row.state) for row in world.rows(comparison)} == {(overlap, "done")}


def test_everything_at_once_skips_undos_imports_and_expiries_keeps_the_counts_right(database, clock):
    world = busy_world(database, 2, pairs=16)
    faults = []

    def work(person: int) -> None:
        rng = random.Random(person)
        try:
            for turn in range(25):
                task = world.protocol.claim(person)
                if task is None:
                    continue
                move = rng.random()
                if move < 0.15:
                    world.protocol.skip(task.assignment, person, task.revision)
                elif move < 0.9:
                    world.protocol.submit(task.assignment, person, prefer_good(task))
                if move < 0.3:
                    world.protocol.undo(task.assignment, person)
                if turn == 12:
                    world.add(new_pair(person))
        except Exception as fault:
            faults.append(fault)

    def tick() -> None:
        for _ in range(10):
            time.sleep(0.05)
            clock.time += 700

    run_all([threading.Thread(target=work, args=(person,)) for person in world.people] + [threading.Thread(target=tick)])
    assert not faults
    votes = Counter(row.comparison_id for row in world.rows(assignment) if row.state == "done")
    leases = Counter(row.comparison_id for row in world.rows(assignment) if row.state == "leased")
    skips = Counter(row.comparison_id for row in world.rows(assignment) if row.state == "skipped")
    for row in world.rows(comparison):
        assert (row.done, row.leased, row.skips) == (votes[row.id], leases[row.id], skips[row.id])


def new_pair(person: int) -> NewComparison:
    return pair(1000 + person, priority=1.0)


def test_one_person_in_many_tabs_holds_one_task_and_votes_once(database):
    world = busy_world(database, 1, pairs=5)
    me, tasks, results = world.people[0], [], []
    run_all([threading.Thread(target=lambda: tasks.append(world.protocol.claim(me))) for _ in range(8)])
    assert len({task.assignment for task in tasks}) == 1

    def vote() -> None:
        results.append(world.protocol.submit(tasks[0].assignment, me, prefer_good(tasks[0])))

    run_all([threading.Thread(target=vote) for _ in range(8)])
    assert Counter(result.status for result in results) == {"accepted": 1, "duplicate": 7}
    assert len({result.next.assignment for result in results}) == 1
    assert len(world.rows(judgment)) == 1


def test_two_processes_share_the_work_without_serving_anything_twice(database, database_url):
    world = busy_world(database, 1, pairs=40)
    workers = [start(world, database_url, person) for person in world.people[:2]]
    lines = [worker.communicate(timeout=120)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sum(line.startswith("accepted") for each in lines for line in each) == 40
    assert_sound(world)


@pytest.mark.parametrize("kills", [6])
def test_a_process_killed_at_any_moment_loses_no_vote_that_it_confirmed_and_doubles_none(database, database_url, kills):
    world = busy_world(database, 1, pairs=400)
    me, rng, confirmed = world.people[0], random.Random(0), []
    for _ in range(kills):
        worker = start(world, database_url, me)
        assert worker.stdout is not None
        worker.stdout.readline()  # it has claimed, so it is at work
        time.sleep(rng.uniform(0.01, 0.3))
        worker.send_signal(signal.SIGKILL)
        rest = worker.communicate()[0].splitlines()
        confirmed += [line.split()[1] for line in rest if line.startswith("accepted") and line.count(" ") == 1]
    tokens = {row.id: row.token for row in world.rows(assignment)}
    stored = [tokens[row.assignment_id] for row in world.rows(judgment)]
    assert len(confirmed) > kills  # else nothing was under way
    assert set(confirmed) <= set(stored)
    assert len(stored) == len(set(stored)) <= len(confirmed) + kills
    assert_sound(world)
    # What hung when a process died goes on where it stopped, and the retry of a vote that had arrived is seen as such.
    task = world.protocol.claim(me)
    assert world.protocol.submit(task.assignment, me, prefer_good(task)).status == "accepted"
    assert world.protocol.submit(task.assignment, me, prefer_good(task)).status == "duplicate"


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
