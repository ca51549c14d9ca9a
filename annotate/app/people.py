"""The pages of those who judge: pairs, rankings, live chats, and what they said before.

Every handler asks the request whose it is; nothing that the browser says about the person is believed. Votes bypass Gradio's
queue; only generation waits in it.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import gradio as gr

from annotate.app.guard import ADMIN, LOGOUT
from annotate.app.judging import Judging
from annotate.app.panel import PANEL_EVENT, Progress, panel_parts, panel_value, read_event
from annotate.store.database import Database
from annotate.store.projects import Project, list_projects
from annotate.store.protocol import Protocol
from annotate.store.records import Kind, Past
from annotate.store.users import User
from rlhf_kit.errors import InputError

NO_PROJECT = ("No project yet", "An admin has to create a project and import pairs first.")


def whose(request: gr.Request, role: str | None = None) -> User:
    """The logged-in person, as the guard found them for this very request.

    Raises:
        gr.Error: nobody, or another role than asked for.
    """
    user = getattr(request.request.state, "user", None) if request is not None and request.request is not None else None
    if user is None or (role is not None and user.role != role):
        raise gr.Error("You may not do that.", print_exception=False)
    return user


def project_named(database: Database, name: Any) -> Project | None:
    """The project a page was opened for; the first where it names none that exists."""
    found = list_projects(database)
    return next((each for each in found if each.name == name), found[0] if found else None)


def people_pages(judging: Judging, *, chat: Callable[[gr.Dropdown], None] | None = None) -> gr.Blocks:
    """The app under `/app`.

    Args:
        chat: builds the chat page inside its tab; None: no models, no tab.
    """
    database = judging.database

    def opened(kind: Kind) -> Callable[..., Any]:
        def show(name: str, request: gr.Request) -> dict[str, Any]:
            user, project = whose(request), project_named(database, name)
            return judging.show(project, user.id, kind) if project else panel_value(None, Progress(), empty=NO_PROJECT)

        return show

    def chosen(name: str, request: gr.Request) -> tuple[Any, ...]:
        found = project_named(database, name)
        return gr.update(value=found.name if found else None), opened("pair")(name, request), gr.Tabs(selected="pair")

    def judged(kind: Kind) -> Callable[..., Any]:
        def judge(name: str, event: gr.EventData, request: gr.Request) -> dict[str, Any]:
            user, project = whose(request), project_named(database, name)
            if project is None:
                return panel_value(None, Progress(), empty=NO_PROJECT)
            try:
                said = read_event(event._data)
            except InputError as error:
                return judging.show(project, user.id, kind, notice=f"Not saved: {error}", notice_kind="warning")
            return judging.judge(project, user.id, kind, said)

        return judge

    def header(request: gr.Request) -> tuple[Any, Any]:
        user, names = whose(request), [project.name for project in list_projects(database)]
        asked = request.query_params.get("project")
        first = asked if asked in names else (names[0] if names else None)
        return gr.update(choices=names, value=first, visible=len(names) > 1), _who(user)

    def history(name: str, request: gr.Request) -> str:
        user, project = whose(request), project_named(database, name)
        return history_html(Protocol(database, project.id).history(user.id, limit=100)) if project else ""

    def reopened(name: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        user, project = whose(request), project_named(database, name)
        wanted = event._data.get("assignment") if isinstance(event._data, dict) else None
        if project is None or not isinstance(wanted, str):
            raise gr.Error("There is no such answer.", print_exception=False)
        result = Protocol(database, project.id).undo(wanted, user.id)
        if result.status == "refused" or result.next is None:
            raise gr.Error(f"It cannot be taken back: {result.reason}.", print_exception=False)
        judging.counts.forget(project.id, user.id)
        value = judging.value(project, user.id, result.next, notice="Taken back: judge it again.")
        pair = result.next.kind == "pair"
        return gr.Tabs(selected="pair" if pair else "rank"), *((value, gr.skip()) if pair else (gr.skip(), value))

    with gr.Blocks(title="Annotate", analytics_enabled=False) as pages:
        with gr.Row(elem_classes="top"):
            # Custom values are allowed because the choices that `header` sends stand in the memory of one process, and after a
            # restart a page that is still open must be able to vote. `project_named` decides what a name may be.
            options: dict[str, Any] = {"show_label": False, "container": False, "scale": 0, "allow_custom_value": True}
            project = gr.Dropdown([], label="Project", visible=False, elem_id="project", **options)
            who = gr.HTML(elem_id="who", apply_default_css=False)
        with gr.Tabs(selected="pair", elem_id="pages") as tabs:
            with gr.Tab("Annotate", id="pair") as pair_tab:
                pair = gr.HTML(elem_id="pair-panel", **panel_parts())
            with gr.Tab("Rank", id="rank") as rank_tab:
                rank = gr.HTML(elem_id="rank-panel", **panel_parts())
            if chat is not None:
                with gr.Tab("Chat", id="chat"):
                    chat(project)
            with gr.Tab("My history", id="history") as history_tab:
                past = gr.HTML(elem_id="history", apply_default_css=False, js_on_load=HISTORY_JS)
        now: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        pages.load(header, None, [project, who], **now).then(opened("pair"), project, pair, **now)
        project.input(chosen, project, [project, pair, tabs], **now)
        pair_tab.select(opened("pair"), project, pair, **now)
        rank_tab.select(opened("rank"), project, rank, **now)
        history_tab.select(history, project, past, **now)
        pair.judge(judged("pair"), project, pair, **PANEL_EVENT)
        rank.judge(judged("rank"), project, rank, **PANEL_EVENT)
        past.reopen(reopened, project, [tabs, pair, rank], **now)
    return pages


HISTORY_JS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-assignment]');
  if (button) { button.disabled = true; trigger('reopen', {assignment: button.dataset.assignment}); }
});"""


