"""What the database holds against what people were told: votes lost, doubled, or on the wrong side.

Nothing here uses the order that the app drew or its turning of sides: the texts decide.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Row, select

from annotate.store.database import open_database
from annotate.store.schema import assignment, candidate, comparison, judgment, response
from benchmarks.annotate_load.people import Vote
from benchmarks.annotate_load.world import preference

ANSWERS = (
    select(judgment, assignment.c.token, assignment.c.comparison_id, comparison.c.overlap)
    .join(assignment, assignment.c.id == judgment.c.assignment_id)
    .join(comparison, comparison.c.id == assignment.c.comparison_id)
    .order_by(judgment.c.id)
)
TEXTS = (
    select(candidate.c.comparison_id, response.c.text)
    .join(response, response.c.id == candidate.c.response_id)
    .order_by(candidate.c.comparison_id, candidate.c.position)
)


@dataclass(frozen=True)
class Findings:
    """Counts; all but `votes` should be 0.

    Args:
        lost: acknowledged, but absent or taken back by nobody.
        duplicated: standing twice at one assignment, standing beyond the overlap without being late, or known to no ledger.
        wrong_side: not what the texts say, or not what the person chose of the texts they were shown.
        votes: that stand.
    """

    lost: int
    duplicated: int
    wrong_side: int
    votes: int


def check(url: str, ledger: Mapping[str, Vote]) -> Findings:
    """Compare the database at `url` with everybody's acknowledged votes, by assignment, once nobody is left waiting."""
    database = open_database(url)
    with database.read() as connection:
        answers = connection.execute(ANSWERS).all()
        texts: dict[int, list[str]] = defaultdict(list)
        for key, words in connection.execute(TEXTS):
            texts[key].append(words)
    database.close()
    standing: dict[str, list[Row]] = defaultdict(list)
    for row in answers:
        if row.kind == "undo":
            standing[row.token].pop()
        else:
            standing[row.token].append(row)
    votes = {token: rows[-1] for token, rows in standing.items() if rows}
    lost = sum(token not in votes or votes[token].kind != said.kind for token, said in ledger.items())
    duplicated = sum(len(rows) - 1 for rows in standing.values() if rows) + sum(token not in ledger for token in votes)
    on_time = Counter((row.comparison_id, row.overlap) for row in votes.values() if not row.late)
    duplicated += sum(max(0, count - overlap) for (_, overlap), count in on_time.items())
    wrong = sum(_wrong(row, texts[row.comparison_id], ledger.get(token)) for token, row in votes.items())
    return Findings(lost, duplicated, wrong, len(votes))


def _wrong(row: Row, canonical: list[str], said: Vote | None) -> bool:
    expected = preference(*canonical) if row.kind == "preference" else 0
    if row.strength != expected:
        return True
    if said is None:
        return False
    if sorted((said.left, said.right)) != sorted(canonical):
        return True
    return row.strength != (said.strength if said.left == canonical[0] else -said.strength)
