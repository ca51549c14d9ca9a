"""Leases run out, come back, and survive clocks that jump; a late vote is kept."""

from __future__ import annotations

import pytest

from annotate.store.projects import Settings
from annotate.store.schema import assignment, comparison, judgment
from tests.annotate.world import World, pair, prefer_good, question

HALF_HOUR = Settings(gold_share=0.0, lease_seconds=1800.0)


def test_a_lease_that_ran_out_is_served_to_somebody_else(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1))
    first = world.protocol.claim(world.people[0])
    assert world.protocol.claim(world.people[1]) is None
    clock.time += 1799
    assert world.protocol.claim(world.people[1]) is None
    clock.time += 1
    second = world.protocol.claim(world.people[1])
    assert question(second) == 1
    assert second.assignment != first.assignment
    assert [row.state for row in world.rows(assignment)] == ["expired", "leased"]
    assert len(world.events("expire")) == 1


def test_leases_of_one_comparison_that_run_out_together_all_come_back(database, clock):
    world = World(database, Settings(gold_share=0.0, overlap=3, lease_seconds=1800.0))
    world.add(pair(1))
    for person in world.people[:3]:
        world.protocol.claim(person)
    clock.time += 1801
    world.protocol.claim(world.people[3])
    assert [(row.leased, row.done) for row in world.rows(comparison)] == [(1, 0)]


def test_a_late_vote_is_kept_marked_late_and_may_exceed_the_overlap_by_one(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1))
    slow = world.protocol.claim(world.people[0])
    clock.time += 1801
    quick = world.protocol.claim(world.people[1])
    assert world.protocol.submit(slow.assignment, world.people[0], prefer_good(slow)).status == "late"
    assert world.protocol.submit(quick.assignment, world.people[1], prefer_good(quick)).status == "accepted"
    assert [row.late for row in world.rows(judgment)] == [True, False]
    [row] = world.rows(comparison)
    assert (row.done, row.leased, row.overlap, row.state) == (2, 0, 1, "done")


def test_a_late_vote_whose_slot_nobody_took_fills_it(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    clock.time += 1801
    assert world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).status == "late"
    assert world.protocol.claim(world.people[1]) is None


def test_a_person_who_comes_back_after_a_break_gets_the_same_task_in_the_same_order(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1), pair(2))
    before = world.protocol.claim(world.people[0])
    clock.time += 10_000
    back = world.protocol.claim(world.people[0])
    assert (back.assignment, back.responses) == (before.assignment, before.responses)
    assert back.lease_until == clock.time + 1800


def test_a_person_who_comes_back_after_somebody_took_their_task_gets_the_next(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1), pair(2))
    world.protocol.claim(world.people[0])
    clock.time += 10_000
    world.protocol.claim(world.people[1])
    assert question(world.protocol.claim(world.people[0])) == 2


def test_the_only_annotator_is_not_locked_out_of_what_they_let_run_out(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1))
    before = world.protocol.claim(world.people[0])
    clock.time += 10_000
    other = world.protocol.claim(world.people[1])
    world.protocol.skip(other.assignment, world.people[1], other.revision)
    again = world.protocol.claim(world.people[0])
    assert (again.assignment, again.responses) == (before.assignment, before.responses)
    assert world.protocol.submit(again.assignment, world.people[0], prefer_good(again)).status == "accepted"


def test_a_clock_set_back_makes_no_lease_eternal(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1))
    clock.time += 86_400
    world.protocol.claim(world.people[0])
    clock.time -= 86_400
    assert world.protocol.claim(world.people[1]) is None  # and the lease is shortened to half an hour from now
    clock.time += 1801
    assert question(world.protocol.claim(world.people[1])) == 1


def test_a_clock_set_back_takes_no_lease_away(database, clock):
    world = World(database, HALF_HOUR)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    clock.time -= 3600
    assert world.protocol.claim(world.people[1]) is None
    assert world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).status == "accepted"


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_between_claim_and_submit_loses_no_vote_and_no_order(database, clock, jump):
    world = World(database, HALF_HOUR)
    world.add(*(pair(number) for number in range(4)))
    task = world.protocol.claim(world.people[0])
    for turn in range(4):
        clock.time += jump if turn % 2 else -jump / 2
        task = world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).next
    assert task is None
    assert [row.strength for row in world.rows(judgment)] == [2, 2, 2, 2]
    assert [question(past.task) for past in world.protocol.history(world.people[0])] == [3, 2, 1, 0]
