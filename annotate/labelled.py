"""Comparisons that people have judged elsewhere, with their labels: stored as if they had been judged here."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from annotate.importing import read_comparison
from annotate.store.audit import record
from annotate.store.database import Database
from annotate.store.items import Checked, add_comparisons
from annotate.store.queue import settle
from annotate.store.records import NewComparison, Verdict
from annotate.store.schema import assignment, comparison, judgment, project, user
from annotate.store.verdicts import agrees_with_gold, check_verdict
from rlhf_kit.errors import InputError

CHUNK = 100  # comparisons in a transaction
NO_PASSWORD = f"scrypt$15$8$3${'00' * 16}$"  # the empty key at its end is no password's hash


@dataclass
class LabelledReport:
    """Comparisons and labels added, labels that were there already, and pairs left out because their answers are equal."""

    comparisons: int = 0
    labels: int = 0
    duplicates: int = 0
    twins: int = 0


@dataclass(frozen=True)
class _Labelled:
    new: NewComparison
    hash: str
    verdicts: Sequence[tuple[str, Verdict, list[int]]]  # who, what, and the order shown


def import_labelled(
    database: Database, project_id: int, records: Iterable[Mapping[str, Any]], *, by: int | None = None
) -> LabelledReport:
    """Store comparisons with their labels; annotators become users who cannot log in. Twice is as good as once.

    Args:
        records: as `annotate.imports` describes them: `prompt`, `responses`, and `labels` of `{annotator, strength}`, for two of
            more than two answers with `pair`, or `{annotator, ranking}`. Where a label does not say which answer was on the
            `left`, the first one is taken to have been.
    Raises:
        InputError: names the record, counted from 1. Those before it may have been stored.
    """
    report = LabelledReport()
    stream = _read(records, report)
    while chunk := list(islice(stream, CHUNK)):
        added = add_comparisons(database, project_id, (each.new for each in chunk), by=by)
        report.comparisons += added.added
        with database.write() as connection:
            settings = connection.execute(select(project).where(project.c.id == project_id)).one()
            users = _ensure_users(connection, {name for each in chunk for name, _, _ in each.verdicts}, database.now())
            before = report.labels
            for each in chunk:
                _store(connection, settings, each, users, database.now(), report)
            details = {"labels": report.labels - before}
            record(connection, database.now(), "import_labels", user=by, project=project_id, **details)
    return report


def _read(records: Iterable[Mapping[str, Any]], report: LabelledReport) -> Iterator[_Labelled]:
    for number, given in enumerate(records, start=1):
        where = f"record {number}"
        whole = read_comparison(where, {**given, "responses": list(given.get("responses") or ())})
        for positions, labels in _groups(where, given.get("labels") or (), len(whole.responses)).items():
            responses = [whole.responses[position] for position in positions]
            if len({response.text for response in responses}) < len(responses):
                report.twins += 1
                continue
            new = NewComparison(whole.messages, responses, overlap=len(labels), sampled_by="labelled elsewhere")
            verdicts = [_verdict(where, label, positions) for label in labels]
            yield _Labelled(new, Checked(where, new).hash, verdicts)


def _groups(where: str, labels: Sequence[Mapping[str, Any]], answers: int) -> dict[tuple[int, ...], list[Mapping[str, Any]]]:
    """Labels by the answers that they speak of, whose positions rise: a comparison each."""
    groups: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for label in labels:
        pair = label.get("pair", range(answers))
        groups.setdefault(tuple(sorted(pair)), []).append(label)
        if "ranking" not in label and len(pair) != 2:
            raise InputError(f"{where}, label", dict(label), "expected a ranking, or a pair [i, j], of more than two answers")
    return groups


def _verdict(where: str, label: Mapping[str, Any], positions: Sequence[int]) -> tuple[str, Verdict, list[int]]:
    """The annotator, the verdict in canonical order, and the order in which the answers were shown."""
    name = label.get("annotator")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}, label: annotator", name, "expected a name")
    if "ranking" in label:
        best_first = list(label["ranking"])
        if sorted(best_first) != list(range(len(positions))):
            raise InputError(f"{where}, label: ranking", best_first, "expected the index of each answer once, best first")
        if len(positions) > 2:
            places = [best_first.index(position) + 1 for position in range(len(positions))]
            return name, Verdict(1, "rank", ranking=places), list(range(len(positions)))
        strength = 1 if best_first[0] == 0 else -1
    else:
        strength = label["strength"] if tuple(label.get("pair", positions)) == tuple(positions) else -label["strength"]
    first_left = label.get("left", positions[0]) == positions[0]
    return name, Verdict(1, "preference" if strength else "tie", strength), [0, 1] if first_left else [1, 0]


def _ensure_users(connection: Connection, names: set[str], now: float) -> dict[str, int]:
    rows = connection.execute(select(user.c.name, user.c.id, user.c.active).where(user.c.name.in_(names))).all()
    for row in rows:
        if row.active:
            raise InputError(
                "label: annotator", row.name, "which is the name of somebody who votes here: call the annotator otherwise"
            )
    known = {row.name: row.id for row in rows}
    for name in sorted(names - known.keys()):
        new = {"name": name, "role": "annotator", "password": NO_PASSWORD, "active": False, "created": now}
        known[name] = connection.execute(insert(user).values(new).returning(user.c.id)).scalar_one()
    return known


def _store(
    connection: Connection, settings: Row, each: _Labelled, users: dict[str, int], now: float, report: LabelledReport
) -> None:
    this = (comparison.c.project_id == settings.id) & (comparison.c.hash == each.hash)
    found = connection.execute(select(comparison).where(this).with_for_update(key_share=True)).one()
    seen = set(connection.execute(select(assignment.c.user_id).where(assignment.c.comparison_id == found.id)).scalars())
    done = 0
    for name, verdict, shown in each.verdicts:
        check_verdict(verdict, found.kind, len(shown), settings.scale, ())
        if users[name] in seen:
            report.duplicates += 1
            continue
        seen.add(users[name])
        _insert(connection, settings, found, users[name], verdict, shown, now)
        done += 1
    if done:
        settle(connection, settings, found, done=done)
    report.labels += done


def _insert(connection: Connection, settings: Row, found: Row, who: int, verdict: Verdict, shown: list[int], now: float) -> None:
    whose = {"project_id": settings.id, "user_id": who, "guidelines_version": settings.guidelines_version}
    held = {
        **whose,
        "token": secrets.token_urlsafe(16),
        "comparison_id": found.id,
        "shown": shown,
        "state": "done",
        "leased_at": now,
        "lease_until": now,
        "revision": 1,
    }
    key = connection.execute(insert(assignment).values(held).returning(assignment.c.id)).scalar_one()
    strength = verdict.strength if found.kind == "pair" else None
    ranking = list(verdict.ranking) if verdict.ranking is not None else None
    said = {
        **whose,
        "assignment_id": key,
        "revision": 1,
        "kind": verdict.kind,
        "strength": strength,
        "ranking": ranking,
        "flags": [],
        "justification": "",
        "late": False,
        "gold_correct": None if found.gold is None else agrees_with_gold(found.gold, strength, ranking),
        "created": now,
    }
    connection.execute(insert(judgment).values(said))
