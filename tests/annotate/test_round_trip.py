"""Sampled pairs through import, simulated people and export: what comes out is what was labelled, on the right sides."""

from __future__ import annotations

import json
import random
from random import Random

from annotate.export_rows import ExportSettings
from annotate.exporting import export_project
from annotate.importing import import_file
from annotate.simulate import Habits, SimulatedPerson, StoreClient, simulate, world_judge
from annotate.store.projects import Settings
from annotate.store.protocol import Protocol
from rlhf_kit.data import world as embedded
from rlhf_kit.data.records import load_preferences
from tests.annotate.world import World


class Witness(StoreClient):
    """Notes every verdict as the person meant it: by the texts, whatever the sides."""

    def submit(self, task, verdict):
        first, second = task.responses
        better = first if verdict.strength > 0 else second
        heard.append((task.messages[-1]["content"], frozenset((first, second)), better, abs(verdict.strength)))
        return super().submit(task, verdict)


heard: list = []


def test_what_was_labelled_is_what_comes_out(database, tmp_path):
    heard.clear()
    rng = Random(5)
    rows = []
    for row in embedded.prompts(40, seed=5):
        answers = [embedded.write_answer(row["prompt"][0]["content"], rng) for _ in range(2)]
        a, b = ([{"role": "assistant", "content": text}] for text in answers)
        rows.append({**row, "response_a": a, "response_b": b, "model": "sft", "sampling": {"temperature": 1.0}})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    world = World(database, Settings(overlap=3, gold_share=0.0))
    assert import_file(database, world.project.id, file).added == 40
    protocol = Protocol(database, world.project.id, random.Random(1))
    habits = Habits(bad_below=-2.0)
    people = [SimulatedPerson(Witness(protocol, key), world_judge, habits, Random(key)) for key in world.people[:3]]
    counts = simulate(people, 1000)
    assert sum(counts.values()) == len(heard) == 120
    export_project(database, world.project, tmp_path / "out", ExportSettings(test_fraction=0.2))

    expected: dict[tuple, float] = {}
    for prompt, texts, better, strength in heard:
        (other,) = texts - {better}
        for text, sign in ((better, 1), (other, -1)):
            expected[prompt, text] = expected.get((prompt, text), 0.0) + sign * strength / 3
    found = [row for name in ("train", "test") for row in load_preferences(tmp_path / "out" / f"{name}.jsonl")]
    assert len(found) > 20
    for row in found:
        prompt, chosen, rejected = (row[side][-1]["content"] for side in ("prompt", "chosen", "rejected"))
        assert abs(expected[prompt, chosen] - row["margin"]) < 1e-12
        assert abs(expected[prompt, rejected] + row["margin"]) < 1e-12
        assert row["margin"] > 0
    preferred = {row["prompt"][-1]["content"] for row in found}
    lines = [line for name in ("ties", "both_bad") for line in _lines(tmp_path / "out" / f"{name}.jsonl")]
    undecided = {json.loads(line)["prompt"][-1]["content"] for line in lines}
    assert preferred | undecided == {row["prompt"][-1]["content"] for row in rows}


def _lines(path):
    return path.read_text().splitlines() if path.exists() else []
