"""The clipped losses by hand, against loops, in the cases where they must have no gradient, and under every aggregation."""

import math

import pytest
import torch

from rlhf_kit.objectives.policy import (
    aggregate_units,
    clipped_surrogate,
    token_weights,
    truncated_importance_weights,
    value_loss,
)

LENGTHS = (4, 2, 1)
MASK = torch.arange(4) < torch.tensor(LENGTHS).unsqueeze(1)
ONE = torch.ones(1, 1).bool()


def batch(scale=0.3):
    """logprobs (with gradient), old_logprobs, advantages, (3, 4) fp64, NaN in the padding."""
    logprobs, old, advantages = (torch.randn(3, 4, dtype=torch.float64).masked_fill(~MASK, math.nan) for _ in range(3))
    return (old + scale * logprobs).requires_grad_(), old, advantages


def single(ratio, advantage, **options):
    """Loss and d loss / d logprob of one token at a given ratio."""
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, advantage = torch.zeros(1, 1).double(), torch.tensor([[advantage]]).double()
    loss, stats = clipped_surrogate(logprob, old, advantage, ONE, **options)
    loss.backward()
    return loss.item(), logprob.grad.item(), stats


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 2.0, -2.4, 0.0),  # already much likelier, and good: no further
        (1.5, -2.0, 3.0, 3.0),  # much likelier, and bad: back
        (0.5, 2.0, -1.0, -1.0),  # much less likely, and good: back
        (0.5, -2.0, 1.6, 0.0),  # already much less likely, and bad: no further
        (1.1, 2.0, -2.2, -2.2),  # within the range nothing is clipped
    ],
)
def test_the_gradient_is_zero_in_two_of_the_four_sign_and_side_cases(ratio, advantage, loss, gradient):
    got, slope, stats = single(ratio, advantage)
    assert got == pytest.approx(loss, rel=1e-12)
    assert slope == pytest.approx(gradient, rel=1e-12, abs=1e-15)
    assert stats["clipfrac"].item() == (gradient == 0)


def test_a_higher_upper_clip_moves_the_upper_bound_only():
    assert single(1.25, 1.0, cliprange_high=0.28)[:2] == pytest.approx((-1.25, -1.25), rel=1e-12)
    assert single(1.5, 1.0, cliprange_high=0.28)[:2] == pytest.approx((-1.28, 0.0), rel=1e-12)
    assert single(0.5, -1.0, cliprange_high=0.28)[:2] == pytest.approx((0.8, 0.0), rel=1e-12)


def test_the_dual_clip_bounds_the_loss_of_bad_tokens_only():
    assert single(5.0, -1.0, dual_clip=3.0)[:2] == pytest.approx((3.0, 0.0), rel=1e-12)
    assert single(2.0, -1.0, dual_clip=3.0)[:2] == pytest.approx((2.0, 2.0), rel=1e-12)
    assert single(0.2, 1.0, dual_clip=3.0)[:2] == pytest.approx((-0.2, -0.2), rel=1e-12)


def test_an_absurd_token_is_bounded_and_has_no_gradient():
    logprob = torch.tensor([[200.0]], requires_grad=True)
    loss, stats = clipped_surrogate(logprob, torch.zeros(1, 1), torch.tensor([[-1.0]]), ONE, log_ratio_clamp=10.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(10.0), rel=1e-6)
    assert logprob.grad.item() == 0
    assert stats["approxkl"].item() == pytest.approx(20_000)  # the statistic shows it as it is


def test_loss_and_statistics_equal_a_double_loop():
    logprobs, old, advantages = batch(scale=1.0)
    loss, stats = clipped_surrogate(logprobs, old, advantages, MASK, cliprange=0.1, cliprange_high=0.3, dual_clip=1.5)
    want = {"loss": 0.0, "approxkl": 0.0, "clipfrac": 0, "ratio": 0.0, "ratio_sq": 0.0, "count": 0}
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            d, a = (logprobs[i, t] - old[i, t]).item(), advantages[i, t].item()
            rho = math.exp(d)
            plain, clipped = -a * rho, -a * min(max(rho, 0.9), 1.3)
            term = max(plain, clipped)
            want["loss"] += min(term, -a * 1.5) if a < 0 else term
            want["approxkl"] += d * d / 2
            want["clipfrac"] += clipped > plain
            want["ratio"] += rho
            want["ratio_sq"] += rho * rho
            want["count"] += 1
    assert loss.item() == pytest.approx(want.pop("loss"), rel=1e-12)
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(want, rel=1e-12)
    assert 0 < want["clipfrac"] < 7


