"""A recipe that is killed goes on with `--resume true` as if nothing had been, on one process and under a launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from rlhf_kit.models.loading import load_causal_lm, load_scalar_model
from rlhf_kit.training import fit as fit_module
from rlhf_kit.training import online as online_module
from rlhf_kit.training import precision
from tests.recipes.conftest import CONFIGS

ROOT = Path(fit_module.__file__).parents[2]


class Killed(Exception):
    """The machine went away."""


def settings(stage: str, road: Path) -> dict[str, Any]:
    """What a stage reads, on the miniature road."""
    if stage == "pretrain":
        return {"tokenizer": road / "tokenizer", "dropout": 0.1}
    if stage == "sft":
        return {"model": road / "pretrain"}
    if stage in ("reward", "dpo", "kto"):
        return {"model": road / "sft", "data": road / "pairs.jsonl"} | ({"loss": "kto"} if stage == "kto" else {})
    return {"model": road / "sft", "reward": road / "reward", "kl_target": 1.0} | (
        {"rloo": {"algorithm": "rloo", "group_size": 2}, "shared": {"critic": "shared", "critic_warmup": 1}}.get(stage, {})
    )


def outcome(folder: Path, stage: str) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """The weights that a stage left, and its reports without the clock."""
    models = [(load_scalar_model if stage == "reward" else load_causal_lm)(folder)]
    if stage in ("ppo", "shared"):
        models.append(load_scalar_model(folder / "critic"))
    tensors = [p for model in models for p in model.parameters()]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return tensors, [{k: v for k, v in r.items() if k not in ("seconds", "eps") and not k.endswith("per_second")} for r in rows]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "kto", "ppo", "shared", "rloo"])
def test_a_killed_recipe_resumes_bit_for_bit(
    stage: str, road: Path, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"rloo": "ppo", "shared": "ppo", "kto": "dpo"}.get(stage, stage)
    options = settings(stage, road) | {"save_every": 2, "log_every": 3}  # a report is pending when the run is killed
    if stage == "rloo":  # a reward that draws
        (tmp_path / "noisy.py").write_text(
            "import torch\n\ndef noise(prompts, responses):\n    return torch.rand(len(responses)).tolist()\n"
        )
        options["reward"] = f"{tmp_path / 'noisy.py'}:noise"
    recipe(name, **options, output_dir=tmp_path / "whole")

    loop: Any = online_module if name == "ppo" else fit_module
    original = loop.lr_at

    def killed(step: int, *arguments: Any, **others: Any) -> float:
        if step == 3:
            raise Killed
        return float(original(step, *arguments, **others))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "lr_at", killed)
        with pytest.raises(Killed):
            recipe(name, **options, output_dir=tmp_path / "killed")
    torch.manual_seed(12345)  # whatever a new process starts with
    recipe(name, **options, output_dir=tmp_path / "killed", resume=True)
    (whole, reports), (resumed, others) = outcome(tmp_path / "whole", stage), outcome(tmp_path / "killed", stage)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert reports == others


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, **options
    )


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith("rank-1.pt")}


def test_a_config_file_and_flags_make_a_run_from_the_shell(road: Path, flags: Any, tmp_path: Path) -> None:
    config = ROOT / "recipes" / "configs" / "tiny" / "sft.yaml"
    words = flags("sft", model=road / "pretrain", output_dir=tmp_path / "sft", precision="fp32")
    run = python("recipes/sft.py", "--config", str(config), *words)
    assert run.returncode == 0, run.stderr
    assert files(tmp_path / "sft") == files(road / "sft")
    assert "train: " in run.stdout
    assert all(line.startswith("step ") for line in run.stderr.splitlines()), run.stderr  # nothing else litters the log


LAUNCHERS = {
    "accelerate": (
        "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
        "--main_process_port 0"
    ),
    "torchrun": "-m torch.distributed.run --standalone --nproc_per_node 2",
}


@pytest.mark.parametrize(("launcher", "stage"), [("accelerate", "pretrain"), ("torchrun", "ppo")])
def test_two_processes_end_with_the_files_and_the_losses_of_one(
    launcher: str, stage: str, road: Path, recipe: Any, flags: Any, tmp_path: Path
) -> None:
    options = settings(stage, road) | ({"dropout": 0.0} if stage == "pretrain" else {})
    recipe(stage, **options, output_dir=tmp_path / "one")
    words = flags(stage, **options, output_dir=tmp_path / "two")
    run = python(*LAUNCHERS[launcher].split(), f"recipes/{stage}.py", *words)
    assert run.returncode == 0, run.stderr
    assert files(tmp_path / "two") == files(tmp_path / "one")
    (_, one), (_, two) = (outcome(tmp_path / name, stage) for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    if stage == "pretrain":  # PPO draws other answers on two processes; pretraining sees the same tokens
        for a, b in zip(one, two):
            assert a == pytest.approx(b, rel=1e-4)


def test_an_interrupted_run_saves_says_so_and_goes_on(road: Path, flags: Any, recipe: Any, tmp_path: Path) -> None:
    words = flags("sft", model=road / "pretrain", output_dir=tmp_path / "sft", max_steps=3000, save_every=0, eval_every=0)
    process = subprocess.Popen(
        [sys.executable, "recipes/sft.py", *words], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = tmp_path / "sft" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume true goes on from here" in errors.splitlines()[-1]
    (step,) = [int(path.name[5:]) for path in (tmp_path / "sft" / "trainer_state").iterdir()]
    recipe(
        "sft", model=road / "pretrain", output_dir=tmp_path / "sft", max_steps=step + 2, save_every=0, eval_every=0, resume=True
    )
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, step + 3))


def test_no_flag_of_a_recipe_is_taken_by_a_launcher() -> None:
    """argparse reads `--monitor` behind the script's name as an abbreviation of torchrun's `--monitor-interval`, and stops."""
    names = {f"--{name}" for _, cls, _ in CONFIGS.values() for name in cls.__dataclass_fields__}
    for parser in (get_args_parser(), launch_command_parser()):
        options = parser._option_string_actions
        assert not [(name, option) for name in names for option in options if option.startswith(name)]


def test_a_resumed_run_keeps_the_precision_it_was_begun_with(road: Path, recipe: Any, monkeypatch: Any, tmp_path: Path) -> None:
    options = {"model": road / "pretrain", "output_dir": tmp_path / "sft", "precision": "auto", "max_steps": 4, "save_every": 2}
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 4.0)
    recipe("sft", **options)
    assert yaml.safe_load((tmp_path / "sft" / "run_config.yaml").read_text())["precision"] == "bf16"
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 0.5)
    recipe("sft", **options, resume=True)
    assert yaml.safe_load((tmp_path / "sft" / "run_config.yaml").read_text())["precision"] == "bf16"
