"""The road through the preference app: sampled pairs, labelled through its store, exported, learned from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annotate.cli import run
from rlhf_kit.data.records import load_preferences


def test_sampled_pairs_come_back_as_the_reward_models_data(
    road: Path, recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANNOTATE_DATABASE", f"sqlite:///{tmp_path}/votes.db")
    pairs = tmp_path / "pairs.jsonl"
    sampled = recipe("sample_pairs", model=road / "sft", annotators="none", reward=road / "reward", output=pairs)
    assert all(isinstance(row[f"rm_score_{side}"], float) for row in sampled for side in "ab")
    assert {(row["model"], len(row["checkpoint"])) for row in sampled} == {(str(road / "sft"), 12)}

    run(["import", "--file", str(pairs), "--skip_bad", "true"])  # a model of bytes that has learned nothing may say NUL
    run(["simulate", "--people", "1", "--labels", "100", "--temperature", "0.01", "--bad_below", "-100"])
    run(["export", "--output", str(tmp_path / "export"), "--test_fraction", "0"])
    export = tmp_path / "export" / "train.jsonl"
    texts = [[row[side][0]["content"] for side in ("response_a", "response_b")] for row in sampled]
    left_out = sum(a == b or "\0" in a + b for a, b in texts)
    ties = tmp_path / "export" / "ties.jsonl"
    undecided = len(ties.read_text().splitlines()) if ties.exists() else 0
    found = load_preferences(export)
    assert len(found) + undecided + left_out == len(sampled)
    assert json.loads(export.read_text().splitlines()[0])["chosen_model"] == str(road / "sft")
    recipe("reward", model=road / "sft", data=export, eval_fraction=0.2, output_dir=tmp_path / "reward", max_steps=1)
    assert (tmp_path / "reward" / "config.json").exists()
