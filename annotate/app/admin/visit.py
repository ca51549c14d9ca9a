"""What a page is given, what it may answer, and how it reads what the browser sent, which may be anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from annotate.store.database import Database
from annotate.store.projects import Project
from annotate.store.users import User
from rlhf_kit.errors import InputError


@dataclass(frozen=True)
class Visit:
    """An admin at a page. `project` is None where there is none yet; `fields` are texts."""

    database: Database
    user: User
    project: Project | None
    fields: Mapping[str, str] = field(default_factory=dict)

    def chosen(self) -> Project:
        """The project at hand.

        Raises:
            InputError: there is none.
        """
        if self.project is None:
            raise InputError("project", None, "create one first")
        return self.project

    def text(self, name: str) -> str:
        """A field's text, as it was typed."""
        if name not in self.fields:
            raise InputError(name, None, "which is missing")
        return self.fields[name]

    def number(self, name: str) -> float:
        """A field as a finite number."""
        said = self.text(name).strip()
        try:
            value = float(said)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(name.replace("_", " "), said, "expected a number")
        return value

    def whole(self, name: str) -> int:
        """A field as a whole number that both databases can hold."""
        value = self.number(name)
        if value != int(value) or abs(value) >= 2**31:
            raise InputError(name.replace("_", " "), self.text(name), "expected a whole number")
        return int(value)

    def one_of(self, name: str, options: Sequence[str]) -> str:
        """A field that must be one of `options`."""
        if self.text(name) not in options:
            raise InputError(name.replace("_", " "), self.text(name), f"expected one of {', '.join(options)}")
        return self.text(name)


@dataclass(frozen=True)
class Reply:
    """What an action answers.

    Args:
        notice: a line above the page.
        part: markup for the page's element `data-part`; the page is shown anew where None.
        project: the name of a project to go on with.
    """

    notice: str = ""
    part: str | None = None
    project: str | None = None


@dataclass(frozen=True)
class Page:
    """A page: `show` draws it, `actions` are what its forms and buttons do, by name."""

    title: str
    show: Callable[[Visit], str]
    actions: Mapping[str, Callable[[Visit], Reply]] = field(default_factory=dict)
