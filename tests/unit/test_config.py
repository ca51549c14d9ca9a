from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch.distributed

from rlhf_kit.config import parse_config, run_recipe, save_config
from rlhf_kit.errors import InputError


@dataclass
class Example:
    """An example recipe."""

    model: str  # which model to train
    learning_rate: float = 1e-3
    total_steps: int = 10
    resume: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int | None = None
    strict: bool | None = None
    output_dir: Path = Path("runs/example")
    betas: tuple[float, float] = (0.9, 0.95)
    trackers: list[str] = field(default_factory=list)
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise InputError("--learning_rate", self.learning_rate, "expected a positive number")


def parse(*argv: str) -> Example:
    return parse_config(Example, argv)


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "model: gpt\nlearning_rate: 3e-4\ntotal_steps: 20\n")
    config = parse("--total_steps", "30", "--config", path)
    assert (config.model, config.learning_rate, config.total_steps, config.seed) == ("gpt", 3e-4, 30, None)


@pytest.mark.parametrize("flags", [["--learning_rate", "2e-4"], ["--learning-rate", "2e-4"], ["--learning-rate=2e-4"]])
def test_a_flag_may_be_spelled_with_underscores_dashes_or_an_equals_sign(flags: list[str]) -> None:
    assert parse("--model", "m", *flags).learning_rate == 2e-4


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--resume"], True),
        (["--resume", "true"], True),
        (["--resume=True"], True),
        (["--resume", "false"], False),
        (["--no-resume"], False),
        (["--no_resume"], False),
    ],
)
def test_a_bool_may_be_a_switch_or_have_a_value(flags: list[str], expected: bool, tmp_path: Path) -> None:
    path = yaml_file(
        tmp_path, f"model: m\nresume: {'false' if expected else 'true'}\n"
    )  # the opposite, so that the flag must act
    assert parse("--config", path, *flags).resume is expected


def test_every_supported_type_is_read_alike_from_the_file_and_from_the_command_line(tmp_path: Path) -> None:
    text = "\n".join(
        [
            "model: m",
            "learning_rate: 1",
            "mixed_precision: bf16",
            "seed: 1_000",
            "strict: true",
            "output_dir: out/x",
            "betas: [0.5, 1]",
            "trackers: [wandb, tensorboard]",
            "weights: [1, 2e-1]",
        ]
    )
    flags = "--model m --learning_rate 1 --mixed_precision bf16 --seed 1000 --strict true --output_dir out/x --betas 0.5 1 "
    flags += "--trackers wandb tensorboard --weights 1 2e-1"
    expected = Example("m", 1.0, 10, False, "bf16", 1000, True, Path("out/x"), (0.5, 1.0), ["wandb", "tensorboard"], (1.0, 0.2))
    from_file, from_flags = parse("--config", yaml_file(tmp_path, text)), parse(*flags.split())
    assert from_file == from_flags == expected
    assert [type(x) for x in (*from_file.betas, from_file.learning_rate)] == [float] * 3


def test_the_word_no_is_a_word_and_null_is_nothing(tmp_path: Path) -> None:
    config = parse("--config", yaml_file(tmp_path, "model: no\nmixed_precision: no\nseed: null\n"))
    assert (config.model, config.mixed_precision, config.seed) == ("no", "no", None)
    assert parse("--config", yaml_file(tmp_path, "model: m\nseed: 3"), "--seed", "none").seed is None


