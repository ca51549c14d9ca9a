"""Advantages against naive loops, properties that must hold for any input, and two ranks against one."""

import math
import statistics
import threading

import pytest
import torch

from rlhf_kit.objectives.advantages import (
    discounted_returns,
    explained_variance,
    gae,
    group_normalise,
    leave_one_out,
    masked_mean,
    masked_var,
    masked_whiten,
    reinforce_plus_plus,
)

LENGTHS = (5, 3, 1)
MASK = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)


def batch():
    """rewards, values (3, 5) in fp64 with NaN in the padding."""
    return [torch.randn(3, 5, dtype=torch.float64).masked_fill(~MASK, math.nan) for _ in range(2)]


def pad(x, left, right, fill):
    return torch.nn.functional.pad(x, (left, right), value=fill)


class Ranks:
    """Runs a function in `world` threads that share a `reduce`, as ranks would."""

    def __init__(self, world):
        self.barrier, self.slots = threading.Barrier(world, timeout=10), [None] * world

    def reduce_of(self, rank):
        def reduce(tensor):
            self.slots[rank] = tensor
            self.barrier.wait()
            total = sum(self.slots)
            self.barrier.wait()
            return total

        return reduce

    def run(self, function, shards):
        results = [None] * len(shards)

        def work(rank):
            try:
                results[rank] = function(*shards[rank], reduce=self.reduce_of(rank))
            except ValueError as error:
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_moments_equal_the_standard_library_on_the_valid_elements():
    x = torch.randn(3, 5, dtype=torch.float64).masked_fill(~MASK, math.nan)
    values = x[MASK].tolist()
    assert masked_mean(x, MASK).item() == pytest.approx(statistics.mean(values), rel=1e-12)
    assert masked_var(x, MASK).item() == pytest.approx(statistics.variance(values), rel=1e-12)


def test_the_variance_survives_a_large_mean_in_fp32():
    x = 4096 + torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert masked_var(x, torch.ones(1, 4).bool()).item() == pytest.approx(5 / 3, rel=1e-6)


def test_whitening_removes_the_mean_or_keeps_it_and_sets_the_deviation_to_one():
    x = 3 + 2 * torch.randn(3, 5, dtype=torch.float64).masked_fill(~MASK, math.nan)
    shifted, kept = masked_whiten(x, MASK), masked_whiten(x, MASK, shift_mean=False)
    assert masked_mean(shifted, MASK).item() == pytest.approx(0, abs=1e-12)
    assert masked_mean(kept, MASK).item() == pytest.approx(masked_mean(x, MASK).item(), rel=1e-12)
    for whitened in (shifted, kept):
        assert masked_var(whitened, MASK).item() == pytest.approx(1, rel=1e-7)  # the 1e-8 under the root
        assert whitened[~MASK].tolist() == [0.0] * 6


def test_constant_advantages_whiten_to_zero_and_not_to_nan():
    assert masked_whiten(torch.full((1, 3), 2.0), torch.ones(1, 3).bool()).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("shift_mean", [True, False])
def test_two_ranks_whiten_as_one(shift_mean):
    x = torch.randn(4, 5, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 4, 2, 1]).unsqueeze(1)

    def whiten(x, mask, reduce):
        return masked_whiten(x, mask, shift_mean=shift_mean, reduce=reduce)

    halves = Ranks(2).run(whiten, [(x[:2], mask[:2]), (x[2:], mask[2:])])
    torch.testing.assert_close(torch.cat(halves), masked_whiten(x, mask, shift_mean=shift_mean), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(torch.cat(halves)[:2], masked_whiten(x[:2], mask[:2], shift_mean=shift_mean))


def test_two_ranks_explain_variance_as_one():
    values, returns = torch.randn(2, 4, 5, dtype=torch.float64)
    mask = torch.ones(4, 5).bool()
    halves = Ranks(2).run(explained_variance, [(values[:2], returns[:2], mask[:2]), (values[2:], returns[2:], mask[2:])])
    for half in halves:
        torch.testing.assert_close(half, explained_variance(values, returns, mask), rtol=1e-12, atol=1e-14)


def test_a_rank_without_a_valid_element_follows_the_others():
    x, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2).bool()
    full, empty = Ranks(2).run(masked_whiten, [(x, mask), (x, ~mask)])
    torch.testing.assert_close(full, masked_whiten(x, mask))
    assert empty.tolist() == [[0.0, 0.0]]


