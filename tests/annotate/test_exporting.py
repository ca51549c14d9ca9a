"""What people said as training data: the right sides, the right rows, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from annotate.export_rows import ExportSettings
from annotate.exporting import export_project
from annotate.store.adjudication import Decision, decide, send_to_adjudication
from annotate.store.projects import Settings
from annotate.store.records import Verdict
from annotate.store.schema import assignment, export
from rlhf_kit.data.records import load_preferences, load_sft
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good, question, ranking

ALL_TRAIN = {"test_fraction": 0.0}


def rows(folder: Path, name: str) -> list[dict]:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.open()] if path.exists() else []


def answer(world: World, person: int, verdict=prefer_good, kind: str = "pair") -> None:
    """One person answers all there is."""
    while task := world.protocol.claim(person, kind):
        world.protocol.submit(task.assignment, person, verdict(task))


def towards_good(task, strength: int) -> Verdict:
    """`strength` above 0 for the good answer, 0 a tie."""
    return prefer_good(task, strength) if strength else Verdict(task.revision, "tie")


def test_the_chosen_answer_is_the_better_one_on_whichever_side_it_was_shown(database, tmp_path):
    world = World(database)
    world.add(*(pair(number) for number in range(12)), pair(12, gold_strength=1))
    strengths = {number: (-1) ** number * (1 + number % 3) for number in range(13)}
    answer(world, world.people[0], lambda task: towards_good(task, strengths[question(task)]))
    assert {tuple(row.shown) for row in world.rows(assignment)} == {(0, 1), (1, 0)}  # else this shows nothing
    export_project(database, world.project, tmp_path / "out", ExportSettings(**ALL_TRAIN))
    found = load_preferences(tmp_path / "out" / "train.jsonl")
    assert len(found) == 12  # the gold item is left out
    for row in found:
        number = int(row["prompt"][0]["content"].split()[-1])
        good, bad = f"good {number}", f"bad {number}"
        better, worse = (good, bad) if strengths[number] > 0 else (bad, good)
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (better, worse)
        assert (row["margin"], row["votes"]) == (abs(strengths[number]), 1)
        assert row["chosen_model"] == ("secret-a" if better == good else "secret-b")


def test_ties_and_both_bad_have_files_of_their_own_that_import_again(database, tmp_path):
    from annotate.importing import Report, import_file

    world = World(database)
    world.add(*(pair(number) for number in range(4)))
    kinds = {0: "tie", 1: "both_bad", 2: "tie"}
    answer(
        world, world.people[0], lambda task: Verdict(1, kinds[question(task)]) if question(task) in kinds else prefer_good(task)
    )
    manifest = export_project(database, world.project, tmp_path / "out", ExportSettings(**ALL_TRAIN))
    assert manifest["rows"] == {"both_bad": 1, "ties": 2, "train": 1}
    (bad,) = rows(tmp_path / "out", "both_bad")
    assert {bad["response_a"][0]["content"], bad["response_b"][0]["content"]} == {"good 1", "bad 1"}
    assert import_file(database, world.project.id, tmp_path / "out" / "ties.jsonl") == Report(duplicates=2)


def test_a_ranking_becomes_pairs_that_share_a_group(database, tmp_path):
    world = World(database)
    world.add(ranking(1), ranking(2, size=3))

    def by_position(task) -> Verdict:  # the canonical position is the last word; a higher one is better
        positions = [int(text.split()[-1]) for text in task.responses]
        return Verdict(task.revision, "rank", ranking=[len(positions) - position for position in positions])

    answer(world, world.people[0], by_position, "rank")
    export_project(database, world.project, tmp_path / "out", ExportSettings(**ALL_TRAIN))
    found = rows(tmp_path / "out", "train")
    groups: dict[str, list[tuple[int, int]]] = {}
    for row in found:
        sides = [int(row[side][0]["content"].split()[-1]) for side in ("chosen", "rejected")]
        groups.setdefault(row["group_id"], []).append((sides[0], sides[1]))
        assert row["margin"] == 1.0
    assert sorted(map(len, groups.values())) == [3, 6]
    assert all(better > worse for pairs in groups.values() for better, worse in pairs)


def test_no_prompt_is_on_both_sides_and_the_share_is_as_asked(database, tmp_path):
    world = World(database)
    world.add(*(pair(number) for number in range(400)))
    answer(world, world.people[0])
    manifest = export_project(database, world.project, tmp_path / "out", ExportSettings(test_fraction=0.25))
    sides = [{row["prompt"][0]["content"] for row in rows(tmp_path / "out", name)} for name in ("train", "test")]
    assert not sides[0] & sides[1]
    assert manifest["rows"]["train"] + manifest["rows"]["test"] == 400
    assert 65 <= manifest["rows"]["test"] <= 135  # 400 draws at 1/4: 4 standard deviations


def test_the_same_votes_give_the_same_bytes_and_the_manifest_names_them(database, tmp_path):
    world = World(database)
    world.add(*(pair(number) for number in range(30)), ranking(1, gold_ranking=[1, 2, 3, 4]))
    answer(world, world.people[0])
    for name in ("one", "two"):
        export_project(database, world.project, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", "manifest.json", "test.jsonl", "train.jsonl"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    for name, about in manifest["files"].items():
        assert about["sha256"] == hashlib.sha256((tmp_path / "one" / name).read_bytes()).hexdigest()
        if name.endswith(".jsonl"):
            assert about["rows"] == len((tmp_path / "one" / name).read_text().splitlines())
    digest = hashlib.sha256((tmp_path / "one" / "manifest.json").read_bytes()).hexdigest()
    assert [row.manifest_hash for row in world.rows(export)] == [digest] * 2
    assert manifest["last_judgment"] == world.rows(export)[0].last_judgment == 30


def test_votes_taken_back_never_count_and_exported_ones_are_taken_back_by_force_alone(database, tmp_path):
    world = World(database)
    world.add(pair(1), pair(2), pair(3))
    person = world.people[0]
    tasks = []
    while task := world.protocol.claim(person):
        tasks.append(task)
        world.protocol.submit(task.assignment, person, prefer_good(task, 3))
    world.protocol.undo(tasks[0].assignment, person)  # taken back
    again = world.protocol.undo(tasks[1].assignment, person).next  # and said anew
    world.protocol.submit(again.assignment, person, prefer_good(again, -1))
    export_project(database, world.project, tmp_path / "out", ExportSettings(**ALL_TRAIN))
    found = {row["prompt"][0]["content"]: row for row in rows(tmp_path / "out", "train")}
    asked = [task.messages[0]["content"] for task in tasks]
    assert sorted(found) == sorted(asked[1:])
    assert (found[asked[1]]["margin"], found[asked[1]]["chosen"][0]["content"][:3]) == (1.0, "bad")
    assert world.protocol.undo(tasks[2].assignment, person).reason == "it was exported"
    assert world.protocol.undo(tasks[2].assignment, world.admin, force=True).status == "accepted"
    manifest = export_project(database, world.project, tmp_path / "later", ExportSettings(**ALL_TRAIN))
    assert manifest["rows"] == {"train": 1}


def test_an_adjudicated_decision_wins_and_what_waits_or_is_discarded_is_left_out(database, tmp_path):
    world = World(database)
    world.add(*(pair(number) for number in range(4)))
    answer(world, world.people[0])
    by_hand = {0: Decision("preference", -2), 1: Decision("discard"), 2: None}
    for number, decision in by_hand.items():
        send_to_adjudication(database, number + 1, by=world.admin, reason="look")
        if decision is not None:
            decide(database, number + 1, decision, by=world.admin)
    manifest = export_project(database, world.project, tmp_path / "out", ExportSettings(**ALL_TRAIN))
    assert manifest["left_out"] == {"discarded by an adjudicator": 1, "waiting for an adjudicator": 1}
    found = {row["prompt"][0]["content"]: row for row in rows(tmp_path / "out", "train")}
    assert set(found) == {"question 0", "question 3"}
    decided = found["question 0"]
    assert (decided["chosen"][0]["content"], decided["margin"], decided["adjudicated"]) == ("bad 0", 2.0, True)


def test_several_votes_are_aggregated_and_some_can_be_left_out(database, tmp_path, clock):
    world = World(database, Settings(overlap=3, gold_share=0.0))
    world.add(pair(1))
    strengths = dict(zip(world.people[:3], (1, 1, -3)))
    for person, strength in strengths.items():
        task = world.protocol.claim(person)
        clock.time += 10 * 86400 if strength == -3 else 0
        verdict = prefer_good(task, strength)
        flagged = Verdict(verdict.revision, verdict.kind, verdict.strength, flags=["unsafe"] if strength == -3 else [])
        world.protocol.submit(task.assignment, person, flagged)

    def exported(name: str, **settings: object) -> tuple[str, float, int]:
        export_project(database, world.project, tmp_path / name, ExportSettings(**ALL_TRAIN, **settings))
        (row,) = rows(tmp_path / name, "train")
        return row["chosen"][0]["content"], row["margin"], row["votes"]

    assert exported("mean") == ("bad 1", pytest.approx(1 / 3, rel=1e-15), 3)
    assert exported("majority", aggregate="majority") == ("good 1", 1.0, 3)
    assert exported("without", without=("person 2",)) == ("good 1", 1.0, 2)
    assert exported("late", late=False) == ("good 1", 1.0, 2)
    assert exported("flagged", flagged=False) == ("good 1", 1.0, 2)
    assert exported("enough", min_votes=3)[2] == 3
    with pytest.raises(InputError, match="too few votes"):
        exported("few", min_votes=4)
    with pytest.raises(InputError, match="nobody's name"):
        exported("typo", without=("persn 2",))
    assert len(world.rows(export)) == 6  # what failed is not held against anybody's undo


def test_corrected_answers_become_demonstrations_in_the_split_of_their_prompt(database, tmp_path):
    world = World(database)
    world.add(*(pair(number) for number in range(40)))

    def correcting(task) -> Verdict:
        verdict, good = prefer_good(task), 0 if task.responses[0].startswith("good") else 1
        edits = {good: f"better {question(task)}", 1 - good: task.responses[1 - good]}  # the second is no change
        return Verdict(verdict.revision, verdict.kind, verdict.strength, edits=edits)

    answer(world, world.people[0], correcting)
    export_project(database, world.project, tmp_path / "out", ExportSettings(test_fraction=0.3))
    for split in ("train", "test"):
        prompts = {row["prompt"][0]["content"] for row in rows(tmp_path / "out", split)}
        found = load_sft(tmp_path / "out" / f"sft_{split}.jsonl")
        assert {row["messages"][0]["content"] for row in found} == prompts
        for row in found:
            number = row["messages"][0]["content"].split()[-1]
            assert row["messages"][1:] == [{"role": "assistant", "content": f"better {number}"}]
            assert row["corrected"] == f"good {number}"


@pytest.mark.parametrize("when", ["first file", "manifest"])
def test_a_full_disk_leaves_nothing_and_the_votes_can_still_be_taken_back(database, tmp_path, monkeypatch, when):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if when == "manifest":
            patch.setattr("annotate.export_files.os.fsync", full)
        else:
            patch.setattr("annotate.exporting.Tables.add", full)
        with pytest.raises(InputError, match=r"--output.*No space left"):
            export_project(database, world.project, tmp_path / "out" / "deep")
    assert list((tmp_path / "out").iterdir()) == []
    assert world.rows(export) == []
    assert world.events("export") == []
    assert world.protocol.undo(task.assignment, world.people[0]).status == "accepted"


def test_a_vote_cannot_be_taken_back_while_it_is_being_exported(database, tmp_path, monkeypatch):
    world = World(database)
    world.add(pair(1))
    task = world.protocol.claim(world.people[0])
    world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    seen = []

    def card(*_: object) -> str:  # the votes are read, nothing is published yet
        seen.append(world.protocol.undo(task.assignment, world.people[0]).reason)
        return ""

    monkeypatch.setattr("annotate.exporting.data_card", card)
    export_project(database, world.project, tmp_path / "out")
    assert seen == ["it was exported"]


def test_an_existing_folder_and_an_empty_project_are_refused(database, tmp_path):
    world = World(database)
    with pytest.raises(InputError, match="nobody has voted"):
        export_project(database, world.project, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_project(database, world.project, tmp_path / "out")
