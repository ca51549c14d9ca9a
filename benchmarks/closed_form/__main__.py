"""How close does each algorithm come to the best policy there is, ours and TRL's?

python -m benchmarks.closed_form [--seeds 5] [--algorithms NAME ...] [--sides ours trl] [--jobs 1] [--json FILE] [--picture FILE]

Each run is a process of its own with one thread, ours and TRL's of one seed one after the other, so that the machine's moods
fall on both. Time is that of training alone; memory is the peak above what the world holds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.closed_form import ours, theirs
from benchmarks.closed_form.runs import curves, one, summary, table
from benchmarks.closed_form.world import EPISODES

ALGORITHMS = {"ours": tuple(ours.SETTINGS), "trl": tuple(theirs.SETTINGS)}


def main() -> None:
    """Run what is asked for, print the table; write figures and picture where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closed_form", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS["ours"]), choices=ALGORITHMS["ours"])
    parser.add_argument("--sides", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="the curves, as SVG")
    arguments = parser.parse_args()
    plan = [
        (side, algorithm, seed)
        for seed in range(arguments.seeds)
        for algorithm in arguments.algorithms
        for side in arguments.sides
        if algorithm in ALGORITHMS[side]
    ]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {side: {} for side in arguments.sides}
    begun = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures = [pool.submit(one, *task) for task in plan]
        for done, ((side, algorithm, seed), future) in enumerate(zip(plan, futures), 1):
            found = future.result()
            rows[side].setdefault(algorithm, []).append(found)
            spent = time.perf_counter() - begun
            left = spent / done * (len(plan) - done)
            text = f"{done}/{len(plan)} {side} {algorithm} seed {seed}: {found['kl']:.4f} in {found['seconds']:.0f} s"
            print(f"{text} | {spent / 60:.0f} min so far, about {left / 60:.0f} left", flush=True)
    start = statistics.mean(run["start"] for run in next(iter(rows[arguments.sides[0]].values())))
    result = {side: {name: summary(runs) for name, runs in found.items()} for side, found in rows.items()}
    print("\n" + table(result, start))
    if arguments.json:
        arguments.json.write_text(json.dumps({**result, "start": start, "episodes": EPISODES}, indent=2) + "\n")
    if arguments.picture:
        arguments.picture.write_text(curves(result))


if __name__ == "__main__":
    main()
