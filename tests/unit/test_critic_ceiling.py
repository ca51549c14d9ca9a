"""The benchmark of a critic's ceiling: its arithmetic on scores whose variance is known."""

import pytest
import torch

from benchmarks.critic_ceiling import explained, judged
from rlhf_kit.models.access import scalar_scores
from tests.unit.test_online import critic_model


def test_the_ceiling_is_the_share_of_the_beginnings_in_the_variance():
    generator = torch.Generator().manual_seed(0)
    beginnings = 2.0 * torch.randn(4000, generator=generator, dtype=torch.float64)
    scores = beginnings[:, None] + torch.randn(4000, 5, generator=generator, dtype=torch.float64)  # variance 4 + 1
    ceiling, perfect = explained(scores, beginnings)
    assert ceiling == pytest.approx(0.8, abs=0.01)  # 4,000 draws: a standard error of 0.004
    assert perfect == pytest.approx(0.8, abs=0.01)
    assert explained(scores, beginnings * 0 + 7.0)[1] == pytest.approx(0.0, abs=1e-12)  # a constant explains nothing
    assert explained(scores, -beginnings)[1] < -1


def test_rows_are_judged_at_their_own_ends_whatever_stands_beside_them():
    model = critic_model().eval()
    rows = [[1 + i % 5] * (1 + i % 7) for i in range(70)]
    found = judged(model, rows)
    for row, score in zip(rows, found):
        ids = torch.tensor([row])
        expected = scalar_scores(model, ids, torch.ones_like(ids, dtype=torch.bool))[0]
        torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)  # a row alone sums in another order
