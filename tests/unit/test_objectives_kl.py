"""KL estimators against enumeration, rewards against loops, controllers against closed forms."""

import math

import pytest
import torch

from rlhf_kit.objectives.kl import AdaptiveKL, FixedKL, exact_kl, kl_estimate, kl_loss, shape_rewards

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()


def test_estimators_by_hand():
    log_p, log_q = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    d = math.log(2)
    assert kl_estimate(log_p, log_q, "k1").item() == pytest.approx(d, rel=1e-6)
    assert kl_estimate(log_p, log_q, "k2").item() == pytest.approx(d * d / 2, rel=1e-6)
    assert kl_estimate(log_p, log_q, "k3").item() == pytest.approx(0.5 - 1 + d, rel=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expectation_of_an_unbiased_estimator_is_the_exact_kl(estimator):
    log_p, log_q = torch.randn(2, 5, 7, dtype=torch.float64).log_softmax(-1)
    expectation = (log_p.exp() * kl_estimate(log_p, log_q, estimator)).sum(-1)
    torch.testing.assert_close(expectation, exact_kl(log_p, log_q), rtol=1e-12, atol=1e-14)


def test_the_gradient_of_k2_is_in_expectation_that_of_the_kl():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    log_q = torch.randn(6, dtype=torch.float64).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    (want,) = torch.autograd.grad(exact_kl(log_p, log_q), logits, retain_graph=True)
    (got,) = torch.autograd.grad((log_p.detach().exp() * kl_estimate(log_p, log_q, "k2")).sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_equal_policies_have_no_kl_and_k3_is_never_negative():
    logprobs = torch.randn(100)
    for estimator in ("k1", "k2", "k3"):
        assert kl_estimate(logprobs, logprobs, estimator).abs().max() == 0
    assert kl_estimate(logprobs, logprobs + 1e-4 * torch.randn(100), "k3").min() >= -1e-10


def test_exact_kl_takes_what_the_policy_never_does_as_nothing():
    log_p = torch.tensor([0.0, -math.inf])
    assert exact_kl(log_p, torch.tensor([math.log(0.25), math.log(0.75)])).item() == pytest.approx(math.log(4))
    assert exact_kl(log_p, log_p).item() == 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_rewards_equal_a_double_loop(estimator):
    logprobs, ref_logprobs, scores = torch.randn(3, 4).double(), torch.randn(3, 4).double(), torch.randn(3).double()
    rewards, non_score = shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.3, estimator)
    for i, length in enumerate((4, 2, 1)):
        for t in range(4):
            d = (logprobs[i, t] - ref_logprobs[i, t]).item()
            k = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]
            penalty = -0.3 * k if t < length else 0.0
            assert non_score[i, t].item() == pytest.approx(penalty, rel=1e-12, abs=1e-15)
            assert rewards[i, t].item() == pytest.approx(
                penalty + (scores[i].item() if t == length - 1 else 0), rel=1e-12, abs=1e-15
            )


def test_the_total_reward_is_the_score_less_the_priced_kl_also_for_a_truncated_row():
    logprobs, ref_logprobs, scores = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    rewards, _ = shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.05)
    kl = ((logprobs - ref_logprobs) * MASK).sum(1)
    torch.testing.assert_close(rewards.sum(1), scores - 0.05 * kl, rtol=1e-6, atol=1e-6)


def test_more_padding_on_either_side_changes_no_reward():
    logprobs, ref_logprobs, scores = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3)
    rewards, _ = shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.05)
    garbage = torch.full((3, 2), math.nan)
    wide = [torch.cat([garbage, x, garbage], 1) for x in (logprobs, ref_logprobs)]
    mask = torch.cat([torch.zeros(3, 2).bool(), MASK, torch.zeros(3, 2).bool()], 1)
    padded, _ = shape_rewards(scores, *wide, mask, 0.05)
    torch.testing.assert_close(padded[:, 2:6], rewards, rtol=0, atol=0)
    assert padded[:, [0, 1, 6, 7]].abs().sum() == 0


def test_a_row_without_a_token_gets_no_reward_and_rewards_carry_no_gradient():
    logprobs = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[False] * 3, [True] * 3])
    rewards, non_score = shape_rewards(torch.tensor([5.0, 7.0]), logprobs, torch.zeros(2, 3), mask, 0.0)
    assert rewards.tolist() == [[0, 0, 0], [0, 0, 7]]
    assert not rewards.requires_grad
    assert not non_score.requires_grad


def test_a_nan_at_a_real_token_is_seen_in_its_reward_only():
    logprobs = torch.zeros(3, 4)
    logprobs[1, 0] = math.nan
    rewards, _ = shape_rewards(torch.ones(3), logprobs, torch.zeros(3, 4), MASK, 0.1)
    assert rewards.isnan().nonzero().tolist() == [[1, 0]]


def test_kl_loss_sums_valid_tokens_by_weight_and_moves_only_the_policy():
    logprobs = torch.randn(3, 4, dtype=torch.float64)
    logprobs[~MASK] = math.nan
    logprobs.requires_grad_()
    ref_logprobs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss, stats = kl_loss(logprobs, ref_logprobs, MASK)
    want = kl_estimate(logprobs[MASK], ref_logprobs[MASK], "k3").sum()
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    assert stats["kl"].item() == pytest.approx(want.item(), rel=1e-12)
    assert stats["count"].item() == 7
    half, stats = kl_loss(logprobs, ref_logprobs, MASK, weights=0.5 * MASK)
    assert half.item() == pytest.approx(want.item() / 2, rel=1e-12)
    assert stats["kl"].item() == pytest.approx(want.item(), rel=1e-12)  # a statistic, not a loss
    loss.backward()
    assert ref_logprobs.grad is None
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[~MASK].abs().sum() == 0


