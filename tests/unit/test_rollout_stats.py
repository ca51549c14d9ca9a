"""What is measured of a rollout beside its means: repetition, what length pays, groups that teach nothing."""

import pytest
import torch

from rlhf_kit.training.rollout_stats import correlation, distinct_share, groups_without_spread


def test_distinct_n_counts_different_n_grams_within_answers() -> None:
    ids = torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, -1, -1], [4, -1, -1, -1, -1]])
    assert distinct_share(ids, 1) == 4 / 9
    assert distinct_share(ids, 2) == 3 / 6  # 12, 21, 23 of 12 21 12 21 12 23: no pair reaches into the next answer
    assert distinct_share(ids, 3) == 3 / 4  # 121, 212, 123


def test_pairs_that_look_alike_as_digits_are_different() -> None:
    ids = torch.tensor([[1, 11], [11, 1], [0, 150_000], [150_000, 0]])
    assert distinct_share(ids, 2) == 1.0


def test_without_an_n_gram_there_is_no_share() -> None:
    assert distinct_share(torch.tensor([[1, -1], [2, -1]]), 2) is None
    assert distinct_share(torch.tensor([[1]]), 2) is None
    assert distinct_share(torch.full((2, 3), -1), 1) is None


def test_correlation_is_pearsons_and_0_where_something_is_constant() -> None:
    x, y = torch.tensor([[1.0, 2.0, 4.0, 7.0], [3.0, 1.0, 5.0, 4.0]], dtype=torch.float64)
    assert correlation(x, y) == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]), rel=1e-12)
    assert correlation(x, -2 * x + 3) == pytest.approx(-1.0, rel=1e-12)
    assert correlation(x, torch.full_like(x, 0.1)) == correlation(torch.full_like(x, 0.1), x) == 0.0


def test_a_group_without_spread_is_one_whose_answers_all_score_the_same() -> None:
    scores, groups = torch.tensor([1.0, 5.0, 1.0, 4.0, 2.0, 1.0]), torch.tensor([7, 3, 7, 3, 9, 7])
    assert [int(x) for x in groups_without_spread(scores, groups)] == [3, 2]
