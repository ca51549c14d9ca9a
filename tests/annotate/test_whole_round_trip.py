"""The way around, whole and small: what people say over HTTP a reward model learns, PPO climbs it, and new answers come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annotate.client import HttpClient
from annotate.store.database import open_database
from annotate.store.projects import get_project
from annotate.store.records import Result, Task, Verdict
from annotate.store.schema import comparison, response
from annotate.store.users import list_users
from examples.round_trip import PROJECT, RoundTripConfig, main
from rlhf_kit.errors import InputError
from tests.recipes.conftest import run_main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SFT model that has hardly learnt anything: its answers differ, which is all that is needed."""
    out = tmp_path_factory.mktemp("run")
    run_main("tokenizer", output_dir=out / "tokenizer")
    run_main("pretrain", tokenizer=out / "tokenizer", output_dir=out / "pretrain")
    run_main("sft", model=out / "pretrain", output_dir=out / "sft")
    return out


@pytest.fixture(scope="module")
def trip(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[tuple[Task, Verdict]]]:
    """(the folder, the figures, what was said) of one way around."""
    out, said = tmp_path_factory.mktemp("trip") / "out", []
    submit = HttpClient.submit

    def heard(self: HttpClient, task: Task, verdict: Verdict) -> Result:
        result = submit(self, task, verdict)
        assert result.status == "accepted"
        said.append((task, verdict))
        return result

    settings = {"pairs": 40, "people": 3, "labels": 30, "members": 2, "reward_epochs": 1, "ppo_steps": 2, "ppo_batch": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HttpClient, "submit", heard)
        figures = main(RoundTripConfig(run, out, choose=12, max_new_tokens=12, **settings))  # type: ignore[arg-type]
    return out, figures, said


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_the_export_says_what_people_said(trip) -> None:
    out, figures, said = trip
    assert len(said) == sum(figures["said"].values()) == 30
    better = {}
    for task, verdict in said:
        if verdict.kind == "preference":
            first, second = task.responses
            better[task.messages[-1]["content"], frozenset((first, second))] = first if verdict.strength > 0 else second
    exported = rows(out / "export" / "train.jsonl")
    assert len(exported) == len(better) == figures["preferences"] > 10
    for row in exported:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert better[row["prompt"][-1]["content"], frozenset((chosen, rejected))] == chosen
    kinds = [verdict.kind for _, verdict in said]
    assert len(rows(out / "export" / "ties.jsonl")) == kinds.count("tie")
    assert len(rows(out / "export" / "both_bad.jsonl")) == kinds.count("both_bad")


def test_the_reward_models_learn_on_the_export_and_the_policy_takes_its_steps(trip) -> None:
    out, figures, _ = trip
    for member in (1, 2):
        assert f"data: {out}/export/train.jsonl" in (out / f"reward{member}" / "run_config.yaml").read_text()
        assert rows(out / f"reward{member}" / "metrics.jsonl")[-1]["step"] == -(-figures["preferences"] // 16)
    steps = [row for row in rows(out / "ppo" / "metrics.jsonl") if "objective/kl" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert (out / "ppo" / "model.safetensors").exists()


def test_the_new_policys_pairs_stand_in_the_queue_with_their_origin_and_their_chance(trip) -> None:
    out, _, _ = trip
    old, new = rows(out / "pairs.jsonl"), rows(out / "new_pairs.jsonl")
    assert {row["model"] for row in new} == {str(out / "ppo")}
    assert len({row["checkpoint"] for row in old + new}) == 2
    assert all(len(row["member_scores_a"]) == len(row["member_scores_b"]) == 2 for row in new)
    assert "member_scores_a" not in old[0]
    database = open_database(f"sqlite:///{out}/votes.db")
    assert get_project(database, PROJECT).name == PROJECT
    with database.read() as connection:
        stored = connection.execute(comparison.select().where(comparison.c.sampled_by != "")).all()
        answers = connection.execute(response.select().where(response.c.model == str(out / "ppo"))).all()
    database.close()
    assert len(stored) == 12
    assert all(row.state == "open" and 0 < row.propensity <= 1 for row in stored)
    scores = {row[f"response_{side}"][0]["content"]: row[f"rm_score_{side}"] for row in new for side in "ab"}
    assert all(row.rm_score == pytest.approx(scores[row.text], rel=1e-12) for row in answers)
    assert {row.sampling["temperature"] for row in answers} == {1.0}


def test_everybody_who_judged_logged_in_by_name(trip) -> None:
    out, _, _ = trip
    database = open_database(f"sqlite:///{out}/votes.db")
    names = {user.name for user in list_users(database)}
    database.close()
    assert {"person 1", "person 2", "person 3"} <= names


def test_a_run_without_an_sft_model_is_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    kept = tmp_path / "out" / "kept"
    kept.mkdir(parents=True)
    with pytest.raises(InputError, match=r"--run is .*, expected a folder with an SFT model"):
        main(RoundTripConfig(tmp_path, tmp_path / "out"))
    assert kept.exists()
