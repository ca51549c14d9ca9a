"""The figures over time."""

from __future__ import annotations

import pytest

from annotate.store.audit import actions, list_exports
from annotate.store.progress import project_progress, votes_over_time
from tests.annotate.world import World, pair, prefer_good, record_export


def test_votes_over_time_end_at_all_that_stand_and_an_answer_taken_back_is_gone(database, clock):
    world = World(database)
    world.add(*(pair(number) for number in range(30)))
    assert votes_over_time(database, world.project.id) == []
    person = world.people[0]
    for _ in range(30):
        clock.time += 10.4
        task = world.protocol.claim(person)
        world.protocol.submit(task.assignment, person, prefer_good(task))
    points = votes_over_time(database, world.project.id, 10)
    times, totals = zip(*points)
    assert len(points) <= 11
    assert totals[-1] == 30
    assert list(totals) == sorted(totals)
    assert clock.time - 31 <= times[-2] <= clock.time <= times[-1] + 1
    assert project_progress(database, world.project.id).votes_per_hour == pytest.approx(3600 * 30 / (29 * 10.4))
    world.protocol.undo(world.protocol.history(person)[0].task.assignment, person)
    assert votes_over_time(database, world.project.id)[-1][1] == 29


def test_votes_of_one_second_are_one_point(database):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    [(_, total)] = votes_over_time(database, world.project.id)
    assert total == 1


def test_exports_and_the_names_of_actions_are_listed(database):
    world = World(database)
    record_export(database, world.project.id, "aa", 0, by=world.admin)
    record_export(database, world.project.id, "bb", 0)
    found = list_exports(database, world.project.id)
    assert [(each.manifest_hash, each.user) for each in found] == [("bb", None), ("aa", "admin")]
    assert {"create_project", "export"} <= set(actions(database))
    assert actions(database) == sorted(set(actions(database)))
