"""From files to comparisons: what `recipes/sample_pairs.py` writes, rankings of up to nine answers, and TRL's preference rows.

A row is one of
    {prompt, response_a, response_b}        beside them model, checkpoint, sampling, rm_score, of one answer with _a or _b
    {prompt, responses: [text or {text or messages, model, checkpoint, sampling, rm_score}, ...]}
    {prompt, chosen, rejected}              in any form that `rlhf_kit.data.records` reads
and may say gold ({strength} or {ranking}, in the order of the answers), priority, propensity, sampled_by and overlap. A prompt is
a text or a list of messages; other columns are left alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from annotate.store.database import Database
from annotate.store.items import Checked, add_comparisons
from annotate.store.records import NewComparison, NewResponse
from annotate.store.verdicts import check_text
from rlhf_kit.data.files import iter_rows
from rlhf_kit.data.records import read_answer, read_preference, read_prompt, unknown_columns
from rlhf_kit.errors import InputError

Row = Mapping[str, Any]
Preferences = Literal["pairs", "gold"]
COLUMNS = "prompt and responses, or response_a and response_b, or chosen and rejected"
SHOWN_ERRORS = 5


@dataclass
class Report:
    """What became of the rows: comparisons added, had already, left out because two answers are equal (twins), and bad."""

    added: int = 0
    duplicates: int = 0
    twins: int = 0
    bad: int = 0
    errors: list[str] = field(default_factory=list)  # the first few of the bad ones

    def note(self, error: InputError) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(str(error))


def import_file(
    database: Database,
    project_id: int,
    source: str | Path,
    *,
    preferences: Preferences = "pairs",
    skip_bad: bool = False,
    by: int | None = None,
) -> Report:
    """Add a file's comparisons to a project. The same import again, after a crash too, adds only what is missing.

    Args:
        source: what `rlhf_kit.data.files.iter_rows` reads: JSON lines, also compressed, parquet, folders of those.
        preferences: whether rows of chosen and rejected come as pairs to be judged or as gold items, whose answer is known.
        skip_bad: leave bad rows out and count them. Otherwise the file is read to its end first, and nothing of one that has
            a bad row is stored.
    Raises:
        InputError: a bad row, by file, line and column; an unreadable file.
    """
    if not skip_bad:
        for _ in read_comparisons(source, preferences=preferences):
            pass
    report = Report()
    found = read_comparisons(source, preferences=preferences, report=report, on_bad=report.note if skip_bad else None)
    return add_all(database, project_id, found, report, by=by)


def add_all(
    database: Database, project_id: int, found: Iterable[NewComparison], report: Report, *, by: int | None = None
) -> Report:
    """Add comparisons in transactions of a few hundred, and say in `report` how many were new."""
    result = add_comparisons(database, project_id, found, by=by)
    report.added, report.duplicates = result.added, result.duplicates
    return report


def read_comparisons(
    source: str | Path,
    *,
    preferences: Preferences = "pairs",
    report: Report | None = None,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[NewComparison]:
    """The comparisons of a file, each known to be one that the store takes; the arguments are those of `read_rows`."""
    return (new for _, _, new in read_rows(source, preferences=preferences, report=report, on_bad=on_bad))


def read_rows(
    source: str | Path,
    *,
    preferences: Preferences = "pairs",
    report: Report | None = None,
    on_bad: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[str, Row, NewComparison]]:
    """`(where, row, comparison)` for each row of a file that the store takes.

    Args:
        report: where twins are counted.
        on_bad: gets the error of each bad row, and the reading goes on; raised where None.
    """
    for where, row in iter_rows(source, on_bad):
        try:
            new = read_comparison(where, row, preferences)
            if len({each.text for each in new.responses}) < len(new.responses):
                if report is not None:
                    report.twins += 1
                continue
            Checked(where, new)
        except InputError as error:
            if on_bad is None:
                raise
            on_bad(error)
        else:
            yield where, row, new


def read_comparison(where: str, row: Row, preferences: Preferences = "pairs") -> NewComparison:
    """One row, named `where` in errors, as a comparison.

    Raises:
        InputError: columns or values that are of no form.
    """
    if "responses" in row or "response_a" in row:
        prompt = _prompt(where, row)
        answers = _listed(where, row, prompt) if "responses" in row else _sides(where, row, prompt)
        return _comparison(where, row, prompt, answers, **_gold(where, row.get("gold")))
    if "chosen" not in row:
        raise unknown_columns(where, dict(row), COLUMNS)
    pair = read_preference(where, dict(row))
    answers = [_answer(where, column, pair[column], _about(where, row)) for column in ("chosen", "rejected")]
    # By their texts' hashes: were the chosen one always first, every gold answer would be the same, and agreement on them chance.
    ordered = sorted(answers, key=lambda each: hashlib.sha256(each.text.encode(errors="surrogatepass")).digest())
    strength = 1 if ordered[0] is answers[0] else -1
    gold = {"gold_strength": strength} if preferences == "gold" else {}
    return _comparison(where, row, pair["prompt"], ordered, **gold)


def _comparison(where: str, row: Row, prompt: list[Any], answers: list[NewResponse], **gold: Any) -> NewComparison:
    for message in prompt:
        check_text(f"{where}, column 'prompt'", message["content"])
    if prompt[-1]["role"] != "user":
        raise InputError(f"{where}, column 'prompt'", prompt[-1], "expected a user message at the end")
    overlap = row.get("overlap")
    if overlap is not None and (isinstance(overlap, bool) or not isinstance(overlap, int)):
        raise InputError(f"{where}, column 'overlap'", overlap, "expected a whole number of people")
    return NewComparison(
        prompt,
        answers,
        overlap=overlap,
        priority=_number(where, "priority", row.get("priority")) or 0.0,
        propensity=_number(where, "propensity", row.get("propensity")),
        sampled_by=_text(where, "sampled_by", row.get("sampled_by")),
        **gold,
    )


def _prompt(where: str, row: Row) -> list[Any]:
    found = read_prompt(where, dict(row))
    if found is None:
        raise unknown_columns(where, dict(row), COLUMNS)
    return found[0]


def _listed(where: str, row: Row, prompt: list[Any]) -> list[NewResponse]:
    listed = row["responses"]
    if not isinstance(listed, list | tuple):
        raise InputError(f"{where}, column 'responses'", listed, "expected a list of 2 to 9 answers")
    answers = []
    for number, each in enumerate(listed, 1):
        column = f"responses, answer {number}"
        about = {**row, **each} if isinstance(each, dict) else row
        said = each
        if isinstance(each, dict):
            said = next((each[key] for key in ("text", "content", "messages") if each.get(key) is not None), None)
        answers.append(_answer(where, column, said, _about(where, about), prompt))
    return answers


def _sides(where: str, row: Row, prompt: list[Any]) -> list[NewResponse]:
    answers = []
    for side in "ab":
        own = {name: row[f"{name}_{side}"] for name in NewResponse.__dataclass_fields__ if row.get(f"{name}_{side}") is not None}
        column = f"response_{side}"
        answers.append(_answer(where, column, row.get(column), _about(where, {**row, **own}), prompt))
    return answers


def _answer(where: str, column: str, said: Any, about: dict[str, Any], prompt: list[Any] | None = None) -> NewResponse:
    """An answer from its text, as it is, or from messages, which may repeat the prompt."""
    if not isinstance(said, str):
        messages = read_answer(where, column, said, prompt or [])
        if len(messages) != 1:
            raise InputError(f"{where}, column {column!r}", messages, "expected one assistant message: people judge one answer")
        said = messages[0]["content"]
    check_text(f"{where}, column {column!r}", said)
    return NewResponse(said, **about)


def _about(where: str, row: Row) -> dict[str, Any]:
    sampling = row.get("sampling")
    if sampling is not None and not isinstance(sampling, dict):
        raise InputError(f"{where}, column 'sampling'", sampling, 'expected a mapping such as {"temperature": 1.0}')
    checkpoint = row.get("checkpoint")
    return {
        "model": _text(where, "model", row.get("model")),
        "checkpoint": _text(where, "checkpoint", str(checkpoint) if isinstance(checkpoint, int) else checkpoint),
        # A parquet file gives every mapping the keys of all.
        "sampling": {name: value for name, value in (sampling or {}).items() if value is not None},
        "rm_score": _number(where, "rm_score", row.get("rm_score")),
    }


def _gold(where: str, gold: Any) -> dict[str, Any]:
    if gold is None:
        return {}
    known = {name: value for name, value in gold.items() if value is not None} if isinstance(gold, dict) else {}
    if len(known) != 1 or not known.keys() <= {"strength", "ranking"}:
        mend = (
            'expected {"strength": -3 to 3, above 0: the first is better} or {"ranking": [a place for each answer, 1 the best]}'
        )
        raise InputError(f"{where}, column 'gold'", gold, mend)
    return {f"gold_{name}": value for name, value in known.items()}


def _number(where: str, column: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise InputError(f"{where}, column {column!r}", value, "expected a finite number, or no such column")
    return float(value)


def _text(where: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    check_text(f"{where}, column {column!r}", value)
    return str(value)
