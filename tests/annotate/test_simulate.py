"""Simulated people: as noisy, biased and hasty as they are told to be, through the store's real protocol."""

from __future__ import annotations

import math
import random

import pytest

from annotate.demo import demo_comparisons
from annotate.simulate import Habits, SimulatedPerson, StoreClient, simulate, simulated_people, world_judge
from annotate.store.projects import Settings
from annotate.store.records import Task
from annotate.store.schema import assignment, judgment
from rlhf_kit.data import world as embedded
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, ranking

EXACT = {"ties_below": 0.0, "strong_at": ()}


def by_goodness(messages, responses) -> list[float]:
    return [10.0 if text.startswith("good") else 0.0 for text in responses]


def person(judge=by_goodness, seed: int = 0, client=None, **habits: object) -> SimulatedPerson:
    return SimulatedPerson(client, judge, Habits(**habits), random.Random(seed))


def task(*responses: str, messages=({"role": "user", "content": "question"},)) -> Task:
    return Task("token", 1, "pair" if len(responses) == 2 else "rank", messages, responses, 1, 0.0)


@pytest.mark.parametrize("settings", [{}, {"side_bias": 0.8}, {"length_bias": 0.5, "temperature": 1.0}])
@pytest.mark.parametrize("careless", [0.0, 0.3])
def test_the_first_answer_is_preferred_as_often_as_the_worlds_annotators_prefer_it(settings, careless):
    example = next(each for each in demo_comparisons(5, seed=3))
    prompt, (a, b) = example.messages[-1]["content"], [answer.text for answer in example.responses]
    annotators = embedded.Annotators(reliability=(1 - careless,), **settings)
    (expected,) = annotators.probabilities([prompt], [a], [b])
    utilities = dict(zip((a, b), embedded.gold_scores([prompt] * 2, [a, b])))
    someone = person(lambda _, texts: [utilities[text] for text in texts], careless=careless, **EXACT, **settings)
    draws = 4000
    first = sum(someone.verdict(task(a, b)).strength > 0 for _ in range(draws))
    # Five standard deviations of a share; a little more than none where the share is nearly 0 or 1.
    assert first / draws == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / draws) + 1e-3)


def test_a_clear_difference_is_called_strong_and_none_a_tie_or_both_bad():
    someone = person(lambda _, texts: [float(text) for text in texts], temperature=1e-3, bad_below=-5.0)
    said = [
        (v.kind, v.strength)
        for v in (someone.verdict(task(*pair_)) for pair_ in (("1", "0"), ("0", "1"), ("-6", "-7"), ("-6", "9")))
    ]
    assert said == [("preference", 3), ("preference", -3), ("both_bad", 0), ("preference", -3)]
    undecided = person(lambda _, texts: [0.0] * len(texts), ties_below=100.0)
    assert undecided.verdict(task("a", "b")).kind == "tie"
    modest = SimulatedPerson(None, by_goodness, Habits(temperature=1e-3), random.Random(0), scale=1)
    assert modest.verdict(task("good", "bad")).strength == 1


def test_a_ranking_follows_the_utilities_and_reading_takes_its_time():
    someone = person(lambda _, texts: [float(text.split()[0]) for text in texts], temperature=1e-3)
    verdict = someone.verdict(task("1", "4", "2", "3"))
    assert verdict.ranking == [4, 1, 3, 2]
    slow, fast = task("1 " * 400, "2 " * 400), task("1", "2")
    assert someone.verdict(slow).visible_ms > 10 * someone.verdict(fast).visible_ms
    hasty = person(careless=1.0)
    assert hasty.verdict(slow).visible_ms < 60_000 < someone.verdict(slow).visible_ms


def test_people_work_through_the_store_until_nothing_is_left(database):
    world = World(database, Settings(overlap=2, gold_share=0.0))
    world.add(*(pair(number) for number in range(6)), *(ranking(number, size=3) for number in range(2)))
    people = [
        SimulatedPerson(StoreClient(world.protocol, key), by_goodness, Habits(temperature=0.1), random.Random(key))
        for key in world.people[:3]
    ]
    assert sum(simulate(people, 5).values()) == 5
    counts = simulate(people, 1000)
    assert sum(counts.values()) == 2 * 8 - 5
    assert simulate(people, 1000) == {}
    said = world.rows(judgment)
    assert {row.strength > 0 for row in said if row.kind == "preference"} == {True}  # canonically the first is the good one
    assert {row.state for row in world.rows(assignment)} == {"done"}


def test_named_people_are_made_once_and_judge_by_the_world(database):
    world = World(database)
    world.add(*demo_comparisons(6, seed=2, gold_share=0.0))
    one = simulated_people(database, "project", 2, seed=1)
    two = simulated_people(database, "project", 2, seed=1)
    assert [each.client.user for each in one] == [each.client.user for each in two]
    assert sum(simulate(one, 6).values()) == 6
    assert world_judge([{"role": "user", "content": "x"}], ["nonsense"]) == embedded.gold_scores(["x"], ["nonsense"])


@pytest.mark.parametrize(("habit", "value"), [("temperature", 0.0), ("careless", 1.5), ("seconds", 0.0)])
def test_habits_that_cannot_be_are_refused(habit, value):
    with pytest.raises(InputError, match=habit):
        Habits(**{habit: value})
