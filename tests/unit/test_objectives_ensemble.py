"""Several judges as one: by hand, against a loop, and what is refused."""

import math

import pytest
import torch

from rlhf_kit.objectives.ensemble import combine, score_spread

THREE = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, -3.0]])  # three judges, two answers


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [3.0, -1.0]),
        ("min", [1.0, -3.0]),
        ("variance", [3.0 - 0.5 * 14 / 3, -1.0 - 0.5 * 2.0]),  # (4 + 1 + 9) / 3 and (1 + 1 + 4) / 3
    ],
)
def test_three_judges_by_hand(how, expected):
    assert combine(THREE, how, variance_coef=0.5).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_spread_by_hand():
    assert score_spread(THREE).tolist() == pytest.approx([math.sqrt(14 / 2), math.sqrt(6 / 2)], rel=1e-6)


@pytest.mark.parametrize("how", ["mean", "min", "variance"])
def test_any_number_of_judges_equals_a_loop(how):
    scores = torch.randn(5, 7, dtype=torch.float64)
    for answer, found in enumerate(combine(scores, how, variance_coef=0.3).tolist()):
        said = [float(scores[judge, answer]) for judge in range(5)]
        mean = sum(said) / 5
        expected = {"mean": mean, "min": min(said), "variance": mean - 0.3 * sum((x - mean) ** 2 for x in said) / 5}[how]
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("how", ["mean", "min", "variance"])
def test_one_judge_decides_alone_and_twins_as_one(how):
    scores = torch.randn(1, 4, dtype=torch.float64)
    assert torch.equal(combine(scores, how, variance_coef=2.0), scores[0])
    torch.testing.assert_close(combine(scores.expand(3, 4), how, variance_coef=2.0), scores[0], rtol=1e-12, atol=0)
    assert score_spread(scores.expand(2, 4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("how", ["mean", "min", "variance"])
def test_the_order_of_the_judges_does_not_matter_and_a_common_shift_passes_through(how):
    scores = torch.randn(4, 6, dtype=torch.float64)
    plain = combine(scores, how, variance_coef=0.7)
    torch.testing.assert_close(combine(scores.flip(0), how, variance_coef=0.7), plain, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(combine(scores + 5.0, how, variance_coef=0.7), plain + 5.0, rtol=1e-12, atol=0)


def test_half_precision_is_combined_in_fp32():
    assert combine(THREE.bfloat16(), "variance", variance_coef=0.5).dtype == score_spread(THREE.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: combine(THREE[0], "mean"), r"scores has shape \(2,\), expected 2 dimensions"),
        (lambda: combine(THREE[:0], "mean"), r"scores has shape \(0, 2\), expected at least one judge"),
        (lambda: combine(THREE, "median"), "how is 'median', expected 'mean', 'min' or 'variance'"),
        (lambda: combine(THREE, "variance", variance_coef=-0.1), "variance_coef is -0.1, expected at least 0"),
        (lambda: score_spread(THREE[:1]), "expected at least two judges"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()
