"""Which rows the recipes hold out and measure: real files are sorted, and their end is one kind of row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipes.common import hold_out, spread
from recipes.evaluate import EvaluateConfig, main
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.models.hf import GPTConfig, GPTForSequenceClassification


def test_held_out_rows_come_from_everywhere_in_a_sorted_file() -> None:
    rows = ["maths"] * 60 + ["poems"] * 30 + ["jokes"] * 10
    train, held_out = hold_out(rows, 0.1)
    assert held_out == ["maths"] * 6 + ["poems"] * 3 + ["jokes"]
    assert sorted(train + held_out) == sorted(rows)


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(10, 0.0, 0), (1, 0.5, 0), (2, 0.01, 1), (3, 0.99, 2), (1000, 0.05, 50)]
)
def test_the_share_held_out_leaves_something_to_train_on(count: int, fraction: float, expected: int) -> None:
    train, held_out = hold_out(list(range(count)), fraction)
    assert (len(train), len(held_out)) == (count - expected, expected)
    assert not set(train) & set(held_out)


def test_spread_keeps_order_and_takes_all_where_there_are_too_few() -> None:
    assert spread(list(range(10)), 3) == [0, 3, 6]
    assert spread([1, 2], 3) == [1, 2]


def test_accuracy_is_told_for_each_value_of_a_column(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["which is better, the good or the bad answer?"] * 10, 300)
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=len(tokenizer), d_model=16, n_layers=1, n_heads=2, max_seq_len=64, num_labels=1)
    model = GPTForSequenceClassification(shape)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    pairs = [{"prompt": "which?", "chosen": "good", "rejected": "bad", "kind": "a"}] * 3
    pairs += [{"prompt": "which?", "chosen": "bad", "rejected": "good", "kind": "b"}]
    pairs += [{"prompt": "which?", "chosen": "good " * 100, "rejected": "bad", "kind": "a"}]  # beyond the model's 64 positions
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    found = main(
        EvaluateConfig(
            output_dir=tmp_path / "evaluation", model=None, reference=None, reward=str(tmp_path / "reward"),
            preferences=str(tmp_path / "pairs.jsonl"), preference_groups="kind",
        )
    )  # fmt: skip
    assert {found["accuracy_a"]["estimate"], found["accuracy_b"]["estimate"]} == {0.0, 1.0}  # one pair, both ways round
    assert found["accuracy_a"]["n"] == 3
    assert found["accuracy"]["estimate"] == pytest.approx(0.75 if found["accuracy_a"]["estimate"] else 0.25)
