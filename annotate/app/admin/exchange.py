"""Comparisons in, training data out. Files travel by `annotate.app.rest_admin`; these pages hold the forms."""

from __future__ import annotations

from annotate.app.admin.parts import Html, card, check, choose, field, form, join, table, tag, when
from annotate.app.admin.visit import Page, Reply, Visit
from annotate.app.guard import IMPORT as IMPORT_PATH
from annotate.app.guard import LARGEST_IMPORT
from annotate.app.rest_admin import EXPORT as EXPORT_PATH
from annotate.demo import demo_comparisons
from annotate.export_rows import ExportSettings
from annotate.importing import Report, add_all
from annotate.store.audit import list_exports
from rlhf_kit.data.files import ROW_SUFFIXES
from rlhf_kit.errors import InputError
from rlhf_kit.wording import count

MOST_DEMO = 2000
PREFERENCES = {"pairs": "pairs to be judged", "gold": "gold items, whose answer is known"}
CHOICES = {
    "prompt": ("Prompt", {"explicit": "a column of its own", "implicit": "at the beginning of chosen and rejected"}),
    "style": ("Text", {"conversational": "lists of messages", "plain": "plain strings"}),
    "format": ("Format", {"jsonl": "JSON lines", "parquet": "Parquet", "datasets": "a datasets folder"}),
    "aggregate": ("Several votes on a pair", {"mean": "the mean strength decides", "majority": "the majority decides"}),
}
NUMBERS = {
    "test_fraction": ("Share of prompts for the test split", "A prompt stays on its side as the data grows."),
    "min_votes": ("Fewest votes on a comparison", "Unless an adjudicator decided it."),
}
BOXES = {
    "margin": "the margin: how much better the chosen answer is",
    "late": "votes that came late",
    "flagged": "votes with marks beside them",
    "gold": "gold items",
}


def show_import(visit: Visit) -> str:
    """The page of what comes in."""
    project = visit.chosen()
    accepted = ", ".join(ROW_SUFFIXES)
    upload = form(
        "upload",
        field(
            "file", "File", kind="file", hint=f"{accepted}; {LARGEST_IMPORT >> 20} MiB at most.", required=True, accept=accepted
        ),
        choose("preferences", "Rows of chosen and rejected are", PREFERENCES),
        check("skip_bad", "leave bad rows out and count them, instead of storing nothing"),
        tag("progress", max="1", value="0", hidden=True, aria_label="Sent"),
        button="Import",
        data_upload=IMPORT_PATH,
    )
    demo = form(
        "demo",
        field("pairs", "Pairs", 200, kind="number", min="0", max=str(MOST_DEMO)),
        field("rankings", "Rankings of four", 20, kind="number", min="0", max=str(MOST_DEMO)),
        button="Load the demo",
        class_="inline",
    )
    about = "Short stories from three made-up writers, with gold items among them: something to try the app with."
    return join(
        (
            card(f"A file for {project.name}", tag("p", FORMS, class_="soft"), upload),
            card("The demo", tag("p", about, class_="soft"), demo),
        )
    )


FORMS = Html(
    "One comparison a row: <code>prompt</code> with <code>response_a</code> and <code>response_b</code>, or with "
    "<code>responses</code> (2 to 9), or <code>chosen</code> and <code>rejected</code>. The same file again adds nothing twice."
)


def demo(visit: Visit) -> Reply:
    """Comparisons from the embedded world."""
    pairs, rankings = visit.whole("pairs"), visit.whole("rankings")
    for name, value in (("pairs", pairs), ("rankings", rankings)):
        if not 0 <= value <= MOST_DEMO:
            raise InputError(name, value, f"expected 0 to {MOST_DEMO}")
    report = add_all(visit.database, visit.chosen().id, demo_comparisons(pairs, rankings), Report(), by=visit.user.id)
    return Reply(f"{count(report.added)} comparisons added, {count(report.duplicates)} were there")


def show_export(visit: Visit) -> str:
    """The page of what goes out."""
    project = visit.chosen()
    standard = ExportSettings()
    controls = (
        *(choose(name, label, options, getattr(standard, name)) for name, (label, options) in CHOICES.items()),
        *(_number(name, getattr(standard, name)) for name in NUMBERS),
        field("without", "Without the votes of", hint="Names, with commas between."),
    )
    boxes = (check(name, words, getattr(standard, name)) for name, words in BOXES.items())
    kept = tag("fieldset", tag("legend", "Keep"), *boxes, class_="boxes")
    done = [
        (tag("td", when(each.created), class_="time"), each.user or "the command line", tag("code", each.manifest_hash))
        for each in list_exports(visit.database, project.id)
    ]
    note = (
        "TRL\u2019s preference format with a manifest and a data card, as one .zip. "
        "Votes that were exported can no longer be undone."
    )
    return join(
        (
            card(
                f"Training data of {project.name}",
                tag("p", note, class_="soft"),
                form("download", tag("div", *controls, class_="columns"), kept, button="Export", data_download=EXPORT_PATH),
            ),
            card("Past exports", table("Past exports", ("Time, UTC", "Who", "SHA-256 of the manifest"), done, empty="None yet.")),
        )
    )


def _number(name: str, standard: float) -> Html:
    label, hint = NUMBERS[name]
    return field(name, label, standard, kind="number", min="0", step="1" if isinstance(standard, int) else "any", hint=hint)


IMPORT = Page("Import", show_import, {"demo": demo})
EXPORT = Page("Export", show_export)
