"""The judging panel: one `gr.HTML` whose value is a task and whose one event, `judge`, is everything a person said about it.

    panel = gr.HTML(value=panel_value(...), **panel_parts())
    panel.judge(handler, None, panel, **PANEL_EVENT)

    def handler(event: gr.EventData, request: gr.Request) -> dict[str, Any]:
        said = read_event(event._data)
        ...                                              # store it; a repeat of (assignment, revision) must be harmless
        return panel_value(next_task, ..., reply_to=said.event_id)

**In**: the value is `panel_value(...)`, a JSON object; model text enters only through `annotate.render`. None of it passes
through a template, because Gradio evaluates what its templates hold. A value with the same `assignment` and `revision` as the
one shown keeps what the person has entered and only changes progress and notice.

**Out**: `judge` carries the fields of `Event`. After sending, the panel takes nothing until a value comes whose `reply_to` is
the event's `event_id`, or whose `assignment` differs; if none comes it says so and sends the same event again after 6, 12, 24,
30 s and when the browser is online again, with `attempt` raised. So the handler may see an event twice, and answers both with
the next task. To refuse an event, return the same task with a notice. An exception in the handler reads as no answer.

**Sides are as shown**: answer A (index 0, on the left) and B. In `Event`, as on the scale from left to right, a *negative*
strength says A is better, a positive one B. The store counts the other way round (above 0: the first is better):
`Event.first_better` and `Event.aspects_first_better` are those numbers, so use them and change no sign by hand.

Rank mode shows 3 to 9 answers, best first by number keys or dragging; `ranking` holds the place of each answer shown, 1 the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, get_args

from annotate.render import raw_view, render_messages, render_response, stylesheet
from rlhf_kit.errors import InputError

EventKind = Literal["preference", "tie", "both_bad", "rank", "skip", "flag", "undo"]
FLAG_REASONS = ("unsafe", "personal data", "broken or cut off", "cannot be judged", "other")

# Votes do not wait in the queue; "multiple", because Gradio would otherwise hold a retry back while the first try still hangs.
PANEL_EVENT: Mapping[str, Any] = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple"}

# For the page around the panel (`css=` of the mount): without Gradio's margins, and without the overflow that ends stickiness.
PAGE_CSS = """
.gradio-container { overflow: clip !important; }
.gradio-container > .app { max-width: none !important; padding: 0 !important; }
.gradio-container .html-container:has(> div > .annotate) { padding: 0 !important; }
body { margin: 0; }
"""


@dataclass(frozen=True)
class Progress:
    """Counts for the person judging. `total`: None where unknown; `eta_seconds`: None where it cannot be told yet."""

    done: int = 0
    total: int | None = None
    today: int = 0
    eta_seconds: float | None = None


@dataclass(frozen=True)
class PanelTask:
    """What is asked.

    Args:
        messages: the conversation, `[{"role", "content"}, ...]`.
        responses: texts in the order to show; two make a pair, 3 to 9 a ranking.
        scale: the largest strength, 1 to 3; keys 1 to 2 * scale + 1.
        edit: whether answers may be corrected.
    """

    assignment: str
    revision: int
    messages: Sequence[Mapping[str, str]]
    responses: Sequence[str]
    scale: int = 3
    aspects: Sequence[str] = ()
    flag_reasons: Sequence[str] = FLAG_REASONS
    justification: Literal["off", "optional", "required"] = "optional"
    edit: bool = True


@dataclass(frozen=True)
class Event:
    """What a person said. Fields that do not belong to its kind are empty.

    Args:
        event_id: this saying, the same in each attempt; goes back as `reply_to`.
        assignment, revision: of the task shown; `undo`: the assignment to take back (kind `undo` only).
        strength: negative where A (left) is better, 0 but for `preference`.
        ranking: the place of each answer shown, 1 the best.
        aspects: a strength each, signed like `strength`.
        flags: reasons; for kind `flag`, why nobody should judge this task.
        edits: {index shown: the corrected text}.
        visible_ms: how long the task stood on a visible page.
    """

    event_id: str
    kind: EventKind
    assignment: str | None
    revision: int | None
    attempt: int = 1
    undo: str | None = None
    strength: int = 0
    ranking: tuple[int, ...] | None = None
    aspects: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    justification: str = ""
    edits: Mapping[int, str] = field(default_factory=dict)
    visible_ms: int = 0
    guidelines_version: int = 0

    @property
    def first_better(self) -> int:
        """The strength as the store counts: above 0 where the first answer shown, A, is better."""
        return -self.strength

    @property
    def aspects_first_better(self) -> dict[str, int]:
        """The aspects as the store counts: above 0 where the first answer shown, A, is better."""
        return {name: -strength for name, strength in self.aspects.items()}


def panel_parts() -> dict[str, Any]:
    """Keyword arguments for `gr.HTML`: template, style and script."""
    here = files("annotate.app.panel")
    html, css, drawing, script = (
        (here / name).read_text(encoding="utf-8") for name in ("panel.html", "panel.css", "drawing.js", "panel.js")
    )
    return {
        "html_template": html,
        "css_template": stylesheet() + css,
        "js_on_load": drawing + script,
        "apply_default_css": False,
    }


def panel_value(
    task: PanelTask | None,
    progress: Progress,
    *,
    guidelines: str = "",
    guidelines_version: int = 0,
    notice: str = "",
    notice_kind: Literal["info", "warning"] = "info",
    undo: str | None = None,
    reply_to: str | None = None,
    empty: tuple[str, str] = ("Nothing left to label", "Everything you can judge has been judged. Thank you."),
) -> dict[str, Any]:
    """The panel's value.

    Args:
        task: None shows `empty` (a title and a sentence).
        guidelines: Markdown.
        notice: a line above the task ("Undone.", "Saved, although your lease had run out.").
        undo: the assignment that Undo takes back; None where there is none.
        reply_to: the `event_id` this answers.

    Raises:
        InputError: not 2 to 9 answers.
    """
    value = {
        "view": "empty" if task is None else "task",
        "assignment": None,
        "revision": None,
        "mode": "pair",
        "reply_to": reply_to,
        "undo": undo,
        "progress": {each.name: getattr(progress, each.name) for each in fields(progress)},
        "guidelines": {"html": _laid_out(guidelines) if guidelines else "", "version": guidelines_version},
        "notice": {"text": notice, "kind": notice_kind} if notice else None,
        "empty": {"title": empty[0], "text": empty[1]},
    }
    return value if task is None else value | _task_fields(task)


@lru_cache(maxsize=32)
def _laid_out(guidelines: str) -> str:
    return render_response(guidelines)  # the same for every task of a project


def _task_fields(task: PanelTask) -> dict[str, Any]:
    if not 2 <= len(task.responses) <= 9:
        raise InputError("responses", len(task.responses), "expected 2 for a pair, or 3 to 9 for a ranking")
    raw = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in task.messages)
    return {
        "assignment": task.assignment,
        "revision": task.revision,
        "mode": "pair" if len(task.responses) == 2 else "rank",
        "conversation": {"html": render_messages(task.messages), "raw": raw_view(raw)},
        "answers": [{"html": render_response(text), "raw": raw_view(text)} for text in task.responses],
        "scale": task.scale,
        "aspects": list(task.aspects),
        "flag_reasons": list(task.flag_reasons),
        "justification": task.justification,
        "edit": task.edit,
    }


def read_event(data: Any) -> Event:
    """The event out of what the browser sent, which may be anything.

    Raises:
        InputError: a field is missing, unknown, or of another type than `Event` says.
    """
    if not isinstance(data, Mapping):
        raise InputError("event", data, "expected an object")
    known = {each.name for each in fields(Event)}
    for name in data.keys() - known:
        raise InputError("event", name, f"expected no field but {', '.join(sorted(known))}")
    said = {name: _typed(name, data[name]) for name in data}
    for name in ("event_id", "kind", "assignment", "revision"):
        if name not in said:
            raise InputError(f"event.{name}", None, "expected it in every event")
    if said["kind"] not in get_args(EventKind):
        raise InputError("event.kind", said["kind"], f"expected one of {', '.join(get_args(EventKind))}")
    return Event(**said)


def _typed(name: str, value: Any) -> Any:
    """The value with its JSON types turned into those of `Event`."""
    if name in ("assignment", "undo", "revision", "ranking") and value is None:
        return None
    if name in ("event_id", "kind", "assignment", "undo", "justification"):
        return _check(name, value, isinstance(value, str), "text")
    if name in ("flags", "ranking"):
        each_is = _is_integer if name == "ranking" else lambda item: isinstance(item, str)
        return tuple(_check(name, value, isinstance(value, list) and all(map(each_is, value)), "a list"))
    if name == "aspects":
        return _check(
            name, value, isinstance(value, dict) and all(map(_is_integer, value.values())), "an integer for each aspect"
        )
    if name == "edits":
        good = isinstance(value, dict) and all(key.isdecimal() and isinstance(text, str) for key, text in value.items())
        return {int(key): text for key, text in _check(name, value, good, "a text for each index").items()}
    return _check(name, value, _is_integer(value), "an integer")


def _check(name: str, value: Any, good: bool, expected: str) -> Any:
    if not good:
        raise InputError(f"event.{name}", value, f"expected {expected}")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
