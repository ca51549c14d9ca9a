"""Gold items: served at a share, judged in silence. And rankings, in canonical order."""

from __future__ import annotations

import pytest

from annotate.store.projects import Settings
from annotate.store.records import Verdict
from annotate.store.schema import assignment, comparison, judgment
from annotate.store.verdicts import agrees_with_gold, to_canonical, to_shown
from tests.annotate.world import World, pair, prefer_good, question, ranking


def test_gold_items_are_served_at_the_projects_share_to_everybody_once(database):
    world = World(database, Settings(gold_share=0.2, overlap=4))
    world.add(*(pair(number) for number in range(60)))
    world.add(*(pair(number, gold_strength=1) for number in range(100, 105)))
    for person in world.people[:2]:
        task, numbers = world.protocol.claim(person), []
        while task is not None:
            numbers.append(question(task))
            task = world.protocol.submit(task.assignment, person, prefer_good(task)).next
        assert sorted(numbers) == [*range(60), *range(100, 105)]  # at 0.2 five of them last no 60 tasks
        assert numbers[-1] < 100  # none is handed out once the queue is empty, which would give it away
    gold = [row for row in world.rows(comparison) if row.source == "gold"]
    assert {(row.done, row.state) for row in gold} == {(0, "open")}


def test_a_gold_answer_is_judged_by_its_side_and_nothing_shows_it(database):
    world = World(database, Settings(gold_share=0.5))
    world.add(*(pair(number) for number in range(40)), pair(100, gold_strength=3), pair(101, gold_strength=-1))
    me, task = world.people[0], world.protocol.claim(world.people[0])
    while task is not None:
        task = world.protocol.submit(task.assignment, me, prefer_good(task, 1)).next
    of = {row.id: row.comparison_id for row in world.rows(assignment)}
    gold = {row.id: row.gold for row in world.rows(comparison)}
    results = {
        gold[of[row.assignment_id]]["strength"]: row.gold_correct for row in world.rows(judgment) if gold[of[row.assignment_id]]
    }
    assert results == {3: True, -1: False}
    assert {row.gold_correct for row in world.rows(judgment) if gold[of[row.assignment_id]] is None} == {None}
    assert not any("gold" in name for past in world.protocol.history(me) for name in vars(past))


def test_a_gold_item_leased_and_left_is_offered_again(database, clock):
    world = World(database, Settings(gold_share=0.5))
    world.add(*(pair(number) for number in range(9)), pair(100, gold_strength=1))
    me, task = world.people[0], world.protocol.claim(world.people[0])
    while question(task) != 100:
        task = world.protocol.submit(task.assignment, me, prefer_good(task)).next
    clock.time += 1e5
    world.protocol.claim(world.people[1])
    assert world.protocol.claim(me).assignment == task.assignment


@pytest.mark.parametrize("size", [3, 4, 9])
def test_a_ranking_is_stored_by_canonical_position_whatever_order_was_shown(database, size):
    world = World(database)
    world.add(*(ranking(number, size) for number in range(12)))
    me, task = world.people[0], world.protocol.claim(world.people[0], "rank")
    while task is not None:
        position = [int(text.split()[-1]) for text in task.responses]
        places = [size - each for each in position]  # the last canonical one is the best
        task = world.protocol.submit(task.assignment, me, Verdict(1, "rank", ranking=places)).next
    assert len({tuple(row.shown) for row in world.rows(assignment)}) > 3
    assert {tuple(row.ranking) for row in world.rows(judgment)} == {tuple(range(size, 0, -1))}


def test_turning_a_ranking_to_canonical_order_and_back_changes_nothing():
    shown, places = [2, 0, 3, 1], [1, 4, 2, 2]
    assert to_canonical(places, shown) == [4, 2, 1, 2]
    assert to_shown(to_canonical(places, shown), shown) == places


@pytest.mark.parametrize(
    ("gold", "strength", "places", "right"),
    [
        ({"strength": 3}, 1, None, True),
        ({"strength": 3}, 0, None, False),
        ({"strength": 0}, 0, None, True),
        ({"strength": -1}, 1, None, False),
        ({"ranking": [1, 2, 3]}, None, [1, 3, 2], True),
        ({"ranking": [1, 2, 3]}, None, [1, 1, 2], False),
        ({"ranking": [1, 1, 2]}, None, [1, 1, 2], True),
    ],
)
def test_gold_is_met_by_the_same_side_or_the_same_best_answers(gold, strength, places, right):
    assert agrees_with_gold(gold, strength, places) is right
