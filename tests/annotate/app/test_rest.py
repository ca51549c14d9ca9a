"""The protocol over HTTP."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from annotate.store.schema import assignment, judgment
from tests.annotate.app.conftest import World


def verdict(task, **more):
    return {"revision": task["revision"], "kind": "preference", "strength": 2} | more


def test_a_person_claims_votes_and_is_given_the_next_and_a_repeat_changes_nothing(world: World) -> None:
    client = world.client("ann")
    task = client.get("/api/claim").json()["task"]
    assert "secret" not in json.dumps(task)
    held = client.get("/api/claim", params={"project": "first"}).json()["task"]
    assert held["assignment"] == task["assignment"]  # asked again, it is the one that the person holds
    body = {
        "project": "first",
        "assignment": task["assignment"],
        "verdict": verdict(task, edits={"1": "better"}, visible_ms=1200),
    }
    first, again = (client.post("/api/submit", json=body).json() for _ in range(2))
    assert (first["status"], again["status"]) == ("accepted", "duplicate")
    assert first["task"]["assignment"] == again["task"]["assignment"] != task["assignment"]
    with world.database.read() as connection:
        stored = connection.execute(select(judgment)).one()
        shown = connection.execute(select(assignment.c.shown).where(assignment.c.id == stored.assignment_id)).scalar_one()
    assert stored.strength == (2 if shown[0] == 0 else -2)
    assert stored.edits == {str(shown[1]): "better"}


def test_skip_flag_undo_history_and_progress(world: World) -> None:
    client = world.client("ann")
    task = client.get("/api/claim").json()["task"]
    here = {"project": "first", "assignment": task["assignment"], "revision": task["revision"]}
    assert client.post("/api/skip", json=here).json()["status"] == "accepted"
    back = client.post("/api/undo", json=here).json()
    assert back["task"]["assignment"] == task["assignment"]
    flagged = client.post("/api/flag", json=here | {"revision": back["task"]["revision"], "flags": ["unsafe"]}).json()
    assert flagged["status"] == "accepted"
    assert client.get("/api/history").json()["history"][0]["kind"] == "flag"
    assert client.get("/api/progress").json()["adjudicate"] == 1


def test_somebody_elses_task_is_refused(world: World) -> None:
    task = world.client("ann").get("/api/claim").json()["task"]
    body = {"project": "first", "assignment": task["assignment"], "verdict": verdict(task)}
    assert world.client("bob").post("/api/submit", json=body).json()["status"] == "refused"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"assignment": None}, "assignment"),
        ({"assignment": 7}, "assignment"),
        ({"project": "second"}, "project"),
        ({"verdict": None}, "verdict"),
        ({"verdict": {"kind": "tie"}}, "verdict.revision"),
        ({"verdict": {"revision": "1", "kind": "tie"}}, "verdict.revision"),
        ({"verdict": {"revision": True, "kind": "tie"}}, "verdict.revision"),
        ({"verdict": {"revision": 1, "kind": "best"}}, "verdict.kind"),
        ({"verdict": {"revision": 1, "kind": "preference", "strength": 9}}, "verdict.strength"),
        ({"verdict": {"revision": 1, "kind": "tie", "colour": 1}}, "verdict.colour"),
        ({"verdict": {"revision": 1, "kind": "tie", "edits": {"x": "y"}}}, "verdict.edits"),
        ({"verdict": {"revision": 1, "kind": "tie", "edits": {"5": "y"}}}, "verdict.edits"),
        ({"verdict": {"revision": 1, "kind": "tie", "aspects": {"beauty": 1}}}, "verdict.aspects"),
        ({"verdict": {"revision": 1, "kind": "tie", "flags": [7]}}, "flags"),
        ({"verdict": {"revision": 1, "kind": "tie", "justification": "\ud800"}}, "justification"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_so_by_name_and_stores_nothing(world: World, change, word: str) -> None:
    client = world.client("ann")
    task = client.get("/api/claim").json()["task"]
    body = {"project": "first", "assignment": task["assignment"], "verdict": verdict(task)} | change
    answer = client.post("/api/submit", content=json.dumps(body))
    assert answer.status_code == 400
    assert word in answer.json()["error"]
    with world.database.read() as connection:
        assert connection.execute(select(judgment)).first() is None


def test_no_json_at_all_is_told_so(world: World) -> None:
    for content in (b"", b"[1]", b"{", b"\xff"):
        answer = world.client("ann").post("/api/submit", content=content)
        assert (answer.status_code, "missing" in answer.json()["error"]) == (400, True)
