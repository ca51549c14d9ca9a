"""Import, judge by keyboard in a browser and over HTTP side by side, export: the file says what both saw and said."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from playwright.sync_api import Page

from annotate.cli import ExportConfig, ImportConfig, export, import_
from annotate.client import log_in
from annotate.store.database import open_database
from annotate.store.records import Verdict
from annotate.store.users import create_user
from examples.round_trip import served
from rlhf_kit.data import world
from tests.annotate.test_importing import write

pytestmark = pytest.mark.slow
PASSWORD = "correct horse battery"
KEYS = {"1": 1, "6": -1, "4": 0, "7": -1, "3": 1, "2": 1}  # key: 1 where it says that the answer on the left is better


def pairs(count: int) -> list[dict]:
    """Questions with two answers that differ, as a sampled file has them."""
    rows, rng = [], Random(0)
    for row in world.prompts(count, 0):
        prompt = row["prompt"][-1]["content"]
        first = world.write_answer(prompt, rng)
        rows.append({"prompt": row["prompt"], "response_a": first, "response_b": f"{first} {world.write_answer(prompt, rng)}"})
    return rows


def armed(page: Page, before: str | None) -> str:
    """The task that takes a key now, once it is another one."""
    panel = page.locator("#pair-panel .annotate")
    found = page.wait_for_function(
        """(before) => {
          const id = document.querySelector('#pair-panel .annotate')?.dataset.armed;
          return id && id !== before ? id : null;
        }""",
        arg=before,
        timeout=120_000,
    ).json_value()
    assert panel.get_attribute("data-view") == "task"
    return str(found)


def read(page: Page) -> tuple[str, list[str]]:
    """The question and both answers, as they stand on the page."""
    panel = page.locator("#pair-panel .annotate")
    return panel.locator(".prompt").inner_text(), panel.locator(".answer .pane").all_inner_texts()


def words(text: str) -> str:
    return " ".join(text.split())


def test_keys_in_a_browser_and_votes_over_http_come_out_as_they_were_said(page: Page, tmp_path: Path) -> None:
    url, rows = f"sqlite:///{tmp_path}/votes.db", pairs(12)
    import_(ImportConfig(url, "stories", str(write(tmp_path / "pairs.jsonl", *rows))))
    database = open_database(url)
    for name in ("ann", "bob"):
        create_user(database, name, PASSWORD)
    database.close()
    better: dict[frozenset[str], str] = {}  # {both answers: the better one}, the tie left out
    with served(url, tmp_path / "serve.log") as address:
        page.goto(f"{address}/app/")
        page.fill("input[name=name]", "ann")
        page.fill("input[name=password]", PASSWORD)
        page.keyboard.press("Enter")
        client = log_in(address, "bob", PASSWORD)
        task, at = client.claim(), None
        for key, sign in KEYS.items():
            at = armed(page, at)
            question, shown = read(page)
            (row,) = [row for row in rows if {words(text) for text in shown} == {row["response_a"], row["response_b"]}]
            assert row["prompt"][-1]["content"] in words(question)
            if sign:
                better[frozenset(map(words, shown))] = words(shown[0] if sign > 0 else shown[1])
            page.keyboard.press(key)
            assert task is not None
            told = client.submit(task, Verdict(task.revision, "preference", -2))
            assert told.status == "accepted"
            better[frozenset(task.responses)] = task.responses[1]
            task = told.next
        page.wait_for_selector("#pair-panel .annotate[data-view=empty]", timeout=60_000)
        client.close()
    export(ExportConfig(url, "stories", tmp_path / "export", test_fraction=0.0))
    found = [json.loads(line) for line in (tmp_path / "export" / "train.jsonl").read_text().splitlines()]
    said = {frozenset((row["chosen"][0]["content"], row["rejected"][0]["content"])): row["chosen"][0]["content"] for row in found}
    assert said == better
    assert len(found) == 11
    assert len((tmp_path / "export" / "ties.jsonl").read_text().splitlines()) == 1
