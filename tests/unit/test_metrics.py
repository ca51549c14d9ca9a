from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlhf_kit.errors import InputError
from rlhf_kit.training.distributed import make_accelerator
from rlhf_kit.training.metrics import Metrics, read_metrics


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_report_is_one_json_line_with_step_time_and_rate(tmp_path: Path, accelerator: Accelerator) -> None:
    clock = Clock()
    metrics = Metrics(accelerator, tmp_path, 10, clock=clock)
    clock.now += 2
    metrics.log(1, {"train/loss": torch.tensor(1.5), "stage": "sft", "n": 3}, units=1000)
    with metrics.aside():
        clock.now += 1
    metrics.log(1, {"eval/loss": 2.0})
    clock.now += 4
    metrics.log(2, {"train/loss": 1.25}, units=1000)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "seconds": 2.0, "train/loss": 1.5, "stage": "sft", "n": 3, "tokens_per_second": 500.0},
        {"step": 1, "seconds": 3.0, "eval/loss": 2.0},
        {
            "step": 2,
            "seconds": 7.0,
            "train/loss": 1.25,
            "tokens_per_second": 250.0,
        },  # the second of evaluation is not training time
    ]


def test_numbers_that_are_not_finite_become_null_and_are_counted(tmp_path: Path, accelerator: Accelerator) -> None:
    Metrics(accelerator, tmp_path, 10).log(1, {"a": math.nan, "b": torch.tensor(-math.inf), "c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    row = json.loads(text)
    assert (row["a"], row["b"], row["c"], row["nonfinite"]) == (None, None, 1.0, 2)


def test_a_resumed_run_drops_what_was_reported_after_its_step(tmp_path: Path, accelerator: Accelerator) -> None:
    metrics = Metrics(accelerator, tmp_path, 10)
    for step in range(1, 6):
        metrics.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the crash
    resumed = Metrics(accelerator, tmp_path, 10, resume_step=3)
    assert [row["step"] for row in read_metrics(resumed.path)] == [1, 2, 3]
    resumed.log(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(resumed.path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_new_run_starts_a_new_file(tmp_path: Path, accelerator: Accelerator) -> None:
    Metrics(accelerator, tmp_path, 10).log(1, {"loss": 1.0})
    Metrics(accelerator, tmp_path, 10).log(1, {"loss": 2.0})
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2.0]


def test_a_full_disk_costs_reports_and_one_warning_but_not_the_run(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics(accelerator, tmp_path, 10)
    metrics.log(1, {"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))  # room for the first line and a half, refused by the system itself
    try:
        metrics.log(2, {"loss": 2.0})
        metrics.log(3, {"loss": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    metrics.log(4, {"loss": 4.0})
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1, 4]
    assert capsys.readouterr().err.count("warning: reports are lost") == 1


def progress(accelerator: Accelerator, tmp_path: Path, seconds: float, steps: int, **options: Any) -> None:
    clock = Clock()
    metrics = Metrics(accelerator, tmp_path, 100, clock=clock, **options)
    for step in range(steps):
        clock.now += seconds
        metrics.log((options.get("resume_step") or 0) + step + 1, {"train/loss": 2.0 - step / 8, "hidden": 1.0}, units=5000)
    metrics.close()


def test_without_a_terminal_a_line_appears_now_and_then(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    progress(accelerator, tmp_path, 4.0, 5)
    assert capsys.readouterr().err.splitlines() == [
        "step 1/100 | loss 2 | 1,250 tokens/s | 0:04 so far, 6:36 left",
        "step 4/100 | loss 1.625 | 1,250 tokens/s | 0:16 so far, 6:24 left",
    ]


def test_the_time_that_is_left_counts_only_steps_of_this_process(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    progress(accelerator, tmp_path, 100.0, 1, resume_step=50)
    assert "step 51/100 | loss 2 | 50 tokens/s | 1:40 so far, 1:21:40 left" in capsys.readouterr().err


def test_on_a_terminal_one_line_is_rewritten(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    progress(accelerator, tmp_path, 1.0, 3)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.endswith("\r\x1b[2Kstep 3/100 | loss 1\n")  # cut to the width, less one so that it cannot wrap


def test_tensorboard_gets_the_finite_numbers_and_forgets_what_is_redone(tmp_path: Path, accelerator: Accelerator) -> None:
    for resume, steps in ((None, (1, 2, 3)), (1, (2, 3))):
        metrics = Metrics(accelerator, tmp_path, 10, trackers=["tensorboard"], resume_step=resume)
        for step in steps:
            metrics.log(step, {"loss": float(step + 10 * (resume or 0)), "bad": math.nan, "word": "x"})
        metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 12.0), (3, 13.0)]


def test_tensorboard_takes_the_settings_of_a_run_lists_and_nothings_among_them(tmp_path: Path, accelerator: Accelerator) -> None:
    settings = {"seed": 1, "max_steps": None, "resume": False, "trackers": ["tensorboard"]}
    Metrics(accelerator, tmp_path, 10, trackers=["tensorboard"], settings=settings).close()
    (told,) = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert yaml.safe_load(told.read_text()) == settings | {"trackers": "['tensorboard']"}


FAKE = """
calls = []


class config:
    def update(values, **options):
        calls.append(("settings", values))


class Run:
    def log(self, values, step=None):
        calls.append(("log", values, step))

    def finish(self):
        calls.append(("finish",))


def init(**options):
    calls.append(("init", options))
    return Run()
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_are_told_project_run_and_numbers(
    name: str, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(FAKE)  # neither may touch the network in a test
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    metrics = Metrics(accelerator, tmp_path / "my-run", 10, trackers=[name], settings={"seed": 1})
    metrics.log(3, {"loss": 2.0, "bad": math.inf})
    metrics.close()
    calls = sys.modules.pop(name).calls
    assert calls == [
        ("init", {"project": "rlhf_kit", "name": "my-run"}),
        ("settings", {"seed": 1}),
        ("log", {"loss": 2.0}, 3),
        ("finish",),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [("wandbb", "expected any of tensorboard, trackio, wandb"), ("wandb", "which is not installed: pip install wandb")],
)
def test_a_tracker_that_is_not_there_is_refused_by_name(
    name: str, message: str, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Callable[[str], Any] = lambda module: None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", found)
    with pytest.raises(InputError, match=message):
        Metrics(accelerator, tmp_path, 10, trackers=[name])


def test_time_aside_and_reports_without_units_do_not_count_in_the_rate(accelerator: Accelerator, tmp_path: Path) -> None:
    clock = Clock()
    metrics = Metrics(accelerator, tmp_path, 10, clock=clock)
    clock.now += 2.0
    with metrics.aside():
        clock.now += 100.0
    metrics.log(1, {"eval/loss": 1.0})
    clock.now += 3.0
    metrics.log(2, {"train/loss": 1.0}, units=50)
    metrics.close()
    assert read_metrics(metrics.path)[1]["tokens_per_second"] == 10.0
