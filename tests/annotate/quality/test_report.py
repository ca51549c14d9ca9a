"""The quality report is whole, JSON, and undefined where it is; its page shows what is in it and no more."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from annotate.quality.agreement import krippendorff_alpha
from annotate.quality.consistency import cyclic_triples
from annotate.quality.estimates import Resampling
from annotate.quality.labels import Judgment, label_matrix
from annotate.quality.plots import quality_figures, quality_page
from annotate.quality.ranking import bradley_terry
from annotate.quality.report import agreement_over_time, quality_report

FEW = Resampling(resamples=40)
MODELS = ("sft", "ppo", "<base>")


def people(items: int = 90, names: str = "abcd", seed: int = 0) -> list[Judgment]:
    rng = np.random.default_rng(seed)
    judgments = []
    for item in range(items):
        truth, pair = int(rng.choice([-1, 1])), rng.choice(3, 2, replace=False)
        for name in names:
            right = rng.random() < (0.95 if item >= items // 2 else 0.6)
            judgments.append(
                Judgment(
                    item,
                    name,
                    int(rng.integers(1, 4)) * (truth if right else -truth),
                    first_on_left=bool(rng.integers(2)),
                    seconds=float(rng.lognormal(3, 0.5)),
                    words=(int(rng.integers(20, 90)), int(rng.integers(20, 90))),
                    models=(MODELS[pair[0]], MODELS[pair[1]]),
                    gold=truth if item % 9 == 0 else None,
                    at=1000.0 + len(judgments),
                )
            )
    return judgments


def test_the_report_holds_the_measures_themselves_and_survives_json():
    judgments = people()
    report = quality_report(judgments, how=FEW, rankings=20)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["counts"] == {"labels": 360, "items": 90, "annotators": 4}
    strengths = label_matrix((j.item, j.annotator, j.strength) for j in judgments)
    assert report["agreement"]["strength"]["alpha"] == krippendorff_alpha(strengths, "ordinal", FEW).as_dict()
    ranking = bradley_terry(
        [j.models[0] for j in judgments],
        [j.models[1] for j in judgments],
        [j.winner for j in judgments],
        clusters=[j.item for j in judgments],
        how=Resampling(20),
    )
    assert [row["model"] for row in report["ranking"]["models"]] == ranking.models
    assert report["ranking"]["models"][0]["strength"] == ranking.strengths[0].as_dict()
    assert report["ranking"]["length"]["reason"] == "length was not controlled for"
    assert report["ranking_at_equal_length"]["length"]["value"] is not None
    assert {(p["first"], p["second"]) for p in report["pairs"]} == {(a, b) for a in "abcd" for b in "abcd" if a < b}
    assert sum(report["seconds"]["judgments"]) == report["seconds"]["n"] == 360
    assert report["seconds"]["quantiles"]["0.5"] == np.median([j.seconds for j in judgments])


def test_agreement_over_time_follows_the_order_in_which_items_were_finished():
    judgments = people()
    rows = agreement_over_time(judgments[::-1], FEW)
    assert [row["items"] for row in rows] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert rows[-1]["at"] == 1359.0
    early, late = (np.mean([row["agreement"]["value"] for row in part]) for part in (rows[:4], rows[5:]))
    assert late > early + 0.2
    assert agreement_over_time([dataclasses.replace(j, at=None) for j in judgments], FEW) == []
    assert agreement_over_time(judgments[:16], FEW) == []


def test_a_report_of_one_person_s_bare_votes_says_what_it_cannot_know():
    report = quality_report([Judgment(i, "a", 1) for i in range(5)], how=FEW, rankings=5)
    assert report["agreement"]["winner"]["alpha"]["value"] is None
    assert report["pairs"] == [] and report["over_time"] == []
    assert report["ranking"] == {"models": [], "reason": "no two models are compared"}
    assert report["left"]["reason"] == "the sides were not kept"
    assert report["seconds"]["n"] == 0
    page = quality_page(report)
    assert "no item has labels from two people" in page and "Nobody is flagged." in page
    json.dumps(report, allow_nan=False)


def test_a_ranking_that_has_no_bound_is_in_the_report_with_its_reason():
    votes = [Judgment(i, "a", 1, models=("x", "y"), words=(3, 4)) for i in range(5)]
    report = quality_report(votes, how=FEW, rankings=5)
    assert "'y' lost every comparison" in report["ranking"]["reason"]
    assert report["ranking"]["models"][0]["strength"]["value"] is None
    json.dumps(report, allow_nan=False)
    assert "ranking" not in quality_figures(report)


def test_every_figure_is_well_formed_finite_and_inside_its_frame():
    figures = quality_figures(quality_report(people(), how=FEW, rankings=20))
    assert list(figures) == ["over_time", "reliability", "gold", "left", "seconds", "ranking", "ranking_at_equal_length"]
    for figure in figures.values():
        svg = ElementTree.fromstring(re.search(r"<svg class=\"chart\".*</svg>", figure).group())
        width, height = (float(v) for v in svg.attrib["viewBox"].split()[2:])
        for element in svg.iter():
            for name, limit in (("x1", width), ("x2", width), ("cx", width), ("y1", height), ("y2", height), ("cy", height)):
                if name in element.attrib:
                    assert math.isfinite(float(element.attrib[name])) and -1 <= float(element.attrib[name]) <= limit + 1


def test_a_name_with_markup_is_shown_as_text():
    judgments = [dataclasses.replace(j, annotator=f"<i>{j.annotator}") for j in people(40)]
    page = quality_page(quality_report(judgments, how=FEW, rankings=5), title="<b>x")
    assert "<i>a" not in page and "&lt;i&gt;a" in page
    assert "<base>" not in page and "&lt;base&gt;" in page
    assert "<b>x" not in page


def test_the_same_labels_give_the_same_page():
    pages = [quality_page(quality_report(people(30), how=FEW, rankings=5)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_it_imports_neither_torch_nor_gradio_nor_a_database():
    code = (
        "import sys, annotate.quality.plots, annotate.quality.report, annotate.quality.sampling, annotate.imports.human\n"
        "import annotate.imports.judgments\n"
        "print([m for m in ('torch', 'gradio', 'sqlalchemy', 'scipy', 'sklearn', 'krippendorff') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_circles_are_counted_by_hand():
    circle = [("a", "b", 1), ("b", "c", 1), ("a", "c", -1)]
    line = [("a", "b", 1), ("c", "b", -1), ("a", "c", 1)]
    tie = [("a", "b", 1), ("b", "c", 0), ("a", "c", 1)]
    rows = [(group, *game) for group, games in enumerate((circle, line, line, tie)) for game in games]
    found = cyclic_triples(*zip(*rows), how=FEW)
    assert (found.value, found.n) == (pytest.approx(1 / 3), 3)
    none = cyclic_triples(*zip(*rows[9:]), how=FEW)
    assert none.value is None and none.reason == "no three answers have all their pairs decided"
    never = cyclic_triples(*zip(*rows[3:9]), how=FEW)
    assert (never.value, never.low) == (0.0, 0.0)
    assert never.high == pytest.approx(1 - 0.025 ** (1 / 2), abs=1e-12)


def test_a_coin_goes_round_in_a_circle_a_quarter_of_the_time():
    rng = np.random.default_rng(0)
    rows = [(g, a, b, int(rng.choice([-1, 1]))) for g in range(1500) for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))]
    found = cyclic_triples(*zip(*rows), how=FEW)
    assert abs(found.value - 0.25) < 0.03  # 6,000 triples, four to a group
