"""People, a project with pairs, and a client for each person, over the app without a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from starlette.testclient import TestClient

from annotate.app.guard import COOKIE
from annotate.app.server import make_app
from annotate.store.database import Database, open_database
from annotate.store.items import add_comparisons
from annotate.store.projects import Project, Settings, create_project
from annotate.store.records import NewComparison, NewResponse
from annotate.store.sessions import open_session
from annotate.store.users import User, create_user

PASSWORD = "correct horse battery"


@dataclass
class World:
    """A database with an admin, two annotators and one project of pairs."""

    database: Database
    project: Project
    people: dict[str, User]
    client: Callable[..., TestClient]


def pairs(count: int) -> list[NewComparison]:
    return [
        NewComparison(
            messages=[{"role": "user", "content": f"question {i}"}],
            responses=[NewResponse(f"answer A{i}", model="secret-a"), NewResponse(f"answer B{i}", model="secret-b")],
        )
        for i in range(count)
    ]


@pytest.fixture
def world(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("annotate.store.users.LOG2_N", 8)  # what is tested here is not how slow scrypt is
    database = open_database(f"sqlite:///{tmp_path}/votes.db")
    people = {
        name: create_user(database, name, PASSWORD, "admin" if name == "root" else "annotator") for name in ("root", "ann", "bob")
    }
    project = create_project(
        database, "first", Settings(guidelines="Choose the **better** one.", aspects=("clarity",), gold_share=0.0)
    )
    add_comparisons(database, project.id, pairs(20))
    app = make_app(database)
    clients: list[TestClient] = []

    def client(name: str | None = None) -> TestClient:
        made = TestClient(app, base_url="http://localhost", follow_redirects=False)
        if name is not None:
            made.cookies.set(COOKIE, open_session(database, people[name].id))
        clients.append(made)
        return made

    yield World(database, project, people, client)
    for each in clients:
        each.close()
    database.close()
