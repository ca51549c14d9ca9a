"""Every function behind the pages, called by its index as anybody with a session can: a hidden button protects nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from annotate.store.schema import metadata
from tests.annotate.app.conftest import World

JUNK: list[Any] = [
    None,
    "first",
    7,
    "../../etc/passwd",
    {"assignment": "x"},
    ["x"],
    {"messages": [{"role": "user", "content": "x"}]},
]
CLAIMS = {"assignment", "comparison", "event", "frontier"}  # what asking for a task may change


def counts(world: World) -> dict[str, int]:
    with world.database.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }


def functions(world: World, mount: str) -> list[dict[str, Any]]:
    found = world.client("root").get(f"{mount}/config").json()["dependencies"]
    assert found
    return found


def call(client: Any, mount: str, function: dict[str, Any], value: Any) -> Any:
    body = {
        "fn_index": function["id"],
        "data": [value] * len(function["inputs"]),
        "event_data": {"assignment": "x", "kind": "preference", "event_id": "1", "revision": 1, "strength": 1},
        "session_hash": "abc",
    }
    return client.post(f"{mount}/gradio_api/run/predict", json=body)


@pytest.mark.parametrize("mount", ["/app", "/admin"])
def test_without_a_session_no_function_runs(world: World, mount: str) -> None:
    found, client = functions(world, mount), world.client()
    before = counts(world)
    for function in found:
        for value in JUNK:
            assert call(client, mount, function, value).status_code == 401
    assert counts(world) == before


def test_an_annotator_runs_no_function_of_the_admins(world: World) -> None:
    found, client = functions(world, "/admin"), world.client("ann")
    before = counts(world)
    for function in found:
        for value in JUNK:
            assert call(client, "/admin", function, value).status_code == 403
    assert counts(world) == before


@pytest.mark.parametrize("person", ["ann", "root"])
def test_no_page_function_does_more_with_nonsense_than_hand_out_a_task(world: World, person: str) -> None:
    found, client = functions(world, "/app"), world.client(person)
    before = counts(world)
    for function in found:
        for value in JUNK:
            answer = call(client, "/app", function, value)
            assert answer.status_code in (200, 404, 422, 500)
            assert "secret-" not in answer.text  # no model's name
            assert "Traceback" not in answer.text
    after = counts(world)
    assert {name for name in after if after[name] != before[name]} <= CLAIMS


def test_as_an_admin_too_nonsense_changes_nothing_and_no_fault_shows_the_code(world: World) -> None:
    client = world.client("root")
    before = counts(world)
    for function in functions(world, "/admin"):
        for value in JUNK:
            answer = call(client, "/admin", function, value)
            assert answer.status_code == 200
            assert answer.json()["data"][0]["notice"]["kind"] == "bad"
            assert "Traceback" not in answer.text
    assert counts(world) == before | {"session": before["session"] + 1}  # that of `functions`


def test_one_persons_page_never_shows_or_takes_what_is_anothers(world: World) -> None:
    task = world.client("bob").get("/api/claim").json()["task"]
    world.client("bob").post(
        "/api/submit", json={"assignment": task["assignment"], "project": "first", "verdict": {"revision": 1, "kind": "tie"}}
    )
    client = world.client("ann")
    for function in functions(world, "/app"):
        body = {
            "fn_index": function["id"],
            "data": ["first"] * len(function["inputs"]),
            "event_data": {
                "assignment": task["assignment"], "undo": task["assignment"], "kind": "undo", "event_id": "1", "revision": 1,
            },
            "session_hash": "abc",
        }  # fmt: skip
        answer = client.post("/app/gradio_api/run/predict", json=body)
        assert task["assignment"] not in answer.text
    assert len(world.client("bob").get("/api/history").json()["history"]) == 1
