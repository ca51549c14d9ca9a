"""How far people agree, whom to look at, and how the models stand: the report of `annotate.quality` as a page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from annotate.app.admin.parts import Html, card, estimate, figure, figure_head, join, press, table, tag
from annotate.app.admin.visit import Page, Visit
from annotate.quality.plots import quality_figures
from annotate.quality.report import quality_report
from annotate.standing import last_judgment
from annotate.stats import project_judgments
from annotate.store.database import Database
from rlhf_kit.wording import count, number

MEASURES = {
    "raw": ("Raw agreement", "the share of pairs of votes on one comparison that name the same winner"),
    "fleiss": ("Fleiss\u2019 kappa", "beyond chance: 0 is what guessing gives, 1 is perfect"),
    "alpha": ("Krippendorff\u2019s alpha", "beyond chance, with any number of votes a comparison"),
}
ORDINAL = ("Alpha of strengths", "beyond chance, near misses on the scale count for something")


def show(visit: Visit) -> str:
    """The page."""
    project = visit.chosen()
    with visit.database.read() as connection:
        newest = last_judgment(connection, project.id)
    report = _report(visit.database, project.id, newest)
    if report is None:
        return card("No votes on pairs yet", tag("p", "Agreement is measured on pairs. It appears with the first votes."))
    counts = report["counts"]
    parts = (_many(counts["labels"], "vote"), _many(counts["items"], "pair"), _many(counts["annotators"], "person", "people"))
    words = "{} on {} by {}.".format(*parts)
    figures = Html("".join(quality_figures(report).values()))
    return join(
        (
            tag("div", tag("p", words, class_="lead"), press("show", "Refresh"), class_="above"),
            card("Agreement", _agreement(report["agreement"]), _pairs(report["pairs"])),
            card("Look at", _flags(report["annotators"])),
            card("People", _people(report["annotators"])),
            card("Models", _models(report["ranking"], report["ranking_at_equal_length"])),
            tag("div", tag("div", figures, class_="grid"), class_="figures"),
        )
    )


@lru_cache(maxsize=4)
def _report(database: Database, project: int, newest: int) -> dict[str, Any] | None:
    """The report as of the judgment `newest`, which is why it may be remembered: judgments are only ever added."""
    judgments = project_judgments(database, project)
    return quality_report(judgments) if judgments else None


def _agreement(found: Mapping[str, Any]) -> Html:
    rows = [
        (join((title, tag("small", meaning))), estimate(found["winner"][name], share=name == "raw"))
        for name, (title, meaning) in MEASURES.items()
    ]
    rows.append((join((ORDINAL[0], tag("small", ORDINAL[1]))), estimate(found["strength"]["alpha"])))
    return table("Agreement, with 95 % intervals", ("Measure", figure_head("Value")), rows)


def _pairs(found: list[dict[str, Any]]) -> Html:
    if not found:
        return Html("")
    rows = [(f"{each['first']} and {each['second']}", estimate(each["kappa"])) for each in found]
    inside = table("Cohen\u2019s kappa of two people", ("Two people", figure_head("Kappa")), rows)
    return tag("details", tag("summary", "Cohen\u2019s kappa, person by person"), inside)


def _flags(people: list[dict[str, Any]]) -> Html:
    flagged = [(each["annotator"], flag["sentence"]) for each in people for flag in each["flags"]]
    if not flagged:
        return tag("p", "Nobody stands out. Flags need at least 10 votes of a person.", class_="soft")
    return tag("ul", *(tag("li", tag("b", name), ": ", sentence) for name, sentence in flagged), class_="flags")


def _people(people: list[dict[str, Any]]) -> Html:
    head = (
        "Person",
        *map(figure_head, ("Votes", "Gold right", "With the others", "Kappa", "Reliability", "Left side", "Median, s")),
    )
    rows = [
        (
            join((each["annotator"], tag("span", "look", class_="badge") if each["flags"] else "")),
            figure(each["labels"]),
            *(estimate(each[key], share=key != "kappa") for key in ("gold", "agreement", "kappa", "reliability", "left")),
            figure("\u2013" if each["median_seconds"] is None else number(each["median_seconds"])),
        )
        for each in people
    ]
    return table("People, with 95 % intervals", head, rows)


def _models(plain: Mapping[str, Any], equal: Mapping[str, Any]) -> Html:
    if not plain["models"] or plain["reason"]:
        return tag("p", f"No ranking: {plain['reason'] or 'no two models are compared'}.", class_="soft")
    at_equal = {row["model"]: row["strength"] for row in equal["models"]}
    unknown = {"value": None, "reason": equal["reason"] or "not compared"}
    rows = [
        (
            row["model"] or "(no name)",
            estimate(row["strength"]),
            estimate(at_equal.get(row["model"], unknown)),
            figure(f"{100 * row['expected']:.0f} %"),
            figure(row["comparisons"]),
        )
        for row in plain["models"]
    ]
    names = ("Strength", "At equal length", "Expected wins", "Comparisons")
    note = tag("p", "Bradley\u2013Terry strengths in log-odds, 0 is the mean. Expected wins count a tie as half.", class_="soft")
    return join((note, table("Models, strongest first", ("Model", *map(figure_head, names)), rows)))


def _many(size: int, one: str, more: str = "") -> str:
    return f"{count(size)} {one if size == 1 else more or one + 's'}"


PAGE = Page("Quality", show)
