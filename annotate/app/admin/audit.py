"""Who did what, when: the newest lines of the trail."""

from __future__ import annotations

import json

from annotate.app.admin.parts import Html, choose, form, join, table, tag, when
from annotate.app.admin.visit import Page, Visit
from annotate.store.audit import actions, events
from annotate.store.projects import list_projects
from annotate.store.users import list_users

MOST = 200
ALL = "all"


def show(visit: Visit) -> str:
    """The page: `filter` is an action's name, or all."""
    known = actions(visit.database)
    chosen = visit.one_of("filter", (ALL, *known)) if "filter" in visit.fields else ALL
    people = {each.id: each.name for each in list_users(visit.database)}
    projects = {each.id: each.name for each in list_projects(visit.database)}
    rows = [
        (
            tag("td", when(each.created), class_="time"),
            people.get(each.user, "\u2013") if each.user is not None else "\u2013",
            each.action.replace("_", " "),
            projects.get(each.project, "\u2013") if each.project is not None else "\u2013",
            tag("td", _details(each.details), class_="details"),
        )
        for each in events(visit.database, limit=MOST, action=None if chosen == ALL else chosen)
    ]
    options = {ALL: "everything", **{name: name.replace("_", " ") for name in known}}
    filtered = form("show", choose("filter", "Show", options, chosen), button="Show", class_="inline")
    note = tag("p", f"The newest {MOST} lines at most. Nothing is ever removed from the trail.", class_="soft")
    return join((filtered, note, table("The audit trail, newest first", ("Time, UTC", "Who", "Did", "Project", "Details"), rows)))


def _details(details: object) -> Html:
    words = json.dumps(details, ensure_ascii=False)[1:-1] if details else ""
    if len(words) <= 160:
        return tag("span", words)
    return tag("details", tag("summary", words[:120] + " \u2026"), words)


PAGE = Page("Audit", show)
