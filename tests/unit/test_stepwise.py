"""Answers judged step by step: which rows are read, where steps end in tokens, and the generated sums."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_kit.batches import IGNORE
from rlhf_kit.data.arithmetic import solutions
from rlhf_kit.data.stepwise import StepEnds, load_stepwise, stepwise_examples
from rlhf_kit.data.tokenizer import encode_texts, train_tokenizer
from rlhf_kit.errors import InputError

ROW = {"prompt": "What is 3 + 4 - 2?", "completions": ["3 + 4 = 7", "7 - 2 = 4"], "labels": [True, False]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["What is 3 + 4 - 2? 3 + 4 = 7\n7 - 2 = 5\n\nso we are done.\n"] * 9, 320)


def test_trls_rows_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [ROW | {"id": 7}, {**ROW, "labels": [1, 0], "prompt": [{"role": "user", "content": "Why?"}]}]
    Dataset.from_list([ROW, ROW]).save_to_disk(tmp_path / "saved")
    prompt = [{"role": "user", "content": ROW["prompt"]}]
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        assert load_stepwise(write(tmp_path / name, rows)) == [
            {**ROW, "prompt": prompt, "id": 7}, {**ROW, "prompt": [{"role": "user", "content": "Why?"}]}
        ]  # fmt: skip
    assert load_stepwise(tmp_path / "saved") == [{**ROW, "prompt": prompt}] * 2


def test_a_step_is_one_line(tmp_path: Path) -> None:
    (row,) = load_stepwise(
        write(tmp_path / "rows.jsonl", [ROW | {"completions": [" First,\n\n we add. \n", "Then\r\nwe stop."]}])
    )
    assert row["completions"] == ["First, we add.", "Then we stop."]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"column 'labels' is None, expected 2, one for each step"),
        ({"labels": [True]}, r"line 1, column 'labels' is \[True\], expected 2, one for each step"),
        ({"labels": [True, "no"]}, "line 1, column 'labels', step 2 is 'no', expected true where"),
        ({"completions": ["a", " \n"]}, r"line 1, column 'completions', step 2 is ' \\n', expected a text that is not empty"),
        ({"completions": ["a", 4]}, "line 1, column 'completions', step 2 is 4, expected a text"),
        ({"completions": "a"}, "line 1, column 'completions' is 'a', expected a list of texts"),
        ({"completions": []}, r"line 1, column 'completions' is \[\], expected a list of texts"),
        ({"labels": [True, True]}, "column 'labels' is True, of every step, expected both"),
        ({"prompt": " "}, "line 1, column 'prompt'"),
    ],
)
def test_wrong_rows_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_stepwise(write(tmp_path / "rows.jsonl", [ROW | changes]))


@pytest.mark.parametrize("column", ["prompt", "completions", "labels"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(InputError, match=r"line 1: columns is .* expected prompt \+ completions \+ labels"):
        load_stepwise(write(tmp_path / "rows.jsonl", [{name: value for name, value in ROW.items() if name != column}]))


def cut(tokenizer: Any, text: str, *more: int) -> list[str]:
    """The text cut where its steps end in tokens, `more` tokens behind it."""
    ids = [*encode_texts(tokenizer, [text])[0], *more]
    starts = [0, *(end + 1 for end in StepEnds(tokenizer)(ids))]
    assert starts[-1] <= len(ids)
    return [tokenizer.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)]) if a < b]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 + 4 = 7\n7 - 2 = 5", ["3 + 4 = 7\n", "7 - 2 = 5<|end|>"]),
        ("3 + 4 = 7\n", ["3 + 4 = 7\n", "<|end|>"]),  # nothing is said behind the newline: no step, but the end stays
        ("\n3\n\n \n4", ["\n3\n", "\n \n4<|end|>"]),  # lines without a word are no steps
        (
            "na\u00efve \U0001f642\n\u2003\n\u2003x",
            ["na\u00efve \U0001f642\n", "\u2003\n\u2003x<|end|>"],
        ),  # a wide space is no word
        ("", ["<|end|>"]),
        (" \n ", [" \n <|end|>"]),
    ],
)
def test_steps_end_at_the_newline_and_the_last_at_the_stop_token(tokenizer: Any, text: str, steps: list[str]) -> None:
    assert cut(tokenizer, text, tokenizer.eos_token_id) == steps


def test_an_answer_that_never_stopped_ends_at_its_last_token_and_no_token_is_no_step(tokenizer: Any) -> None:
    assert cut(tokenizer, "3 + 4 = 7\n7 -") == ["3 + 4 = 7\n", "7 -"]
    assert StepEnds(tokenizer)([]) == []


def test_a_token_that_holds_more_than_the_newline_ends_the_step_before_it_and_opens_the_next() -> None:
    words = ["done", ".\n\n", "so", "\nnow", "a\nb\n", "<|end|>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="done"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    ends = StepEnds(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>"))
    assert ends([0, 1, 2, 3, 5]) == [1, 3, 4]  # "done.\n\n", "so\n", "now<|end|>"
    assert ends([3, 5]) == [1]  # nothing stood before its newline
    assert ends([4, 5]) == [0]  # two lines in one token are one step


def test_labels_stand_at_the_last_token_of_each_step(tokenizer: Any) -> None:
    rows = [{**ROW, "prompt": [{"role": "user", "content": ROW["prompt"]}]}]
    ((ids, labels),), counts = stepwise_examples(rows, tokenizer, 64)
    (places,) = (labels != IGNORE).nonzero()
    assert labels[places].tolist() == [1, 0]
    assert [tokenizer.decode(ids[place]) for place in places] == ["\n", "<|end|>"]
    assert places[1] == len(ids) - 1
    assert (counts.kept, counts.tokens, counts.trained_tokens) == (1, len(ids), 2)
    text = tokenizer.decode(ids[: places[0] + 1])
    assert text == "<|endoftext|><|user|>What is 3 + 4 - 2?<|end|><|assistant|>3 + 4 = 7\n"


def test_a_long_answer_keeps_the_steps_that_end_within_and_none_is_counted(tokenizer: Any) -> None:
    rows = [{**ROW, "prompt": [{"role": "user", "content": ROW["prompt"]}]}]
    ((ids, labels),), _ = stepwise_examples(rows, tokenizer, 64)
    first = int((labels != IGNORE).argmax())
    ((cut_ids, cut_labels),), counts = stepwise_examples(rows, tokenizer, first + 1)
    assert (cut_ids.tolist(), cut_labels.tolist()) == (ids[: first + 1].tolist(), labels[: first + 1].tolist())
    assert (counts.kept, counts.truncated, counts.trained_tokens) == (1, 1, 1)
    with pytest.raises(InputError, match=f"raise max_length from {first} tokens"):
        stepwise_examples(rows, tokenizer, first)


def test_a_tokenizer_without_newlines_is_refused(tokenizer: Any) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "<|end|>": 1, "u": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    blind = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    with pytest.raises(InputError, match=r"steps of the encoded answer '3 .* is 1, expected 2, a line each"):
        stepwise_examples([{**ROW, "prompt": [{"role": "user", "content": "u"}]}], blind, 64)


def test_generated_sums_are_right_up_to_the_slip_and_labelled_wrong_from_it_on() -> None:
    rows = solutions(400, seed=3)
    for row in rows:
        (question,) = row["prompt"]
        first, *terms = re.findall(r"(?:[+-] )?\d", question["content"])
        assert [re.fullmatch(r"\d ([+-] \d) = \d", step)[1] for step in row["completions"]] == terms  # type: ignore[index]
        held, slips = int(first), 0
        for step, label in zip(row["completions"], row["labels"], strict=True):
            said, term, result = re.fullmatch(r"(\d) ([+-] \d) = (\d)", step).groups()  # type: ignore[union-attr]
            assert int(said) == held  # it counts on from what it has, right or wrong
            held = int(result)
            excess = held - int(said) - int(term.replace(" ", ""))
            assert excess in (0, 1, 2, 3)
            slips += excess > 0
            assert label is (slips == 0)
        assert slips <= 1
    flawed = sum(not row["labels"][-1] for row in rows)
    assert 80 < flawed < 220  # fewer than half: sums beyond 9 are drawn again
    assert {row["labels"].index(False) for row in rows if not row["labels"][-1]} == {0, 1, 2, 3}


def test_generated_sums_follow_their_seed_and_held_out_questions_are_never_trained_on() -> None:
    assert solutions(20, seed=1) == solutions(20, seed=1) != solutions(20, seed=2)
    asked, held_out = ({row["prompt"][0]["content"] for row in solutions(2_000, 0, split)} for split in ("train", "heldout"))
    assert not asked & held_out
