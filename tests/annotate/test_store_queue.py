"""The access path of a claim: what a person has seen, and what comes back, costs nothing to pass over."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from annotate.store.items import set_priorities
from annotate.store.projects import Settings
from annotate.store.records import Verdict
from annotate.store.schema import comparison
from tests.annotate.world import World, pair, prefer_good, question, ranking


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL plans by the tables' size, which is none here
def test_the_claim_reads_the_queues_index_from_where_the_person_has_come_to(database):
    world = World(database, Settings(overlap=2, gold_share=0.0))
    world.add(*(pair(number) for number in range(20)))
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda c, cursor, words, values, *_: asked.append((words, values)))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    searches = [each for each in asked if "waits = 1" in each[0] and each[0].startswith("SELECT")]
    with database.read() as connection:
        plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}", values).all() for words, values in searches]
    plans = [" ".join(row[-1] for row in plan) for plan in plans]
    assert plans and all("comparison_waits" in plan and "TEMP B-TREE" not in plan for plan in plans)
    assert any("place=? AND rowid>?" in plan or "place=? AND id>?" in plan for plan in plans), plans


def test_what_is_imported_later_with_a_higher_priority_is_served_next(database):
    world = World(database)
    world.add(pair(1), pair(2), pair(3))
    task = world.protocol.claim(world.people[0])
    world.add(pair(4, priority=1.0))
    task = world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).next
    assert question(task) == 4


def test_a_changed_priority_changes_what_is_served_next(database):
    world = World(database)
    world.add(pair(1), pair(2), pair(3))
    task = world.protocol.claim(world.people[0])
    set_priorities(database, world.project.id, {world.rows(comparison)[2].id: 0.5})
    task = world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).next
    assert question(task) == 3


def test_a_slot_that_comes_back_is_served_before_less_urgent_work(database):
    world = World(database)
    world.add(*(pair(number) for number in range(6)))
    first, second = world.people[:2]
    skipped = world.protocol.claim(first)
    task = world.protocol.claim(second)
    for _ in range(3):
        task = world.protocol.submit(task.assignment, second, prefer_good(task)).next
    world.protocol.skip(skipped.assignment, first, skipped.revision)
    assert question(task) == 4
    task = world.protocol.submit(task.assignment, second, prefer_good(task)).next
    assert question(task) == question(skipped) == 0


def test_pairs_and_rankings_are_queues_of_their_own(database):
    world = World(database)
    world.add(pair(1), ranking(2), pair(3), ranking(4))
    task = world.protocol.claim(world.people[0], "rank")
    places = [int(text.split()[-1]) + 1 for text in task.responses]
    result = world.protocol.submit(task.assignment, world.people[0], Verdict(task.revision, "rank", ranking=places))
    assert (question(task), question(result.next)) == (2, 4)
    assert question(world.protocol.claim(world.people[0], "pair")) == 1


def test_each_person_sees_every_comparison_once_however_the_queue_moves(database):
    world = World(database, Settings(overlap=4, gold_share=0.0, skips_before_adjudication=99))
    world.add(*(pair(number) for number in range(10)))
    seen = {person: [] for person in world.people}
    for turn in range(60):
        person = world.people[turn * 7 % 4]
        task = world.protocol.claim(person)
        if task is None:
            continue
        seen[person].append(question(task))
        if turn % 3:
            world.protocol.submit(task.assignment, person, prefer_good(task))
        else:
            world.protocol.skip(task.assignment, person, task.revision)
        if turn == 20:
            world.add(*(pair(number, priority=1.0) for number in range(10, 13)))
    assert {tuple(sorted(numbers)) for numbers in seen.values()} == {tuple(range(13))}
