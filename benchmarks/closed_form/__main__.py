"""How close does each algorithm come to the best policy there is, ours and TRL's?

python -m benchmarks.closed_form [--seeds 5] [--algorithms NAME ...] [--sides ours trl] [--jobs 1] [--json FILE] [--picture FILE]
python -m benchmarks.closed_form dpo|reward_model|overoptimisation|best_of_n [--seeds 3] [--jobs 1] [--json FILE] [--picture FILE]

Each run of the first is a process of its own with one thread, ours and TRL's of one seed one after the other, so that the
machine's moods fall on both. Time is that of training alone; memory is the peak above what the world holds.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.closed_form import ours, theirs
from benchmarks.closed_form.command import each, parser, write
from benchmarks.closed_form.runs import curves, one, summary, table
from benchmarks.closed_form.world import EPISODES

ALGORITHMS = {"ours": tuple(ours.SETTINGS), "trl": tuple(theirs.SETTINGS)}
OTHERS = ("dpo", "reward_model", "overoptimisation", "best_of_n")


def main(words: Sequence[str]) -> None:
    """Run what is asked for, print the table; write figures and picture where asked."""
    if words and words[0] in OTHERS:
        importlib.import_module(f"benchmarks.closed_form.{words[0]}").main(words[1:])
        return
    options = parser("", (__doc__ or "").splitlines()[0], seeds=5)
    options.epilog = f"Other questions, each with its own --help: {', '.join(OTHERS)}."
    options.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS["ours"]), choices=ALGORITHMS["ours"])
    options.add_argument("--sides", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    arguments = options.parse_args(words)
    plan = [
        (side, algorithm, seed)
        for seed in range(arguments.seeds)
        for algorithm in arguments.algorithms
        for side in arguments.sides
        if algorithm in ALGORITHMS[side]
    ]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {side: {} for side in arguments.sides}
    told = each(one, plan, arguments.jobs, lambda found: f"{found['kl']:.4f} in {found['seconds']:.0f} s", fresh=True)
    for (side, algorithm, _), found in told:
        rows[side].setdefault(algorithm, []).append(found)
    start = statistics.mean(run["start"] for run in next(iter(rows[arguments.sides[0]].values())))
    result = {side: {name: summary(runs) for name, runs in found.items()} for side, found in rows.items()}
    print("\n" + table(result, start))
    write(arguments, {**result, "start": start, "episodes": EPISODES}, lambda _: curves(result))


if __name__ == "__main__":
    main(sys.argv[1:])
