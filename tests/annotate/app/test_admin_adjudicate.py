"""Adjudication through the admin's page: blind before the decision, and stored in canonical order."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from annotate.app.admin.adjudicate import drawn_order
from annotate.store.adjudication import Case, list_cases, load_case
from annotate.store.items import add_comparisons
from annotate.store.protocol import Protocol
from annotate.store.records import NewComparison, NewResponse, Verdict
from annotate.store.schema import adjudication, comparison
from tests.annotate.app.admin_client import act, shown, words
from tests.annotate.app.conftest import World


def flag(world: World, person: str, kind: str = "pair", reason: str = "look at this") -> Case:
    """The comparison that the person has flagged just now."""
    protocol, user = Protocol(world.database, world.project.id), world.people[person].id
    task = protocol.claim(user, kind)
    protocol.flag(task.assignment, user, task.revision, ["unsafe"], reason)
    return list_cases(world.database, world.project.id)[-1]


def decisions(world: World) -> list:
    with world.database.read() as connection:
        return connection.execute(select(adjudication).order_by(adjudication.c.id)).all()


def state(world: World, case: Case) -> str:
    with world.database.read() as connection:
        return connection.execute(select(comparison.c.state).where(comparison.c.id == case.comparison)).scalar_one()


def test_a_case_is_shown_without_the_models_and_with_who_said_what(world: World) -> None:
    flag(world, "ann", reason="it is <b>rude</b>")
    value = act(world.client("root"), "adjudicate")
    assert "secret-" not in value["html"]
    assert value["waiting"] == 1
    text = words(value["html"])
    assert "ann Flagged unsafe it is <b>rude</b>" in text
    assert "question 0" in text


@pytest.mark.parametrize("number", range(4))
def test_the_side_chosen_on_the_screen_is_the_side_that_is_stored(world: World, number: int) -> None:
    case = [flag(world, "ann") for _ in range(number + 1)][-1]
    html = act(world.client("root"), "adjudicate", case=case.comparison)["html"]
    left_is_first = html.index(case.responses[0]) < html.index(case.responses[1])
    value = act(world.client("root"), "adjudicate", "decide", case=case.comparison, verdict="+2", reason="clear")
    [row] = decisions(world)
    assert (row.decision, row.strength, row.reason) == ("preference", 2 if left_is_first else -2, "clear")
    assert row.user_id == world.people["root"].id
    assert state(world, case) == "decided"
    left, right = ("secret-a", "secret-b") if left_is_first else ("secret-b", "secret-a")
    assert f"A was {left}, B was {right}" in value["notice"]["text"]  # it is told when it is done


def test_both_orders_are_drawn_and_each_stays(world: World) -> None:
    cases = [Case(key, "pair", [], ["x", "y"], [], "open") for key in range(50)]
    orders = [drawn_order(case) for case in cases]
    assert 10 < orders.count([0, 1]) < 40
    assert orders == [drawn_order(case) for case in cases]


@pytest.mark.parametrize(
    ("verdict", "after"), [("tie", "decided"), ("both_bad", "decided"), ("discard", "decided"), ("reopen", "open")]
)
def test_every_other_decision_is_stored_too(world: World, verdict: str, after: str) -> None:
    case = flag(world, "ann")
    act(world.client("root"), "adjudicate", "decide", case=case.comparison, verdict=verdict, reason="")
    assert [row.decision for row in decisions(world)] == [verdict]
    assert state(world, case) == after
    assert "Nothing waits for you" in shown(world, "adjudicate")


def test_places_given_on_the_screen_are_stored_by_answer(world: World) -> None:
    answers = [NewResponse(f"ranked {position}", model="secret-c") for position in range(4)]
    add_comparisons(world.database, world.project.id, [NewComparison([{"role": "user", "content": "rank these"}], answers)])
    case = flag(world, "ann", "rank")
    html = act(world.client("root"), "adjudicate", case=case.comparison)["html"]
    on_screen = sorted(range(4), key=lambda position: html.index(f"ranked {position}"))
    places = {f"place_{place}": 4 - place for place in range(4)}  # the last on the screen is the best
    act(world.client("root"), "adjudicate", "decide", case=case.comparison, verdict="rank", reason="", **places)
    [row] = decisions(world)
    assert [row.ranking[position] for position in on_screen] == [4, 3, 2, 1]


def test_a_disagreement_is_listed_and_can_be_decided_or_put_among_those_that_wait(world: World) -> None:
    for person, strength in (("ann", 2), ("bob", -1)):
        user = world.people[person].id
        with world.database.write() as connection:
            connection.execute(comparison.update().values(overlap=2, waits=1))
        protocol = Protocol(world.database, world.project.id)
        task = protocol.claim(user)
        first = task.responses[0].startswith("answer A")
        protocol.submit(task.assignment, user, Verdict(task.revision, "preference", strength if first else -strength))
    case = load_case(world.database, world.project.id, 1)
    assert "People disagree (1)" in shown(world, "adjudicate")
    text = shown(world, "adjudicate", case=1)
    shown_first = drawn_order(case)[0] == 0
    assert f"ann {'A' if shown_first else 'B'} better" in text
    assert f"bob {'B' if shown_first else 'A'} slightly better" in text
    act(world.client("root"), "adjudicate", "send", case=1)
    assert state(world, case) == "adjudicate"
    assert "Waiting (1)" in shown(world, "adjudicate")
    act(world.client("root"), "adjudicate", "decide", case=1, verdict="-1")
    assert "Nobody contradicts anybody" in shown(world, "adjudicate")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"case": 1, "verdict": "+4"}, "decision.strength"),
        ({"case": 1, "verdict": "+x"}, "verdict"),
        ({"case": 1, "verdict": "rank"}, "place_0"),
        ({"case": 1, "verdict": "best"}, "verdict"),
        ({"case": 1}, "verdict"),
        ({"case": 999, "verdict": "tie"}, "comparison"),
        ({"verdict": "tie"}, "case"),
        ({"case": 1, "verdict": "tie", "reason": "x" * 5000}, "reason"),
        ({"case": 1, "verdict": "tie", "reason": "\0"}, "decision.reason"),
    ],
)
def test_a_decision_that_makes_no_sense_is_told_by_name_and_not_stored(world: World, fields: dict, word: str) -> None:
    flag(world, "ann")
    notice = act(world.client("root"), "adjudicate", "decide", **fields)["notice"]
    assert notice["kind"] == "bad"
    assert word in notice["text"]
    assert decisions(world) == []
