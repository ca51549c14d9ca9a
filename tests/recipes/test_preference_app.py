"""The road through the preference app: sampled pairs, labelled through its store, exported, learned from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate.cli import run
from rlhf_kit.data import world
from rlhf_kit.data.records import load_preferences
from rlhf_kit.errors import InputError


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


def test_every_member_of_an_ensemble_says_its_score_beside_each_answer_and_import_chooses_by_them(
    road: Path, recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANNOTATE_DATABASE", f"sqlite:///{tmp_path}/votes.db")
    pairs, gold = tmp_path / "pairs.jsonl", "rlhf_kit.data.world:gold_scores"
    rows = recipe(
        "sample_pairs", model=road / "ppo", annotators="none", reward=f"{road / 'reward'},{gold}", output=pairs, batch_size=7
    )
    alone = recipe(
        "sample_pairs", model=road / "ppo", annotators="none", reward=gold, output=tmp_path / "alone.jsonl", batch_size=7
    )
    for side in "ab":
        texts = [row[f"response_{side}"][0]["content"] for row in rows]
        known = world.gold_scores([row["prompt"][-1]["content"] for row in rows], texts)
        members = np.array([row[f"member_scores_{side}"] for row in rows])
        np.testing.assert_allclose(members[:, 1], known, rtol=1e-6, atol=1e-6)  # they pass through fp32
        np.testing.assert_allclose([row[f"rm_score_{side}"] for row in rows], members.mean(1), rtol=1e-6, atol=1e-6)
        assert [row[f"member_scores_{side}"] for row in alone] == [[score] for score in members[:, 1]]
        assert len(set(members[:, 0])) > 20
    run(["import", "--file", str(pairs), "--skip_bad", "true", "--choose", "9"])
    assert "9 comparisons added" in capsys.readouterr().out


def test_scores_beside_labels_are_refused(road: Path, recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--reward is .*, expected none beside --annotators"):
        recipe("sample_pairs", model=road / "sft", reward=road / "reward", output=tmp_path / "pairs.jsonl")
