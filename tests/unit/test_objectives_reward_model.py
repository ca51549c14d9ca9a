"""The pairwise loss by hand, against a loop, and its invariances."""

import math

import pytest
import torch

from rlhf_kit.objectives.reward_model import pairwise_loss


def test_one_pair_by_hand():
    # sigmoid(ln 3) = 3/4; the centre term is 0.1 * (ln 3 + 0)^2
    loss, stats = pairwise_loss(torch.tensor([math.log(3)]), torch.tensor([0.0]), center_coef=0.1)
    assert loss.item() == pytest.approx(-math.log(0.75) + 0.1 * math.log(3) ** 2, rel=1e-6)
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(
        {"accuracy": 1, "margin": math.log(3), "mean_reward": math.log(3) / 2, "pairs": 1}, rel=1e-6
    )


@pytest.mark.parametrize("with_margin", [True, False])
def test_the_loss_equals_a_loop(with_margin):
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    margin = torch.rand(6, dtype=torch.float64) if with_margin else None
    loss, stats = pairwise_loss(chosen, rejected, margin, center_coef=0.02, label_smoothing=0.1)
    expected = 0.0
    for i in range(6):
        w, l, m = chosen[i].item(), rejected[i].item(), margin[i].item() if with_margin else 0.0
        right = 1 / (1 + math.exp(-(w - l - m)))
        expected += -0.9 * math.log(right) - 0.1 * math.log(1 - right) + 0.02 * (w + l) ** 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert stats["accuracy"].item() == (chosen > rejected).sum().item()
    assert stats["margin"].item() == pytest.approx((chosen - rejected).sum().item(), rel=1e-12)
    assert stats["pairs"].item() == 6


def test_the_loss_passes_gradcheck():
    scores = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    margin = torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w, l: pairwise_loss(w, l, margin, center_coef=0.3, label_smoothing=0.2)[0], scores)


def test_a_common_shift_is_free_without_centring_and_priced_with_it():
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    plain, shifted = (pairwise_loss(chosen + c, rejected + c)[0] for c in (0.0, 3.0))
    torch.testing.assert_close(shifted, plain, rtol=1e-12, atol=0)
    assert pairwise_loss(chosen + 3, rejected + 3, center_coef=0.1)[0] > plain + 1


def test_hopeless_pairs_cost_their_distance_and_never_infinity():
    loss, stats = pairwise_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert loss.item() == 1000.0
    assert stats["accuracy"].item() == 0


def test_ties_count_half():
    assert pairwise_loss(torch.zeros(4), torch.zeros(4))[1]["accuracy"].item() == 2.0


def test_smoothing_has_its_minimum_at_the_odds_of_the_labels():
    difference = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    pairwise_loss(difference, torch.zeros(1).double(), label_smoothing=0.1)[0].backward()
    assert difference.grad.item() == pytest.approx(0, abs=1e-12)


def test_halves_of_a_batch_sum_to_the_whole_and_no_pair_to_zero():
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    whole, _ = pairwise_loss(chosen, rejected)
    assert (pairwise_loss(chosen[:2], rejected[:2])[0] + pairwise_loss(chosen[2:], rejected[2:])[0]).item() == pytest.approx(
        whole.item(), rel=1e-12
    )
    nothing, stats = pairwise_loss(chosen[:0], rejected[:0])
    assert nothing.item() == stats["pairs"].item() == stats["accuracy"].item() == 0


def test_half_precision_scores_are_computed_in_fp32_and_a_nan_shows():
    chosen, rejected = torch.randn(2, 6).bfloat16()
    loss, _ = pairwise_loss(chosen, rejected)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, pairwise_loss(chosen.float(), rejected.float())[0])
    chosen[3] = math.nan
    assert pairwise_loss(chosen, rejected)[0].isnan()


def test_what_does_not_fit_is_refused_by_name():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"rejected_scores has shape \(2,\), expected \(3,\)"):
        pairwise_loss(x, x[:2])
    with pytest.raises(ValueError, match=r"chosen_scores has shape \(3, 1\), expected 1 dimension$"):
        pairwise_loss(x[:, None], x[:, None])
    with pytest.raises(ValueError, match=r"margin has shape \(1,\)"):
        pairwise_loss(x, x, x[:1])
    for bad in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match="label_smoothing is"):
            pairwise_loss(x, x, label_smoothing=bad)
    with pytest.raises(ValueError, match="center_coef is -1"):
        pairwise_loss(x, x, center_coef=-1)
