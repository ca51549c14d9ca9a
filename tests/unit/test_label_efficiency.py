"""The benchmark of label efficiency: its accuracy against draws, what it asks about, and one whole small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.label_efficiency import Clock, Pairs, Settings, accuracy, ceiling, choose, curves, picture, summary, table, work
from rlhf_kit.data import world
from rlhf_kit.data.tokenizer import load_tokenizer, train_tokenizer
from rlhf_kit.models.hf import GPTConfig, GPTForCausalLM


def test_the_accuracy_is_what_many_draws_of_labels_come_to() -> None:
    rng = np.random.default_rng(0)
    margins, chances = rng.normal(size=40), rng.uniform(size=40)
    labels = rng.random((20_000, 40)) < chances
    drawn = (labels == (margins > 0)).mean()
    assert accuracy(margins, chances) == pytest.approx(drawn, abs=2e-3)  # 800,000 draws: a standard error of 5e-4
    assert accuracy(np.zeros(40), chances) == 0.5
    assert accuracy(margins, chances) + accuracy(-margins, chances) == pytest.approx(1.0, rel=1e-12)


def test_nothing_passes_the_ceiling_and_the_gold_order_reaches_it() -> None:
    rows = world.preferences(300, 0)
    texts = [(r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows]
    prompts, chosen, rejected = map(list, zip(*texts))
    chances = np.array(world.Annotators().probabilities(prompts, chosen, rejected))
    gold = np.array(world.gold_scores(prompts, chosen)) - np.array(world.gold_scores(prompts, rejected))
    most = world.Annotators().bayes_accuracy(prompts, chosen, rejected)
    assert ceiling(chances) == pytest.approx(most, rel=1e-12)
    assert accuracy(gold, chances) == pytest.approx(most, rel=1e-12)
    assert all(accuracy(np.random.default_rng(i).normal(size=300), chances) <= most for i in range(50))


def test_uncertainty_asks_where_members_part_and_random_takes_what_comes() -> None:
    margins = np.zeros((2, 90))
    margins[:, 60:] = [[3.0], [-3.0]]  # the last thirty divide the members

    def never() -> np.ndarray:
        raise AssertionError("random pairs need no scores")

    assert choose("random", never, range(100, 190), 30, 0) == list(range(100, 130))
    asked = choose("uncertainty", lambda: margins, range(100, 190), 30, 0)
    assert len(set(asked)) == 30
    # A fifth of the chance is everybody's: 30 * (0.8 + 0.2 / 3) of the thirty are expected, give or take two.
    assert 22 <= sum(i >= 160 for i in asked) < 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    tokenizer = train_tokenizer(list(world.stories(60, 0)), 400)
    torch.manual_seed(0)
    GPTForCausalLM(GPTConfig(vocab_size=len(tokenizer), d_model=16, n_layers=1, n_heads=2, max_seq_len=512)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_a_whole_run_gives_each_way_its_curve_from_one_start(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(str(model), (8, 16, 24), members=2, test=20, epochs=1.0)
    whole = sum(work(settings, n) for n in (8, 16, 16, 24, 24))
    clock = Clock(2 * whole)
    runs = [curves(settings, seed, load_tokenizer(str(model)), clock) for seed in range(2)]
    assert clock.done == clock.whole
    assert "about 0 left" in capsys.readouterr().out.splitlines()[-1]
    for run in runs:
        assert run["random"]["accuracy"][0] == run["uncertainty"]["accuracy"][0]
        assert len(run["random"]["accuracy"]) == 3
        assert all(0.5 <= clear <= 1 for way in ("random", "uncertainty") for clear in run[way]["clear"])
        assert all(found <= run["ceiling"] for way in ("random", "uncertainty") for found in run[way]["accuracy"])
    rows = summary(settings, runs)
    expected = np.mean([run["uncertainty"]["accuracy"][2] - run["random"]["accuracy"][2] for run in runs])
    assert rows[2]["difference"]["mean"] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    text = table(rows, 0.85)
    assert text.splitlines()[2].startswith("| 8 | ")
    assert text.splitlines()[-1] == "| Bayes ceiling | 85.0 | 85.0 | | |"
    assert picture(rows, 0.85).startswith("<svg")


def test_the_same_seed_gives_the_same_curve(model: Path) -> None:
    settings = Settings(str(model), (8, 16), members=2, test=20, epochs=1.0)
    first, second = (curves(settings, 3, load_tokenizer(str(model)), Clock(1.0)) for _ in range(2))
    assert first == second


def test_pairs_know_the_chance_of_their_label(model: Path) -> None:
    found = Pairs(world.preferences(400, 1), load_tokenizer(str(model)))
    assert len(found) == 400
    # Labels are drawn by these chances, so the mean chance of a label drawn is the mean of p^2 + (1 - p)^2: well over a half.
    p = found.chances
    assert p.mean() == pytest.approx((p**2 + (1 - p) ** 2).mean(), abs=0.04)  # 400 pairs: two standard errors
