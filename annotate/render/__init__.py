"""Model text to safe HTML, on the server: `render_response`, `render_messages`, `raw_view`, and their `stylesheet`.

What is promised of every text, and tested in a real browser on a generated corpus:

- Nothing in it runs, loads, navigates, takes a name in the page, or is drawn outside its container.
- Nothing in it is lost. Take away white space and the ASCII characters that Markdown consumes (`MARKUP`): what is left of the
  source and of the rendered text (`textContent`, a formula counted by its TeX annotation) is the same, in the same order.
  NUL and lone surrogates, which HTML cannot hold, appear as ␀ and �; what exceeds `LIMIT` is announced as cut.
- `raw_view` keeps every character, and the time taken is in proportion to the length.

Pure functions; neither gradio nor torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from annotate.render.markdown import TooCostly, render_markdown
from annotate.render.text import displayable, escape
from rlhf_kit.errors import InputError

__all__ = ["LIMIT", "MARKUP", "displayable", "raw_view", "render_messages", "render_response", "stylesheet"]

LIMIT = 40_000  # characters that are laid out; about 10,000 tokens
MARKUP = frozenset("\\`*_#>+-=~|:$[]")

_ROLES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


def render_response(text: str) -> str:
    """HTML of one answer, a `<div class="md">`.

    Longer text than `LIMIT` is cut at a line, and a note says so; text whose markup is too costly is shown unformatted.

    Raises:
        InputError: when `text` is not a string.
    """
    _check_text("text", text)
    shown, notes = text, ""
    if len(text) > LIMIT:
        line = text.rfind("\n", LIMIT // 2, LIMIT)
        shown = text[: line if line > 0 else LIMIT]
        notes = _note(f"Cut here: {len(shown):,} of {len(text):,} characters are shown. The raw view has them all.")
    try:
        body = render_markdown(shown)
    except (TooCostly, RecursionError):
        notes += _note("Shown without formatting: its markup is too tangled to lay out.")
        body = f"<pre>\n{escape(shown)}</pre>"
    return f'<div class="md">{body}{notes}</div>'


def render_messages(messages: Sequence[Mapping[str, str]]) -> str:
    """HTML of a conversation, one `<section>` a turn: `[{"role": "user", "content": "..."}, ...]`.

    Raises:
        InputError: when a message lacks a string `role` or `content`.
    """
    turns = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"messages[{index}]", message, "expected an object with role and content")
        for key in ("role", "content"):
            _check_text(f"messages[{index}].{key}", message.get(key))
        role = message["role"]
        kind = role if role in _ROLES else "other"
        name = _ROLES.get(role) or escape(role)
        body = f'<div class="md-role">{name}</div>{render_response(message["content"])}'
        turns.append(f'<section class="md-turn md-turn-{kind}">{body}</section>')
    return "".join(turns)


def raw_view(text: str) -> str:
    """The exact text in a `<pre>`: its `textContent` is `displayable(text)`, character for character.

    Raises:
        InputError: when `text` is not a string.
    """
    _check_text("text", text)
    return f'<pre class="md-raw">\n{escape(text)}</pre>'


def stylesheet() -> str:
    """The CSS of everything rendered here, for light and dark; colours are custom properties that a page may set."""
    return (files("annotate.render") / "style.css").read_text(encoding="utf-8")


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str):
        raise InputError(field, text, "expected a string")


def _note(text: str) -> str:
    return f'<p class="md-note" role="note">{text}</p>'
