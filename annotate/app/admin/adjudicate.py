"""What people could not settle: one comparison at a time, with what each person said, and the admin's word on it.

Neither the models' names nor the canonical order are shown before the decision: an adjudicator can be biased like anybody else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import get_args

from annotate.app.admin.parts import Html, card, field, form, join, press, table, tag
from annotate.app.admin.visit import Page, Reply, Visit
from annotate.render import render_messages, render_response
from annotate.store.adjudication import (
    Case,
    Decision,
    DecisionKind,
    Said,
    decide,
    list_cases,
    list_disagreements,
    load_case,
    models_of,
    send_to_adjudication,
)
from annotate.store.verdicts import to_canonical, to_shown, turn
from rlhf_kit.errors import InputError

LETTERS = "ABCDEFGHI"
BY = {1: "slightly better", 2: "better", 3: "much better"}
LISTED = 50
MOST_REASON = 4000


def show(visit: Visit) -> str:
    """The page: `case` is the id of the comparison to look at; the first that waits where there is none."""
    project = visit.chosen()
    waiting = list_cases(visit.database, project.id, LISTED)
    split = list_disagreements(visit.database, project.id, LISTED)
    case = waiting[0] if waiting else None
    if "case" in visit.fields:
        case = load_case(visit.database, project.id, visit.whole("case"))
    chosen = case.comparison if case else None
    lists = tag(
        "aside",
        _list("Waiting", waiting, chosen, "Nothing waits for you."),
        _list("People disagree", split, chosen, "Nobody contradicts anybody."),
        class_="lists",
    )
    here = _case(case, project.settings.scale) if case else card("Nothing waits", tag("p", NOTHING, class_="soft"))
    return tag("div", lists, tag("div", here, class_="case"), class_="split")


NOTHING = (
    "Comparisons come here when several people skip them or somebody flags them. "
    "Those on which people disagree can be opened from the list."
)


def _list(title: str, cases: Sequence[Case], chosen: int | None, empty: str) -> Html:
    entries = [
        tag("li", press("show", _line(case), case=case.comparison, current="true" if case.comparison == chosen else None))
        for case in cases
    ]
    more = f" ({len(cases)}{'+' if len(cases) == LISTED else ''})" if cases else ""
    return card(f"{title}{more}", tag("ol", *entries) if entries else tag("p", empty, class_="soft"))


def _line(case: Case) -> Html:
    question, shown = " ".join(str(case.messages[-1]["content"]).split()), drawn_order(case)
    heard = ", ".join(words(each, shown) for each in case.said[:4]) + (", \u2026" if len(case.said) > 4 else "")
    return join((tag("span", question[:90] or "(an empty message)"), tag("small", f"#{case.comparison}: {heard or 'sent here'}")))


def drawn_order(case: Case) -> list[int]:
    """`shown[place on the screen] = canonical position`: drawn by the comparison's id, so that it is the same at each look."""
    order = list(range(len(case.responses)))
    Random(hashlib.sha256(f"adjudicated {case.comparison}".encode()).digest()).shuffle(order)
    return order


def _case(case: Case, scale: int) -> Html:
    shown = drawn_order(case)
    answers = [
        tag("section", tag("h3", f"Answer {LETTERS[place]}"), Html(render_response(case.responses[position])), class_="answer")
        for place, position in enumerate(shown)
    ]
    talk = tag("div", Html(render_messages(case.messages)), class_="talk")
    said = [(each.user, words(each, shown), _marks(each)) for each in case.said]
    heard = table("What people said", ("Person", "Said", "Why"), said, empty="Nobody has answered: it was sent here by an admin.")
    state = "" if case.state == "adjudicate" else tag("span", case.state, class_="badge")
    return join(
        (
            card(f"Comparison #{case.comparison}", state, talk),
            tag("div", *answers, class_="answers"),
            card("What people said", heard),
            card("Your decision", _decision(case, scale), *([_send(case)] if case.state in ("open", "done") else [])),
        )
    )


def _decision(case: Case, scale: int) -> Html:
    verdicts = _places(len(case.responses)) if case.kind == "rank" else _radios(_sides(scale))
    others = _radios({"discard": "Leave it out of all exports", "reopen": "Let people judge it after all"}, checked=None)
    if case.kind == "rank":
        others = join((_radios({"rank": "The places above"}), others))
    reason = field("reason", "Reason", hint="It stays on record beside the decision.", maxlength=str(MOST_REASON))
    hidden = tag("input", type="hidden", name="case", value=case.comparison)
    fields = tag("fieldset", tag("legend", "Decision", class_="unseen"), verdicts, others)
    return form("decide", hidden, fields, reason, button="Decide")


