"""Projects: a new one, and the settings of the one at hand."""

from __future__ import annotations

from typing import Any

from annotate.app.admin.parts import Html, area, card, choose, field, form, join, tag
from annotate.app.admin.visit import Page, Reply, Visit
from annotate.render import render_response
from annotate.store.projects import Project, Settings, change_project, create_project
from rlhf_kit.errors import InputError

SCALES = {
    "1": "1: A or B",
    "2": "2: better, slightly better",
    "3": "3: much better, better, slightly better",
}
LONGEST = 100_000  # characters of guidelines


def show(visit: Visit) -> str:
    """The page."""
    new = form("create", field("name", "Name", required=True, maxlength="200"), button="Create", class_="inline")
    made = card("New project", tag("p", "It begins with the usual settings.", class_="soft"), new)
    return join((*([_edit(visit.project)] if visit.project else []), made))


def _edit(project: Project) -> Html:
    now = project.settings
    guidelines = area(
        "guidelines",
        "Guidelines",
        now.guidelines,
        hint=f"Markdown. Version {project.guidelines_version}; a change makes it version {project.guidelines_version + 1}, and "
        "every vote keeps the number of the version that it was given under.",
        rows="16",
        maxlength=str(LONGEST),
        data_preview="guidelines",
    )
    preview = tag(
        "div", tag("span", "As people see them"), tag("div", _rendered(now.guidelines), data_part="guidelines"), class_="preview"
    )
    lease = "Then somebody else may get it. A later vote still counts, marked late."
    aspects = "Judged beside the whole, with commas between: helpful, correct"
    controls = (
        choose("scale", "Scale", SCALES, now.scale),
        _number("overlap", "People a comparison", now.overlap, min="1", max="100", hint="For what is imported from now on."),
        _number("lease_minutes", "Minutes for a task", now.lease_seconds / 60, min="0.02", step="any", hint=lease),
        _number("skips", "Skips before adjudication", now.skips_before_adjudication, min="1"),
        _number("gold_percent", "Gold items, % of tasks", 100 * now.gold_share, min="0", max="50", step="any"),
        field("aspects", "Aspects", ", ".join(now.aspects), hint=aspects),
    )
    inside = (tag("div", guidelines, preview, class_="sides"), tag("div", *controls, class_="columns"))
    return card(f"Settings of {project.name}", form("change", *inside, button="Save"))


def _number(name: str, label: str, value: float, **more: Any) -> Html:
    return field(name, label, f"{value:.10g}", kind="number", **more)


def _rendered(guidelines: str) -> Html:
    return Html(render_response(guidelines)) if guidelines.strip() else tag("p", "Nothing written yet.", class_="soft")


def preview(visit: Visit) -> Reply:
    """The guidelines as people see them."""
    return Reply(part=_rendered(visit.text("guidelines")[:LONGEST]))


def create(visit: Visit) -> Reply:
    """A project with the usual settings."""
    made = create_project(visit.database, visit.text("name").strip(), by=visit.user.id)
    return Reply(f"{made.name} is there: write its guidelines, then import comparisons", project=made.name)


def change(visit: Visit) -> Reply:
    """Other settings for the project at hand."""
    before = visit.chosen()
    guidelines = visit.text("guidelines").replace("\r\n", "\n")  # what a form makes of every line's end
    if len(guidelines) > LONGEST:
        raise InputError("guidelines", guidelines, f"expected {LONGEST:,} characters at most")
    settings = Settings(
        guidelines=guidelines,
        scale=visit.whole("scale"),
        aspects=tuple(each.strip() for each in visit.text("aspects").split(",") if each.strip()),
        overlap=visit.whole("overlap"),
        lease_seconds=60 * visit.number("lease_minutes"),
        skips_before_adjudication=visit.whole("skips"),
        gold_share=visit.number("gold_percent") / 100,
    )
    after = change_project(visit.database, before.id, settings, by=visit.user.id)
    newer = after.guidelines_version > before.guidelines_version
    return Reply(f"Saved, with version {after.guidelines_version} of the guidelines" if newer else "Saved")


PAGE = Page("Project", show, {"create": create, "change": change, "preview": preview})
