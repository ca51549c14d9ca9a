"""People: who may come in, as what, and with which password."""

from __future__ import annotations

import secrets
from typing import Any, get_args

from annotate.app.admin.parts import Html, card, choose, field, form, join, press, table, tag
from annotate.app.admin.visit import Page, Reply, Visit
from annotate.store.users import Role, User, create_user, list_users, set_active, set_password, set_role
from rlhf_kit.errors import InputError

ROLES = {"annotator": "annotator: judges", "admin": "admin: judges and sees these pages"}


def show(visit: Visit) -> str:
    """The page."""
    head = ("Name", "Role", "State", tag("span", "What to do", class_="unseen"))
    rows = [_row(each, visit.user) for each in list_users(visit.database)]
    new = form(
        "create",
        field("name", "Name", required=True, maxlength="200", autocapitalize="none"),
        choose("role", "Role", ROLES),
        button="Add",
        class_="inline",
    )
    note = tag(
        "p", "The password is drawn here and shown once. It is stored as a hash alone, so nobody can look it up.", class_="soft"
    )
    return join((card("Everybody", table("Everybody", head, rows)), card("Add a person", note, new)))


def _row(person: User, me: User) -> tuple[object, ...]:
    name = join((person.name, tag("span", "you", class_="badge") if person.id == me.id else ""))
    state = "active" if person.active else tag("span", "disabled", class_="soft")
    return name, person.role, state, tag("td", *_buttons(person, me), class_="do")


def _buttons(person: User, me: User) -> list[Html]:
    ask = f"Give {person.name} a new password? They are logged out."
    found = [press("reset", "New password", user=person.id, ask=ask, label=f"New password for {person.name}")]
    if person.id == me.id:
        return found  # the store refuses the rest
    other = "annotator" if person.role == "admin" else "admin"
    found.append(press("role", f"Make {other}", user=person.id, role=other, label=f"Make {person.name} {other}"))
    if person.active:
        ask = f"Disable {person.name}? They are logged out at once. What they said stays."
        return [*found, press("disable", "Disable", user=person.id, ask=ask, label=f"Disable {person.name}")]
    return [*found, press("enable", "Enable", user=person.id, label=f"Enable {person.name}")]


def create(visit: Visit) -> Reply:
    """Add a person with a password that is shown once."""
    password = secrets.token_urlsafe(12)
    made = create_user(visit.database, visit.text("name").strip(), password, _role(visit), by=visit.user.id)
    return Reply(f"{made.name} may log in with the password {password}, shown this once")


def reset(visit: Visit) -> Reply:
    """Give a person another password, shown once."""
    person, password = _person(visit), secrets.token_urlsafe(12)
    set_password(visit.database, person.id, password, by=visit.user.id)
    return Reply(f"The new password of {person.name} is {password}, shown this once")


def enable(visit: Visit) -> Reply:
    """Let a person in again."""
    person = _person(visit)
    set_active(visit.database, person.id, True, by=visit.user.id)
    return Reply(f"{person.name} may log in again")


def disable(visit: Visit) -> Reply:
    """Let a person in no more."""
    person = _person(visit)
    set_active(visit.database, person.id, False, by=visit.user.id)
    return Reply(f"{person.name} is disabled and logged out")


def role(visit: Visit) -> Reply:
    """Make a person an admin, or an annotator again."""
    person, chosen = _person(visit), _role(visit)
    set_role(visit.database, person.id, chosen, by=visit.user.id)
    return Reply(f"{person.name} is {'an' if chosen[0] == 'a' else 'a'} {chosen} now, and has to log in again")


def _role(visit: Visit) -> Any:
    return visit.one_of("role", get_args(Role))


def _person(visit: Visit) -> User:
    key = visit.whole("user")
    found = next((each for each in list_users(visit.database) if each.id == key), None)
    if found is None:
        raise InputError("user", key, "which does not exist")
    return found


PAGE = Page("People", show, {"create": create, "reset": reset, "enable": enable, "disable": disable, "role": role})