def page_css() -> str:
    """The style of what stands round the panel."""
    return (files("annotate.app") / "pages.css").read_text(encoding="utf-8")


def history_html(entries: list[Past]) -> str:
    """A person's answers, newest first, each with a button that opens it again where that is still possible."""
    if not entries:
        return '<div class="past"><p>Nothing yet.</p></div>'
    return f'<ol class="past">{"".join(map(_entry, entries))}</ol>'


def _entry(past: Past) -> str:
    when = datetime.fromtimestamp(past.created, UTC).strftime("%d %b %Y %H:%M UTC")
    question = str(past.task.messages[-1]["content"]) if past.task.messages else ""
    late = " · late" if past.late else ""
    again = f'<button type="button" data-assignment="{html.escape(past.task.assignment)}">Judge again</button>'
    why = f"<p>{html.escape(past.justification)}</p>" if past.justification else ""
    closed = "<span>exported or decided</span>"
    return (
        f"<li><header><strong>{html.escape(verdict_words(past))}</strong><time>{when}{late}</time>"
        f"{again if past.undoable else closed}</header><blockquote>{html.escape(question[:400])}</blockquote>{why}</li>"
    )


def verdict_words(past: Past) -> str:
    """What was said, in a few words, sides as they were shown."""
    if past.kind == "preference" and past.strength:
        by = {1: "slightly better", 2: "better", 3: "much better"}[abs(past.strength)]
        return f"{'A' if past.strength > 0 else 'B'} {by}"
    if past.kind == "rank" and past.ranking is not None:
        order = sorted(range(len(past.ranking)), key=past.ranking.__getitem__)
        text = str(order[0] + 1)
        for before, after in itertools.pairwise(order):
            text += (" = " if past.ranking[before] == past.ranking[after] else " > ") + str(after + 1)
        return text
    return {"tie": "Tie", "both_bad": "Both bad", "skip": "Skipped", "flag": "Flagged"}[past.kind]


def _who(user: User) -> str:
    admin = f'<a href="{ADMIN}/">Admin</a>' if user.role == "admin" else ""
    leave = f'<form method="post" action="{LOGOUT}"><button type="submit">Log out</button></form>'
    return f'<nav class="who"><span>{html.escape(user.name)}</span>{admin}{leave}</nav>'
