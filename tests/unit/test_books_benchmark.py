"""The benchmark on books compares two trainers on the same footing."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path

import pytest
import torch

from benchmarks.books import BooksConfig, main, our_model, read_data, their_model, train_ours, train_theirs
from rlhf_kit.errors import InputError

WORDS = ("the", "sea", "was", "calm", "and", "a", "ship", "went", "home", "with", "old", "captain", "in", "storm")


@pytest.fixture
def config(tmp_path: Path) -> BooksConfig:
    """A corpus of sentences from few words, and settings that train on it in seconds."""
    draw = random.Random(0)
    for name, documents in (("train", 12), ("val", 2)):
        rows = [{"text": " ".join(draw.choice(WORDS) for _ in range(300)) + "."} for _ in range(documents)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BooksConfig(
        data=str(tmp_path / "train.jsonl"),
        eval_data=str(tmp_path / "val.jsonl"),
        tokens=6 * 4 * 31,
        runs=("ours-fp32", "gpt2-fp32"),
        vocab_size=320,
        preset="gpt-1m",
        sequence_length=32,
        batch_size=4,
        json=tmp_path / "figures.json",
    )


def test_both_loops_take_one_model_to_the_same_weights(config: BooksConfig, tmp_path: Path) -> None:
    data = read_data(config, tmp_path)
    ours = our_model(data)
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    train_ours(ours, data, "fp32", tmp_path / "ours")
    train_theirs(theirs, data, "fp32", tmp_path / "theirs")
    for name, weight in ours.state_dict().items():
        moved, apart = (torch.linalg.vector_norm(weight - other.state_dict()[name]) for other in (start, theirs))
        # A thousandth of the way: Adam divides by the gradient's size, so rounding in small gradients is not small here.
        assert 1000 * apart < moved, name


def test_the_two_models_are_of_one_size_within_two_percent(config: BooksConfig, tmp_path: Path) -> None:
    config.preset, config.vocab_size = "gpt-5m", 8192
    data = read_data(config, tmp_path)
    data.tokenizer = range(8192)  # only its length matters to our model, and the text is too short for so many tokens
    ours = our_model(data).num_parameters()
    data.tokenizer = type("Tokenizer", (), {"__len__": lambda self: 8192, "bos_token_id": 0, "eos_token_id": 1})()
    assert abs(their_model(data).num_parameters() / ours - 1) < 0.02


def test_the_table_holds_every_contestant_and_is_written_as_json(config: BooksConfig, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(config)
    assert config.json is not None
    assert json.loads(config.json.read_text())["rows"].keys() == rows.keys()
    assert rows["ours-fp32"]["tokens"] == rows["gpt2-fp32"]["tokens"] == config.tokens
    # Drawn from 14 words of 3.4 letters: log2(14) bits a word and a space; the counts of a 5-gram come close to that.
    assert rows["5-gram, all text"]["bits_per_byte"] == pytest.approx(math.log2(len(WORDS)) / 4.43, abs=0.15)
    lines = capsys.readouterr().out.splitlines()[-len(rows) :]
    assert lines[0].startswith(min(rows, key=lambda name: rows[name]["bits_per_byte"]))
    assert sorted(line[:22].strip() for line in lines) == sorted(rows)


def test_more_tokens_than_an_epoch_holds_are_refused(config: BooksConfig, tmp_path: Path) -> None:
    config.tokens = 10_000_000
    with pytest.raises(InputError, match="--tokens is 10000000, expected at least one step's and at most an epoch's"):
        read_data(config, tmp_path)