def test_too_few_elements_stop_every_rank_alike():
    x = torch.ones(1, 2)
    one, none = torch.tensor([[True, False]]), torch.tensor([[False, False]])
    for error in Ranks(2).run(masked_whiten, [(x, one), (x, none)]):
        assert "mask has 1 valid elements over all ranks, expected at least 2" in str(error)
    with pytest.raises(ValueError, match="mask has 0 valid elements"):
        masked_mean(x, none)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.97, 1.0)])
def test_gae_equals_the_sum_over_future_deltas(gamma, lam):
    rewards, values = batch()
    advantages, returns = gae(rewards, values, MASK, gamma=gamma, lam=lam)
    for i, length in enumerate(LENGTHS):
        for t in range(5):
            expected = 0.0
            for k in range(t, length):
                following = values[i, k + 1].item() if k + 1 < length else 0.0
                expected += (gamma * lam) ** (k - t) * (rewards[i, k].item() + gamma * following - values[i, k].item())
            assert advantages[i, t].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
            assert returns[i, t].item() == pytest.approx(
                expected + values[i, t].item() if t < length else 0, rel=1e-12, abs=1e-14
            )


def test_gae_of_two_tokens_by_hand():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]])
    advantages, returns = gae(rewards, values, torch.ones(1, 2).bool(), gamma=0.5, lam=0.5)
    # delta = 1 + .5 * 1.5 - .5 = 1.25 and 2 - 1.5 = .5; A_0 = 1.25 + .25 * .5
    assert advantages.tolist() == [[1.375, 0.5]]
    assert returns.tolist() == [[1.875, 2.0]]


def test_with_lam_one_the_advantage_is_the_return_to_go_less_the_value():
    rewards, values = batch()
    advantages, returns = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            to_go = rewards[i, t:length].sum()
            torch.testing.assert_close(advantages[i, t], to_go - values[i, t], rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(returns[i, t], to_go, rtol=1e-12, atol=1e-13)


def test_a_critic_that_is_right_leaves_no_advantage():
    rewards = batch()[0]
    values = discounted_returns(rewards, MASK, gamma=0.9)
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.7)
    assert advantages.abs().max() < 1e-12
    torch.testing.assert_close(returns, values, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("left", "right"), [(0, 3), (2, 0), (1, 4)])
def test_padding_does_not_change_the_advantages(left, right):
    rewards, values = batch()
    wide = [pad(x, left, right, math.nan) for x in (rewards, values)]
    mask = pad(MASK, left, right, False)
    for plain, padded in zip(gae(rewards, values, MASK), gae(*wide, mask)):
        assert torch.equal(padded, pad(plain, left, right, 0.0))
    assert torch.equal(discounted_returns(wide[0], mask), pad(discounted_returns(rewards, MASK), left, right, 0.0))
    whitened = reinforce_plus_plus(rewards, MASK)
    torch.testing.assert_close(reinforce_plus_plus(wide[0], mask), pad(whitened, left, right, 0.0), rtol=1e-12, atol=1e-13)


def test_advantages_carry_no_gradient_and_rows_do_not_meet():
    rewards, values = (x.nan_to_num().requires_grad_() for x in batch())
    advantages, returns = gae(rewards, values, MASK)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    torch.testing.assert_close(gae(rewards[1:2], values[1:2], MASK[1:2])[0], advantages[1:2], rtol=0, atol=0)


def test_a_nan_at_a_real_token_reaches_what_depends_on_it_and_nothing_else():
    rewards, values = (x.nan_to_num() for x in batch())
    rewards[0, 2] = math.nan
    advantages, _ = gae(rewards, values, MASK)
    assert advantages.isnan().nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]


def test_a_row_without_a_token_has_no_advantage():
    mask = MASK.clone()
    mask[1] = False
    advantages, returns = gae(*batch(), mask)
    assert advantages[1].tolist() == returns[1].tolist() == [0.0] * 5
    assert discounted_returns(batch()[0], mask)[1].tolist() == [0.0] * 5


