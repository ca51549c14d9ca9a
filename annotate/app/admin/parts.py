"""HTML for the admin's pages. What is not `Html` is text and gets escaped, so that forgetting it cannot let markup through."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from annotate.render.text import escape
from rlhf_kit.wording import count, number

VOID = ("input", "progress")


class Html(str):
    """Text that is markup already."""


def text(value: object) -> Html:
    """`value` as markup: itself where it is `Html`, else escaped, hidden characters made visible."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """The parts, one after another."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: Any) -> Html:
    """An element. `class_` is `class`, `_` elsewhere is `-`; an attribute that is None or False is left out, True stands bare."""
    words = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    opened = f"<{name}{words}>"
    return Html(opened if name == "input" else f"{opened}{join(content)}</{name}>")


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"'


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], *, empty: str = "Nothing yet.") -> Html:
    """A table that scrolls sideways in itself where the screen is too narrow. Columns of numbers stand right, see `figure`."""
    body = [tag("tr", *(each if each.startswith("<td") else tag("td", each) for each in map(text, row))) for row in rows]
    if not body:
        return tag("p", empty, class_="soft")
    top = tag("thead", tag("tr", *(each if each.startswith("<th") else tag("th", each, scope="col") for each in map(text, head))))
    return tag(
        "div",
        tag("table", tag("caption", caption, class_="unseen"), top, tag("tbody", *body)),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def figure(value: object) -> Html:
    """A cell of a number."""
    return tag("td", count(value) if isinstance(value, int) else value, class_="figure")


def figure_head(words: str) -> Html:
    """The heading of a column of numbers."""
    return tag("th", words, scope="col", class_="figure")


def card(title: str, /, *content: object, **attributes: Any) -> Html:
    """A titled box."""
    return tag("section", tag("h2", title), *content, class_="card", **attributes)


def facts(pairs: Mapping[str, object], notes: Mapping[str, str] | None = None) -> Html:
    """Names with their values, side by side, each with a note below where there is one."""
    notes = notes or {}
    cells = [
        tag("div", tag("dt", name), tag("dd", value, *([tag("small", notes[name])] if notes.get(name) else [])))
        for name, value in pairs.items()
    ]
    return tag("dl", *cells, class_="facts")


def form(action: str, /, *content: object, button: str, **attributes: Any) -> Html:
    """A form that sends its fields with `action`."""
    end = tag("div", tag("button", button, type="submit", class_="primary"), class_="end")
    return tag("form", *content, end, data_action=action, **attributes)


def field(name: str, label: str, value: object = "", *, kind: str = "text", hint: str = "", **attributes: Any) -> Html:
    """A labelled line of input."""
    return _labelled(label, hint, tag("input", name=name, type=kind, value=value, autocomplete="off", **attributes))


def area(name: str, label: str, value: str = "", *, hint: str = "", **attributes: Any) -> Html:
    """A labelled box of text."""
    # A line feed right after the tag is dropped by the parser, so one is given to drop.
    words = Html("\n" + html.escape(value))
    return _labelled(label, hint, tag("textarea", words, name=name, **attributes))


def choose(name: str, label: str, options: Mapping[str, str], chosen: object = None, *, hint: str = "") -> Html:
    """A labelled choice from `{value: words}`."""
    listed = [tag("option", words, value=value, selected=str(chosen) == value) for value, words in options.items()]
    return _labelled(label, hint, tag("select", *listed, name=name))


def check(name: str, label: str, checked: bool = False) -> Html:
    """A box to tick, sent as "true"."""
    return tag("label", tag("input", type="checkbox", name=name, value="true", checked=checked), " ", label, class_="check")


def press(action: str, words: str, **fields: object) -> Html:
    """A button that sends `action` with `fields`, all that there is to say."""
    data = {f"data_{key}": value for key, value in fields.items()}
    return tag("button", words, type="button", data_action=action, **data)


def _labelled(label: str, hint: str, control: Html) -> Html:
    return tag("label", tag("span", label), control, *([tag("small", hint)] if hint else []))


def when(seconds: float) -> str:
    """A time as people write it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %b %Y %H:%M")


def duration(seconds: float) -> str:
    """How long, in the unit that leaves one or two digits."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{number(round(seconds / size, 1))} {name}"
    return "under 2 minutes"


def estimate(found: Mapping[str, Any], *, share: bool = False) -> Html:
    """A figure with its interval below, or the reason why there is none."""
    form_ = (lambda value: f"{100 * value:.0f} %") if share else (lambda value: f"{value:.2f}".replace("-", "\u2212"))
    if found["value"] is None:
        return tag("td", tag("span", "undefined", class_="soft"), tag("small", found["reason"]), class_="figure")
    ends = "" if found["low"] is None else f"{form_(found['low'])} to {form_(found['high'])}"
    return tag("td", form_(found["value"]), tag("small", ends or found["reason"]), class_="figure", title=found["reason"] or None)
