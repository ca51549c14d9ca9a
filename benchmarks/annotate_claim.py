"""How long a person waits for the next pair: `python -m benchmarks.annotate_claim --pairs 100000 --seen 10000 --json`.

The hard case: one person has judged `seen` pairs, which all still wait for a second vote, and so stand at the head of the queue.
The votes of that past are written straight into the tables; what is timed goes through the protocol, as the app does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import insert, select, text, update

from annotate.store.database import Database, open_database
from annotate.store.items import add_comparisons
from annotate.store.projects import Settings, create_project
from annotate.store.protocol import Protocol
from annotate.store.records import NewComparison, NewResponse, Verdict
from annotate.store.schema import assignment, comparison, user


def main() -> None:
    """Build the state, time `--claims` claims and as many submits (each with its next claim), print the percentiles.

    `first`: the one that has to pass over all that was seen. `cpu`: this process's own time, which other work does not stretch.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty database; a SQLite file in a temporary folder by default")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seen", type=int, default=10_000)
    parser.add_argument("--claims", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(options.url or f"sqlite:///{folder}/votes.db")
        started = time.perf_counter()
        protocol, person = _build(database, options.pairs, options.seen)
        built = time.perf_counter() - started
        times = _measure(protocol, person, options.claims)
        figures = {
            "database": database.engine.dialect.name,
            "pairs": options.pairs,
            "seen": options.seen,
            "build_s": round(built, 1),
        }
        database.close()
    for name, both in times.items():
        cuts = statistics.quantiles([wall for wall, _ in both], n=100)
        cpu = statistics.median(cpu for _, cpu in both)
        figures.update({f"{name}_p50_ms": round(cuts[49] * 1000, 2), f"{name}_p95_ms": round(cuts[94] * 1000, 2)})
        figures.update({f"{name}_first_ms": round(both[0][0] * 1000, 2), f"{name}_cpu_p50_ms": round(cpu * 1000, 2)})
    print(json.dumps(figures) if options.json else "\n".join(f"{name:24} {value}" for name, value in figures.items()))


def _build(database: Database, pairs: int, seen: int) -> tuple[Protocol, int]:
    project = create_project(database, "benchmark", Settings(overlap=2))
    add_comparisons(database, project.id, (_pair(number) for number in range(pairs)))
    row = {"name": "person", "role": "annotator", "password": "", "active": True, "created": 0.0}
    with database.write() as connection:
        person = connection.execute(insert(user).values(row).returning(user.c.id)).scalar_one()
        done = list(connection.execute(select(comparison.c.id).order_by(comparison.c.id).limit(seen)).scalars())
        past = {
            "project_id": project.id,
            "user_id": person,
            "shown": [0, 1],
            "state": "done",
            "guidelines_version": 1,
            "revision": 1,
        }
        rows = [{**past, "token": f"past {key}", "comparison_id": key, "leased_at": 0.0, "lease_until": 0.0} for key in done]
        connection.execute(insert(assignment), rows)
        connection.execute(update(comparison).where(comparison.c.id <= done[-1]).values(done=1))
    with database.write() as connection:
        connection.execute(text("ANALYZE"))
    return Protocol(database, project.id), person


def _pair(number: int) -> NewComparison:
    answers = [NewResponse(f"answer {side} to {number} " + "and so on " * 20, model=side) for side in "ab"]
    return NewComparison([{"role": "user", "content": f"question {number}"}], answers)


def _measure(protocol: Protocol, person: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {"claim": [], "submit_and_claim": []}
    for _ in range(repeats):
        task = _timed(times["claim"], protocol.claim, person)
        verdict = Verdict(task.revision, "preference", 1)
        result = _timed(times["submit_and_claim"], protocol.submit, task.assignment, person, verdict)
        _answer_unseen(protocol.database, result.next.assignment)  # so that the next claim has to search
    return times


def _timed(into: list[tuple[float, float]], call: Callable[..., Any], *values: object) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    found = call(*values)
    into.append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def _answer_unseen(database: Database, token: str) -> None:
    with database.write() as connection:
        query = update(assignment).where(assignment.c.token == token).values(state="done").returning(assignment.c.comparison_id)
        key = connection.execute(query).scalar_one()
        connection.execute(update(comparison).where(comparison.c.id == key).values(done=1, leased=0))


if __name__ == "__main__":
    main()
