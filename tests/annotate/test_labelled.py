"""Labels from elsewhere, stored as if they had been given here."""

from __future__ import annotations

import pytest

from annotate.export_rows import ExportSettings
from annotate.exporting import export_project
from annotate.imports.human import read_fine_grained_qa, read_pandalm, read_ranked_replies
from annotate.labelled import import_labelled
from annotate.stats import project_judgments, project_stats
from annotate.store.schema import assignment, comparison, judgment, user
from annotate.store.users import log_in
from rlhf_kit.data.records import load_preferences
from rlhf_kit.errors import InputError
from tests.annotate.world import World

PANDALM = [
    {
        "id": f"{i}",
        "models": "one_two",
        "instruction": f"ask {i}",
        "input": "",
        "output_1": f"x {i}",
        "output_2": f"y {i}",
        "labels": labels,
    }
    for i, labels in enumerate([[1, 1, 2], [2, 2, 2], [0, 0, 1], [1, 2, 0]])
]


def test_labels_count_as_votes_of_people_who_cannot_log_in(database, tmp_path):
    world = World(database)
    report = import_labelled(database, world.project.id, read_pandalm(PANDALM))
    assert (report.comparisons, report.labels, report.duplicates, report.twins) == (4, 12, 0, 0)
    assert {(row.overlap, row.done, row.state) for row in world.rows(comparison)} == {(3, 3, "done")}
    imported = [row for row in world.rows(user) if row.name.startswith("annotator")]
    assert [(row.name, row.active) for row in imported] == [(f"annotator {i}", False) for i in (1, 2, 3)]
    assert log_in(database, "annotator 1", "none", "here").user is None
    assert world.protocol.claim(world.people[0]) is None  # nothing is left to be judged
    export_project(database, world.project, tmp_path / "out", ExportSettings(test_fraction=0.0))
    found = {row["prompt"][0]["content"]: row for row in load_preferences(tmp_path / "out" / "train.jsonl")}
    sides = {key: (row["chosen"][0]["content"], pytest.approx(row["margin"], rel=1e-15)) for key, row in found.items()}
    assert sides == {"ask 0": ("x 0", 1 / 3), "ask 1": ("y 1", 1.0), "ask 2": ("x 2", 1 / 3)}
    assert found["ask 0"]["chosen_model"] == "one"
    raw = project_stats(database, world.project)["agreement"]["raw"]
    assert raw["value"] == pytest.approx((1 + 3 + 1 + 0) / 12, rel=1e-12)  # equal among the three pairs of labels of each


def test_the_same_labels_again_add_nothing_and_new_ones_are_added(database):
    world = World(database)
    import_labelled(database, world.project.id, read_pandalm([{**PANDALM[0], "labels": [1]}]))
    report = import_labelled(database, world.project.id, read_pandalm(PANDALM))
    assert (report.comparisons, report.labels, report.duplicates) == (3, 11, 1)
    assert import_labelled(database, world.project.id, read_pandalm(PANDALM)).labels == 0
    assert len(world.rows(judgment)) == len(world.rows(assignment)) == 12


def test_pairs_of_many_answers_and_rankings_keep_their_sides(database):
    world = World(database)
    qa = {"id": "q", "question": "why", "passages": [["p"]], "outputs": ["a", "b", "c", "d"]}
    qa |= {"pair_order": [[0, 1], [2, 0], [3, 1]], "preference": [1, 1, 2]}
    import_labelled(database, world.project.id, read_fine_grained_qa([qa]))
    said = {(j.models[0][-1], j.models[1][-1]): j.strength for j in project_judgments(database, world.project.id)}
    # 0 beats 1; 2 beats 0, written as (0, 2); 1 beats 3
    assert said == {("1", "2"): 1, ("1", "3"): -1, ("2", "4"): 1}
    replies = {
        "id": "r",
        "messages": [{"role": "user", "content": "rank"}],
        "ranked_replies": ["z", "m", "a"],
        "synthetic": [True] * 3,
    }
    import_labelled(database, world.project.id, read_ranked_replies([replies]))
    (ranked,) = [row for row in world.rows(judgment) if row.kind == "rank"]
    assert ranked.ranking == [3, 2, 1]  # the answers are stored as a, m, z


def test_the_side_on_which_an_answer_was_shown_is_kept(database):
    world = World(database)
    labels = [{"annotator": "x", "strength": 2, "left": 1}, {"annotator": "y", "strength": -2, "left": 0}]
    import_labelled(database, world.project.id, [{"prompt": "p", "responses": ["a", "b"], "labels": labels}])
    assert [(j.strength, j.left) for j in project_judgments(database, world.project.id)] == [(2, -1), (-2, -1)]


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"prompt": "p", "responses": ["a", "b"], "labels": [{"strength": 1}]}, "annotator"),
        ({"prompt": "p", "responses": ["a", "b"], "labels": [{"annotator": "x", "strength": 7}]}, "strength"),
        ({"prompt": "p", "responses": ["a", "b", "c"], "labels": [{"annotator": "x", "strength": 1}]}, "pair"),
        ({"prompt": "p", "responses": ["a", "b", "c"], "labels": [{"annotator": "x", "ranking": [0, 1]}]}, "ranking"),
        ({"prompt": "p", "responses": ["a", "b"], "labels": [{"annotator": "person 0", "strength": 1}]}, "annotator"),
        ({"responses": ["a", "b"], "labels": []}, "columns"),
    ],
)
def test_labels_that_cannot_be_are_refused_by_name(database, record, named):
    world = World(database)
    with pytest.raises(InputError, match=named):
        import_labelled(database, world.project.id, [record])
    assert world.rows(judgment) == []
