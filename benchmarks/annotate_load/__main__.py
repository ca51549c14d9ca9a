"""How the preference app stands load and faults: what is printed stands in `annotate/README.md`.

python -m benchmarks.annotate_load [--only PART ...] [--database sqlite|postgresql|both] [--kills 50] [--seconds 15] [--json FILE]

Each part has a database and a server of its own. Votes a second and kills are taken on every database asked for, the rest on the
first. Nothing but this machine's loopback is used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.annotate_load.report import table
from benchmarks.annotate_load.server import Server, fresh_database, running
from benchmarks.annotate_load.world import World, make_world

PARTS = ("ui", "rest", "paced", "memory", "browser", "claim", "kills")
KILL_SECONDS = 5.0  # a kill and a start, on an idle machine; for the estimate alone


def main() -> None:
    """Run the parts asked for, print the table, and write the figures where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.annotate_load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--kills", type=int, default=50, help="on each database")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load for each figure; four times that for `paced`")
    parser.add_argument("--keys", type=int, default=60, help="pressed in the browser")
    parser.add_argument("--pairs", type=int, default=100_000, help="that `claim` searches, a tenth of them seen")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    parts = [part for part in PARTS if part in options.only]
    figures: dict[str, Any] = {}
    begun, planned = time.perf_counter(), sum(_planned(part, options, kinds) for part in parts)
    done = 0.0
    for number, part in enumerate(parts, 1):
        left = planned - done
        print(f"{number}/{len(parts)} {part} | {time.perf_counter() - begun:.0f} s so far, about {left:.0f} left", flush=True)
        figures.update(_run(part, kinds, options))
        done += _planned(part, options, kinds)
        if options.json:  # after every part, so that a run cut short leaves what it has
            options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print("\n" + table(figures))


def _planned(part: str, options: argparse.Namespace, kinds: list[str]) -> float:
    start = 10.0  # a database, a server
    return {
        "ui": len(kinds) * (start + options.seconds),
        "rest": len(kinds) * (start + options.seconds),
        "paced": start + 4 * options.seconds,
        "memory": start + options.seconds,
        "browser": 3 * start + options.keys * 0.4,
        "claim": 60.0 * options.pairs / 100_000,
        "kills": start + options.kills * KILL_SECONDS * len(kinds) / 2,
    }[part]


def _run(part: str, kinds: list[str], options: argparse.Namespace) -> dict[str, Any]:
    if part == "kills":
        return _kills(kinds, options.kills)
    if part == "claim":
        return _claim(kinds[0], options.pairs)
    figures: dict[str, Any] = {}
    for kind in kinds if part in ("ui", "rest") else kinds[:1]:
        found = _measured(part, kind, options)
        figures.update(found if kind == kinds[0] else {f"{name}_{kind}": value for name, value in found.items()})
    return figures


def _measured(part: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """The parts that run against one server."""
    from benchmarks.annotate_load import memory, paced, saturate

    seconds = options.seconds
    with _world(kind, people=200, pairs=int(1000 + 900 * seconds) if part in ("ui", "rest", "memory") else 8000) as (
        server,
        world,
    ):
        if part == "browser":
            from benchmarks.annotate_load.browser import browser

            return browser(server, options.keys)
        runs: dict[str, Callable[..., Any]] = {"ui": saturate.ui, "rest": saturate.rest, "memory": memory.memory}
        if part == "paced":
            return asyncio.run(paced.paced(server, world, 4 * seconds))
        return asyncio.run(runs[part](server, world, seconds))


def _kills(kinds: list[str], count: int) -> dict[str, Any]:
    """All databases at once: most of the time is a server's start, which leaves the other processor idle."""
    from benchmarks.annotate_load.kills import kills

    begun = time.perf_counter()

    def one(kind: str) -> dict[str, Any]:
        def tell(number: int) -> None:
            spent = time.perf_counter() - begun
            if number % 10 == 0:
                left = spent / number * (count - number)
                print(f"  {kind}: {number}/{count} kills | {spent:.0f} s so far, about {left:.0f} left", flush=True)

        with _world(kind, people=16, pairs=200 + 150 * count, overlap=2) as (server, world):
            return asyncio.run(kills(server, world, count, tell))

    with ThreadPoolExecutor(len(kinds)) as pool:
        found = list(pool.map(one, kinds))
    totals = {name: sum(each[name] for each in found) for name in found[0]}
    each_kind = {f"{name}_{kind}": value for kind, each in zip(kinds, found) for name, value in each.items()}
    return {**totals, **each_kind}


def _claim(kind: str, pairs: int) -> dict[str, float]:
    import subprocess
    import sys

    with fresh_database(kind) as url:
        command = [sys.executable, "-m", "benchmarks.annotate_claim", "--url", url, "--json"]
        sizes = ["--pairs", str(pairs), "--seen", str(pairs // 10)]
        shown = subprocess.run([*command, *sizes], check=True, capture_output=True, text=True).stdout
    found = json.loads(shown.strip().splitlines()[-1])
    return {name: found[name] for name in ("claim_p50_ms", "claim_p95_ms", "submit_and_claim_p95_ms")}


@contextmanager
def _world(kind: str, **size: int) -> Iterator[tuple[Server, World]]:
    with fresh_database(kind) as url:
        world = make_world(url, **size)
        with running(url) as server:
            yield server, world


if __name__ == "__main__":
    main()
