"""What a run left behind, read back: stage directories with metrics, config, evaluation and samples.

    run/                      or one stage directory alone, or a list of them
      pretrain/ sft/ ...      metrics.jsonl, run_config.yaml, evaluation.json, samples.jsonl
      evaluation/             evaluation.json and samples.jsonl of the run as a whole; both may also stand in run/ itself
      summary.json            `seconds`, and `stage_seconds` with the time of every step in order

Only metrics.jsonl has to be there: it makes a directory a stage. What is missing is left out; what is there and broken is an
InputError that names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_kit.errors import InputError

_ORDER = ("pretrain", "sft", "reward", "dpo", "ppo")


def is_number(value: Any) -> bool:
    """A finite int or float; JSON's NaN and its booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def title_of(name: str) -> str:
    """The name of a step for people."""
    known = {
        "pretrain": "Pretraining",
        "sft": "Supervised fine-tuning",
        "reward": "Reward model",
        "pairs": "Answer pairs",
        "dpo": "DPO",
        "evaluate": "Evaluation",
    }
    return known.get(name.lower(), (name[:1].upper() + name[1:]).replace("_", " "))


@dataclass
class StageRun:
    """One stage: its name, the metrics it logged, the config it ran with, what was measured afterwards."""

    name: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one metric, by step; where a step was logged twice (a resume) the later one counts."""
        found = {float(row["step"]): float(row[key]) for row in self.metrics if is_number(row.get(key))}
        steps = sorted(found)
        return steps, [found[step] for step in steps]

    def last(self, key: str) -> float | None:
        """The last finite value of a metric."""
        values = self.curve(key)[1]
        return values[-1] if values else None

    @property
    def kind(self) -> str:
        """What the stage learned, told by what it logged: `online`, `preference`, `reward` or `lm`."""
        keys = {key for row in self.metrics for key in row}
        if "objective/kl" in keys or "objective/scores" in keys:
            return "online"
        if keys & {"eval/rewards/margins", "train/rewards/margins"}:
            return "preference"
        return "reward" if keys & {"eval/accuracy", "train/accuracy"} or "calibration" in self.evaluation else "lm"

    @property
    def title(self) -> str:
        """The stage's name for people."""
        if self.kind == "online" and self.name.lower() in ("ppo", "rloo", "online"):
            return str(self.config.get("algorithm") or self.name).upper()
        if self.kind == "preference" and self.name.lower() == "dpo":
            return str(self.config.get("loss") or self.name).upper()
        return title_of(self.name)

    @property
    def duration(self) -> float | None:
        """Seconds the stage took: what it was told, or what it logged. A resumed run's clock starts anew, and is added."""
        if self.seconds is not None:
            return self.seconds
        clock = [float(row["seconds"]) for row in self.metrics if is_number(row.get("seconds"))]
        ends = [now for now, after in zip(clock, [*clock[1:], 0.0]) if after < now]
        return sum(ends) if clock else None

    @property
    def speed(self) -> tuple[float, str] | None:
        """The median rate over the run and its unit: `(5200.0, "tokens/s")`."""
        keys = sorted({key for row in self.metrics for key in row if key.endswith("_per_second")})
        rates = sorted(self.curve(keys[0])[1]) if keys else []
        return (rates[len(rates) // 2], keys[0].removesuffix("_per_second") + "/s") if rates else None


@dataclass
class Run:
    """Stages in the order they ran, and what was measured on the whole."""

    title: str
    stages: list[StageRun]
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def find(self, key: str) -> Any:
        """`key` of the run's evaluation, or of the last stage's that has it; None where nobody measured it."""
        for evaluation in (self.evaluation, *(stage.evaluation for stage in reversed(self.stages))):
            if evaluation.get(key) is not None:
                return evaluation[key]
        return None

    def steps(self) -> dict[str, float]:
        """Seconds of every step of the run in order, those without metrics (a tokenizer, say) included."""
        found = self.evaluation.get("stage_seconds")
        return {str(k): float(v) for k, v in found.items() if is_number(v)} if isinstance(found, Mapping) else {}

    @property
    def seconds(self) -> float | None:
        """The whole run's time, as far as it is known."""
        whole = self.evaluation.get("seconds")
        if is_number(whole):
            return float(self.evaluation["seconds"])
        known = [stage.duration for stage in self.stages if stage.duration is not None]
        return sum(known) if known else None

    def all_samples(self) -> list[dict[str, Any]]:
        """The run's samples, or the last stage's that has any."""
        return next((s for s in (self.samples, *(stage.samples for stage in reversed(self.stages))) if s), [])


def read_run(where: Path | str | Sequence[Path | str]) -> Run:
    """A run directory, one stage directory, or a list of stage directories.

    Raises:
        InputError: nothing there to report, or a file that cannot be read.
    """
    if not isinstance(where, Path | str):
        stages = [_read_stage(_existing(Path(path))) for path in where]
        if not stages:
            raise InputError("stage directories", [], "expected at least one")
        return Run(" + ".join(stage.name for stage in stages), stages)
    root = _existing(Path(where))
    if (root / "metrics.jsonl").is_file():
        return Run(root.resolve().name, [_read_stage(root)])
    children = sorted(child for child in root.iterdir() if (child / "metrics.jsonl").is_file())
    if not children:
        raise InputError("run directory", str(root), "expected metrics.jsonl in it or in a directory below it")
    stages = sorted((_read_stage(child) for child in children), key=_place)
    evaluation, samples = _read_json(root / "summary.json"), _read_lines(root / "samples.jsonl")
    for found in (*(child for child in sorted(root.iterdir()) if child.is_dir() and child not in children), root):
        evaluation |= _read_json(found / "evaluation.json")
        samples = samples or _read_lines(found / "samples.jsonl")
    return _with_times(Run(root.resolve().name, stages, evaluation, samples))


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """A run given as plain data: `{"title", "stages": [{"name", "metrics", ...}], "evaluation", "samples"}`."""
    unknown = set(data) - {"title", "stages", "evaluation", "samples"}
    if unknown or not data.get("stages"):
        raise InputError("report data", sorted(data), "expected title, stages (at least one), evaluation, samples and no other")
    try:
        stages = [stage if isinstance(stage, StageRun) else StageRun(**stage) for stage in data["stages"]]
    except TypeError as error:
        raise InputError("report data 'stages'", str(error), "expected the fields of StageRun") from error
    for stage in stages:
        _check_metrics(stage.metrics, f"stage {stage.name!r}, metrics row")
    evaluation, samples = dict(data.get("evaluation") or {}), list(data.get("samples") or [])
    return _with_times(Run(str(data.get("title", "run")), stages, evaluation, samples))


def _with_times(run: Run) -> Run:
    for stage in run.stages:
        seconds = run.steps().get(stage.name)
        if stage.seconds is None and seconds is not None:
            stage.seconds = seconds
    return run


def _place(stage: StageRun) -> tuple[int, str]:
    name = stage.name.lower()
    known = next((i for i, word in enumerate(_ORDER) if word in name), None)
    return (known if known is not None else {"lm": 1, "reward": 2, "preference": 3, "online": 4}[stage.kind]), name


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise InputError("run directory", str(path), "expected a directory that is there")
    return path


def _read_stage(path: Path) -> StageRun:
    metrics = _read_lines(path / "metrics.jsonl")
    _check_metrics(metrics, f"{path / 'metrics.jsonl'} line")
    return StageRun(
        path.resolve().name,
        metrics,
        _read_yaml(path / "run_config.yaml"),
        _read_json(path / "evaluation.json"),
        _read_lines(path / "samples.jsonl"),
    )


def _check_metrics(rows: list[dict[str, Any]], where: str) -> None:
    for i, row in enumerate(rows, 1):
        if not is_number(row.get("step")):
            raise InputError(f"{where} {i}, 'step'", row.get("step"), "expected a number on every line")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise InputError(str(path), error.reason, "expected UTF-8 text") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = _read_text(path).split("\n")
    rows = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if i == len(lines) and i > 1:  # no newline at its end: the run was stopped, or is still writing
                continue
            raise InputError(f"{path} line {i}", line, f"expected one JSON object ({error.msg})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {i}", row, "expected one JSON object")
        rows.append(row)
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        data = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno}", text.split("\n")[error.lineno - 1], f"expected JSON ({error.msg})"
        ) from error
    if not isinstance(data, dict):
        raise InputError(str(path), data, "expected a JSON object")
    return data


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(_read_text(path)) or {}
    except yaml.YAMLError as error:
        raise InputError(str(path), str(error).split("\n")[0], "expected YAML: restore the file that the run wrote") from error
    if not isinstance(data, dict):
        raise InputError(str(path), data, "expected a mapping of settings")
    return data