def test_negative_numbers_are_values_and_not_flags() -> None:
    assert parse("--model", "m", "--weights", "-1", "-2.5e-3", "--seed", "-1") == Example("m", seed=-1, weights=(-1.0, -2.5e-3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nlerning_rate: 0.1", "run.yaml: lerning_rate is 0.1, but there is no such field: did you mean learning_rate?"),
        ("model: m\nqqq: 1", "run.yaml: qqq is 1, but there is no such field: expected one of model, learning_rate, "),
        ("model: m\ntotal_steps: ten", "run.yaml: total_steps is 'ten', expected int"),
        ("model: m\ntotal_steps: 1e3", "run.yaml: total_steps is 1000.0, expected int"),
        ("model: m\ntotal_steps: true", "run.yaml: total_steps is True, expected int"),
        ("model: m\nlearning_rate: fast", "run.yaml: learning_rate is 'fast', expected float"),
        ("model: m\nresume: yes", "run.yaml: resume is 'yes', expected true or false"),
        ("model: 2024", "run.yaml: model is 2024, expected str"),
        ("model: m\nseed: x", "run.yaml: seed is 'x', expected int or null"),
        ("model: m\nmixed_precision: fp8", "run.yaml: mixed_precision is 'fp8', expected one of no, bf16"),
        ("model: m\nbetas: [0.9]", "run.yaml: betas is [0.9], expected a list of 2 float"),
        ("model: m\ntrackers: wandb", "run.yaml: trackers is 'wandb', expected a list of str"),
        ("model: m\nmodel: n", "the key 'model' is given twice"),
        ("model: [", "run.yaml', expected valid YAML"),
        ("- 1", "run.yaml is [1], expected a mapping"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        parse("--config", yaml_file(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lerning_rate 0.1", "--lerning_rate is '0.1', but there is no such flag: did you mean --learning_rate?"),
        ("--lerning-rate=0.1", "did you mean --learning_rate?"),
        ("--total_steps ten", "--total_steps is 'ten', expected int"),
        ("--total-steps 1e3", "--total_steps is '1e3', expected int"),
        ("--total_steps", "--total_steps is '', expected int"),
        ("--resume maybe", "--resume is 'maybe', expected true or false"),
        ("--no_resume true", "--no_resume is 'true', expected nothing after it"),
        ("--no_model", "there is no such flag"),
        ("--mixed_precision fp8", "--mixed_precision is 'fp8', expected one of no, bf16"),
        ("--betas 0.9", "--betas is '0.9', expected a list of 2 float"),
        ("--betas 0.9 0.95 0.99", "--betas is '0.9 0.95 0.99', expected a list of 2 float"),
        ("--seed 1 2", "--seed is '1 2', expected int or null"),
        ("--config", "--config is '', expected exactly one YAML file"),
        ("stray", "command line is 'stray', expected a flag"),
        ("--learning_rate -1", "--learning_rate is -1.0, expected a positive number"),
    ],
)
def test_a_command_line_that_does_not_fit_is_refused_by_name(flags: str, message: str) -> None:
    before = ["--model", "m"] if flags != "stray" else []
    with pytest.raises(InputError) as caught:
        parse(*before, *flags.split())
    assert message in str(caught.value)


def test_a_missing_field_and_a_missing_file_are_named() -> None:
    with pytest.raises(InputError, match=r"--model is None, expected str: it is required"):
        parse("--total_steps", "3")
    with pytest.raises(
        InputError, match=r"--config is 'nowhere.yaml', expected a readable YAML file \(No such file or directory\)"
    ):
        parse("--config", "nowhere.yaml")


def test_a_saved_config_loads_to_an_equal_one(tmp_path: Path) -> None:
    config = Example(
        "3e-4", 1e-5, 7, True, "no", None, False, Path("a/ü b"), (0.1, 0.2), ["no", "null", "1.5", ""], (float("inf"),)
    )
    path = tmp_path / "deep" / "run_config.yaml"
    save_config(config, path)
    assert parse("--config", str(path)) == config
    assert [p.name for p in path.parent.iterdir()] == ["run_config.yaml"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run_config.yaml"
    config = Example("m")
    save_config(config, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_config(replace(config, seed=9), path)
    assert parse("--config", str(path)) == config


def test_help_lists_the_fields_with_their_comments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(Example, ["--help"], description="Trains an example.")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(
        words in shown for words in ("Trains an example.", "--model", "which model to train", "--learning_rate", "--config")
    )


def test_a_recipe_says_what_is_wrong_in_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_recipe(lambda config: None, Example, ["--modle", "m"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --modle is 'm', but there is no such flag: did you mean --model?\n"


def test_a_recipe_runs_with_its_config_and_stops_with_130_on_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Example] = []
    run_recipe(seen.append, Example, ["--model", "m"])
    assert seen == [Example("m")]

    def interrupted(config: Example) -> None:
        raise KeyboardInterrupt("stopped at step 3")

    with pytest.raises(SystemExit) as stop:
        run_recipe(interrupted, Example, ["--model", "m"])
    assert (stop.value.code, capsys.readouterr().err) == (130, "stopped at step 3\n")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_recipe(lambda config: 1 // 0, Example, ["--model", "m"])


def test_under_a_launcher_only_rank_0_speaks_until_the_ranks_are_joined(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        run_recipe(lambda config: None, Example, [])
    assert (stop.value.code, capsys.readouterr().err) == (2, "")
    left: list[None] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(None))
    with pytest.raises(SystemExit):
        run_recipe(lambda config: None, Example, [])
    assert len(left) == 1
    assert capsys.readouterr().err.startswith("error (rank 1): --model is None")


def test_a_script_that_uses_it_fails_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom rlhf_kit.config import run_recipe\n"
        "@dataclass\nclass Config:\n    total_steps: int = 1\n"
        "if __name__ == '__main__':\n    run_recipe(lambda config: print(config.total_steps), Config)\n"
    )
    good = subprocess.run([sys.executable, script, "--total_steps", "4"], capture_output=True, text=True)
    bad = subprocess.run([sys.executable, script, "--total_steps", "four"], capture_output=True, text=True)
    assert (good.returncode, good.stdout) == (0, "4\n")
    assert (bad.returncode, bad.stderr) == (2, "error: --total_steps is 'four', expected int\n")
