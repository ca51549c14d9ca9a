"""The HTTP client against the app itself, and against a network that loses what it carries."""

from __future__ import annotations

import json
from random import Random

import httpx
import pytest
from sqlalchemy import func, select

from annotate.client import HttpClient, log_in
from annotate.simulate import USUAL, SimulatedPerson, simulate
from annotate.store.records import Task, Verdict
from annotate.store.schema import assignment, judgment
from rlhf_kit.errors import InputError
from tests.annotate.app.conftest import PASSWORD, World, world  # noqa: F401 (a fixture)

APP = "http://localhost"


def first_is_better(task: Task) -> Verdict:
    return Verdict(task.revision, "preference", 2, edits={1: "a mended answer"}, flags=["unsafe"], visible_ms=1500)


def test_a_person_logs_in_by_password_claims_votes_looks_back_and_takes_back(world: World) -> None:  # noqa: F811
    client = log_in(APP, "ann", PASSWORD, http=world.client())
    task = client.claim()
    assert task is not None
    held = client.claim()
    assert held is not None
    assert (held.assignment, held.responses) == (task.assignment, task.responses)
    result = client.submit(task, first_is_better(task))
    assert (result.status, result.next is not None and result.next != task) == ("accepted", True)
    (past,) = client.history()
    assert (past.task.responses, past.strength, past.kind, past.undoable) == (task.responses, 2, "preference", True)
    again = client.undo(task).next
    assert again is not None
    assert (again.assignment, again.responses) == (task.assignment, task.responses)
    assert again.revision == 3  # an undo is a revision, too
    skipped = client.skip(again, "no idea")
    assert (skipped.status, client.history()[0].kind, client.history()[0].justification) == ("accepted", "skip", "no idea")
    assert (client.progress()["votes"], client.progress()["open"]) == (0, 20)


def test_what_is_stored_is_what_was_said_of_the_answers_shown(world: World) -> None:  # noqa: F811
    client = log_in(APP, "ann", PASSWORD, "first", http=world.client())
    task = client.claim()
    assert task is not None
    client.submit(task, first_is_better(task))
    with world.database.read() as connection:
        stored = connection.execute(select(judgment)).one()
        shown = connection.execute(select(assignment.c.shown).where(assignment.c.id == stored.assignment_id)).scalar_one()
    assert stored.strength == (2 if shown[0] == 0 else -2)
    assert (stored.edits, stored.flags, stored.visible_ms) == ({str(shown[1]): "a mended answer"}, ["unsafe"], 1500)


class Lossy(httpx.BaseTransport):
    """Hands requests to the app; of each two, the answer to the first is lost on the way back, or a proxy fails."""

    def __init__(self, app: httpx.Client, how: str) -> None:
        self.app, self.how, self.asked = app, how, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        answer = self.app.request(request.method, str(request.url), content=request.read(), headers=request.headers)
        if self.asked % 2:
            if self.how == "lost":
                raise httpx.ReadTimeout("nothing came back", request=request)
            return httpx.Response(502, request=request)
        headers = [(name, value) for name, value in answer.headers.multi_items() if name != "content-encoding"]
        return httpx.Response(answer.status_code, headers=headers, content=answer.content, request=request)


@pytest.mark.parametrize("how", ["lost", "proxy"])
def test_lost_answers_neither_lose_nor_double_a_vote(world: World, how: str) -> None:  # noqa: F811
    network = httpx.Client(base_url=APP, transport=Lossy(world.client(), how))
    logged_in = log_in(APP, "ann", PASSWORD, http=network)
    client = HttpClient(logged_in.http, "first", pause=0.0)
    person = SimulatedPerson(client, lambda messages, texts: [float(text[7] == "A") for text in texts], USUAL, Random(0))
    counts = simulate([person], 20)
    assert sum(counts.values()) == 20
    with world.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(judgment)).scalar_one() == 20
        assert connection.execute(select(func.count(judgment.c.assignment_id.distinct()))).scalar_one() == 20


def test_every_call_is_safe_to_repeat(world: World) -> None:  # noqa: F811
    client = log_in(APP, "ann", PASSWORD, http=world.client())
    task = client.claim()
    assert task is not None
    assert [client.submit(task, first_is_better(task)).status for _ in range(2)] == ["accepted", "duplicate"]
    undone = [client.undo(task) for _ in range(2)]
    assert [each.status for each in undone] == ["accepted", "duplicate"]
    assert undone[0].next == undone[1].next
    assert undone[0].next is not None
    assert [client.skip(undone[0].next).status for _ in range(2)] == ["accepted", "duplicate"]


def test_a_wrong_password_and_a_wrong_verdict_are_told_by_name(world: World) -> None:  # noqa: F811
    with pytest.raises(InputError, match="name is 'ann', which is nobody's, or the password is another"):
        log_in(APP, "ann", "wrong", http=world.client())
    client = log_in(APP, "ann", PASSWORD, http=world.client())
    task = client.claim()
    assert task is not None
    with pytest.raises(InputError, match=r"/api/submit is 400, because verdict\.strength is 9"):
        client.submit(task, Verdict(task.revision, "preference", 9))
    assert client.history() == []


def test_too_many_attempts_say_when_to_come_back(world: World) -> None:  # noqa: F811
    messages = []
    for _ in range(20):
        with pytest.raises(InputError) as refused:
            log_in(APP, "ann", "wrong", http=world.client())
        messages.append(str(refused.value))
    assert "try again in" in messages[-1]


def test_a_session_that_ended_says_so(world: World) -> None:  # noqa: F811
    client = HttpClient(world.client(), "first")
    with pytest.raises(InputError, match="is 401, the session has ended: log in again"):
        client.claim()


def test_an_address_where_nothing_answers_is_named() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    client = HttpClient(httpx.Client(base_url=APP, transport=httpx.MockTransport(refuse)), pause=0.0, tries=3)
    with pytest.raises(InputError, match=r"localhost.*gave no answer in 3 tries \(connection refused\)"):
        client.claim()


def test_something_else_at_the_address_is_told_apart_from_the_app() -> None:
    other = httpx.MockTransport(lambda request: httpx.Response(404, text="<h1>shop</h1>"))
    with pytest.raises(InputError, match="is 404, expected 200: is this address the app's"):
        HttpClient(httpx.Client(base_url=APP, transport=other)).claim()


def test_the_body_is_json_that_the_protocol_reads() -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.read()))
        return httpx.Response(200, json={"status": "accepted", "reason": "", "task": None})

    client = HttpClient(httpx.Client(base_url=APP, transport=httpx.MockTransport(answer)), "p")
    task = Task("a", 1, "rank", [], ["x", "y", "z"], 1, 0.0)
    assert client.submit(task, Verdict(1, "rank", ranking=[2, 1, 3])).status == "accepted"
    (body,) = sent
    assert (body["project"], body["assignment"], body["verdict"]["ranking"]) == ("p", "a", [2, 1, 3])
