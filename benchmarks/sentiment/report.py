"""What came of it: the table, the comparison in time, and the picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.pictures import sheet
from benchmarks.sentiment.measure import Point, first_reaching
from rlhf_kit.evaluation.charts import Series, line_chart

SIDES = {"ours": "rlhf_kit", "theirs": "TRL 1.12", "theirs_usual": "TRL 1.12, usual lam"}
Curves = dict[str, list[list[Point]]]  # of each side, a curve a seed
COLUMNS: tuple[tuple[str, str, Callable[[Point], float]], ...] = (
    ("reward", "8.3f", lambda p: p.reward),
    ("judge", "8.3f", lambda p: p.judge),
    ("KL, nats", "9.2f", lambda p: p.kl),
    ("length", "7.1f", lambda p: p.length),
    ("distinct-2", "11.3f", lambda p: p.distinct_2),
    ("wall, s", "9.1f", lambda p: p.wall),
    ("CPU, s", "9.1f", lambda p: p.cpu),
)


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Every figure's mean over the seeds, evaluation by evaluation."""
    fields = Point.__dataclass_fields__
    means = ({f: statistics.fmean(getattr(p, f) for p in points) for f in fields} for points in zip(*curves))
    return [Point(**mean) for mean in means]  # type: ignore[arg-type]  # counts are equal in all seeds


def rivals(curves: Curves) -> list[str]:
    """The sides that ours can be compared with, where it ran."""
    return [side for side in curves if side != "ours"] if "ours" in curves else []


def reached(curves: Curves, rival: str, first_seed: int = 0) -> dict[str, dict[str, Any]]:
    """When ours and a rival come to the rival's final reward: on the mean curves (`mean`) and seed by seed.

    TRL's own first time stands beside ours, since a curve that is flat and noisy at its end gets there early by chance.
    `speedup` is TRL's whole wall time over ours until then; None where ours never gets there.
    """
    both = curves["ours"], curves[rival]
    pairs = {"mean": tuple(mean_curve(side) for side in both)}
    pairs |= {str(seed): pair for seed, pair in enumerate(zip(*both), first_seed)}
    result = {}
    for name, (ours, theirs) in pairs.items():
        end = theirs[-1]
        mine, own = first_reaching(ours, end.reward), first_reaching(theirs, end.reward)
        assert own is not None
        result[name] = {
            "reward": end.reward,
            "trl_wall": end.wall,
            "trl_kl": end.kl,
            "trl_first_wall": own.wall,
            "ours_wall": mine and mine.wall,
            "ours_kl": mine and mine.kl,
            "speedup": mine and end.wall / mine.wall if mine and mine.wall else None,
            "speedup_at_equal_work": end.wall / ours[-1].wall,
            "speedup_at_equal_work_cpu": end.cpu / ours[-1].cpu,
        }
    return result


def differences(curves: Curves, rival: str) -> dict[str, dict[str, float | None]]:
    """Ours less a rival's at the end, seed by seed: the mean, and its standard error (None where one seed has none)."""
    found: dict[str, dict[str, float | None]] = {}
    for name in ("reward", "judge", "kl"):
        parts = [getattr(ours[-1], name) - getattr(theirs[-1], name) for ours, theirs in zip(curves["ours"], curves[rival])]
        error = statistics.stdev(parts) / len(parts) ** 0.5 if len(parts) > 1 else None
        found[name] = {"mean": statistics.fmean(parts), "standard_error": error}
    return found


def table(curves: Curves) -> str:
    """The start, and the end of every side: means over the seeds, and half the distance between the extremes."""
    lines = [f"{'':24}" + "".join(f"{name:>{int(form.split('.')[0])}}" for name, form, _ in COLUMNS)]
    lines.append(_row("start", [points[0] for points in next(iter(curves.values()))]))
    for side, of_side in curves.items():
        ends = [points[-1] for points in of_side]
        lines.append(_row(f"{SIDES[side]}, end", ends))
        if len(ends) > 1:
            lines.append(_row("   +-", ends, _half_range))
    return "\n".join(lines)


def _row(name: str, points: Sequence[Point], of: Callable[[list[float]], float] = statistics.fmean) -> str:
    return f"{name:24}" + "".join(f"{of([read(p) for p in points]):{form}}" for _, form, read in COLUMNS)


def _half_range(values: list[float]) -> float:
    return (max(values) - min(values)) / 2


def verdict(curves: Curves, first_seed: int = 0) -> str:
    """The comparisons in words."""
    lines = []
    for rival in rivals(curves):
        parts = (
            f"{name} {d['mean']:+.3f}" + ("" if d["standard_error"] is None else f" +- {d['standard_error']:.3f}")
            for name, d in differences(curves, rival).items()
        )
        lines.append(f"{SIDES['ours']} less {SIDES[rival]} at the end, mean and its standard error: {', '.join(parts)}")
        for name, row in reached(curves, rival, first_seed).items():
            who = "mean of the seeds" if name == "mean" else f"seed {name}"
            text = f"  {who}: it ends at reward {row['reward']:.3f}, KL {row['trl_kl']:.2f}, after {row['trl_wall']:.0f} s; "
            if row["ours_wall"] is None:
                text += "rlhf_kit never gets there"
            else:
                text += f"rlhf_kit is there after {row['ours_wall']:.0f} s at KL {row['ours_kl']:.2f}"
                text += f" ({row['speedup']:.2f} times as fast)" if row["speedup"] else ""
                text += f", TRL itself for the first time after {row['trl_first_wall']:.0f} s"
            lines.append(f"{text}; all rollouts: {row['speedup_at_equal_work']:.2f} times as fast")
    return "\n".join(lines)


def picture(curves: Curves) -> str:
    """Reward, judge and KL (columns) over episodes and over seconds (rows), a line a seed, as a whole SVG file."""
    columns: tuple[tuple[str, Callable[[Point], float]], ...] = (
        ("reward: log-odds of positive", lambda p: p.reward),
        ("judge: probability of positive", lambda p: p.judge),
        ("KL to the reference, nats an answer", lambda p: p.kl),
    )
    rows: tuple[tuple[str, Callable[[Point], float]], ...] = (
        ("episodes", lambda p: p.episodes),
        ("seconds of training", lambda p: p.wall),
    )
    charts = []
    for axis, at in rows:
        for title, read in columns:
            series = [
                Series(SIDES[side], [at(p) for p in points], [read(p) for p in points], colour=colour)
                for colour, (side, of_side) in enumerate(curves.items(), 1)
                for points in of_side
            ]
            charts.append((title, line_chart(series, name=f"{title} over {axis}", x_label=axis)))
    return sheet(charts, [SIDES[side] for side in curves], columns=len(columns))