def test_the_loss_passes_gradcheck_away_from_its_corners():
    logprobs, old, advantages = batch()
    clean = logprobs.detach().nan_to_num().requires_grad_()
    for level in ("token", "sequence", "sequence_mean"):
        assert torch.autograd.gradcheck(
            lambda x, level=level: clipped_surrogate(x, old, advantages, MASK, level=level)[0], (clean,)
        )


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    logprobs, _, advantages = batch()
    loss, stats = clipped_surrogate(logprobs, logprobs.detach(), advantages, MASK)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.where(MASK, -advantages, 0.0), rtol=1e-12, atol=0)
    assert stats["ratio"].item() == stats["count"].item() == 7
    assert stats["approxkl"].item() == stats["clipfrac"].item() == 0


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_mean"])
def test_padding_changes_neither_loss_nor_gradient_nor_statistics(level):
    tensors = batch()
    wide = [torch.nn.functional.pad(x, (2, 3), value=math.nan) for x in tensors]
    mask = torch.nn.functional.pad(MASK, (2, 3), value=False)
    loss, stats = clipped_surrogate(*tensors, MASK, level=level)
    padded, padded_stats = clipped_surrogate(*wide, mask, level=level)
    torch.testing.assert_close(padded, loss, rtol=1e-12, atol=0)
    for name in stats:
        torch.testing.assert_close(padded_stats[name], stats[name], rtol=1e-12, atol=1e-15)
    (grad,) = torch.autograd.grad(loss, tensors[0])
    (padded_grad,) = torch.autograd.grad(padded, wide[0])
    assert grad[~MASK].abs().sum() == 0
    torch.testing.assert_close(padded_grad[:, 2:6], grad, rtol=1e-12, atol=1e-15)


def test_sequence_levels_take_one_ratio_and_count_one_a_response():
    logprobs, old, _ = batch(scale=0.5)
    scores = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for level in ("sequence", "sequence_mean"):
        loss, stats = clipped_surrogate(logprobs, old, scores, MASK, level=level)
        expected, ratios, clipped = 0.0, 0.0, 0
        for i, length in enumerate(LENGTHS):
            d = sum((logprobs[i, t] - old[i, t]).item() for t in range(length)) / (length if level == "sequence_mean" else 1)
            rho, a = math.exp(d), scores[i].item()
            bound = min(max(rho, 0.8), 1.2)
            expected += max(-a * rho, -a * bound)
            clipped += -a * bound > -a * rho
            ratios += rho
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert stats["ratio"].item() == pytest.approx(ratios, rel=1e-12)
        assert stats["clipfrac"].item() == clipped
        assert stats["count"].item() == 3


def test_an_advantage_a_response_is_that_advantage_at_each_of_its_tokens():
    logprobs, old, _ = batch()
    scores = torch.randn(3, dtype=torch.float64)
    one, _ = clipped_surrogate(logprobs, old, scores, MASK)
    many, _ = clipped_surrogate(logprobs, old, scores.unsqueeze(1).expand(3, 4), MASK)
    assert torch.equal(one, many)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_mean"])
def test_a_response_without_a_token_counts_nowhere(level):
    logprobs, old, advantages = batch()
    mask = MASK.clone()
    mask[1] = False
    keep = torch.tensor([0, 2])
    got, stats = clipped_surrogate(logprobs, old, advantages, mask, level=level)
    want, expected = clipped_surrogate(logprobs[keep], old[keep], advantages[keep], MASK[keep], level=level)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for name in stats:
        torch.testing.assert_close(stats[name], expected[name], rtol=1e-12, atol=1e-15)
    nothing, stats = clipped_surrogate(logprobs, old, advantages, torch.zeros_like(MASK), level=level)
    nothing.backward()
    assert nothing.item() == stats["count"].item() == stats["ratio"].item() == 0
    assert logprobs.grad.abs().sum() == 0


def test_a_nan_at_a_real_token_shows_in_the_loss():
    logprobs, old, advantages = batch()
    old[2, 0] = math.nan
    assert clipped_surrogate(logprobs, old, advantages, MASK)[0].isnan()


def test_only_the_new_logprobs_learn():
    tensors = [x.detach().nan_to_num().requires_grad_() for x in batch()]
    clipped_surrogate(*tensors, MASK, weights=MASK.double())[0].backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is None
    assert tensors[2].grad is None


def test_weights_turn_sums_into_the_named_means():
    x = torch.randn(3, 4)
    rows = [x[i, :length] for i, length in enumerate(LENGTHS)]
    means = {
        "token_mean": torch.cat(rows).mean(),
        "sequence_mean": torch.stack([row.mean() for row in rows]).mean(),
        "sequence_sum": torch.stack([row.sum() / 10 for row in rows]).mean(),
    }
    for name, mean in means.items():
        weights = token_weights(MASK, name, 10 if name == "sequence_sum" else None)
        torch.testing.assert_close((x * weights).sum() / aggregate_units(MASK, name), mean)
        assert weights[~MASK].abs().sum() == 0


def test_an_empty_answer_is_no_unit():
    mask = torch.tensor([[True, True], [False, False]])
    assert aggregate_units(mask, "token_mean").item() == 2
    assert aggregate_units(mask, "sequence_mean").item() == aggregate_units(mask, "sequence_sum").item() == 1
    assert token_weights(mask, "sequence_mean").tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_weights_multiply_the_loss_and_leave_the_statistics():
    logprobs, old, advantages = batch()
    loss, stats = clipped_surrogate(logprobs, old, advantages, MASK)
    double, same = clipped_surrogate(logprobs, old, advantages, MASK, weights=2.0 * MASK)
    assert double.item() == pytest.approx(2 * loss.item(), rel=1e-12)
    assert same == stats


