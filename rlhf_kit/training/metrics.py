"""What a run tells: one JSON line a report in `metrics.jsonl`, the trackers of the user's choice, a line of progress, and
a warning where the curves raise an alarm (`rlhf_kit/health.py`).

The JSON file is the record and the rest is a view of it. A resumed run first drops what was written after the step it resumes
from, so that no step stands there twice. A full disk costs a report, never the run. Only rank 0 writes.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from torch import Tensor

from rlhf_kit.errors import InputError
from rlhf_kit.health import Watch

TRACKERS = ("tensorboard", "trackio", "wandb")
SHOWN = (
    "train/loss",
    "train/accuracy",
    "train/rewards/accuracies",
    "train/rewards/margins",
    "objective/scores",
    "objective/kl",
    "response/length",
    "eval/loss",
    "eval/gold_score",
    "lr",
)
PRINT_EVERY = 10.0  # seconds between lines where the output is no terminal


class Metrics:
    """The reports of one run, in `output_dir/metrics.jsonl`.

    Args:
        total_steps: the last step, for the time that is left.
        trackers: any of tensorboard (in `output_dir/tensorboard`), trackio and wandb (project `rlhf_kit`, run named as
            `output_dir`).
        resume_step: the step that this run goes on from; None starts a new file.
        settings: of the run, for the trackers.
        unit: what `log(units=...)` counts.
        show: the metrics in the progress line, those of them that were ever logged.
        clock: seconds that only grow.
    Raises:
        InputError: a tracker that is not known or not installed; on all ranks.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        total_steps: int,
        *,
        trackers: Sequence[str] = (),
        resume_step: int | None = None,
        settings: Mapping[str, Any] | None = None,
        unit: str = "tokens",
        show: Sequence[str] = SHOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name in trackers:
            if name not in TRACKERS:
                raise InputError("--trackers", name, f"expected any of {', '.join(TRACKERS)}")
            if importlib.util.find_spec(name) is None:
                raise InputError("--trackers", name, f"which is not installed: pip install {name}, or leave it out")
        self.path = Path(output_dir) / "metrics.jsonl"
        self.main, self.total_steps, self.unit, self.show, self.clock = (
            accelerator.is_main_process,
            total_steps,
            unit,
            show,
            clock,
        )
        self.first_step = resume_step or 0
        self.start = self.mark = clock()
        self._latest: dict[str, float] = {}
        self._printed, self._open_line, self._lost = -math.inf, False, False
        self._trackers: list[GeneralTracker] = []
        if self.main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(self.path, -1 if resume_step is None else resume_step)
            self._watch = Watch(total_steps, read_metrics(self.path))
            self._trackers = [_start(name, self.path.parent, self.first_step) for name in trackers]
            for tracker in self._trackers:
                plain = isinstance(tracker, TensorBoardTracker)  # it takes no lists, and `trackers` is one
                tracker.store_init_configuration({k: _word(v) if plain else v for k, v in (settings or {}).items()})

    def log(self, step: int, metrics: Mapping[str, Any], units: float | None = None) -> None:
        """Report `metrics` (floats, 0-dim tensors, words) of optimizer step `step`, counted from 1 as the number of steps done.

        Numbers that are not finite are written as null, and `nonfinite` says how many. With `units`, how many were processed
        since the last call that had any, there is also a rate a second, of the time that was not spent `aside`. An alarm is
        printed when it is first seen, and `alarms` names it in that line of the file.
        """
        now = self.clock()
        if units is not None:
            since, self.mark = max(now - self.mark, 1e-9), now
        if not self.main:
            return
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        if units is not None:
            row[f"{self.unit}_per_second"] = units / since
        broken = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in broken}
        row |= dict.fromkeys(broken) | ({"nonfinite": len(broken)} if broken else {})
        self._latest |= numbers | dict.fromkeys(broken, math.nan)
        row = {"step": step, "seconds": round(now - self.start, 3), **row}
        alarms = self._watch.add(row)
        row |= {"alarms": [note.title for note in alarms]} if alarms else {}
        for note in alarms:
            self._warn(f"step {step}: {note.plain()}")
        try:
            _append(self.path, json.dumps(row) + "\n")
            for tracker in self._trackers:
                tracker.log(numbers, step=step)
        except OSError as error:
            if not self._lost:
                self._warn(f"reports are lost, {self.path} cannot be written: {error}")
            self._lost = True
        self._progress(step, now)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Evaluating and saving are no training: the time in here does not count in the rate."""
        started = self.clock()
        yield
        self.mark += self.clock() - started

    @property
    def seconds(self) -> float:
        """Since this run, or its resumption, began."""
        return self.clock() - self.start

    def close(self) -> None:
        """End the progress line and the trackers."""
        self._end_line()
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

    def _progress(self, step: int, now: float) -> None:
        terminal = sys.stderr.isatty()
        if not terminal and step < self.total_steps and now - self._printed < PRINT_EVERY:
            return
        self._printed = now
        done, left = max(step - self.first_step, 1), max(self.total_steps - step, 0)
        parts = [f"step {step}/{self.total_steps}"]
        parts += [
            f"{name.removeprefix('train/').removeprefix('objective/')} {self._latest[name]:.4g}"
            for name in self.show
            if name in self._latest
        ]
        if f"{self.unit}_per_second" in self._latest:
            parts.append(f"{self._latest[f'{self.unit}_per_second']:,.0f} {self.unit}/s")
        elapsed = now - self.start
        parts.append(f"{_clock(elapsed)} so far, {_clock(elapsed / done * left)} left")
        line = " | ".join(parts)
        if terminal:
            print(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
            self._open_line = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _warn(self, text: str) -> None:
        self._end_line()
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._open_line:
            print(file=sys.stderr, flush=True)
            self._open_line = False


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The reports in a `metrics.jsonl`, oldest first; a line that a crash cut short is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _keep_until(path: Path, last_step: int) -> None:
    """Leave only the reports up to `last_step` in the file, which is made where it is missing."""
    rows = [row for row in read_metrics(path) if row["step"] <= last_step] if path.exists() else []
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)


def _append(path: Path, line: str) -> None:
    """Add a line, or leave the file as it was: half a line would spoil the next one."""
    end = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:
        os.truncate(path, end)
        raise


def _start(name: str, output_dir: Path, first_step: int) -> GeneralTracker:
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", str(output_dir), purge_step=first_step + 1)
    else:
        tracker = {"trackio": TrackioTracker, "wandb": WandBTracker}[name]("rlhf_kit", name=output_dir.resolve().name)
    tracker.start()
    return tracker


def _word(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
