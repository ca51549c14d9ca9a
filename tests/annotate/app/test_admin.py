"""What the admin's pages show and do, apart from adjudication and files."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import func, select

from annotate.app.admin import answer
from annotate.store.audit import events
from annotate.store.database import open_database
from annotate.store.projects import Settings, create_project, list_projects
from annotate.store.protocol import Protocol
from annotate.store.records import Verdict
from annotate.store.schema import metadata
from annotate.store.users import create_user, list_users, log_in, set_active
from rlhf_kit.errors import InputError
from tests.annotate.app.admin_client import PAGES, act, shown
from tests.annotate.app.conftest import PASSWORD, World

MARKUP = "<img src=x onerror=alert(1)>{{x}}${x}"


def vote(world: World, person: str, count: int, strength: int = 2) -> None:
    protocol, user = Protocol(world.database, world.project.id), world.people[person].id
    for _ in range(count):
        task = protocol.claim(user)
        first = task.responses[0].startswith("answer A")
        protocol.submit(task.assignment, user, Verdict(task.revision, "preference", strength if first else -strength))


def counts(world: World) -> dict[str, int]:
    with world.database.read() as connection:
        return {
            each.name: connection.execute(select(func.count()).select_from(each)).scalar_one() for each in metadata.sorted_tables
        }


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_drawn_with_and_without_votes_and_in_an_empty_database(world: World, page: str, tmp_path) -> None:
    assert act(world.client("root"), page)["html"]
    vote(world, "ann", 5)
    vote(world, "bob", 5)
    value = act(world.client("root"), page)
    assert (value["page"], value["title"], value["project"]) == (page, PAGES[page].title, "first")
    assert "secret-" not in value["html"] or page == "quality"  # models are named beside their strengths alone
    empty = open_database(f"sqlite:///{tmp_path}/empty.db")
    event = {"id": "1", "page": page, "project": None, "action": "show", "fields": {}}
    assert answer(empty, world.people["root"], event)["html"]
    empty.close()


@pytest.mark.parametrize("page", PAGES)
def test_names_that_are_markup_are_shown_as_text(world: World, page: str) -> None:
    create_project(world.database, MARKUP, Settings(guidelines=MARKUP, aspects=(MARKUP,)), by=world.people["root"].id)
    create_user(world.database, MARKUP, PASSWORD)
    value = act(world.client("root"), page, project=MARKUP)
    assert value["project"] == MARKUP
    assert "<img" not in value["html"]


def test_progress_counts_what_people_said(world: World) -> None:
    vote(world, "ann", 3)
    vote(world, "bob", 1)
    text = shown(world, "progress")
    assert "4 of 20 judgments are in" in text
    assert "the rest takes" in text
    assert "Votes that stand 4" in text
    assert "ann 3 0 0" in text
    assert "bob 1 0 0" in text


def test_quality_says_why_a_figure_is_undefined(world: World) -> None:
    vote(world, "ann", 3)
    text = shown(world, "quality")
    assert "3 votes on 3 pairs by 1 person" in text
    assert "Raw agreement the share of pairs of votes on one comparison that name the same winner undefined" in text
    assert "No ranking: " in text  # one of the two models has won them all
    vote(world, "bob", 3, strength=-1)
    text = shown(world, "quality")
    assert "6 votes on 6 pairs by 2 people" in text
    assert re.search("Models.*secret-a .*secret-b", text)


def test_a_new_person_gets_a_password_that_is_shown_once_and_opens(world: World) -> None:
    client = world.client("root")
    notice = act(client, "people", "create", name="grace", role="annotator")["notice"]
    password = notice["text"].split("password ")[1].split(",")[0]
    assert log_in(world.database, "grace", password, "here").user.role == "annotator"
    assert password not in str(act(client, "people"))
    assert password not in str(events(world.database))
    grace = next(each.id for each in list_users(world.database) if each.name == "grace")
    again = act(client, "people", "reset", user=grace)["notice"]["text"].split(" is ")[1].split(",")[0]
    assert log_in(world.database, "grace", password, "here").user is None
    assert log_in(world.database, "grace", again, "here").user is not None


def test_a_disabled_person_is_out_at_once_and_may_come_back(world: World) -> None:
    ann, person = world.client("ann"), world.people["ann"].id
    assert ann.get("/api/projects").status_code == 200
    assert act(world.client("root"), "people", "disable", user=person)["notice"]["kind"] == "good"
    assert ann.get("/api/projects").status_code == 401
    act(world.client("root"), "people", "enable", user=person)
    assert log_in(world.database, "ann", PASSWORD, "here").user is not None


def test_a_person_made_admin_reaches_these_pages_and_one_made_annotator_no_longer_does(world: World) -> None:
    client, person = world.client("root"), world.people["ann"].id
    act(client, "people", "role", user=person, role="admin")
    assert world.client("ann").get("/admin/").status_code == 200
    act(client, "people", "role", user=person, role="annotator")
    assert world.client("ann").get("/admin/").status_code == 403


@pytest.mark.parametrize(("action", "fields"), [("disable", {}), ("role", {"role": "annotator"})])
def test_an_admin_can_lock_out_neither_themselves_nor_the_last_one(world: World, action: str, fields: dict[str, str]) -> None:
    root = world.people["root"].id
    value = act(world.client("root"), "people", action, user=root, **fields)
    assert (value["notice"]["kind"], value["html"]) == ("bad", None)
    assert "which is you" in value["notice"]["text"]
    assert next(each for each in list_users(world.database) if each.id == root) == world.people["root"]


def test_settings_are_stored_and_only_a_change_of_guidelines_raises_their_version(world: World) -> None:
    client = world.client("root")
    fields = {"guidelines": "New.\r\nLines.", "scale": 2, "aspects": "vivid, , whole", "overlap": 3, "lease_minutes": 1.5}
    fields |= {"skips": 2, "gold_percent": 7}
    assert "version 2" in act(client, "project", "change", **fields)["notice"]["text"]
    assert act(client, "project", "change", **fields | {"overlap": 4})["notice"]["text"] == "Saved"
    [project] = list_projects(world.database)
    assert project.guidelines_version == 2
    assert project.settings == Settings("New.\nLines.", 2, ["vivid", "whole"], 4, 90.0, 2, 0.07)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("scale", "4", "project.scale"),
        ("scale", "three", "scale"),
        ("overlap", "1.5", "overlap"),
        ("overlap", "1e300", "overlap"),
        ("lease_minutes", "nan", "lease minutes"),
        ("lease_minutes", "0", "project.lease_seconds"),
        ("gold_percent", "90", "project.gold_share"),
        ("aspects", "a, a", "project.aspects"),
        ("guidelines", "\0", "project.guidelines"),
    ],
)
def test_settings_that_make_no_sense_are_told_by_name_and_nothing_changes(
    world: World, field: str, value: str, word: str
) -> None:
    fields = {"guidelines": "G", "scale": 3, "aspects": "", "overlap": 1, "lease_minutes": 30, "skips": 3, "gold_percent": 5}
    notice = act(world.client("root"), "project", "change", **fields | {field: value})["notice"]
    assert notice["kind"] == "bad"
    assert word in notice["text"]
    assert "\n" not in notice["text"]
    [project] = list_projects(world.database)
    assert (project.guidelines_version, project.settings.guidelines) == (1, world.project.settings.guidelines)


def test_the_preview_is_the_renderers_and_stores_nothing(world: World) -> None:
    value = act(world.client("root"), "project", "preview", guidelines="**bold** <script>alert(1)</script>")
    assert "<strong>bold</strong>" in value["part"]
    assert "<script" not in value["part"]
    assert value["html"] is None
    assert list_projects(world.database)[0].settings.guidelines == world.project.settings.guidelines


def test_a_new_project_is_gone_on_with(world: World) -> None:
    value = act(world.client("root"), "project", "create", name="second")
    assert (value["project"], value["projects"]) == ("second", ["first", "second"])
    assert act(world.client("root"), "project", "create", name="second")["notice"]["kind"] == "bad"


def test_what_was_asked_of_a_project_that_is_gone_is_done_to_no_other(world: World) -> None:
    client = world.client("root")
    before = counts(world)
    value = act(client, "import", "demo", project="gone", pairs=5, rankings=1)
    assert "gone" in value["notice"]["text"]
    assert counts(world) == before


def test_the_audit_trail_can_be_asked_for_one_action(world: World) -> None:
    vote(world, "ann", 2)
    everything, submits = shown(world, "audit"), shown(world, "audit", filter="submit")
    assert "create project" in everything
    assert submits.count(" ann submit ") == 2
    assert "ann lease" not in submits
    assert act(world.client("root"), "audit", filter="no such")["notice"]["kind"] == "bad"


def test_the_demo_is_added_once(world: World) -> None:
    first, again = (act(world.client("root"), "import", "demo", pairs=5, rankings=1)["notice"]["text"] for _ in range(2))
    assert first == "6 comparisons added, 0 were there"
    assert again == "0 comparisons added, 6 were there"


def test_the_last_other_admin_may_be_disabled_while_somebody_is_left(world: World) -> None:
    create_user(world.database, "other", PASSWORD, "admin")
    other = next(each.id for each in list_users(world.database) if each.name == "other")
    assert act(world.client("root"), "people", "disable", user=other)["notice"]["kind"] == "good"
    set_active(world.database, other, True)
    set_active(world.database, world.people["root"].id, False, by=other)
    assert world.client("root").get("/admin/config").status_code == 401
    with pytest.raises(InputError, match="last active admin"):
        set_active(world.database, other, False)


def test_nonsense_of_every_kind_is_told_in_one_line_and_stores_nothing(world: World) -> None:
    vote(world, "ann", 2)
    before = counts(world)
    junk = [
        None,
        7,
        "x",
        [],
        {},
        {"id": 1},
        {"id": "1", "page": ["people"]},
        {"id": "1", "page": "people", "action": "__class__"},
    ]
    fields = [None, [], {"user": 7}, {"user": "x"}, {"user": "99"}, {"user": "1e400"}, {"case": "-1"}, {"filter": "\ud800"}, {}]
    names = [None, 7, "gone", "first"]
    for page, each in PAGES.items():
        for action in (*each.actions, "show"):
            for given in fields:
                junk += [{"id": "1", "page": page, "project": name, "action": action, "fields": given} for name in names]
    for event in junk:
        value = answer(world.database, world.people["root"], event)
        assert set(value) >= {"html", "part", "notice", "reply_to"}
        if value["notice"]:
            assert "\n" not in value["notice"]["text"]
    assert counts(world) == before