def test_micro_batches_of_any_size_sum_to_the_same_gradient():
    logprobs, old, advantages = batch()
    weights = token_weights(MASK, "sequence_mean")
    (whole,) = torch.autograd.grad(clipped_surrogate(logprobs, old, advantages, MASK, weights=weights)[0], logprobs)
    parts = sum(
        clipped_surrogate(logprobs[i], old[i], advantages[i], MASK[i], weights=weights[i])[0] for i in torch.arange(3).split(2)
    )
    torch.testing.assert_close(torch.autograd.grad(parts, logprobs)[0], whole, rtol=1e-12, atol=0)


def test_importance_weights_are_ratios_up_to_the_cap():
    old = torch.tensor([[math.log(0.5), math.log(0.9), math.nan]])
    sampler = torch.tensor([[math.log(0.4), math.log(0.1), 0.0]])
    weights = truncated_importance_weights(old, sampler, torch.tensor([[True, True, False]]), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.25, 2.0, 0.0]]))


@pytest.mark.parametrize(
    ("value", "loss", "gradient", "clipped"),
    [
        (1.6, 0.5 * 0.64, 0.0, 1),  # moved past the clip towards the return: the clip binds, no further
        (1.1, 0.5 * 0.81, -0.9, 0),  # within the clip
        (0.5, 0.5 * 2.25, -1.5, 0),  # moved away from the return: back
    ],
)
def test_the_value_clip_binds_only_where_it_is_the_larger_loss(value, loss, gradient, clipped):
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.ones(1, 1).double(), torch.full((1, 1), 2.0).double()
    got, stats = value_loss(values, old, returns, ONE, cliprange_value=0.2)
    got.backward()
    assert got.item() == pytest.approx(loss, rel=1e-12)
    assert values.grad.item() == pytest.approx(gradient, rel=1e-12, abs=1e-15)
    assert stats["clipfrac"].item() == clipped


def test_value_loss_equals_a_double_loop_and_ignores_padding():
    values, old, returns = batch(scale=1.0)
    loss, stats = value_loss(values, old, returns, MASK)
    expected, clips = 0.0, 0
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            v, o, r = values[i, t].item(), old[i, t].item(), returns[i, t].item()
            plain, bound = (v - r) ** 2, (min(max(v, o - 0.2), o + 0.2) - r) ** 2
            expected += 0.5 * max(plain, bound)
            clips += bound > plain
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert (stats["clipfrac"].item(), stats["count"].item()) == (clips, 7)
    assert 0 < clips < 7
    loss.backward()
    assert values.grad.isfinite().all()
    assert values.grad[~MASK].abs().sum() == 0


def test_without_a_clip_the_value_loss_is_half_the_square():
    values, old, returns = batch(scale=1.0)
    loss, stats = value_loss(values, old, returns, MASK, cliprange_value=None, weights=0.5 * MASK)
    assert loss.item() == pytest.approx(0.25 * (values - returns)[MASK].square().sum().item(), rel=1e-12)
    assert stats["clipfrac"].item() == 0


def test_what_does_not_fit_is_refused_by_name():
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"old_logprobs has shape \(3, 1\), expected \(3, 4\)"):
        clipped_surrogate(x, x[:, :1], x, MASK)
    with pytest.raises(ValueError, match=r"advantages has shape \(4,\), expected \(3, 4\)"):
        clipped_surrogate(x, x, x[0], MASK)
    with pytest.raises(ValueError, match=r"mask has dtype torch\.float32"):
        clipped_surrogate(x, x, x, MASK.float())
    with pytest.raises(ValueError, match="weights has shape"):
        clipped_surrogate(x, x, x, MASK, weights=x[:1])
    with pytest.raises(ValueError, match="returns has shape"):
        value_loss(x, x, x[:1], MASK)
    with pytest.raises(ValueError, match="level is 'word'"):
        clipped_surrogate(x, x, x, MASK, level="word")
    for name, bad in (
        ("cliprange", 0.0),
        ("cliprange", 1.5),
        ("cliprange_high", -0.1),
        ("dual_clip", 1.0),
        ("log_ratio_clamp", 0.0),
    ):
        with pytest.raises(ValueError, match=f"{name} is {bad}, expected"):
            clipped_surrogate(x, x, x, MASK, **{name: bad})
    with pytest.raises(ValueError, match="cliprange_value is 0, expected more than 0, or None"):
        value_loss(x, x, x, MASK, cliprange_value=0)
    with pytest.raises(ValueError, match="aggregate is 'mean'"):
        token_weights(MASK, "mean")
    with pytest.raises(ValueError, match="aggregate is 'mean'"):
        aggregate_units(MASK, "mean")
    with pytest.raises(ValueError, match="max_length is None"):
        token_weights(MASK, "sequence_sum")
    with pytest.raises(ValueError, match="mask has dtype"):
        token_weights(MASK.long())
    with pytest.raises(ValueError, match="sampler_logprobs has shape"):
        truncated_importance_weights(x, x[:1], MASK)
