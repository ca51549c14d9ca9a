"""How close does each algorithm come to the best policy there is, ours and TRL's?

python -m benchmarks.closed_form [--seeds 5] [--algorithms NAME ...] [--sides ours trl] [--jobs 1] [--json FILE] [--picture FILE]
python -m benchmarks.closed_form --sides ours --algorithms rloo --first_seed 100 --seeds 3 --settings '{"cliprange": 0.5}'

Each run is a process of its own with one thread, ours and TRL's of one seed one after the other, so that the machine's moods
fall on both. Time is that of training alone; memory is the peak above what the world holds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.closed_form import ours, theirs
from benchmarks.closed_form.command import each, parser, write
from benchmarks.closed_form.world import BETA, EPISODES, make_world
from benchmarks.pictures import sheet
from benchmarks.speed.memory import resident
from rlhf_kit.evaluation.charts import Series, line_chart

ALGORITHMS = {"ours": tuple(ours.SETTINGS), "trl": tuple(theirs.SETTINGS)}


def main(words: Sequence[str]) -> None:
    """Run what is asked for, print the table; write figures and picture where asked."""
    options = parser("", (__doc__ or "").splitlines()[0], seeds=5)
    options.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS["ours"]), choices=ALGORITHMS["ours"])
    options.add_argument("--sides", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    options.add_argument("--first_seed", type=int, default=0, help="the first world's")
    options.add_argument(
        "--settings", type=json.loads, default={}, help='of ours alone, over those of ours.py: {"cliprange": 0.5}'
    )
    arguments = options.parse_args(words)
    if arguments.settings and arguments.sides != ["ours"]:
        options.error("--settings changes ours alone: add --sides ours")
    plan = [
        (side, algorithm, seed, arguments.settings)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for algorithm in arguments.algorithms
        for side in arguments.sides
        if algorithm in ALGORITHMS[side]
    ]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {side: {} for side in arguments.sides}
    told = each(one, plan, arguments.jobs, lambda found: f"{found['kl']:.4f} in {found['seconds']:.0f} s", fresh=True)
    for (side, algorithm, *_), found in told:
        rows[side].setdefault(algorithm, []).append(found)
    start = statistics.mean(run["start"] for run in next(iter(rows[arguments.sides[0]].values())))
    result: dict[str, Any] = {side: {name: summary(runs) for name, runs in found.items()} for side, found in rows.items()}
    print("\n" + table(result, start))
    write(arguments, {**result, "start": start, "episodes": EPISODES}, lambda _: curves(result))


def one(side: str, algorithm: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One run, for a process that runs nothing else: `kl, seconds, curve, peak_mb`."""
    world = make_world(seed)
    before, _ = resident()
    with TemporaryDirectory() as folder:
        found = (
            ours.run(algorithm, world, Path(folder), **settings) if side == "ours" else theirs.run(algorithm, world, Path(folder))
        )
    return found | {"start": world.kl_to_optimum(world.reference), "peak_mb": resident()[1] - before}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table, from the runs of all seeds."""
    distances, peaks = [run["kl"] for run in runs], [run["peak_mb"] for run in runs]
    return {
        "kl_to_optimum_mean": statistics.mean(distances),
        "kl_to_optimum_sd": statistics.stdev(distances) if len(distances) > 1 else 0.0,
        "seeds": len(runs),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak_mb": statistics.median(peaks),
        "kl_to_optimum": distances,
        "curves": [run["curve"] for run in runs],
    }


def difference(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str:
    """Ours less TRL's, seed by seed: the mean and its standard error. Nothing where a side or a seed is missing."""
    if ours is None or theirs is None or not 1 < ours["seeds"] == theirs["seeds"]:
        return ""
    gaps = [a - b for a, b in zip(ours["kl_to_optimum"], theirs["kl_to_optimum"])]
    return f"{statistics.mean(gaps):+10.4f} +- {statistics.stdev(gaps) / len(gaps) ** 0.5:.4f}"


def table(rows: dict[str, dict[str, dict[str, Any]]], start: float) -> str:
    """The rows of both sides, as text."""
    lines = [f"KL(pi, pi*) in nats after {EPISODES:,} episodes, beta {BETA}; the reference starts at {start:.3f}"]
    lines.append(f"{'':20} {'ours':>17} {'s':>6} {'MB':>5} {'TRL':>18} {'s':>6} {'MB':>5} {'ours - TRL, +- s.e.':>24}")
    for algorithm in dict.fromkeys(name for side in rows.values() for name in side):
        ours_row, trl_row = (rows.get(side, {}).get(algorithm) for side in ("ours", "trl"))
        cells = [f"{algorithm:20}", cell(ours_row), cell(trl_row), difference(ours_row, trl_row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cell(row: dict[str, Any] | None) -> str:
    """One side's figures of one algorithm."""
    if row is None:
        return " " * 31
    distance = f"{row['kl_to_optimum_mean']:8.4f} +- {row['kl_to_optimum_sd']:.4f}"
    return f"{distance} {row['seconds']:6.1f} {row['peak_mb']:5.0f}"


def curves(sides: dict[str, dict[str, Any]]) -> str:
    """KL(pi, pi*) over episodes, a chart an algorithm, a line a seed."""
    names = list(dict.fromkeys(name for rows in sides.values() for name in rows))
    charts = []
    for name in names:
        series = [
            Series(side, [e for e, _ in points], [kl for _, kl in points], colour=colour)
            for colour, (side, rows) in enumerate(sides.items(), 1)
            for points in rows.get(name, {}).get("curves", [])
        ]
        charts.append(
            (f"{name}: KL(pi, pi*), nats", line_chart(series, name=f"{name}: distance to the optimum", x_label="episodes"))
        )
    return sheet(charts, list(sides))
