"""The admin's pages in a real browser, behind the guard: pages are drawn, forms arrive, nothing loads from elsewhere."""

from __future__ import annotations

import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from annotate.app.admin import PAGES
from annotate.app.guard import COOKIE
from annotate.app.server import make_app
from annotate.demo import demo_comparisons
from annotate.importing import Report, add_all
from annotate.simulate import simulate, simulated_people
from annotate.store.database import Database, open_database
from annotate.store.projects import Settings, create_project, list_projects
from annotate.store.protocol import Protocol
from annotate.store.sessions import open_session
from annotate.store.users import create_user, list_users

HOSTILE = "{{7*7}} ${7*7} `x` <img src=x onerror=document.title='bad'>"
REFUSED = "status of 400"  # the browser notes by itself that a file was refused
Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Database]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotate.store.users.LOG2_N", 4)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        database = open_database(f"sqlite:///{tmp_path_factory.mktemp('admin')}/votes.db")
        create_user(database, "root", "correct horse", "admin")
        project = create_project(database, "stories", Settings(guidelines=HOSTILE, overlap=2))
        add_all(database, project.id, demo_comparisons(60, 5), Report())
        people = simulated_people(database, "stories", 3, seed=0)
        simulate(people, 90)
        annotator = next(each for each in list_users(database) if each.role == "annotator")
        protocol = Protocol(database, project.id)
        task = protocol.claim(annotator.id)
        assert task
        protocol.flag(task.assignment, annotator.id, task.revision, ["unsafe"], HOSTILE)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(database), port=port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        yield f"http://localhost:{port}", database
        server.should_exit = True
        thread.join()
        database.close()


@pytest.fixture
def open_page(chromium: Browser, served: tuple[str, Database]) -> Iterator[Opener]:
    url, database = served
    root = next(each for each in list_users(database) if each.name == "root")
    contexts, faults = [], []

    def open_(page_: str, size: tuple[int, int] = (1440, 900), scheme: str = "light") -> Page:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)  # type: ignore[arg-type]
        contexts.append(context)
        context.add_cookies([{"name": COOKIE, "value": open_session(database, root.id), "url": url}])
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" and REFUSED not in line.text else None)
        page.on(
            "request", lambda request: None if request.url.startswith((url, "data:", "blob:")) else faults.append(request.url)
        )
        page.goto(f"{url}/admin/#{page_}")
        drawn(page, page_)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


def drawn(page: Page, name: str) -> None:
    page.wait_for_selector(f".admin[data-page='{name}']:not([data-busy]) .content > *", timeout=20_000)


def notice(page: Page, words: str) -> None:
    expect(page.locator(".notice")).to_contain_text(words, timeout=20_000)


@pytest.mark.parametrize(
    ("size", "scheme"), [((1440, 900), "light"), ((390, 844), "dark"), ((390, 844), "light"), ((1440, 900), "dark")]
)
def test_every_page_is_drawn_fits_the_screen_and_has_no_serious_fault_of_access(open_page: Opener, size, scheme: str) -> None:
    page = open_page("progress", size, scheme)
    for name, each in PAGES.items():
        page.locator(f"nav a[href='#{name}']").click()
        drawn(page, name)
        expect(page.locator("h1")).to_have_text(each.title)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        found = Axe().run(page).response["violations"]
        serious = {v["id"]: [node["html"][:200] for node in v["nodes"]] for v in found if v["impact"] in ("serious", "critical")}
        assert serious == {}, name
    page.go_back()
    drawn(page, "project")


def test_text_of_people_and_models_is_shown_and_evaluated_by_nobody(open_page: Opener) -> None:
    page = open_page("adjudicate")
    expect(page.locator(".case table")).to_contain_text(HOSTILE)
    page.locator("nav a[href='#project']").click()
    drawn(page, "project")
    expect(page.locator("textarea[name=guidelines]")).to_have_value(HOSTILE)
    assert "bad" not in page.title()


def test_the_preview_follows_what_is_typed_and_the_form_keeps_it_when_it_is_refused(open_page: Opener, served) -> None:
    page = open_page("project")
    page.locator("textarea[name=guidelines]").fill("Choose the **kinder** one.")
    expect(page.locator("[data-part] strong")).to_have_text("kinder")
    page.locator("input[name=aspects]").fill("same, same")
    page.get_by_role("button", name="Save").click()
    notice(page, "project.aspects")
    expect(page.locator("textarea[name=guidelines]")).to_have_value("Choose the **kinder** one.")
    page.locator("input[name=aspects]").fill("kind")
    page.get_by_role("button", name="Save").click()
    notice(page, "version 2")
    assert list(list_projects(served[1])[0].settings.aspects) == ["kind"]


def test_a_case_is_decided_and_the_next_is_shown(open_page: Opener) -> None:
    page = open_page("adjudicate")
    before = page.locator(".case h2").first.inner_text()
    page.get_by_label("Tie").check()
    page.get_by_label("Reason").fill("equally good")
    page.get_by_role("button", name="Decide").click()
    notice(page, "is decided: A was ")
    assert before.split("#")[1] in page.locator(".notice").inner_text()
    expect(page.locator(".waiting")).to_be_hidden()


def test_a_file_is_imported_and_the_export_is_a_download(open_page: Opener, tmp_path: Path) -> None:
    page, file = open_page("import"), tmp_path / "more pairs.jsonl"
    file.write_text(json.dumps({"prompt": "p", "response_a": "x", "response_b": "y"}) + "\n")
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Import").click()
    notice(page, "1 comparisons added")
    file.write_text("{")
    page.locator("input[type=file]").set_input_files(file)
    with page.expect_response(lambda response: "/import" in response.url) as refused:
        page.get_by_role("button", name="Import").click()
    assert refused.value.status == 400
    notice(page, "Nothing was imported: more pairs.jsonl")
    page.locator("nav a[href='#export']").click()
    drawn(page, "export")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "stories.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "manifest.json" in archive.namelist()
    expect(page.locator("td code")).to_have_count(1)


def test_a_password_is_shown_once_and_a_danger_is_asked_about_first(open_page: Opener, served) -> None:
    page = open_page("people")
    page.get_by_label("Name").fill("grace")
    page.get_by_role("button", name="Add").click()
    notice(page, "shown this once")
    page.once("dialog", lambda dialog: dialog.dismiss())
    row = page.locator("tr", has_text="grace")
    row.get_by_role("button", name="Disable").click()
    assert all(each.active for each in list_users(served[1]))
    page.once("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Disable").click()
    notice(page, "grace is disabled")
    expect(row).to_contain_text("Enable")
