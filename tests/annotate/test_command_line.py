"""`python -m annotate`: what each command prints, how it fails, and that none of it needs torch or gradio."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from annotate.cli import COMMANDS, ServeConfig, default_database, run
from annotate.store.database import open_database
from annotate.store.users import log_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Run a command on a database of the test's own; what it printed."""
    monkeypatch.setenv("ANNOTATE_DATABASE", f"sqlite:///{tmp_path}/votes.db")

    def command(*words: object) -> str:
        run([str(word) for word in words])
        return capsys.readouterr().out

    return command


@pytest.fixture
def refused(said, capsys):
    """Run a command that has to fail; its one line of complaint."""

    def command(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            said(*words)
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("database:")]
        assert len(lines) == 1
        return lines[0]

    return command


def test_from_the_demo_to_an_export_and_its_figures(said, tmp_path):
    assert said("import", "--demo", "true", "--demo_pairs", 20, "--demo_rankings", 2, "--overlap", 2).startswith(
        "default: 22 comparisons added, 0 were there"
    )
    assert "0 comparisons added, 22 were there" in said("import", "--demo", "true", "--demo_pairs", 20, "--demo_rankings", 2)
    assert said("simulate", "--people", 2, "--labels", 30).startswith("30 answers: ")
    (found,) = json.loads(said("stats", "--json", "true"))
    assert found["progress"]["votes"] == 30
    assert [person["name"] for person in found["people"]] == ["simulated 1", "simulated 2"]
    assert 0 <= found["agreement"]["raw"]["value"] <= 1
    words = said("stats", "--project", "default")
    assert "30 votes stand" in words
    assert "simulated 2: 15 votes" in words
    printed = said("export", "--output", tmp_path / "out", "--test_fraction", 0)
    rows = json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"]
    assert f"{rows['train']} train" in printed


def test_people_are_added_listed_disabled_and_given_new_passwords(said, refused, tmp_path, monkeypatch):
    printed = said("users", "add", "--name", "ada", "--role", "admin")
    password = printed.split("password is ")[1].split()[0]
    database = open_database(f"sqlite:///{tmp_path}/votes.db")
    assert log_in(database, "ada", password, "here").user.role == "admin"
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery\n"))
    printed = said("users", "reset", "--name", "ada", "--stdin", "true")
    assert "correct" not in printed
    assert log_in(database, "ada", password, "here").user is None
    assert log_in(database, "ada", "correct horse battery", "here").user is not None
    assert "last active admin" in refused("users", "disable", "--name", "ada")
    said("users", "add", "--name", "bea", "--role", "admin")
    said("users", "disable", "--name", "ada")
    assert said("users", "list") == "ada\tadmin\tdisabled\nbea\tadmin\tactive\n"
    said("users", "enable", "--name", "ada")
    assert json.loads(said("users", "list", "--json", "true"))[0]["active"] is True
    assert "nobody's name" in refused("users", "disable", "--name", "grace")
    assert "exists already" in refused("users", "add", "--name", "ada")
    assert "expected 1 to" in refused("users", "add")
    database.close()


def test_labels_from_elsewhere_come_with_their_file(said, refused, tmp_path):
    labels = [{"annotator": "x", "strength": 1}]
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"prompt": "p", "responses": ["a", "b"], "labels": labels}) + "\n")
    assert "1 comparisons and 1 labels added" in said("import", "--file", file, "--labelled", "records")
    assert "expected one of records, pandalm" in refused("import", "--file", file, "--labelled", "mine")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["labels"], "command is 'labels'"),
        ([], "command is ''"),
        (["users"], "command is 'users'"),
        (["import"], "--file"),
        (["import", "--file", "x.jsonl", "--demo", "true"], "--file"),
        (["import", "--file", "absent.jsonl"], "absent.jsonl"),
        (["import", "--demo", "true", "--guidelines", "absent.md"], "--guidelines"),
        (["import", "--demo", "true", "--overlap", "0"], "--overlap"),
        (["import", "--demo", "true", "--labelled", "records"], "--labelled"),
        (["export", "--format", "csv"], "format"),
        (["export", "--project", "absent"], "project is 'absent'"),
        (["simulate", "--people", "0"], "--people"),
        (["stats", "--database", "mysql://x"], "database"),
        (["stats", "--jsn", "true"], "jsn"),
    ],
)
def test_wrong_input_is_one_line(refused, words, complaint):
    assert complaint in refused(*words)


def test_skipped_rows_are_told_of(said, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "response_a": "a", "response_b": "b"}\nnonsense\n')
    run(["import", "--file", str(file), "--skip_bad", "true"])
    captured = capsys.readouterr()
    assert "1 comparisons added" in captured.out
    assert "1 bad rows" in captured.out
    assert "skipped: pairs.jsonl line 2" in captured.err


def test_the_database_is_never_in_the_working_directory_unless_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("ANNOTATE_DATABASE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    run(["users", "list"])
    path = tmp_path / "data" / "rlhf_kit" / "annotate.db"
    assert f"database: sqlite:///{path}" in capsys.readouterr().err
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert ServeConfig().database == default_database()
    assert ServeConfig(database="sqlite:////x/y.db").database == "sqlite:////x/y.db"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_database().endswith("/.local/share/rlhf_kit/annotate.db")


def test_help_names_every_command(capsys):
    run(["--help"])
    words = capsys.readouterr().out
    assert all(name.split()[-1] in words for name in COMMANDS)


def test_none_of_it_imports_torch_or_gradio(tmp_path):
    program = f"""
import sys
from annotate.cli import run
run(["import", "--demo", "true", "--demo_pairs", "6", "--demo_rankings", "1"])
run(["simulate", "--people", "1", "--labels", "6"])
run(["stats"])
run(["export", "--output", {str(tmp_path / "out")!r}])
import annotate.labelled, annotate.imports.human
heavy = {{"torch", "gradio", "transformers", "datasets", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "ANNOTATE_DATABASE": f"sqlite:///{tmp_path}/votes.db"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_serve_hands_its_config_to_the_app(monkeypatch):
    import types

    seen = []
    server = types.ModuleType("annotate.app.server")
    server.main = seen.append
    monkeypatch.setitem(sys.modules, "annotate.app", types.ModuleType("annotate.app"))
    monkeypatch.setitem(sys.modules, "annotate.app.server", server)
    run(["serve", "--port", "1234", "--admin", "ada", "--models", "a", "b"])
    assert (seen[0].port, seen[0].host, seen[0].admin, seen[0].models) == (1234, "127.0.0.1", "ada", ("a", "b"))
