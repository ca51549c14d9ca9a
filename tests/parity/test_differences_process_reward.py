"""Where TRL's process reward model differs from ours, both behaviours, on the same row."""

import json

import pytest
import torch

pytest.importorskip("trl")

from trl.experimental.prm.prm_trainer import PRMTrainer

from benchmarks.parity import process_reward, world
from benchmarks.parity.sft import tokenizer
from rlhf_kit.batches import IGNORE
from rlhf_kit.data.stepwise import load_stepwise, stepwise_examples
from rlhf_kit.errors import InputError

ROW = {"prompt": "What is two and two?", "completions": ["Count:\none, two.", "Four."], "labels": [True, False]}


def theirs(max_length=None):
    return PRMTrainer.tokenize_row(
        ROW, tokenizer(), "\n", max_length=max_length, max_completion_length=None, train_on_last_step_only=False, is_eval=False
    )


def test_trl_reads_plain_texts_with_a_separator_behind_every_step_and_we_the_chat_that_the_policy_writes(tmp_path):
    row = theirs()
    assert tokenizer().decode(row["input_ids"]) == "<|endoftext|>What is two and two?Count:\none, two.\nFour.\n"
    places = [t for t, label in enumerate(row["labels"]) if label != IGNORE]
    assert [tokenizer().decode(row["input_ids"][t]) for t in places] == ["\n", "\n"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    ((ids, labels),), _ = stepwise_examples(load_stepwise(tmp_path / "rows.jsonl"), tokenizer(), 64)
    text = "<|endoftext|><|user|>What is two and two?<|end|><|assistant|>Count: one, two.\nFour.<|end|>"
    assert tokenizer().decode(ids) == text
    places = [t for t, label in enumerate(labels) if label != IGNORE]
    assert [tokenizer().decode(ids[t]) for t in places] == ["\n", "<|end|>"]  # where generation stops
    assert labels[places].tolist() == [label for label in row["labels"] if label != IGNORE] == [1, 0]


def test_a_row_cut_before_its_first_step_ends_is_a_nan_in_trl_and_left_out_here():
    row = theirs(max_length=4)
    assert set(row["labels"]) == {IGNORE}
    model = process_reward.model("ours", "fp32")
    ids = torch.tensor([world.tokens(4, 0)])
    assert model(input_ids=ids, labels=torch.tensor([row["labels"]])).loss.isnan()
    record = {"prompt": [{"role": "user", "content": ROW["prompt"]}], "completions": ["Four."], "labels": [True]}
    with pytest.raises(InputError, match="raise max_length from 4 tokens"):
        stepwise_examples([record], tokenizer(), 4)
