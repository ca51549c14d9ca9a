"""The whole app in a real browser: in by the login page, votes by keys, and what the database then holds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, expect
from sqlalchemy import select

from annotate.app.generation import Speakers
from annotate.app.server import make_app
from annotate.store.database import Database, open_database
from annotate.store.items import add_comparisons
from annotate.store.projects import Settings, create_project
from annotate.store.records import NewComparison, NewResponse
from annotate.store.schema import assignment, candidate, comparison, judgment, response
from annotate.store.users import create_user
from rlhf_kit.errors import InputError

PASSWORD = "correct horse battery"
ARMED = ".annotate[data-armed]:not([data-armed=''])"


class Voice:
    """Answers at once, word by word."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, messages: Any, *, on_text: Any, **_: Any) -> str:
        for word in (f"{self.name} ", f"heard {len(messages)}: ", messages[-1]["content"]):
            on_text(word)
        return ""


@dataclass
class Served:
    database: Database
    url: str


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Served]:
    monkeypatch.setattr("annotate.store.users.LOG2_N", 8)
    database = open_database(f"sqlite:///{tmp_path}/votes.db")
    create_user(database, "ann", PASSWORD)
    project = create_project(database, "first", Settings(guidelines="Choose the **better** one.", gold_share=0.0))
    pair = [NewResponse("GOOD <b>answer</b>", model="strong"), NewResponse("BAD answer", model="weak")]
    add_comparisons(database, project.id, [NewComparison([{"role": "user", "content": f"question {i}"}], pair) for i in range(9)])
    ranks = [NewResponse(f"answer {i}", model=f"m{i}") for i in range(4)]
    add_comparisons(database, project.id, [NewComparison([{"role": "user", "content": "rank these"}], ranks)])
    speakers = Speakers(("strong", "weak"), (Voice("one"), Voice("two")))  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = make_app(database, hosts=frozenset({"localhost"}), speakers=speakers)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield Served(database, f"http://localhost:{port}")
    server.should_exit = True
    thread.join(10)
    database.close()