def test_the_adaptive_coefficient_follows_the_closed_form_and_its_bounds():
    controller = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    expected = 0.1
    for kl, error in ((6.6, 0.1), (60.0, 0.2), (0.0, -0.2), (-5.0, -0.2), (6.0, 0.0)):
        controller.update(kl, 50)
        expected *= 1 + error * 50 / 1000
        assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_the_fixed_coefficient_stays():
    controller = FixedKL(0.1)
    controller.update(100.0, 64)
    assert controller.coef == 0.1


@pytest.mark.parametrize("make", [lambda: AdaptiveKL(0.2, 6.0, 100), lambda: FixedKL(0.2)])
def test_a_controller_continues_from_its_state(make):
    controller, other = make(), make()
    controller.update(9.0, 10)
    other.coef = 99.0
    other.load_state_dict(controller.state_dict())
    for c in (controller, other):
        c.update(3.0, 10)
    assert other == controller


def test_what_does_not_fit_is_refused_by_name():
    x, scores = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match="kl_estimator is 'k4'"):
        kl_estimate(x, x, "k4")
    with pytest.raises(ValueError, match=r"ref_logprobs has shape \(3, 1\), expected \(3, 4\)"):
        kl_estimate(x, x[:, :1])
    with pytest.raises(ValueError, match="log_q has shape"):
        exact_kl(x, x[:1])
    with pytest.raises(ValueError, match=r"scores have shape \(2,\), expected \(3,\)"):
        shape_rewards(scores[:2], x, x, MASK, 0.1)
    with pytest.raises(ValueError, match=r"scores has shape \(3, 1\), expected 1 dimension$"):
        shape_rewards(scores[:, None], x, x, MASK, 0.1)
    with pytest.raises(ValueError, match=r"mask has dtype torch\.float32, expected torch\.bool"):
        shape_rewards(scores, x, x, MASK.float(), 0.1)
    with pytest.raises(ValueError, match="ref_logprobs has shape"):
        shape_rewards(scores, x, x[:, :3], MASK, 0.1)
    with pytest.raises(ValueError, match="mask has dtype"):
        kl_loss(x, x, MASK.long())
    with pytest.raises(ValueError, match="weights"):
        kl_loss(x, x, MASK, weights=x[:1])
    for options in ({"target": 0.0}, {"horizon": -1}, {"target": math.nan}):
        with pytest.raises(ValueError, match="expected more than 0"):
            AdaptiveKL(**options)
    for kl in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"objective/kl is .*, expected a finite number"):
            AdaptiveKL().update(kl, 1)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_weighed_by_the_ratio_the_expected_gradient_is_that_of_the_exact_kl(estimator):
    """Over all tokens, each as often as the policy draws it. Unweighed, only k2 has it: k1 has none, k3 that of KL(ref || pi)."""
    ref = torch.randn(1, 6, dtype=torch.float64).log_softmax(1)
    logits = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 6, dtype=torch.bool)
    logprobs = logits.log_softmax(1)
    often, old = logprobs.detach().exp(), logprobs.detach()

    def gradient(loss):
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    exact = gradient((logprobs.exp() * (logprobs - ref)).sum())
    weighed = gradient(kl_loss(logprobs, ref, mask, estimator=estimator, weights=often, old_logprobs=old)[0])
    plain = gradient(kl_loss(logprobs, ref, mask, estimator=estimator, weights=often)[0])
    half_square = gradient((often * 0.5 * (logprobs - ref).square()).sum())
    if estimator == "k2":  # its value is not the KL, so weighing it adds what the KL does not have
        torch.testing.assert_close(plain, exact, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(plain, half_square, rtol=1e-12, atol=1e-15)
        assert (weighed - exact).abs().max() > 1e-3
    else:
        torch.testing.assert_close(weighed, exact, rtol=1e-12, atol=1e-15)
        assert (plain - exact).abs().max() > 1e-3


def test_token_rewards_by_hand_say_where_the_score_is_paid_and_never_how_much():
    """Scores 1, 2, 5; no KL. What is not paid at a token is left to the last one."""
    paid = torch.tensor([[0.25, 0.0, 0.5, 0.25], [0.0, 1.5, 9.0, 9.0], [-1.0, math.nan, 9.0, 9.0]])
    zeros = torch.zeros(3, 4)
    rewards, non_score = shape_rewards(torch.tensor([1.0, 2.0, 5.0]), zeros, zeros, MASK, 0.3, token_rewards=paid)
    assert rewards.tolist() == [[0.25, 0.0, 0.5, 0.25], [0.0, 2.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]
    assert not non_score.any()


def test_a_row_sums_to_its_score_less_the_priced_kl_with_and_without_token_rewards():
    logprobs, ref_logprobs, paid = torch.randn(3, 3, 4, dtype=torch.float64)
    scores = torch.randn(3, dtype=torch.float64)
    whole, same = shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.05)
    parts, other = shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.05, token_rewards=paid)
    torch.testing.assert_close(parts.sum(1), whole.sum(1), rtol=1e-12, atol=1e-14)
    assert torch.equal(same, other)
    torch.testing.assert_close((parts - whole)[:, :1][MASK.sum(1) > 1], paid[:, :1][MASK.sum(1) > 1], rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"token_rewards has shape \(3, 3\), expected \(3, 4\)"):
        shape_rewards(scores, logprobs, ref_logprobs, MASK, 0.05, token_rewards=paid[:, :3])
