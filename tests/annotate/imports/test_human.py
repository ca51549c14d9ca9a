"""The readers of published human labels on rows in their forms, and the judgments that follow."""

import gzip
import json

import pytest

from annotate.imports.human import (
    read_fine_grained_qa,
    read_pandalm,
    read_ranked_replies,
    read_rows,
    read_tulu_evaluation,
)
from annotate.imports.judgments import pair_judgments
from rlhf_kit.errors import InputError

PANDALM = {
    "id": "p0", "models": "one-7b_two-6.9b", "instruction": "Add.", "input": "1 1", "output_1": True, "output_2": "2",
    "labels": [1, 2, 0],
}  # fmt: skip


def tulu(evaluator, a, b, preference, instance="t"):
    texts = {"m1": "first answer", "m2": "second longer answer"}
    return {
        "id": "x", "instance_id": instance, "evaluator": evaluator, "model_a": a, "model_b": b, "prompt": "Do it.\n",
        "output_a": texts[a], "output_b": texts[b], "preference": preference,
    }  # fmt: skip


def test_pandalm_s_labels_point_to_the_first_the_second_or_neither():
    (record,) = read_pandalm([PANDALM])
    assert record["prompt"] == [{"role": "user", "content": "Add.\n\n1 1"}]
    assert record["responses"] == [{"text": "True", "model": "one-7b"}, {"text": "2", "model": "two-6.9b"}]
    assert [label["strength"] for label in record["labels"]] == [1, -1, 0]
    assert len({label["annotator"] for label in record["labels"]}) == 3


def test_tulu_s_rows_of_one_pair_are_one_record_whichever_was_a():
    rows = [tulu("e1", "m1", "m2", "a-is-better"), tulu("e2", "m2", "m1", "a-is-slightly-better"), tulu("e1", "m2", "m1", "tie")]
    (record,) = read_tulu_evaluation(rows)
    assert [r["model"] for r in record["responses"]] == ["m1", "m2"]
    # e2 preferred m2, the second, which stood on the left; e1's later word stands.
    assert record["labels"] == [
        {"annotator": "e2", "strength": -1, "left": 1},
        {"annotator": "e1", "strength": 0, "left": 1},
    ]
    judgments = list(pair_judgments([record]))
    assert [(j.strength, j.first_on_left, j.left) for j in judgments] == [(-1, False, 1), (0, False, 0)]
    assert judgments[0].words == (2, 3) and judgments[0].prompt_words == 2


def test_tulu_s_different_texts_under_one_name_are_refused():
    other = tulu("e2", "m1", "m2", "tie") | {"output_a": "something else"}
    with pytest.raises(InputError, match="same two answers"):
        list(read_tulu_evaluation([tulu("e1", "m1", "m2", "tie"), other]))


def test_four_outputs_become_six_judgments_of_one_group():
    row = {
        "id": "q", "question": "Why?", "passages": [["Title", "Text."]], "outputs": ["a", "b", "c", "d"],
        "pair_order": [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]], "preference": [0, 1, 2, 1, 0, 2],
    }  # fmt: skip
    (record,) = read_fine_grained_qa([row])
    assert record["prompt"][0]["content"] == "Why?\n\nTitle Text."
    judgments = list(pair_judgments([record]))
    assert [(j.item, j.strength) for j in judgments] == [
        ("q/0-1", 0), ("q/0-2", 1), ("q/0-3", -1), ("q/1-2", 1), ("q/1-3", 0), ("q/2-3", -1),
    ]  # fmt: skip
    assert {j.group for j in judgments} == {"q"}
    assert judgments[2].models == ("output 1", "output 4")


def test_a_ranking_becomes_pairs_and_the_place_of_an_answer_gives_nothing_away():
    messages = [{"role": "user", "content": "Hi"}]
    row = {"id": "o", "messages": messages, "ranked_replies": ["zebra", "ant", "mole"], "synthetic": [False, True, False]}
    (record,) = read_ranked_replies([row])
    assert [r["text"] for r in record["responses"]] == ["ant", "mole", "zebra"]
    assert [r["model"] for r in record["responses"]] == ["model", "people", "people"]
    assert record["labels"][0]["ranking"] == [2, 0, 1]
    assert {(j.item, j.winner) for j in pair_judgments([record])} == {("o/0-2", -1), ("o/1-2", -1), ("o/0-1", 1)}


def test_a_label_that_is_not_of_the_scale_is_named():
    with pytest.raises(InputError, match=r"p0: label is 3, expected one of \[0, 1, 2\]"):
        list(read_pandalm([PANDALM | {"labels": [3]}]))
    with pytest.raises(InputError, match="x: preference is 'a'"):
        list(read_tulu_evaluation([tulu("e1", "m1", "m2", "a")]))


def test_rows_are_read_gzipped_or_not_and_a_broken_line_is_named(tmp_path):
    (tmp_path / "plain.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write(json.dumps({"a": 1}) + "\n")
    assert list(read_rows(tmp_path / "plain.jsonl")) == [{"a": 1}, {"a": 2}]
    assert list(read_rows(tmp_path / "packed.jsonl.gz")) == [{"a": 1}]
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(InputError, match=r"broken\.jsonl line 2"):
        list(read_rows(tmp_path / "broken.jsonl"))
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        list(read_rows(tmp_path / "absent.jsonl"))
