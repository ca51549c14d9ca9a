"""The admin's pages under `/admin`: one `gr.HTML` whose value is a page that the server wrote, and whose one event is `act`.

    in:  {reply_to, page, project, projects, notice: {text, kind} or null, html or null, part or null, waiting}
    out: act {id, page, project, action, fields: {name: text}}; action `show` only asks for the page

Markup never passes through a Gradio template, which would evaluate it; the script puts it into the page. One function behind all
pages means one place that asks whose request it is, and nothing else that could be called by its index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import gradio as gr

from annotate.app.admin import adjudicate, audit, exchange, people, progress, project, quality
from annotate.app.admin.parts import card, tag
from annotate.app.admin.visit import Page, Visit
from annotate.app.people import project_named, whose
from annotate.render import stylesheet
from annotate.store.adjudication import count_cases
from annotate.store.database import Database
from annotate.store.projects import get_project, list_projects
from annotate.store.users import User
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.page import STYLE

PAGES: dict[str, Page] = {
    "progress": progress.PAGE,
    "quality": quality.PAGE,
    "adjudicate": adjudicate.PAGE,
    "import": exchange.IMPORT,
    "export": exchange.EXPORT,
    "people": people.PAGE,
    "project": project.PAGE,
    "audit": audit.PAGE,
}
WITHOUT_PROJECT = ("people", "project", "audit")
MOST_FIELDS = 100


@dataclass(frozen=True)
class Act:
    """What the browser asked for."""

    page: str
    project: str | None
    action: str
    fields: Mapping[str, str]


def admin_pages(database: Database) -> gr.Blocks:
    """The app under `/admin`."""

    def act(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        user = whose(request, "admin")
        return answer(database, user, event._data)

    with gr.Blocks(title="Annotate: admin", analytics_enabled=False) as pages:
        panel = gr.HTML(value=None, elem_id="admin", **_parts())
        panel.act(act, None, panel, queue=False, show_progress="hidden")
    return pages


def answer(database: Database, user: User, said: Any) -> dict[str, Any]:
    """Do what was asked and draw the page; wrong input leaves the page as it is and is told in one line."""
    value: dict[str, Any] = {"html": None, "part": None, "notice": None}
    reply_to = said.get("id") if isinstance(said, dict) else None
    value["reply_to"] = reply_to if isinstance(reply_to, str) else None
    try:
        return value | _done(database, user, read_act(said))
    except InputError as error:
        return value | {"notice": {"text": f"{error}.", "kind": "bad"}}


def _done(database: Database, user: User, act: Act) -> dict[str, Any]:
    page, name, notice = PAGES[act.page], act.project, None
    visit = Visit(database, user, None, act.fields)
    if act.action != "show":
        # Never another project than the one that was on the screen, though it be gone.
        reply = page.actions[act.action](replace(visit, project=get_project(database, name) if name is not None else None))
        if reply.part is not None:
            return {"part": reply.part}
        notice = {"text": reply.notice, "kind": "good"} if reply.notice else None
        name, visit = reply.project or name, replace(visit, fields={})
    visit = replace(visit, project=project_named(database, name))
    shown = page.show(visit) if visit.project or act.page in WITHOUT_PROJECT else no_project()
    return {
        "page": act.page,
        "title": page.title,
        "project": visit.project.name if visit.project else None,
        "projects": [each.name for each in list_projects(database)],
        "waiting": count_cases(database, visit.project.id) if visit.project else 0,
        "notice": notice,
        "html": shown,
    }


def read_act(said: Any) -> Act:
    """What the browser asked for, known to be of the right types and to name a page and an action that exist.

    Raises:
        InputError: it is not.
    """
    if not isinstance(said, dict):
        raise InputError("event", said, "expected an object")
    page, action, fields = said.get("page"), said.get("action"), said.get("fields")
    if not isinstance(page, str) or page not in PAGES:
        raise InputError("page", page, f"expected one of {', '.join(PAGES)}")
    if not isinstance(action, str) or not (action == "show" or action in PAGES[page].actions):
        raise InputError("action", action, "which this page does not have")
    name = said.get("project")
    if name is not None and not isinstance(name, str):
        raise InputError("project", name, "expected its name")
    if not isinstance(fields, dict) or len(fields) > MOST_FIELDS or not all(isinstance(each, str) for each in fields.values()):
        raise InputError("fields", fields, "expected texts by name")
    return Act(page, name, action, fields)


def no_project() -> str:
    """What stands where a project is needed."""
    link = tag("a", "Create a project", href="#project")
    return card("No project yet", tag("p", "People need something to judge. ", link, ", then import comparisons."))


def _parts() -> dict[str, Any]:
    here = files("annotate.app.admin")
    html, css, js = ((here / f"admin.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    # The report's sheet reaches no further than the figures that it was written for.
    css = f"{stylesheet()}{css}\n.figures {{ {STYLE} }}"
    return {"html_template": html, "css_template": css, "js_on_load": js, "apply_default_css": False}
