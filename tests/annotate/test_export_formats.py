"""The same preferences in every form that TRL knows, read back by those who will read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from annotate.export_rows import ExportSettings
from annotate.exporting import export_project
from annotate.store.database import open_database
from annotate.store.records import NewComparison, NewResponse
from rlhf_kit.data.records import load_preferences
from rlhf_kit.errors import InputError
from tests.annotate.world import World, pair, prefer_good

datasets = pytest.importorskip("datasets")
PLACES = ("explicit", "implicit")


@pytest.fixture
def voted(tmp_path: Path) -> World:
    world = World(open_database(f"sqlite:///{tmp_path}/votes.db"))
    world.add(*(pair(number) for number in range(30)))
    while task := world.protocol.claim(world.people[0]):
        world.protocol.submit(task.assignment, world.people[0], prefer_good(task))
    return world


def exported(world: World, folder: Path, **settings: object) -> Path:
    export_project(world.database, world.project, folder, ExportSettings(**settings))
    return folder


@pytest.mark.parametrize("style", ["conversational", "plain"])
@pytest.mark.parametrize("prompt", PLACES)
def test_every_form_is_read_back_as_the_same_preferences(voted, tmp_path, prompt, style):
    folder = exported(voted, tmp_path / "out", prompt=prompt, style=style, test_fraction=0.0)
    found = load_preferences(folder / "train.jsonl")
    assert len(found) == 30
    for row in found:
        words = [row[side][-1]["content"] for side in ("prompt", "chosen", "rejected")]
        number = words[0].split()[-1]
        assert words == [
            f"question {number}" + ("\n\n" if (prompt, style) == ("implicit", "plain") else ""),
            f"good {number}",
            f"bad {number}",
        ]
        assert row["margin"] == 2.0
    raw = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert ("prompt" in raw) == (prompt == "explicit")
    assert isinstance(raw["chosen"], str) == (style == "plain")


def test_a_conversation_of_several_turns_cannot_be_plain(voted, tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    voted.add(NewComparison(turns, [NewResponse("good 1"), NewResponse("bad 1")]))
    task = voted.protocol.claim(voted.people[1])
    while task is not None and len(task.messages) == 1:
        task = voted.protocol.submit(task.assignment, voted.people[1], prefer_good(task)).next
    voted.protocol.submit(task.assignment, voted.people[1], prefer_good(task))
    with pytest.raises(InputError, match=r"--style.*conversational"):
        exported(voted, tmp_path / "out", style="plain")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_parquet_and_datasets_hold_the_rows_of_json_lines_and_are_the_same_twice(voted, tmp_path, kind):
    lines = exported(voted, tmp_path / "jsonl", test_fraction=0.3)
    one, two = (exported(voted, tmp_path / name, test_fraction=0.3, format=kind) for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for path in files:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    for split in ("train", "test"):
        source = one / f"{split}.parquet" if kind == "parquet" else f"{one / 'dataset'}@{split}"
        assert load_preferences(source) == load_preferences(lines / f"{split}.jsonl")


def test_load_dataset_reads_the_file_and_the_folder(voted, tmp_path):
    folder = exported(voted, tmp_path / "out", test_fraction=0.3)
    whole = [json.loads(line) for line in (folder / "train.jsonl").open()]
    cache = str(tmp_path / "cache")
    data = datasets.load_dataset("json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=cache)
    assert list(data) == whole
    splits = datasets.load_dataset(str(folder), "preference", cache_dir=cache)
    assert list(splits["train"]) == whole
    assert len(splits["test"]) == 30 - len(whole)


def test_without_a_margin_there_is_no_such_column(voted, tmp_path):
    folder = exported(voted, tmp_path / "out", margin=False)
    assert "margin" not in json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert "There is no `margin`" in (folder / "README.md").read_text()


def test_the_card_says_who_voted_and_by_which_guidelines_but_no_names(voted, tmp_path):
    folder = exported(voted, tmp_path / "out", without=("person 3",))
    card = (folder / "README.md").read_text()
    assert "30 votes of 1 people" in card
    assert "| 2 | 30 |" in card  # strengths
    assert "| secret-a | 30 |" in card
    assert "Licence: **to be filled in**" in card
    assert "person" not in (card + (folder / "manifest.json").read_text()).replace("people", "")


@pytest.mark.parametrize(("setting", "value"), [("test_fraction", 1.0), ("test_fraction", -0.1), ("min_votes", 0)])
def test_settings_that_cannot_be_are_refused(setting, value):
    with pytest.raises(InputError, match=setting):
        ExportSettings(**{setting: value})