def enter(page: Page, served: Served) -> list[str]:
    """Log in and wait for the first pair; what the page complains of lands in the list."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 else None)
    page.on(
        "request",
        lambda asked: complaints.append(asked.url) if not asked.url.startswith((served.url, "data:", "blob:")) else None,
    )
    page.goto(served.url)
    page.fill("[name=name]", "ann")
    page.fill("[name=password]", PASSWORD)
    page.click("button")
    page.wait_for_selector(f"#pair-panel {ARMED}")
    return complaints


def press(page: Page, panel: str, key: str) -> None:
    """Press a key and wait until the next task takes one."""
    before = page.get_attribute(f"{panel} .annotate", "data-armed")
    page.keyboard.press(key)
    page.wait_for_function(
        "([panel, before]) => { const now = document.querySelector(panel + ' .annotate'); "
        "return now.dataset.view !== 'task' || (now.dataset.armed && now.dataset.armed !== before); }",
        arg=[panel, before],
    )


def votes(served: Served) -> list[dict[str, Any]]:
    query = (
        select(judgment, assignment.c.shown).join(assignment, assignment.c.id == judgment.c.assignment_id).order_by(judgment.c.id)
    )
    with served.database.read() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def test_a_day_of_judging(page: Page, served: Served) -> None:
    complaints = enter(page, served)
    # Whoever always prefers the GOOD answer by its text has preferred the first answer in canonical order, wherever it stood.
    sides = []
    for _ in range(6):
        left = "GOOD" in page.inner_text("#pair-panel .answer[data-index='0'] .pane")
        assert "<b>answer</b>" in page.inner_text("#pair-panel .answers")
        sides.append(left)
        press(page, "#pair-panel", "1" if left else "7")
    assert [vote["strength"] for vote in votes(served)] == [3] * 6
    assert [vote["shown"][0] == 0 for vote in votes(served)] == sides

    press(page, "#pair-panel", "u")
    assert page.inner_text("#pair-panel .notice") == "Taken back: judge it again."
    press(page, "#pair-panel", "4")
    assert [vote["kind"] for vote in votes(served)][-2:] == ["undo", "tie"]

    page.get_by_role("tab", name="Rank").click()
    page.wait_for_selector(f"#rank-panel {ARMED}")
    shown = [page.inner_text(f"#rank-panel .answer[data-index='{i}'] .pane").strip() for i in range(4)]
    for text in ("answer 2", "answer 0", "answer 3", "answer 1"):
        page.keyboard.press(str(shown.index(text) + 1))
    press(page, "#rank-panel", "Enter")
    assert votes(served)[-1]["ranking"] == [2, 4, 1, 3]

    page.get_by_role("tab", name="My history").click()
    expect(page.locator(".past li")).to_have_count(7)
    page.get_by_role("button", name="Judge again").first.click()
    page.wait_for_selector(f"#rank-panel {ARMED}")
    assert votes(served)[-1]["kind"] == "undo"
    assert complaints == []


def test_a_pair_fits_a_laptops_window_with_its_keys(page: Page, served: Served) -> None:
    enter(page, served)
    for height in (600, 760):
        page.set_viewport_size({"width": 1180, "height": height})
        assert page.evaluate("document.scrollingElement.scrollHeight") == height  # nothing to scroll
        assert page.locator("#pair-panel .annotate").bounding_box()["y"] == 44  # under the bar


def refused(*_: Any) -> Any:
    raise InputError("database", "votes.db", "the disk is full")


def test_a_chat_is_judged_blind_and_goes_on_with_the_answer_that_was_preferred(page: Page, served: Served, monkeypatch) -> None:
    complaints = enter(page, served)
    page.get_by_role("tab", name="Chat").click()
    for turn, said in enumerate(("hello", "and then?")):
        page.fill("textarea[placeholder='Say something']", said)
        page.get_by_role("button", name="Send").click()
        page.wait_for_selector(f"#chat-panel {ARMED}")
        shown = page.inner_text("#chat-panel .answers")
        assert "strong" not in shown
        assert f"heard {2 * turn + 1}: {said}" in shown
        chosen = page.inner_text("#chat-panel .answer[data-index='1'] .pane").strip()
        if turn == 0:  # what cannot be stored leaves the pair where it is
            with monkeypatch.context() as patch:
                patch.setattr("annotate.app.judging.Judging._store", refused)
                page.keyboard.press("7")
                expect(page.locator("#chat-panel .notice")).to_contain_text("the disk is full")
            page.wait_for_selector(f"#chat-panel {ARMED}")
            assert page.inner_text("#chat-panel .answer[data-index='1'] .pane").strip() == chosen
        press(page, "#chat-panel", "7")
        expect(page.locator("#talk")).to_contain_text(chosen)
    query = (
        select(response.c.text, response.c.model, judgment.c.strength, candidate.c.position)
        .join(candidate, candidate.c.response_id == response.c.id)
        .join(comparison, comparison.c.id == candidate.c.comparison_id)
        .join(assignment, assignment.c.comparison_id == comparison.c.id)
        .join(judgment, judgment.c.assignment_id == assignment.c.id)
        .where(comparison.c.source == "live")
    )
    with served.database.read() as connection:
        found = connection.execute(query).all()
    assert len(found) == 4
    for text, model, strength, position in found:
        assert model == {"one": "strong", "two": "weak"}[text.split()[0]]
        assert strength == -3  # the second one shown; live pairs are shown in their own order
        assert (text == chosen) <= (position == 1)
    assert complaints == []


def test_the_pages_pass_an_accessibility_check(page: Page, served: Served) -> None:
    from axe_playwright_python.sync_playwright import Axe

    enter(page, served)
    for tab in ("Annotate", "Rank", "Chat", "My history"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        found = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []
    page.goto(f"{served.url}/login")
    assert [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")] == []
