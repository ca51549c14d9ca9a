"""How far the project is, who did how much, and the votes over time."""

from __future__ import annotations

from annotate.app.admin.parts import Html, card, duration, facts, figure, figure_head, join, press, table, tag, when
from annotate.app.admin.visit import Page, Visit
from annotate.store.progress import Progress, people_progress, project_progress, votes_over_time
from rlhf_kit.evaluation import figures
from rlhf_kit.evaluation.charts import Series
from rlhf_kit.wording import count, number

UNITS = ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))


def show(visit: Visit) -> str:
    """The page."""
    project = visit.chosen()
    found = project_progress(visit.database, project.id)
    people = [
        (each.name, figure(each.votes), figure(each.skips), figure(each.late), tag("td", when(each.last), class_="figure"))
        for each in people_progress(visit.database, project.id)
    ]
    head = (
        "Person",
        figure_head("Votes"),
        figure_head("Skipped or flagged"),
        figure_head("Late"),
        figure_head("Last answer, UTC"),
    )
    return join(
        (
            tag("div", tag("p", *_summary(found), class_="lead"), press("show", "Refresh"), class_="above"),
            _bar(found),
            card("Comparisons", facts(_comparisons(found))),
            card("Votes", facts(_votes(found), {"Votes that stand": "gold items and live chats too"}), _chart(visit, project.id)),
            card("People", table("People", head, people, empty="Nobody has answered yet.")),
        )
    )


def _summary(found: Progress) -> tuple[object, ...]:
    if not found.slots:
        return ("There is nothing to judge yet: ", tag("a", "import comparisons", href="#import"), ".")
    words = f"{count(found.slots_done)} of {count(found.slots)} judgments are in."
    if found.eta_seconds is None:
        return (words, " Nobody voted in the last hour, so there is no telling when the rest will be.")
    if not found.eta_seconds:
        return (words, " Nothing is open.")
    return (words, f" At the pace of late the rest takes {duration(found.eta_seconds)} more.")


def _bar(found: Progress) -> Html:
    share = found.slots_done / found.slots if found.slots else 0.0
    return tag("progress", value=f"{share:.4f}", max="1", aria_label="Judgments that are in")


def _comparisons(found: Progress) -> dict[str, object]:
    return {
        "Open": count(found.open),
        "Done": count(found.done),
        "Waiting for you": tag("a", count(found.adjudicate), href="#adjudicate") if found.adjudicate else "0",
        "Decided": count(found.decided),
    }


def _votes(found: Progress) -> dict[str, object]:
    return {
        "Votes that stand": count(found.votes),
        "With somebody now": count(found.leased),
        "Late": count(found.late),
        "An hour, at this pace": number(found.votes_per_hour),
    }


def _chart(visit: Visit, project: int) -> Html:
    points = votes_over_time(visit.database, project)
    if len(points) < 2:
        return Html("")
    start, end = points[0][0], points[-1][0]
    size, unit = next((size, name) for least, size, name in UNITS if end - start >= least)
    line = Series("votes", [(at - start) / size for at, _ in points], [float(total) for _, total in points])
    label = f"{unit} since {when(start)} UTC"
    drawn = figures.figure(
        "Votes over time", [line], "All votes that stand, by when they were given.", count, x_label=label, include=(0.0,)
    )
    return tag("div", Html(drawn), class_="figures")


PAGE = Page("Progress", show)
