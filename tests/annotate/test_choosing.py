"""Which of a file's comparisons are put to people: those on which reward models part, and each one's chance is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from annotate.choosing import import_chosen
from annotate.cli import ImportConfig, import_
from annotate.importing import Report
from annotate.quality.sampling import disagreement, inclusion_probabilities, preference_entropy
from annotate.store.database import Database, open_database
from annotate.store.schema import comparison
from rlhf_kit.errors import InputError
from tests.annotate.test_importing import sampled, write
from tests.annotate.world import World


@pytest.fixture
def here(tmp_path: Path) -> World:
    return World(open_database(f"sqlite:///{tmp_path}/votes.db"))


def scored(number: int, margins: list[float], **other: object) -> dict:
    """A pair whose members say `margins` of the first answer less the second."""
    a = [0.5 + margin for margin in margins]
    return sampled(number, member_scores_a=a, member_scores_b=[0.5] * len(margins), **other)


def stored(world: World) -> dict[int, tuple[float, str]]:
    """{id of the comparison: (propensity, sampled_by)}"""
    return {row.id: (row.propensity, row.sampled_by) for row in world.rows(comparison)}


def test_the_chance_of_each_is_the_one_its_members_disagreement_gives_it(here: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(size=(60, 3)) * rng.uniform(0, 3, size=(60, 1))
    file = write(tmp_path / "pairs.jsonl", *(scored(i, list(row)) for i, row in enumerate(margins)))
    assert import_chosen(here.database, here.project.id, file, 15) == Report(added=15)
    expected = inclusion_probabilities(disagreement(margins.T), 15)
    found = sorted(propensity for propensity, _ in stored(here).values())
    assert len(found) == 15
    # As numbers of the pool's own, each kept one has exactly its chance (the margins went through a - b: a rounding).
    assert all(np.isclose(expected, each, rtol=1e-9).any() for each in found)
    assert {how for _, how in stored(here).values()} == {"disagreement, 20% uniform"}


def test_pairs_on_which_members_part_are_chosen_and_agreed_ones_sometimes(here: World, tmp_path: Path) -> None:
    rows = [scored(i, [3.0, -3.0] if i < 20 else [2.0, 2.0]) for i in range(220)]
    report = import_chosen(here.database, here.project.id, write(tmp_path / "pairs.jsonl", *rows), 25, seed=4)
    assert report.added == 25
    chances = [round(propensity, 9) for propensity, _ in stored(here).values()]
    # All that part: 0.2 * 25 / 220 + 0.8; the others share what is left alike.
    part, agree = 0.2 * 25 / 220 + 0.8, 0.2 * 25 / 220 + 0.8 * 5 / 200
    assert set(chances) == {round(part, 9), round(agree, 9)}
    assert chances.count(round(part, 9)) > 10 > chances.count(round(agree, 9)) / 2 > 0


def test_entropy_serves_a_single_reward_model_and_disagreement_refuses_it(here: World, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", *(scored(i, [i / 10]) for i in range(40)))
    with pytest.raises(InputError, match=r"pairs\.jsonl line 1, number of member scores is 1, expected at least two"):
        import_chosen(here.database, here.project.id, file, 10)
    assert import_chosen(here.database, here.project.id, file, 10, uncertainty="entropy").added == 10
    expected = inclusion_probabilities(preference_entropy(np.arange(40)[None] / 10), 10)
    assert all(np.isclose(expected, propensity, rtol=1e-9).any() for propensity, _ in stored(here).values())


def test_the_same_import_again_adds_nothing_and_another_seed_other_pairs(here: World, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", *(scored(i, [i / 9, -i / 9]) for i in range(50)))
    assert import_chosen(here.database, here.project.id, file, 10).added == 10
    assert import_chosen(here.database, here.project.id, file, 10) == Report(duplicates=10)
    assert import_chosen(here.database, here.project.id, file, 10, seed=1).added > 0


def test_gold_items_have_their_share_and_earlier_chances_are_multiplied(here: World, tmp_path: Path) -> None:
    rows = [scored(i, [1.0, -1.0], propensity=0.5) for i in range(40)]
    rows += [sampled(100 + i, gold={"strength": 2}) for i in range(10)]  # their answers are known: they need no scores
    assert import_chosen(here.database, here.project.id, write(tmp_path / "p.jsonl", *rows), 20, gold_share=0.1).added == 20
    found = sorted(stored(here).values())
    assert found[:2] == [(pytest.approx(0.2, rel=1e-12), "gold")] * 2
    assert found[2:] == [(pytest.approx(0.5 * 18 / 40, rel=1e-12), "disagreement, 20% uniform")] * 18


def test_a_rankings_uncertainty_is_the_mean_over_its_pairs(here: World, tmp_path: Path) -> None:
    scores = [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]
    answers = [{"text": f"answer {i}", "member_scores": each} for i, each in enumerate(scores)]
    rows = [{"prompt": "rank", "responses": answers}, *(scored(i, [0.3, -0.3]) for i in range(30))]
    import_chosen(here.database, here.project.id, write(tmp_path / "p.jsonl", *rows), 31)
    import_chosen(here.database, here.project.id, write(tmp_path / "p.jsonl", *rows), 5)
    array = np.array(scores)
    margins = [array[i] - array[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    mean = np.mean([disagreement(margin[:, None])[0] for margin in margins])
    uncertainties = np.array([mean, *[disagreement([[0.3], [-0.3]])[0]] * 30])
    fresh = World(open_database(f"sqlite:///{tmp_path}/other.db"))
    import_chosen(fresh.database, fresh.project.id, tmp_path / "p.jsonl", 5)
    expected = inclusion_probabilities(uncertainties, 5)
    kinds = {row.kind: row.propensity for row in fresh.rows(comparison)}
    assert kinds["pair"] == pytest.approx(expected[1], rel=1e-9)
    if "rank" in kinds:
        assert kinds["rank"] == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"member_scores_a": None}, "member scores is"),
        ({"member_scores_a": [1.0]}, "member scores is"),
        ({"member_scores_a": ["x", "y"]}, "expected a list of finite numbers"),
        ({"member_scores_a": 3}, "expected a list of finite numbers"),
        ({"member_scores_a": [1.0, float("nan")]}, "expected a list of finite numbers"),
        ({"member_scores_a": [], "member_scores_b": []}, "sample the pairs with --reward a,b,c"),
    ],
)
def test_a_row_without_sound_scores_is_named_and_nothing_is_stored(here: World, tmp_path: Path, change, words: str) -> None:
    file = write(tmp_path / "p.jsonl", scored(0, [1.0, 2.0]), json.dumps(scored(1, [1.0, 2.0]) | change))
    with pytest.raises(InputError, match=r"p\.jsonl line 2, member scores is .*") as refused:
        import_chosen(here.database, here.project.id, file, 1)
    assert words in str(refused.value)
    assert here.rows(comparison) == []
    assert import_chosen(here.database, here.project.id, file, 1, skip_bad=True).bad == 1


@pytest.mark.parametrize("size", [0, 4])
def test_more_than_the_file_has_cannot_be_chosen(here: World, tmp_path: Path, size: int) -> None:
    file = write(tmp_path / "p.jsonl", *(scored(i, [1.0, 2.0]) for i in range(3)))
    with pytest.raises(InputError, match=f"--choose is {size}, expected 1 to 3"):
        import_chosen(here.database, here.project.id, file, size)


def test_the_command_line_chooses_and_refuses_what_has_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/votes.db"
    file = write(tmp_path / "p.jsonl", *(scored(i, [i, -i]) for i in range(30)))
    import_(ImportConfig(url, "p", str(file), choose=7))
    assert "p: 7 comparisons added" in capsys.readouterr().out
    with pytest.raises(InputError, match="--choose is 7, expected a file of comparisons to be judged"):
        import_(ImportConfig(url, "p", demo=True, choose=7))
    database: Database = open_database(url)
    with database.read() as connection:
        assert len(connection.execute(comparison.select()).all()) == 7
    database.close()
