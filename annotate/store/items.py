"""Put comparisons into a project, each once however often it is imported."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table, select, tuple_, update

from annotate.store.audit import record
from annotate.store.database import Database, insert_missing
from annotate.store.records import NewComparison, NewResponse
from annotate.store.schema import candidate, comparison, item, project, response
from annotate.store.verdicts import check_ranking, check_strength, check_text, dense
from rlhf_kit.errors import InputError

CHUNK = 250  # comparisons in a transaction: people who are voting wait for one of these at most
MOST_ANSWERS = 9


@dataclass(frozen=True)
class Added:
    """How many comparisons an import added, and how many the project had already."""

    added: int
    duplicates: int


def add_comparisons(database: Database, project_id: int, records: Iterable[NewComparison], *, by: int | None = None) -> Added:
    """Import comparisons in transactions of a few hundred; after a crash the same import adds what is missing.

    Two comparisons are the same where they put the same answers to the same conversation, in whatever order.

    Raises:
        InputError: names the record, counted from 1; what stood in whole chunks before it has been added.
    """
    added = total = 0
    for chunk in _chunks(enumerate(records, start=1), CHUNK):
        checked = [Checked(f"record {number}", each) for number, each in chunk]
        with database.write() as connection:
            added += len(_add(connection, project_id, checked, "queue", database.now()))
        total += len(checked)
    with database.write() as connection:
        record(connection, database.now(), "import", user=by, project=project_id, added=added, duplicates=total - added)
    return Added(added, total - added)


def add_live(database: Database, project_id: int, new: NewComparison, *, by: int) -> int:
    """Add what a chat has just made and return its id, for `Protocol.serve`; it is never queued for others.

    Raises:
        InputError: these answers to this conversation are there already, or do not make a comparison.
    """
    with database.write() as connection:
        keys = _add(connection, project_id, [Checked("the chat's comparison", new)], "live", database.now())
        if not keys:
            raise InputError("the chat's comparison", new.responses, "which exists already: sample other answers")
        record(connection, database.now(), "import", user=by, project=project_id, added=1, duplicates=0, live=True)
        return keys[0]


def set_priorities(database: Database, project_id: int, priorities: Mapping[int, float], *, by: int | None = None) -> None:
    """Give comparisons, by id, other priorities; higher is served sooner."""
    rows = [(comparison.c.id == key, 0.0 - priority) for key, priority in priorities.items()]
    with database.write() as connection:
        for this, place in rows:
            connection.execute(update(comparison).where(this, comparison.c.project_id == project_id).values(place=place))
        _work_in_front(connection, project_id)
        record(connection, database.now(), "set_priorities", user=by, project=project_id, comparisons=len(rows))


class Checked:
    """A record whose parts are known to be sound, with their hashes."""

    def __init__(self, name: str, new: NewComparison) -> None:
        self.new, self.kind = new, "pair" if len(new.responses) == 2 else "rank"
        if not 2 <= len(new.responses) <= MOST_ANSWERS:
            raise InputError(f"{name}, responses", len(new.responses), f"expected 2 answers, or 3 to {MOST_ANSWERS} to rank")
        for each in new.responses:
            for words in (each.text, each.model, each.checkpoint):
                check_text(f"{name}, response", words)
            if each.rm_score is not None and not math.isfinite(each.rm_score):
                raise InputError(f"{name}, rm_score", each.rm_score, "expected a finite number or None")
        check_text(f"{name}, sampled_by", new.sampled_by)
        if len({each.text for each in new.responses}) < len(new.responses):
            raise InputError(f"{name}, responses", new.responses[0].text, "expected texts that differ: drop the record")
        if not new.messages:
            raise InputError(f"{name}, messages", new.messages, "expected at least one message")
        for message in new.messages:
            for key in ("role", "content"):
                check_text(f"{name}, messages, {key}", message.get(key))
        if new.overlap is not None and not 1 <= new.overlap <= 100:
            raise InputError(f"{name}, overlap", new.overlap, "expected 1 to 100")
        if not math.isfinite(new.priority):
            raise InputError(f"{name}, priority", new.priority, "expected a finite number")
        if new.propensity is not None and not 0 < new.propensity <= 1:
            raise InputError(f"{name}, propensity", new.propensity, "expected a probability above 0")
        self.gold = _gold(name, self.kind, new)
        try:
            self.item = _hash([dict(message) for message in new.messages])
            self.responses = [_response_hash(each) for each in new.responses]
        except (TypeError, ValueError) as error:
            raise InputError(name, str(error), "expected messages and sampling parameters of plain JSON values") from None
        self.hash = _hash([self.item, sorted(self.responses)])


def _gold(name: str, kind: str, new: NewComparison) -> dict[str, Any] | None:
    if new.gold_strength is None and new.gold_ranking is None:
        return None
    if kind == "pair":
        if new.gold_ranking is not None:
            raise InputError(f"{name}, gold_ranking", new.gold_ranking, "expected gold_strength for a pair")
        check_strength(f"{name}, gold_strength", new.gold_strength, 3, preference=new.gold_strength != 0)
        return {"strength": new.gold_strength}
    if new.gold_strength is not None:
        raise InputError(f"{name}, gold_strength", new.gold_strength, "expected gold_ranking for a ranking")
    check_ranking(f"{name}, gold_ranking", new.gold_ranking, len(new.responses))
    return {"ranking": dense(new.gold_ranking or ())}


def _add(connection: Connection, project_id: int, records: Sequence[Checked], source: str, now: float) -> list[int]:
    # Locked, so that two imports of the same records in different orders do not wait for each other.
    query = select(project.c.overlap).where(project.c.id == project_id).with_for_update(key_share=True)
    overlap = connection.execute(query).scalar_one_or_none()
    if overlap is None:
        raise InputError("project", project_id, "which does not exist")
    fresh = {each.hash: each for each in reversed(records)}  # the first of equal ones stays
    for known in _known(connection, comparison, "project_id", [(project_id, each) for each in fresh]):
        del fresh[known[1]]
    records = [each for each in records if fresh.get(each.hash) is each]
    if not records:
        return []
    items = _ensure(connection, item, "project_id", [_item_row(project_id, each) for each in records])
    rows = [
        _response_row(items[project_id, each.item], pair) for each in records for pair in zip(each.responses, each.new.responses)
    ]
    responses = _ensure(connection, response, "item_id", rows)
    rows = [_comparison_row(project_id, items[project_id, each.item], each, overlap, source, now) for each in records]
    keys = _ensure(connection, comparison, "project_id", rows)
    parts = [
        {"comparison_id": keys[project_id, each.hash], "position": position, "response_id": responses[row["item_id"], part]}
        for each, row in zip(records, rows)
        for position, part in enumerate(each.responses)
    ]
    connection.execute(insert_missing(connection, candidate), parts)
    if source == "queue":
        _work_in_front(connection, project_id)
    return [keys[project_id, each.hash] for each in records]


def _work_in_front(connection: Connection, project_id: int) -> None:
    query = update(project).where(project.c.id == project_id)
    connection.execute(query.values(queue_version=project.c.queue_version + 1))


def _ensure(connection: Connection, table: Table, owner: str, rows: list[dict[str, Any]]) -> dict[tuple[int, str], int]:
    """The ids by (owner, hash), of rows that were there and of those that were not and are now."""
    connection.execute(insert_missing(connection, table), rows)
    return _known(connection, table, owner, [(row[owner], row["hash"]) for row in rows])


def _known(connection: Connection, table: Table, owner: str, keys: list[tuple[int, str]]) -> dict[tuple[int, str], int]:
    column = table.c[owner]
    query = select(table.c.id, column, table.c.hash).where(tuple_(column, table.c.hash).in_(keys))
    return {(row[1], row[2]): row[0] for row in connection.execute(query)}


def _item_row(project_id: int, each: Checked) -> dict[str, Any]:
    return {"project_id": project_id, "messages": [dict(message) for message in each.new.messages], "hash": each.item}


def _response_row(item_id: int, pair: tuple[str, NewResponse]) -> dict[str, Any]:
    key, new = pair
    row = {"text": new.text, "model": new.model, "checkpoint": new.checkpoint, "sampling": dict(new.sampling)}
    return {"item_id": item_id, **row, "rm_score": new.rm_score, "hash": key}


def _comparison_row(project_id: int, item_id: int, each: Checked, overlap: int, source: str, now: float) -> dict[str, Any]:
    new = each.new
    return {
        "project_id": project_id,
        "item_id": item_id,
        "kind": each.kind,
        "source": "gold" if each.gold and source == "queue" else source,
        "place": 0.0 - new.priority,
        "overlap": new.overlap or overlap,
        **dict.fromkeys(("done", "leased", "skips", "flagged", "returned"), 0),
        "state": "open",
        "waits": int(each.gold is None and source == "queue"),
        "gold": each.gold,
        "propensity": new.propensity,
        "sampled_by": new.sampled_by,
        "hash": each.hash,
        "created": now,
    }


def _response_hash(new: NewResponse) -> str:
    return _hash([new.text, new.model, new.checkpoint, dict(new.sampling)])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _chunks(records: Iterable[Any], size: int) -> Iterator[list[Any]]:
    stream = iter(records)
    while chunk := list(islice(stream, size)):
        yield chunk
