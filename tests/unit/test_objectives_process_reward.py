"""The steps' loss by hand, against a loop and torch's own; what steps add up to, by hand and against a loop."""

import math

import pytest
import torch

from rlhf_kit.objectives.process_reward import first_error, score_so_far, step_cross_entropy, token_rewards

ENDS = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
P = torch.tensor([[9, 0.5, 9, 0.8, 0.25, 9], [0.5, 9, 9, 9, 9, 9], [9] * 6])
HOW = ("min", "product", "last", "sum")


def test_two_steps_by_hand():
    # softmax of (0, ln 3) is (1/4, 3/4): a correct step believed with 3/4, and a wrong one seen as wrong with 1/4
    logits = torch.tensor([[0.0, math.log(3)], [1.0, 1.0 + math.log(3)]])
    loss, stats = step_cross_entropy(logits, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.25), rel=1e-6)
    assert {k: v.item() for k, v in stats.items()} == {"accuracy": 1, "positive": 1, "steps": 2}


def test_the_loss_equals_a_loop_and_its_gradient_the_probability_less_the_label():
    logits = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(7) % 3 == 0
    loss, _ = step_cross_entropy(logits, labels)
    expected = 0.0
    for (wrong, right), label in zip(logits.tolist(), labels.tolist()):
        expected += math.log(math.exp(wrong) + math.exp(right)) - (right if label else wrong)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    truth = torch.stack([~labels, labels], 1).double()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - truth, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda z: step_cross_entropy(z, labels)[0], logits)


def test_only_the_difference_of_the_two_logits_counts_and_equal_ones_are_half_right():
    logits, labels = torch.randn(6, 2, dtype=torch.float64), torch.arange(6) % 2 == 0
    loss, _ = step_cross_entropy(logits, labels)
    assert step_cross_entropy(logits + 5.0, labels)[0].item() == pytest.approx(loss.item(), rel=1e-12)
    odds = torch.where(labels, 1.0, -1.0) * (logits[:, 1] - logits[:, 0])
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(odds).sum().item(), rel=1e-12)
    assert step_cross_entropy(torch.ones(4, 2), torch.tensor([True, True, False, False]))[1]["accuracy"].item() == 2.0


def test_hopeless_steps_cost_their_logits_and_no_step_nothing():
    loss, _ = step_cross_entropy(torch.tensor([[0.0, -500.0], [-500.0, 0.0]]), torch.tensor([True, False]))
    assert loss.item() == 1000.0
    assert step_cross_entropy(torch.zeros(0, 2), torch.zeros(0).bool())[0].item() == 0


def test_the_first_error_is_found_or_the_width_where_there_is_none():
    assert first_error(torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()).tolist() == [1, 0, 3]


@pytest.mark.parametrize(
    ("how", "row"),
    [
        ("min", [0, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ("product", [0, 0.5, 0.5, 0.4, 0.1, 0.1]),
        ("last", [0, 0.5, 0.5, 0.8, 0.25, 0.25]),
        ("sum", [0, 0.5, 0.5, 1.3, 1.55, 1.55]),
    ],
)
def test_what_steps_of_a_half_four_fifths_and_a_quarter_add_up_to(how, row):
    found = score_so_far(P, ENDS, how)
    assert found[0].tolist() == pytest.approx(row, rel=1e-6)
    assert found[1].tolist() == [0.5] * 6
    assert found[2].tolist() == [0.0] * 6


@pytest.mark.parametrize(
    ("how", "row"),
    [
        ("min", [0, 0.5, 0, 0, -0.25, 0]),
        ("product", [0, 0.5, 0, -0.1, -0.3, 0]),
        ("last", [0, 0.5, 0, 0.3, -0.55, 0]),
        ("sum", [0, 0.5, 0, 0.8, 0.25, 0]),
    ],
)
def test_a_step_is_paid_what_it_adds_to_the_score(how, row):
    assert token_rewards(P, ENDS, how)[0].tolist() == pytest.approx(row, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("how", HOW)
def test_scores_and_rewards_equal_a_loop_and_rewards_sum_to_the_score(how):
    correct, ends = torch.rand(50, 9, dtype=torch.float64), torch.rand(50, 9) < 0.4
    correct[~ends] = math.nan  # what is no step's end may be anything
    scores, rewards = score_so_far(correct, ends, how), token_rewards(correct, ends, how)
    assert not rewards[~ends].any()
    for i in range(50):
        so_far, before = [], 0.0
        for t in range(9):
            if ends[i, t]:
                so_far.append(correct[i, t].item())
            score = {"min": min, "product": math.prod, "last": lambda p: p[-1], "sum": sum}[how](so_far) if so_far else 0.0
            assert scores[i, t].item() == pytest.approx(score, rel=1e-12)
            assert rewards[i, t].item() == pytest.approx(score - before, rel=1e-12, abs=1e-15)
            before = score
    torch.testing.assert_close(rewards.sum(1), scores[:, -1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("how", HOW)
def test_more_padding_changes_no_score(how):
    wide = torch.nn.functional.pad(P, (2, 3), value=math.nan), torch.nn.functional.pad(ENDS, (2, 3))
    assert torch.equal(score_so_far(*wide, how)[:, -1], score_so_far(P, ENDS, how)[:, -1])
    assert torch.equal(token_rewards(*wide, how)[:, 2:-3], token_rewards(P, ENDS, how))


def test_what_does_not_fit_is_refused_by_name():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"logits have shape \(3, 2\), expected \(2, 2\)"):
        step_cross_entropy(x, torch.zeros(2).bool())
    with pytest.raises(ValueError, match=r"logits have shape \(3, 3\), expected \(3, 2\): wrong and correct"):
        step_cross_entropy(torch.zeros(3, 3), torch.zeros(3).bool())
    with pytest.raises(ValueError, match=r"labels has dtype torch.int64, expected torch.bool"):
        step_cross_entropy(x, torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"correct has shape \(1, 6\), expected \(3, 6\)"):
        score_so_far(P[:1], ENDS, "min")
    with pytest.raises(ValueError, match=r"ends has dtype torch.int64"):
        score_so_far(P, ENDS.long(), "min")
    with pytest.raises(ValueError, match="how is 'mean', expected 'min', 'product', 'last' or 'sum'"):
        token_rewards(P, ENDS, "mean")
