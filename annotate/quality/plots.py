"""The quality report as figures: inline SVG in cards, and the whole of it as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from rlhf_kit.evaluation.charts import Guide, Row, Series, histogram, interval_chart, line_chart
from rlhf_kit.evaluation.figures import card
from rlhf_kit.evaluation.page import page
from rlhf_kit.wording import count, number, percent

MOST_ROWS = 40  # annotators in a chart; those that most need a look come first
CHANCE = Guide(0.5, 0.5, "chance")


def quality_figures(report: Mapping[str, Any]) -> dict[str, str]:
    """The plots of a `quality_report` as HTML cards by name; one without anything to show is left out."""
    drawn = {
        "over_time": _over_time(report),
        "reliability": _annotators(
            report,
            "reliability",
            "Reliability",
            "Expected share of right labels (Dawid and Skene's model), the lowest first. Orange: there is a flag.",
        ),
        "gold": _annotators(report, "gold", "Gold accuracy", "Share of items of known answer that were answered right."),
        "left": _annotators(
            report,
            "left",
            "Left side preferred",
            "Sides are drawn at random, so that an interval which stays off the dashed line is the annotator's own lean.",
            guide=CHANCE,
        ),
        "seconds": _seconds(report),
        "ranking": _ranking(
            report, "ranking", "Models", "Bradley-Terry strengths with bootstrap intervals: log-odds, 0 is the mean."
        ),
        "ranking_at_equal_length": _ranking(
            report,
            "ranking_at_equal_length",
            "Models, at equal length",
            "The same strengths with the length of answers held equal.",
        ),
    }
    return {name: figure for name, figure in drawn.items() if figure}


def _over_time(report: Mapping[str, Any]) -> str:
    rows = [row for row in report["over_time"] if row["agreement"]["value"] is not None]
    if not rows:
        return ""
    items = [float(row["items"]) for row in rows]
    lines = [Series("agreement", items, [row["agreement"]["value"] for row in rows], style="both")]
    for end in ("low", "high"):
        lines.append(Series(f"{end} end", items, [row["agreement"][end] for row in rows], style="line", dashed=True))
    svg = line_chart(lines, name="Agreement over time", x_label="items finished", y_format=percent)
    caption = "Share of pairs of labels that name the same winner, window by window, with the ends of its interval dashed."
    return card("Agreement over time", "", svg, caption)


def _annotators(report: Mapping[str, Any], key: str, title: str, caption: str, guide: Guide | None = None) -> str:
    known = [p for p in report["annotators"] if p[key]["value"] is not None]
    if not known:
        return ""
    # The lean to a side is bad either way; of all else, little is bad.
    badness: Callable[[Any], float] = (lambda p: -abs(p[key]["value"] - 0.5)) if guide else (lambda p: p[key]["value"])
    worst = sorted(known, key=badness)[:MOST_ROWS]
    rows = [_row(p["annotator"], p[key], 2 if p["flags"] else 1) for p in worst]
    svg = interval_chart(rows, name=title, x_label="share, with 95 % interval", x_format=percent, guide=guide)
    left_out = f" {count(len(known) - len(rows))} more are not shown." if len(known) > len(rows) else ""
    return card(title, "", svg, caption + left_out)


def _row(label: object, estimate: Mapping[str, Any], colour: int = 1) -> Row:
    return Row(str(label), estimate["value"], estimate["low"], estimate["high"], colour)


def _seconds(report: Mapping[str, Any]) -> str:
    found = report["seconds"]
    if not found["n"]:
        return ""
    svg = histogram(found["edges"], found["judgments"], name="Time for a judgment", x_label="seconds", unit=" s")
    middle = number(found["quantiles"]["0.5"])
    return card("Time for a judgment", "", svg, f"The median is {middle} seconds. A hump on the far left was not read.")


def _ranking(report: Mapping[str, Any], key: str, title: str, caption: str) -> str:
    found = report[key]
    rows = [_row(row["model"], row["strength"]) for row in found["models"] if row["strength"]["value"] is not None]
    if not rows:
        return ""
    svg = interval_chart(rows, name=title, x_label="strength", guide=Guide(0.0, 0.0, "mean"))
    if found["length"]["value"] is not None:
        caption += f" One standard deviation more of length is worth {number(found['length']['value'])}."
    return card(title, "", svg, caption)


def quality_page(report: Mapping[str, Any], title: str = "Label quality") -> str:
    """One self-contained HTML page of a `quality_report`: the measures of agreement, what to look at, and the figures."""
    counts = report["counts"]
    verdict = f"{count(counts['labels'])} labels of {count(counts['items'])} pairs by {count(counts['annotators'])} annotators."
    winner, strength = report["agreement"]["winner"], report["agreement"]["strength"]
    tiles = [
        _tile("Raw agreement", winner["raw"], percent),
        _tile("Fleiss\u2019 kappa", winner["fleiss"], number),
        _tile("Krippendorff\u2019s alpha", winner["alpha"], number),
        _tile("Alpha, ordinal", strength["alpha"], number),
    ]
    notes = [
        f'<div class="note"><span class="flag no">!</span><span class="text"><b>{escape(str(p["annotator"]))}</b>: '
        f"{escape(flag['sentence'])}</span></div>"
        for p in report["annotators"]
        for flag in p["flags"]
    ] or ['<div class="note"><span class="flag ok">\u2713</span><span class="text">Nobody is flagged.</span></div>']
    body = (
        f'<header><p class="eyebrow">Label quality</p><h1>{escape(title)}</h1><p class="verdict">{verdict}</p></header>'
        f'<div class="tiles">{"".join(tiles)}</div><h2>Look at</h2><div class="card health">{"".join(notes)}</div>'
        f'<h2>Figures</h2><div class="grid">{"".join(quality_figures(report).values())}</div>'
    )
    return page(title, body)


def _tile(label: str, estimate: Mapping[str, Any], form: Callable[[float], str]) -> str:
    value, sub = "\u2013", estimate["reason"]
    if estimate["value"] is not None:
        value = form(estimate["value"])
        ends = "" if estimate["low"] is None else f"{form(estimate['low'])} to {form(estimate['high'])}, "
        sub = f"{ends}{count(estimate['n'])} items" + (f"; {sub}" if sub else "")
    return (
        f'<div class="card tile"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="sub">{escape(sub)}</div></div>'
    )
