"""Files to comparisons: every form of row, what is wrong with a row by name, and imports that leave nothing half done."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from annotate.demo import demo_comparisons
from annotate.importing import Report, add_all, import_file, read_comparison, read_comparisons
from annotate.store.schema import comparison, item, judgment, response
from rlhf_kit.data import world
from rlhf_kit.errors import InputError
from tests.annotate.world import World, prefer_good

PROMPT = [{"role": "user", "content": "Tell me a story."}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def sampled(number: int, **other: object) -> dict:
    prompt = [{"role": "user", "content": f"question {number}"}]
    return {"prompt": prompt, "response_a": said(f"good {number}"), "response_b": said(f"bad {number}"), **other}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_sampled_pairs_carry_where_they_come_from(database, tmp_path):
    world_ = World(database)
    both = {"model": "runs/sft", "sampling": {"temperature": 0.7}}
    each = {"checkpoint_a": 100, "checkpoint_b": "final", "rm_score_a": 0.5, "rm_score_b": -1}
    file = write(tmp_path / "pairs.jsonl", sampled(1, **both, **each, priority=2, propensity=0.25, sampled_by="uncertainty"))
    assert import_file(database, world_.project.id, file) == Report(added=1)
    rows = sorted(world_.rows(response), key=lambda row: row.text)
    assert [(row.text, row.model, row.checkpoint, row.sampling, row.rm_score) for row in rows] == [
        ("bad 1", "runs/sft", "final", {"temperature": 0.7}, -1.0),
        ("good 1", "runs/sft", "100", {"temperature": 0.7}, 0.5),
    ]
    (row,) = world_.rows(comparison)
    assert (row.place, row.propensity, row.sampled_by, row.source) == (-2.0, 0.25, "uncertainty", "queue")
    assert world_.rows(item)[0].messages == [{"role": "user", "content": "question 1"}]


def test_a_ranking_has_answers_as_texts_or_messages_and_gold_in_their_order():
    answers = ["one", {"text": "two", "model": "m"}, {"messages": said("three")}, {"content": "four", "rm_score": 1}]
    row = {"prompt": "Count.", "responses": answers, "gold": {"ranking": [1, 2, 3, 4]}, "overlap": 3, "model": "default"}
    new = read_comparison("row", row)
    assert [each.text for each in new.responses] == ["one", "two", "three", "four"]
    assert [each.model for each in new.responses] == ["default", "m", "default", "default"]
    assert (new.gold_ranking, new.overlap, new.responses[3].rm_score) == ([1, 2, 3, 4], 3, 1.0)


@pytest.mark.parametrize("chosen", [f"answer {number}" for number in range(8)])
def test_chosen_and_rejected_become_a_gold_item_whose_order_does_not_tell_which_was_chosen(chosen):
    one = read_comparison("row", {"prompt": "Q", "chosen": chosen, "rejected": "other"}, "gold")
    two = read_comparison("row", {"prompt": "Q", "chosen": "other", "rejected": chosen}, "gold")
    assert [each.text for each in one.responses] == [each.text for each in two.responses]
    assert one.responses[0 if one.gold_strength > 0 else 1].text == chosen
    assert two.gold_strength == -one.gold_strength
    plain = read_comparison("row", {"prompt": "Q", "chosen": chosen, "rejected": "other"})
    assert plain.gold_strength is None


def test_the_order_of_chosen_and_rejected_goes_both_ways_over_many_rows():
    rows = [{"prompt": "Q", "chosen": f"c {number}", "rejected": f"r {number}"} for number in range(200)]
    first = sum(read_comparison("row", row, "gold").gold_strength == 1 for row in rows)
    assert 70 <= first <= 130  # 200 fair coins: 4.2 standard deviations either way


def test_a_dialogue_in_one_text_is_read_as_the_kit_reads_it():
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    new = read_comparison("row", {"chosen": f"{shared} See you", "rejected": f"{shared} No"})
    assert [message["role"] for message in new.messages] == ["user", "assistant", "user"]
    assert {each.text for each in new.responses} == {"See you", "No"}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("{not json", "line 2"),
        ("[1]", "line 2"),
        ({"prompt": PROMPT}, "columns"),
        ({"response_a": "a", "response_b": "b"}, "columns"),
        (sampled(1, response_b=None), "response_b"),
        (sampled(1, response_b=[*said("x"), *PROMPT, *said("y")]), "response_b"),
        (sampled(1, response_a="a\0b"), "response_a"),
        (sampled(1, prompt=""), "prompt"),
        (sampled(1, prompt=[{"role": "robot", "content": "x"}]), "robot"),
        (sampled(1, prompt=[*PROMPT, *said("x")]), "prompt"),
        (sampled(1, prompt="a\0b"), "prompt"),
        (sampled(1, model=3), "model"),
        (sampled(1, sampling="hot"), "sampling"),
        (sampled(1, rm_score=float("nan")), "rm_score"),
        (sampled(1, rm_score=10**400), "rm_score"),
        (sampled(1, priority="high"), "priority"),
        (sampled(1, propensity=0), "propensity"),
        (sampled(1, overlap=0), "overlap"),
        (sampled(1, overlap=True), "overlap"),
        (sampled(1, gold={"strength": 4}), "gold"),
        (sampled(1, gold={"ranking": [1, 2]}), "gold"),
        (sampled(1, gold="a"), "gold"),
        ({"prompt": PROMPT, "responses": "a"}, "responses"),
        ({"prompt": PROMPT, "responses": ["a"]}, "responses"),
        ({"prompt": PROMPT, "responses": [str(number) for number in range(10)]}, "responses"),
        ({"prompt": PROMPT, "responses": ["a", "b", "c"], "gold": {"ranking": [1, 2]}}, "gold"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(tmp_path, row, named):
    file = write(tmp_path / "pairs.jsonl", sampled(7), row, sampled(8))
    with pytest.raises(InputError, match=r"pairs\.jsonl line 2") as caught:
        list(read_comparisons(file))
    assert named in str(caught.value)


def test_nothing_is_stored_of_a_file_with_a_bad_row_unless_bad_rows_are_skipped(database, tmp_path):
    world_ = World(database)
    file = write(tmp_path / "pairs.jsonl", *(sampled(number) for number in range(300)), "{not json", sampled(300, model=3))
    with pytest.raises(InputError, match=r"pairs\.jsonl line 301") as caught:
        import_file(database, world_.project.id, file)
    assert world_.rows(comparison) == []
    report = import_file(database, world_.project.id, file, skip_bad=True)
    assert (report.added, report.bad) == (300, 2)
    assert report.errors[0] == str(caught.value)


def test_the_same_import_again_adds_nothing_and_twins_are_counted(database, tmp_path):
    world_ = World(database)
    rows = [*(sampled(number) for number in range(600)), sampled(1), sampled(1000, response_b=said("good 1000"))]
    file = tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    assert import_file(database, world_.project.id, file) == Report(added=600, duplicates=1, twins=1)
    assert import_file(database, world_.project.id, file) == Report(added=0, duplicates=601, twins=1)
    assert len(world_.rows(comparison)) == 600


def test_parquet_rows_are_the_same_as_json_lines(database, tmp_path):
    import pyarrow
    import pyarrow.parquet

    world_ = World(database)
    rows = [sampled(1, sampling={"temperature": 1.0}, gold={"strength": 2}), sampled(2, sampling={"top_k": 5})]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert import_file(database, world_.project.id, write(tmp_path / "pairs.jsonl", *rows)).added == 2
    assert import_file(database, world_.project.id, tmp_path / "pairs.parquet") == Report(duplicates=2)


def test_the_demo_asks_what_the_gold_score_can_answer(database):
    demo = list(demo_comparisons(100, 5, seed=1))
    assert demo == list(demo_comparisons(100, 5, seed=1))
    assert [len(each.responses) for each in demo] == [2] * 100 + [4] * 5
    gold = [each for each in demo if each.gold_strength is not None]
    assert 3 <= len(gold) <= 30
    for each in gold:
        a, b = world.gold_scores([each.messages[-1]["content"]] * 2, [answer.text for answer in each.responses])
        assert (a - b) * each.gold_strength > 0
    world_ = World(database)
    report = add_all(database, world_.project.id, demo, Report())
    assert (report.added, report.duplicates) == (105, 0)


def test_imported_pairs_are_asked_and_answered(database, tmp_path):
    world_ = World(database)
    import_file(database, world_.project.id, write(tmp_path / "pairs.jsonl", sampled(3)))
    task = world_.protocol.claim(world_.people[0])
    world_.protocol.submit(task.assignment, world_.people[0], prefer_good(task))
    assert [row.strength for row in world_.rows(judgment)] == [2]
