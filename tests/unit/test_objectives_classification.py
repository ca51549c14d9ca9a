"""The yes-or-no loss by hand, against a loop and torch's own, and its invariances."""

import math

import pytest
import torch

from rlhf_kit.objectives.classification import binary_cross_entropy


def test_two_rows_by_hand():
    # sigmoid(ln 3) = 3/4: a yes that is believed with 3/4, and a no that is believed with 1/4
    logits = torch.tensor([math.log(3), math.log(3)])
    loss, stats = binary_cross_entropy(logits, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.25), rel=1e-6)
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(
        {"accuracy": 1, "logit": 2 * math.log(3), "positive": 1, "rows": 2}, rel=1e-6
    )


def test_the_loss_equals_a_loop_with_smoothed_labels():
    logits, labels = torch.randn(7, dtype=torch.float64), torch.arange(7) % 3 == 0
    loss, _ = binary_cross_entropy(logits, labels, label_smoothing=0.1)
    expected = 0.0
    for z, label in zip(logits.tolist(), labels.tolist()):
        yes = 1 / (1 + math.exp(-z))
        share = 0.9 if label else 0.1
        expected += -share * math.log(yes) - (1 - share) * math.log(1 - yes)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_is_torchs_own():
    logits, labels = torch.randn(9, dtype=torch.float64), torch.arange(9) % 2 == 0
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum")
    torch.testing.assert_close(binary_cross_entropy(logits, labels)[0], theirs, rtol=1e-12, atol=0)


def test_the_gradient_is_the_probability_less_the_label():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 2 == 0
    binary_cross_entropy(logits, labels)[0].backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - labels.double(), rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda z: binary_cross_entropy(z, labels, label_smoothing=0.2)[0], logits)


def test_hopeless_rows_cost_their_logit_and_never_infinity():
    loss, stats = binary_cross_entropy(torch.tensor([-500.0, 500.0]), torch.tensor([True, False]))
    assert loss.item() == 1000.0
    assert stats["accuracy"].item() == 0


def test_a_logit_of_zero_is_half_right():
    assert binary_cross_entropy(torch.zeros(4), torch.tensor([True, True, True, False]))[1]["accuracy"].item() == 2.0


def test_halves_of_a_batch_sum_to_the_whole_and_no_row_to_zero():
    logits, labels = torch.randn(6, dtype=torch.float64), torch.arange(6) % 2 == 0
    halves = [binary_cross_entropy(logits[part], labels[part])[0] for part in (slice(2), slice(2, 6))]
    assert sum(halves).item() == pytest.approx(binary_cross_entropy(logits, labels)[0].item(), rel=1e-12)
    assert binary_cross_entropy(logits[:0], labels[:0])[0].item() == 0


def test_half_precision_is_computed_in_fp32():
    logits, labels = torch.randn(6).bfloat16(), torch.arange(6) % 2 == 0
    loss, _ = binary_cross_entropy(logits, labels)
    assert torch.equal(loss, binary_cross_entropy(logits.float(), labels)[0])


def test_what_does_not_fit_is_refused_by_name():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), expected \(3,\)"):
        binary_cross_entropy(x, torch.zeros(2).bool())
    with pytest.raises(ValueError, match=r"logits has shape \(3, 1\), expected 1 dimension$"):
        binary_cross_entropy(x[:, None], torch.zeros(3, 1).bool())
    with pytest.raises(ValueError, match=r"labels has dtype torch.float32, expected torch.bool"):
        binary_cross_entropy(x, x)
    for bad in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match="label_smoothing is"):
            binary_cross_entropy(x, x.bool(), label_smoothing=bad)
