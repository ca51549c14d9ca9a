"""Files in and out over HTTP."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from annotate.app import guard
from annotate.app.rest_admin import export_settings
from annotate.export_rows import ExportSettings
from annotate.store.audit import events, list_exports
from annotate.store.protocol import Protocol
from annotate.store.records import Verdict
from annotate.store.schema import comparison
from rlhf_kit.errors import InputError
from tests.annotate.app.admin_client import shown
from tests.annotate.app.conftest import World

ROWS = [{"prompt": f"new {i}", "response_a": f"this {i}", "response_b": f"that {i}", "model_a": "m"} for i in range(5)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def send(world: World, content: Any, person: str = "root", **query: str) -> Any:
    query = {"project": "first", "name": "pairs.jsonl"} | query
    return world.client(person).post("/api/admin/import", params=query, content=content)


def comparisons(world: World) -> int:
    with world.database.read() as connection:
        return connection.execute(select(func.count()).select_from(comparison)).scalar_one()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; what is there after each request stayed behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def vote(world: World, count: int) -> None:
    protocol, user = Protocol(world.database, world.project.id), world.people["ann"].id
    for _ in range(count):
        task = protocol.claim(user)
        protocol.submit(task.assignment, user, Verdict(task.revision, "preference", 2))


def test_a_file_is_imported_once_however_often_it_is_sent_and_leaves_nothing_behind(world: World, temporary: Path) -> None:
    first, again = (send(world, lines(ROWS)).json() for _ in range(2))
    assert first == {"added": 5, "duplicates": 0, "twins": 0, "bad": 0, "errors": []}
    assert (again["added"], again["duplicates"]) == (0, 5)
    assert comparisons(world) == 25
    assert [each.user for each in events(world.database, action="import", limit=2)] == [world.people["root"].id] * 2
    assert list(temporary.iterdir()) == []


def test_a_bad_row_is_named_by_file_and_line_and_either_stops_all_or_is_left_out(world: World, temporary: Path) -> None:
    content = lines([*ROWS, {"prompt": "p", "response_a": 7, "response_b": "x"}])
    answer = send(world, content, name="my pairs (2).jsonl")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("my pairs (2).jsonl")
    assert "6" in answer.json()["error"]
    assert str(temporary) not in answer.text
    assert comparisons(world) == 20
    report = send(world, content, skip_bad="true").json()
    assert (report["added"], report["bad"], len(report["errors"])) == (5, 1, 1)
    assert str(temporary) not in str(report)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"name": "../votes.db"}, "name"),
        ({"name": "/etc/passwd"}, "name"),
        ({"name": ".jsonl"}, "name"),
        ({"name": "x.csv"}, "name"),
        ({"name": ""}, "name"),
        ({"project": "gone"}, "project"),
        ({"preferences": "both"}, "preferences"),
        ({"skip_bad": "yes"}, "skip_bad"),
    ],
)
def test_a_query_that_makes_no_sense_is_told_by_name(world: World, query: dict[str, str], word: str) -> None:
    answer = send(world, lines(ROWS), **query)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(word)
    assert comparisons(world) == 20


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]\n", b""])
def test_a_file_that_is_none_is_told_so(world: World, content: bytes) -> None:
    answer = send(world, content)
    assert answer.status_code in (200, 400)
    assert comparisons(world) == 20
    assert "Traceback" not in answer.text
    damaged = send(world, content, name="pairs.parquet")
    assert damaged.status_code == 400


def test_a_body_that_hides_its_size_is_cut_off_and_its_folder_removed(
    world: World, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LARGEST_IMPORT", 1000)
    answer = send(world, (b"x" * 100 for _ in range(20)))  # a generator is sent in chunks, without a length
    assert answer.status_code == 413
    assert comparisons(world) == 20
    assert list(temporary.iterdir()) == []


def test_what_was_imported_and_judged_comes_out_again(world: World, temporary: Path) -> None:
    send(world, lines(ROWS))
    vote(world, 25)
    answer = world.client("root").get("/api/admin/export", params={"project": "first", "test_fraction": "0"})
    assert answer.status_code == 200
    assert 'filename="first.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {"manifest.json", "README.md", "train.jsonl"} <= set(archive.namelist())
        rows = [json.loads(line) for line in archive.read("train.jsonl").splitlines()]
        manifest = archive.read("manifest.json")
    assert len(rows) == json.loads(manifest)["rows"]["train"] == 25
    assert {row["prompt"][0]["content"] for row in rows} >= {row["prompt"] for row in ROWS}
    [done] = list_exports(world.database, world.project.id)
    assert done.user == "root"
    assert done.manifest_hash in shown(world, "export")
    assert list(temporary.iterdir()) == []
    again = world.client("root").get("/api/admin/export", params={"project": "first", "test_fraction": "0"})
    assert again.content == answer.content
    assert not Protocol(world.database, world.project.id).history(world.people["ann"].id)[0].undoable


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"project": "gone"}, "project"),
        ({}, "project"),
        ({"project": "first"}, "nothing to export"),
        ({"project": "first", "format": "csv"}, "format"),
        ({"project": "first", "margin": "1"}, "margin"),
        ({"project": "first", "test_fraction": "nan"}, "test_fraction"),
        ({"project": "first", "test_fraction": "1"}, "test_fraction"),
        ({"project": "first", "min_votes": "1.5"}, "min_votes"),
        ({"project": "first", "without": "nobody"}, "without"),
        ({"project": "first", "output": "/etc"}, "output"),
    ],
)
def test_an_export_that_cannot_be_is_told_by_name_and_not_recorded(world: World, temporary: Path, query: dict, word: str) -> None:
    answer = world.client("root").get("/api/admin/export", params=query)
    assert answer.status_code == 400
    assert word in answer.json()["error"]
    assert str(temporary) not in answer.text
    assert list_exports(world.database, world.project.id) == []
    assert list(temporary.iterdir()) == []


def test_every_setting_of_the_export_can_be_asked_for() -> None:
    asked = {"prompt": "implicit", "style": "plain", "format": "parquet", "aggregate": "majority", "margin": "false"}
    asked |= {
        "test_fraction": "0.2",
        "without": "ann, bob",
        "late": "false",
        "flagged": "false",
        "gold": "true",
        "min_votes": "2",
    }
    expected = ExportSettings("implicit", "plain", "parquet", "majority", False, 0.2, ("ann", "bob"), False, False, True, 2)
    assert export_settings(asked) == expected
    assert export_settings({}) == ExportSettings()
    with pytest.raises(InputError, match="no setting"):
        export_settings({"colour": "blue"})


def test_a_link_from_another_site_exports_nothing_and_an_annotator_neither_exports_nor_imports(world: World) -> None:
    vote(world, 3)
    query = {"project": "first"}
    for site in ("cross-site", "same-site"):
        answer = world.client("root").get("/api/admin/export", params=query, headers={"sec-fetch-site": site})
        assert answer.status_code == 403
    assert world.client("ann").get("/api/admin/export", params=query).status_code == 403
    assert send(world, lines(ROWS), person="ann").status_code == 403
    assert list_exports(world.database, world.project.id) == []
    assert comparisons(world) == 20
