"""Claim and submit, one person after the other."""

from __future__ import annotations

import pytest

from annotate.store.projects import Settings
from annotate.store.records import Verdict
from annotate.store.schema import assignment, comparison, judgment
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good, question


def test_the_most_urgent_comparison_is_served_first_and_ties_in_the_order_of_import(database):
    world = World(database)
    world.add(pair(1), pair(2, priority=1.5), pair(3), pair(4, priority=2.0))
    served, task = [], world.protocol.claim(world.people[0])
    while task is not None:
        served.append(question(task))
        task = world.protocol.submit(task.assignment, world.people[0], prefer_good(task)).next
    assert served == [4, 2, 1, 3]


def test_a_person_who_asks_again_gets_the_task_they_hold(database):
    world = World(database)
    world.add(pair(1), pair(2))
    first = world.protocol.claim(world.people[0])
    again = world.protocol.claim(world.people[0])
    assert (again.assignment, again.responses) == (first.assignment, first.responses)
    assert len(world.rows(assignment)) == 1


def test_each_comparison_is_judged_by_as_many_people_as_its_overlap_says(database):
    world = World(database, Settings(overlap=2, gold_share=0.0))
    world.add(pair(1), pair(2, overlap=3))
    for person in world.people:
        while task := world.protocol.claim(person):
            world.protocol.submit(task.assignment, person, prefer_good(task))
    assert [(row.done, row.leased, row.state) for row in world.rows(comparison)] == [(2, 0, "done"), (3, 0, "done")]
    assert len({(row.user_id, row.comparison_id) for row in world.rows(assignment)}) == 5


@pytest.mark.parametrize("strength", [-3, -2, -1, 1, 2, 3])
def test_the_verdict_is_stored_in_canonical_order_whatever_order_was_shown(database, strength):
    world = World(database)
    world.add(*(pair(number) for number in range(24)))
    while task := world.protocol.claim(world.people[0]):
        world.protocol.submit(task.assignment, world.people[0], prefer_good(task, strength))
    shown = [tuple(row.shown) for row in world.rows(assignment)]
    assert set(shown) == {(0, 1), (1, 0)}  # else this shows nothing
    assert {row.strength for row in world.rows(judgment)} == {strength}


def test_a_task_tells_neither_the_models_nor_the_canonical_order(database):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    assert "secret" not in repr(task)
    assert not hasattr(task, "shown")
    assert len(task.assignment) >= 20


def test_a_repeated_submit_is_one_judgment_and_answers_with_the_next_task(database):
    world = World(database)
    world.add(pair(1), pair(2))
    task = world.protocol.claim(world.people[0])
    first = world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    second = world.protocol.submit(task.assignment, world.people[0], Verdict(task.revision, "tie"))
    assert (first.status, second.status) == ("accepted", "duplicate")
    assert first.next.assignment == second.next.assignment
    assert [(row.kind, row.strength) for row in world.rows(judgment)] == [("preference", 2)]


def test_somebody_elses_task_cannot_be_answered_and_the_attempt_is_on_record(database):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    result = world.protocol.submit(task.assignment, world.people[1], prefer_good(task))
    assert (result.status, result.next) == ("refused", None)
    with pytest.raises(InputError, match="assignment"):
        world.protocol.submit("\0", world.people[1], prefer_good(task))
    assert world.protocol.submit("made up", world.people[1], prefer_good(task)).status == "refused"
    assert world.rows(judgment) == []
    assert [row.user_id for row in world.events("refuse")] == [world.people[1]] * 2


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(1, "preference", 0),
        Verdict(1, "preference", 3),
        Verdict(1, "preference", True),
        Verdict(1, "tie", 1),
        Verdict(1, "rank", ranking=[1, 2]),
        Verdict(1, "tie", ranking=[1, 1]),
        Verdict(1, "tie", aspects={"style": 1}),
        Verdict(1, "tie", aspects={"helpful": 3}),
        Verdict(1, "tie", edits={2: "better"}),
        Verdict(1, "tie", justification="a\0b"),
        Verdict(1, "tie", justification="\ud800"),
        Verdict(1, "tie", visible_ms=-1),
        Verdict(2, "tie"),
    ],
)
def test_a_verdict_that_does_not_fit_the_task_is_refused_by_name_and_changes_nothing(database, verdict):
    world = World(database, Settings(scale=2, aspects=["helpful"], gold_share=0.0))
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    with pytest.raises(InputError, match=r"verdict\."):
        world.protocol.submit(task.assignment, world.people[0], verdict)
    assert world.rows(judgment) == []
    assert world.protocol.submit(task.assignment, world.people[0], Verdict(1, "both_bad")).status == "accepted"


def test_everything_said_beside_the_vote_is_stored_by_canonical_position(database):
    world = World(database, Settings(aspects=["helpful"], gold_share=0.0))
    world.add(*(pair(number) for number in range(12)))
    while task := world.protocol.claim(world.people[0]):
        good = task.responses.index(f"good {question(task)}")
        sign = 1 if good == 0 else -1
        verdict = Verdict(
            revision=task.revision,
            kind="preference",
            strength=sign,
            aspects={"helpful": -2 * sign},
            flags=["unsafe"],
            justification="because",
            edits={good: "even better"},
            visible_ms=1234,
        )
        world.protocol.submit(task.assignment, world.people[0], verdict)
    for row in world.rows(judgment):
        assert (row.strength, row.aspects, row.edits) == (1, {"helpful": -2}, {"0": "even better"})
        assert (row.flags, row.justification, row.visible_ms) == (["unsafe"], "because", 1234)


def test_a_person_who_was_disabled_gets_nothing(database):
    world = World(database)
    world.add(pair(1))
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE annotator SET active = false WHERE id = {world.people[0]}")
    with pytest.raises(InputError, match="active user"):
        world.protocol.claim(world.people[0])
