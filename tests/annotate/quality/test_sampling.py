"""The stored propensity is the frequency with which an item is chosen, and reweighed means are unbiased."""

import numpy as np
import pytest

from annotate.quality.sampling import (
    choose_comparisons,
    disagreement,
    horvitz_thompson_mean,
    inclusion_probabilities,
    preference_entropy,
    systematic_sample,
)
from rlhf_kit.errors import InputError


def test_disagreement_is_the_spread_of_the_members_preferences_and_entropy_that_of_their_mean():
    margins = np.array([[0.0, 2.0, -800.0], [0.0, -2.0, -800.0]])
    p = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(disagreement(margins), [0, p - 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(preference_entropy(margins), [np.log(2), np.log(2), 0], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_inclusion_probabilities_sum_to_the_size_and_none_passes_1(seed):
    rng = np.random.default_rng(seed)
    scores = rng.exponential(size=50) ** 4
    found = inclusion_probabilities(scores, 20, 0.3)
    assert found.sum() == pytest.approx(20, abs=1e-12)
    assert found.max() <= 1
    assert found.min() >= 0.3 * 20 / 50
    below = found < 0.3 * 20 / 50 + 0.7 - 1e-12  # not cut at 1
    above = found[below] - 0.3 * 20 / 50
    np.testing.assert_allclose(above, scores[below] * above.sum() / scores[below].sum(), atol=1e-13)  # proportional to the score


def test_inclusion_probabilities_by_hand():
    np.testing.assert_allclose(inclusion_probabilities([3, 1, 0, 0], 1, 0.2), [0.65, 0.25, 0.05, 0.05], atol=1e-15)
    np.testing.assert_allclose(inclusion_probabilities([9, 1, 0, 0], 2, 0.2), [0.9, 0.9, 0.1, 0.1], atol=1e-15)
    np.testing.assert_allclose(inclusion_probabilities([9, 0, 0, 0], 2, 0.2), [0.9, *[0.1 + 0.8 / 3] * 3], atol=1e-15)
    np.testing.assert_allclose(inclusion_probabilities([0, 0, 0, 0], 2), [0.5] * 4, atol=1e-15)
    np.testing.assert_allclose(inclusion_probabilities([5, 1], 2), [1, 1], atol=1e-15)


def test_each_is_chosen_as_often_as_its_propensity_says():
    rng = np.random.default_rng(0)
    chances = inclusion_probabilities(rng.exponential(size=30) ** 2, 8)
    draws = 20_000
    counts = np.zeros(30)
    for _ in range(draws):
        chosen = systematic_sample(chances, rng)
        assert len(set(chosen)) == 8
        counts[chosen] += 1
    z = (counts / draws - chances) / np.sqrt(chances * (1 - chances) / draws)
    assert np.abs(z).max() < 4  # one in 16,000 for each of 30


def test_a_reweighed_mean_of_what_was_chosen_is_unbiased():
    rng = np.random.default_rng(1)
    pool = np.arange(200)
    margins = rng.normal(size=(4, 200)) * rng.exponential(size=200)
    value = disagreement(margins) * 3 + rng.normal(size=200)  # so that what is chosen differs from the rest
    plain, reweighed = [], []
    for seed in range(2000):
        draw, _ = choose_comparisons(pool, lambda items: margins[:, items], 40, seed=seed)
        plain.append(value[draw.chosen].mean())
        reweighed.append(horvitz_thompson_mean(value[draw.chosen], draw.propensity, 200))
    error = np.std(reweighed) / np.sqrt(2000)
    assert abs(np.mean(reweighed) - value.mean()) < 4 * error
    assert np.mean(plain) - value.mean() > 20 * error


def test_gold_has_its_share_and_its_own_propensity():
    draw, gold = choose_comparisons(range(100), lambda items: np.ones(len(items)), 40, gold=range(10), gold_share=0.1)
    assert len(draw.chosen) == 36 and len(gold.chosen) == 4
    np.testing.assert_allclose(gold.propensity, 0.4)
    np.testing.assert_allclose(draw.propensity, 0.36)
    draw, gold = choose_comparisons(range(100), lambda items: np.ones(len(items)), 40, gold=["only"], gold_share=0.1)
    assert len(draw.chosen) == 39 and gold.propensity.tolist() == [1.0]
    draw, gold = choose_comparisons(range(100), lambda items: np.ones(len(items)), 40)
    assert len(draw.chosen) == 40 and not len(gold.chosen)


def test_the_same_seed_chooses_the_same():
    draws = [choose_comparisons(range(50), lambda items: np.arange(50.0), 10, seed=s)[0].chosen.tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inclusion_probabilities([1, -1], 1), "scores is -1.0"),
        (lambda: inclusion_probabilities([1, 1], 3), "size is 3"),
        (lambda: inclusion_probabilities([1, 1], 1, 0.1), "uniform_share is 0.1"),
        (lambda: systematic_sample([0.5, 0.7], np.random.default_rng(0)), "sum to a whole number"),
        (lambda: choose_comparisons([1], lambda items: [1.0], 1, gold=[2], gold_share=0.5), "gold_share is 0.5"),
        (lambda: choose_comparisons([1, 2], lambda items: [1.0], 1), "one length for all"),
        (lambda: disagreement([1.0, 2.0]), "members, pairs"),
        (lambda: horvitz_thompson_mean([1.0], [0.0], 5), "propensities"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
