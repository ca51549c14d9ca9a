"""Clocks, rounds and rows: how contenders are timed and what is printed of it.

Contenders of a group take turns (ours, theirs, ours, theirs ...), so that a machine that slows down slows all of them;
a row is the ratio of medians. Wall time and the process's CPU time are both taken: on a shared machine the second is
the steadier, and where they disagree the machine was busy.
"""

from __future__ import annotations

import contextlib
import gc
import io
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch

Run = Callable[["Clock"], None]
Setup = Callable[[], Run]  # builds models and data outside the clock, and returns what is timed


class Clock:
    """Wall and CPU seconds from its making to the first `stop`: a run may stop it before it saves what nobody compares."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._stopped = False
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop; later calls change nothing."""
        if not self._stopped:
            self.wall, self.cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
            self._stopped = True


@dataclass
class Times:
    """Seconds of one contender, a figure a round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass
class Row:
    """One comparison. `ratio` above 1 means that ours is faster, smaller, or nearer to the machine's limit."""

    name: str
    work: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    reference: str  # the peer, and how it was set up
    target: float | None = None  # the least ratio that was aimed at
    ratio_cpu: float | None = None  # the same in CPU seconds, where time was measured


def interleave(contenders: Mapping[str, Setup], rounds: int) -> dict[str, Times]:
    """Let every contender run once a round, each on fresh models."""
    times = {name: Times() for name in contenders}
    for _ in range(rounds):
        for name, setup in contenders.items():
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # their reports
                run = setup()
                gc.collect()
                clock = Clock()
                run(clock)
                clock.stop()
            times[name].wall.append(clock.wall)
            times[name].cpu.append(clock.cpu)
            del run
    return times


def ratio_of_medians(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as long theirs takes."""
    return statistics.median(theirs) / statistics.median(ours)


def compare(
    name: str, work: str, ours: Times, theirs: Times, reference: str, *, target: float | None = None, unit: str = "s"
) -> Row:
    """A row from two contenders' seconds."""
    medians = statistics.median(ours.wall), statistics.median(theirs.wall)
    ratio, ratio_cpu = ratio_of_medians(theirs.wall, ours.wall), ratio_of_medians(theirs.cpu, ours.cpu)
    return Row(name, work, *medians, unit, ratio, reference, target, ratio_cpu)


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    capability = torch.backends.cpu.get_cpu_capability()
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate", "trl")}
    return {**packages, "threads": torch.get_num_threads(), "cpu_capability": capability, "python": platform.python_version()}


def as_json(rows: Sequence[Row], rounds: int, quick: bool) -> dict[str, Any]:
    """The report as plain data."""
    return {"machine": machine(), "rounds": rounds, "quick": quick, "rows": [asdict(row) for row in rows]}


def table(rows: Sequence[Row]) -> str:
    """The report as text: a line a row, losses marked."""
    head = ("row", "ours", "theirs", "unit", "ratio", "CPU", "aim", "against")
    lines = [head] + [
        (
            row.name,
            f"{row.ours:.4g}",
            f"{row.theirs:.4g}",
            row.unit,
            f"{row.ratio:.2f}x",
            "" if row.ratio_cpu is None else f"{row.ratio_cpu:.2f}x",
            "" if row.target is None else f"{row.target:g}x" + ("" if row.ratio >= row.target else " missed"),
            row.reference + ("" if row.ratio >= 1 else "  << LOST"),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