def _send(case: Case) -> Html:
    note = tag("p", "Or keep it from people until somebody has decided:", class_="soft")
    return join((note, press("send", "Put it among those that wait", case=case.comparison)))


def _sides(scale: int) -> dict[str, str]:
    """Radios from A to B; the value is the strength as shown."""
    by = {1: "better"} if scale == 1 else BY
    first = {f"+{size}": f"A {by[size]}" for size in range(scale, 0, -1)}
    second = {f"-{size}": f"B {by[size]}" for size in range(1, scale + 1)}
    return {**first, "tie": "Tie", **second, "both_bad": "Both bad"}


def _radios(options: dict[str, str], checked: str | None = None) -> Html:
    return tag(
        "div",
        *(
            tag(
                "label",
                tag("input", type="radio", name="verdict", value=value, required=True, checked=value == checked),
                " ",
                text,
            )
            for value, text in options.items()
        ),
        class_="radios",
    )


def _places(answers: int) -> Html:
    fields = [
        field(f"place_{place}", f"Place of {LETTERS[place]}", place + 1, kind="number", min="1", max=str(answers))
        for place in range(answers)
    ]
    return tag("div", *fields, class_="columns places")


def words(said: Said, shown: Sequence[int]) -> str:
    """What a person said, in the order shown here."""
    if said.kind == "preference" and said.strength:
        strength = turn(said.strength, shown)
        return f"{'A' if strength > 0 else 'B'} {BY[abs(strength)]}"
    if said.kind == "rank" and said.ranking is not None:
        places = to_shown(said.ranking, shown)
        order = sorted(range(len(places)), key=places.__getitem__)
        line = LETTERS[order[0]]
        for before, after in pairwise(order):
            line += (" = " if places[before] == places[after] else " > ") + LETTERS[after]
        return line
    return {"tie": "Tie", "both_bad": "Both bad", "skip": "Skipped", "flag": "Flagged"}[said.kind]


def _marks(said: Said) -> Html:
    marks = [*said.flags, *(["late"] if said.late else [])]
    return join((*(tag("span", mark, class_="badge") for mark in marks), said.justification or ("" if marks else "\u2013")))


def settle(visit: Visit) -> Reply:
    """Store the admin's word and tell whose answers they were."""
    case = load_case(visit.database, visit.chosen().id, visit.whole("case"))
    shown = drawn_order(case)
    decide(visit.database, case.comparison, _read(visit, case, shown), by=visit.user.id)
    if visit.text("verdict") == "reopen":
        return Reply(f"Comparison #{case.comparison} is with people again")
    models = models_of(visit.database, case.comparison)
    names = ", ".join(f"{LETTERS[place]} was {models[position] or 'of no named model'}" for place, position in enumerate(shown))
    return Reply(f"Comparison #{case.comparison} is decided: {names}")


def _read(visit: Visit, case: Case, shown: Sequence[int]) -> Decision:
    said, reason = visit.text("verdict"), visit.fields.get("reason", "").strip()
    if len(reason) > MOST_REASON:
        raise InputError("reason", reason, f"expected {MOST_REASON:,} characters at most")
    if said[:1] in ("+", "-"):
        return Decision("preference", turn(visit.whole("verdict"), shown), reason=reason)
    kind = visit.one_of("verdict", get_args(DecisionKind))
    if kind == "rank":
        places = [visit.whole(f"place_{place}") for place in range(len(shown))]
        return Decision("rank", ranking=to_canonical(places, shown), reason=reason)
    return Decision(kind, reason=reason)  # type: ignore[arg-type]  # one_of has checked it


def send(visit: Visit) -> Reply:
    """Put a comparison among those that wait."""
    case = load_case(visit.database, visit.chosen().id, visit.whole("case"))
    send_to_adjudication(visit.database, case.comparison, by=visit.user.id, reason="sent from the admin's pages")
    return Reply(f"Comparison #{case.comparison} waits for a decision")


PAGE = Page("Adjudicate", show, {"decide": settle, "send": send})
