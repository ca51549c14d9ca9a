"""The DPO recipe in miniature: every loss from raw text pairs to a policy that prefers what was preferred."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, get_args, get_type_hints

import pytest
import torch

from recipes.dpo import OPTIONS, DPOConfig, hold_out_prompts
from rlhf_kit.data import world
from rlhf_kit.data.feedback import load_feedback, unpair
from rlhf_kit.data.records import load_preferences
from rlhf_kit.data.world import write_answer
from rlhf_kit.models.loading import load_causal_lm
from rlhf_kit.objectives.preference import LOSSES
from rlhf_kit.training.metrics import read_metrics


def curve(folder: Path, key: str) -> list[float]:
    return [row[key] for row in read_metrics(folder / "metrics.jsonl") if key in row]


@pytest.fixture(scope="module")
def clear_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of the world's generator to people who dislike being shouted at: a taste that the smallest model can learn."""
    rng, path = Random(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for row in world.prompts(120):
        asked = row["prompt"][-1]["content"]
        rows.append({"prompt": asked, "chosen": write_answer(asked, rng), "rejected": write_answer(asked, rng).upper()})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("loss", list(LOSSES))
def test_margin_and_accuracy_on_held_out_pairs_rise(
    loss: str, road: Path, recipe: Any, clear_pairs: Path, tmp_path: Path
) -> None:
    recipe(
        "dpo", model=road / "sft", data=clear_pairs, loss=loss, output_dir=tmp_path, learning_rate=2e-3, max_steps=12,
        batch_size=16, micro_batch_size=16, eval_fraction=0.2, eval_every=0, save_every=0,
    )  # fmt: skip
    margins, held_out = curve(tmp_path, "train/rewards/margins"), curve(tmp_path, "eval/rewards/margins")[-1]
    assert held_out > margins[0] + 0.05
    if LOSSES[loss].reference:
        assert margins[0] == 0
    if LOSSES[loss].paired:
        assert curve(tmp_path, "eval/rewards/accuracies")[-1] >= 0.9
    losses = curve(tmp_path, "train/loss")
    assert losses[-1] < losses[0]


def test_the_embedded_world_is_the_default_data(road: Path, recipe: Any, tmp_path: Path) -> None:
    for loss in ("dpo", "kto"):
        recipe("dpo", model=road / "sft", loss=loss, world_pairs=20, max_steps=2, save_every=0, output_dir=tmp_path / loss)
        assert len(curve(tmp_path / loss, "train/loss")) == 2
        assert len(curve(tmp_path / loss, "eval/loss")) == 1


def test_the_first_step_stands_at_the_reference(road: Path) -> None:
    assert curve(road / "dpo", "train/rewards/margins")[0] == 0
    assert curve(road / "dpo", "train/loss")[0] == pytest.approx(0.6931472, rel=1e-6)


def test_judged_answers_from_a_file_teach_as_the_pairs_they_came_from(road: Path, recipe: Any, tmp_path: Path) -> None:
    records = unpair(load_preferences(road / "pairs.jsonl"))
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps({k: r[k] for k in ("prompt", "completion", "label")}) + "\n" for r in records))
    assert [r["label"] for r in load_feedback(path)] == [r["label"] for r in records]
    models = []
    for data in (road / "pairs.jsonl", path):
        recipe("dpo", model=road / "sft", loss="kto", data=data, output_dir=tmp_path / data.stem)
        models.append(load_causal_lm(tmp_path / data.stem))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_lora_policy_leaves_an_adapter_and_starts_at_its_base(loss: str, road: Path, recipe: Any, tmp_path: Path) -> None:
    recipe(
        "dpo", model=road / "sft", data=road / "pairs.jsonl", loss=loss, lora_rank=2, output_dir=tmp_path, learning_rate=1e-2,
        gradient_checkpointing=True, precision="bf16",
    )  # fmt: skip
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    assert curve(tmp_path, "train/rewards/margins")[0] == 0
    ids = torch.arange(3, 23).view(2, 10)
    before, after = (load_causal_lm(path).eval()(input_ids=ids).logits for path in (road / "sft", tmp_path))
    assert (before - after).abs().max() > 1e-3


def test_a_prompt_is_held_out_with_all_its_answers() -> None:
    rows = [{"prompt": [str(i // 2)], "label": i % 2 == 0} for i in range(40)]
    kept, held_out = hold_out_prompts(rows, 0.2)
    assert (len(kept), len(held_out)) == (32, 8)
    assert not {str(r["prompt"]) for r in kept} & {str(r["prompt"]) for r in held_out}
    assert all(a["prompt"] == b["prompt"] and a["label"] != b["label"] for a, b in list(pairwise(held_out))[::2])


def test_the_flags_are_the_losses_and_their_settings() -> None:
    assert get_args(get_type_hints(DPOConfig)["loss"]) == tuple(LOSSES)
    assert set(OPTIONS) == {name for line in LOSSES.values() for name in line.options}
    assert set(OPTIONS) <= DPOConfig.__dataclass_fields__.keys()
