"""Labelled texts from raw rows to a trained classifier, which is a reward model's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.classify import ClassifyConfig, main
from rlhf_kit.batches import LabelledBatch
from rlhf_kit.data.labelled import LabelledBatches, LabelledExample, labelled_examples, load_labelled
from rlhf_kit.data.tokenizer import train_tokenizer
from rlhf_kit.errors import InputError
from rlhf_kit.models.access import scalar_scores
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from rlhf_kit.rollout.judges import load_scorer
from rlhf_kit.training.stages import Classification

ROWS = [
    {"text": f"{word} film number {i}", "label": label} for i in range(24) for word, label in (("fine", "pos"), ("poor", "neg"))
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([row["text"] for row in ROWS], 300)


def test_labels_are_truth_values_numbers_or_names(tmp_path: Path) -> None:
    for positive, labels in ((None, (True, False)), (None, (1, 0)), ("pos", ("pos", "neg")), ("2", (2, 1))):
        rows = [{"text": "a", "label": labels[0], "id": 7}, {"text": "b", "label": labels[1]}]
        found = load_labelled(write(tmp_path / "rows.jsonl", rows), positive)
        assert found == [{"text": "a", "label": True, "id": 7}, {"text": "b", "label": False}]


@pytest.mark.parametrize(
    ("rows", "positive", "message"),
    [
        ([{"text": "a"}], None, "line 1.*expected.*text [+] label"),
        ([{"text": " ", "label": 1}], None, "line 1, column 'text' is ' '"),
        ([{"text": "a", "label": "pos"}], None, "line 1, column 'label' is 'pos', expected true or false.*--positive"),
        ([{"text": "a", "label": 1}] * 2, None, "column 'label' is True, in every row"),
        ([{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}], "yes", "is False, in every row.*check --positive"),
    ],
)
def test_wrong_rows_are_refused_by_name(tmp_path: Path, rows: Any, positive: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_labelled(write(tmp_path / "rows.jsonl", rows), positive)


def test_a_text_is_bos_and_its_first_tokens_without_a_stop_token(tokenizer: Any) -> None:
    (short, long), counts = labelled_examples(
        [{"text": "fine", "label": True}, {"text": "poor film " * 9, "label": False}], tokenizer, 6
    )
    assert tokenizer.decode(short.ids[1:]) == "fine"
    assert short.ids[0] == long.ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in short.ids
    assert (len(long.ids), counts.truncated, counts.kept, counts.tokens) == (6, 1, 2, len(short.ids) + 6)


def test_every_text_meets_its_label_once_an_epoch_whatever_the_ranks() -> None:
    examples = [LabelledExample(np.full(1 + i % 4, i, np.int32), i % 3 == 0) for i in range(11)]
    for world in (1, 2):
        batches = LabelledBatches(examples, batch_size=4, micro_batch_size=2, seed=0, pad_id=99)
        seen = []
        for step in range(batches.steps_per_epoch):
            parts = [batches.micro_batches(step, rank, world) for rank in range(world)]
            assert len({len(part) for part in parts}) == 1
            for batch in (b for part in parts for b in part):
                for ids, mask, label in zip(batch.input_ids, batch.attention_mask, batch.labels):
                    if mask.any():
                        number = int(ids[0])
                        assert ids[mask].tolist() == [number] * (1 + number % 4)
                        assert (ids[~mask] == 99).all()
                        assert bool(label) == (number % 3 == 0)
                        seen.append(number)
        assert sorted(seen) == list(range(11))


def test_a_row_that_counts_for_nothing_leaves_the_loss_alone() -> None:
    torch.manual_seed(0)
    model = GPTForSequenceClassification(GPTConfig(vocab_size=20, d_model=16, n_layers=1, n_heads=2, max_seq_len=8, num_labels=1))
    stage = Classification(model)
    ids, mask = torch.randint(1, 20, (3, 5)), torch.ones(3, 5, dtype=torch.bool)
    labels = torch.tensor([True, False, True])
    whole = LabelledBatch(ids[:2], mask[:2], labels[:2])
    padded = LabelledBatch(ids, mask & torch.tensor([[True], [True], [False]]), labels)
    (loss, stats), (other, same) = stage(whole), stage(padded)
    torch.testing.assert_close(loss, other, rtol=1e-6, atol=0)
    assert stage.units(whole) == stage.units(padded) == 2
    assert stats["positive"] == same["positive"] == 1
    empty = LabelledBatch(ids[:1], mask[:1] & False, labels[:1])
    assert stage.units(empty) == 0
    nothing, _ = stage(empty)
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is not None for p in model.parameters())  # so that no rank waits for another


def test_label_smoothing_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"--label_smoothing is 0\.5"):
        Classification(torch.nn.Linear(1, 1), label_smoothing=0.5)


def test_the_recipe_learns_the_labels_and_leaves_a_reward(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    GPTForCausalLM(GPTConfig(vocab_size=len(tokenizer), d_model=16, n_layers=1, n_heads=2, max_seq_len=64)).save_pretrained(
        tmp_path / "lm"
    )
    tokenizer.save_pretrained(tmp_path / "lm")
    config = ClassifyConfig(
        output_dir=tmp_path / "out", model=str(tmp_path / "lm"), data=str(write(tmp_path / "rows.jsonl", ROWS)), positive="pos",
        epochs=10, batch_size=8, micro_batch_size=4, learning_rate=1e-2, eval_every=0, save_every=0,
    )  # fmt: skip
    found = main(config)
    assert found["eval/accuracy"] == 1.0
    _, model = load_scorer(str(tmp_path / "out"), tokenizer, micro_batch_size=2, device="cpu")
    (good, bad), _ = labelled_examples([{"text": t, "label": True} for t in ("fine film", "poor film")], tokenizer, 8)
    scores = [
        float(scalar_scores(model, torch.tensor(e.ids)[None].long(), torch.ones(1, len(e.ids)).bool())) for e in (good, bad)
    ]
    assert scores[0] > 0 > scores[1]