def test_returns_to_go_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_reinforce_plus_plus_is_the_whitened_return_to_go():
    rewards = batch()[0]
    advantages = reinforce_plus_plus(rewards, MASK, gamma=0.9)
    to_go = [sum(0.9 ** (k - t) * rewards[i, k].item() for k in range(t, n)) for i, n in enumerate(LENGTHS) for t in range(n)]
    mean, std = statistics.mean(to_go), math.sqrt(statistics.variance(to_go) + 1e-8)
    assert advantages[MASK].tolist() == pytest.approx([(g - mean) / std for g in to_go], rel=1e-11)


def test_leave_one_out_equals_a_loop_over_the_others_in_any_order():
    scores, groups = torch.randn(9, dtype=torch.float64), torch.tensor([7, 3, 7, 7, 3, 50, 50, 3, 7])
    advantages = leave_one_out(scores, groups)
    for i in range(9):
        others = [scores[j].item() for j in range(9) if j != i and groups[j] == groups[i]]
        assert advantages[i].item() == pytest.approx(scores[i].item() - statistics.mean(others), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("scale", [True, False])
def test_group_normalise_equals_a_loop_over_groups(scale):
    scores, groups = torch.randn(9, dtype=torch.float64), torch.tensor([7, 3, 7, 7, 3, 50, 50, 3, 7])
    advantages = group_normalise(scores, groups, scale=scale)
    for i in range(9):
        group = scores[groups == groups[i]].tolist()
        divisor = statistics.stdev(group) + 1e-4 if scale else 1.0
        assert advantages[i].item() == pytest.approx((scores[i].item() - statistics.mean(group)) / divisor, rel=1e-11, abs=1e-14)


def test_a_constant_added_to_a_group_changes_no_advantage():
    scores, groups = torch.randn(6, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
    moved = scores + torch.tensor([5.0, -2.0])[groups]
    for function in (leave_one_out, group_normalise):
        torch.testing.assert_close(function(moved, groups), function(scores, groups), rtol=1e-11, atol=1e-12)


def test_a_group_of_equal_scores_teaches_nothing():
    scores, groups = torch.tensor([2.0, 2.0, 1.0, 3.0]), torch.tensor([0, 0, 1, 1])
    for function in (leave_one_out, group_normalise):
        assert function(scores, groups)[:2].tolist() == [0.0, 0.0]
        assert function(scores, groups)[2:].abs().min() > 0


def test_a_group_of_one_is_refused_by_its_name():
    for function in (leave_one_out, group_normalise):
        with pytest.raises(ValueError, match="group 4 has 1 answer, expected at least 2: sample more answers"):
            function(torch.zeros(3), torch.tensor([1, 4, 1]))


def test_explained_variance_of_a_perfect_a_constant_and_a_bad_critic():
    returns = torch.randn(3, 5, dtype=torch.float64)
    padded = returns.masked_fill(~MASK, math.nan)
    assert explained_variance(padded, padded, MASK).item() == 1.0
    assert explained_variance(torch.full_like(returns, 9.0), padded, MASK).item() == pytest.approx(0, abs=1e-12)
    assert explained_variance(-returns, padded, MASK).item() == pytest.approx(-3, rel=1e-12)


def test_half_precision_is_computed_in_fp32_and_fp64_is_kept():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)):
        rewards, values = (x.nan_to_num().to(dtype) for x in batch())
        assert gae(rewards, values, MASK)[0].dtype == expected
        assert leave_one_out(rewards[:2, 0], torch.zeros(2).long()).dtype == expected
        assert masked_whiten(rewards, MASK).dtype == expected


def test_what_does_not_fit_is_refused_by_name():
    x = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"values has shape \(3, 1\), expected \(3, 5\)"):
        gae(x, x[:, :1], MASK)
    with pytest.raises(ValueError, match=r"mask has dtype torch\.int64, expected torch\.bool: pass mask\.bool\(\)"):
        gae(x, x, MASK.long())
    with pytest.raises(ValueError, match=r"mask has shape .* expected 2 dimensions"):
        discounted_returns(x[0], MASK[0])
    with pytest.raises(ValueError, match="mask has shape"):
        masked_mean(x, MASK[:1])
    with pytest.raises(ValueError, match="mask has dtype"):
        masked_whiten(x, MASK.float())
    with pytest.raises(ValueError, match="group_ids has shape"):
        leave_one_out(torch.zeros(4), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"scores has shape .* expected 1 dimension$"):
        group_normalise(x, x.long())
