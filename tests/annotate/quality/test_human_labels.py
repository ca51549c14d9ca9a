"""Published figures of real human labels come back; skipped where the labels are not at hand (`HUMAN_LABELS` names a folder)."""

import json
import os
from pathlib import Path

import pytest

from annotate.quality.agreement import cohen_kappa
from annotate.quality.estimates import Resampling
from annotate.quality.labels import label_matrix
from benchmarks.human_labels import KAPPAS, WINS, HumanLabelsConfig, load, main, majorities
from rlhf_kit.errors import InputError

ROOT = Path(__file__).parents[3]
PLACES = [Path(os.environ.get("HUMAN_LABELS", "absent")), ROOT / "shared/data/preference", ROOT.parent / "shared/data/preference"]
FOLDER = next((place for place in PLACES if (place / "pandalm_3annotators.jsonl.gz").is_file()), None)
real = pytest.mark.skipif(FOLDER is None, reason="no folder with the human labels: name it in HUMAN_LABELS")


@real
def test_pandalm_s_published_kappas_come_back():
    matrix = label_matrix((j.item, j.annotator, j.winner) for j in load(FOLDER, "pandalm_3annotators"))
    assert matrix.codes.shape == (999, 3)
    found = {pair: cohen_kappa(matrix, *pair, how=Resampling(200)) for pair in KAPPAS}
    assert {pair: round(kappa.value, 2) for pair, kappa in found.items()} == KAPPAS
    assert [round(kappa.value, 3) for kappa in found.values()] == [0.852, 0.879, 0.862]
    assert all(kappa.low < KAPPAS[pair] < kappa.high for pair, kappa in found.items())


@real
def test_pandalm_s_published_wins_come_back_but_for_one_pair_in_which_wins_and_losses_changed_places():
    found = majorities(load(FOLDER, "pandalm_3annotators"))
    differing = {pair: counts for pair, counts in found.items() if counts != WINS[pair]}
    assert differing == {("bloom-7b", "pythia-6.9b"): (47, 49, 11)}


@real
def test_the_other_sets_have_the_sizes_that_their_authors_give():
    tulu = load(FOLDER, "tulu1_human_eval")
    overlapping = label_matrix((j.item, j.annotator, j.strength) for j in tulu).counts().sum(1)
    assert (overlapping >= 2).sum() == 121
    assert len(load(FOLDER, "fgrlhf_qa")) == 3000
    assert len({j.group for j in load(FOLDER, "oasst_ranked")}) == 211


def small_files(folder: Path) -> None:
    """A few rows in each of the four forms."""
    labels = [[1, 1, 1], [2, 2, 1], [0, 0, 0], [2, 2, 2], [1, 1, 0], [1, 2, 1]]
    models = list(WINS)
    rows = {
        "pandalm_3annotators": [
            {"id": f"p{i}", "models": "_".join(models[i % 10]), "instruction": "Do", "input": "", "output_1": "a " * (i % 5 + 1),
             "output_2": "b " * (i % 3 + 1), "labels": labels[i % 6]}
            for i in range(60)
        ],
        "tulu1_human_eval": [
            {"id": f"t{i}{e}", "instance_id": f"i{i}", "evaluator": e, "model_a": "m1", "model_b": "m2", "prompt": "Do",
             "output_a": "a " * (i % 4 + 1), "output_b": "b " * (i % 3 + 1),
             "preference": ["a-is-better", "tie", "b-is-better"][i % 3]}
            for i in range(30)
            for e in ("e1", "e2")
        ],
        "fgrlhf_qa": [
            {"id": f"f{i}", "question": "Why?", "passages": [["T", "x"]], "outputs": ["a", "b b", "c", "d d"],
             "pair_order": [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]], "preference": [1 + (i + j) % 2 for j in range(6)]}
            for i in range(10)
        ],
        "oasst_ranked": [
            {"id": f"o{i}", "messages": [{"role": "user", "content": "Hi"}], "ranked_replies": [f"x{i}", "y y", "z"],
             "synthetic": [i % 2 == 0, i % 2 == 1, False]}
            for i in range(10)
        ],
    }  # fmt: skip
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))


def test_the_benchmark_runs_on_small_files_in_the_four_forms(tmp_path, capsys):
    small_files(tmp_path)
    reports = main(HumanLabelsConfig(data=tmp_path, resamples=20, rankings=5, json=tmp_path / "out/figures.json"))
    printed = capsys.readouterr().out
    assert "published 0.85" in printed and "published (72, 28, 11)" in printed
    assert "triples that go round in a circle" in printed and "left rate: 0.500" in printed
    assert printed.count("Krippendorff's alpha, nominal:") == 4
    assert "undefined (no item has labels from two people)" in printed
    written = json.loads((tmp_path / "out/figures.json").read_text())
    assert written["pandalm_3annotators"]["agreement"] == reports["pandalm_3annotators"]["agreement"]


def test_a_folder_without_the_labels_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--data is .*expected a folder with pandalm_3annotators"):
        main(HumanLabelsConfig(data=tmp_path))
