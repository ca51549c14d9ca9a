"""DPO and its relatives by hand, against a loop, through gradcheck, and at the edges."""

import math

import pytest
import torch

from rlhf_kit.objectives.preference import LOSSES, Answers, dpo, hinge, ipo, kto, orpo, robust_dpo, simpo

PAIRED = [name for name, line in LOSSES.items() if line.paired]


def answers(*logps, lengths=None, ref=None):
    """Answers from plain numbers, in fp64."""
    sums = torch.tensor(logps, dtype=torch.float64)
    lengths = torch.tensor(lengths) if lengths else torch.ones(len(logps), dtype=torch.long)
    return Answers(sums, lengths, None if ref is None else torch.tensor(ref, dtype=torch.float64))


def drawn(count=5, seed=0, dtype=torch.float64):
    """A random side of `count` pairs."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator)
    logps, ref = (-lengths * (0.2 + torch.rand(count, dtype=torch.float64, generator=generator)) for _ in range(2))
    return Answers(logps.to(dtype), lengths, ref.to(dtype))


def call(name, sides, desirable=None, **options):
    """A loss of the table on two sides of pairs, or on the first of them alone."""
    line = LOSSES[name]
    if line.paired:
        return line.function(*sides, **options)
    return line.function(
        sides[0], torch.tensor([True, False, True, True, False])[: len(sides[0].logps)], sides[1].log_ratio.mean()
    )


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# The chosen answer has gained ln 3 on the reference and the rejected one nothing, so that with beta 1 sigmoid(D) = 3/4.
CHOSEN, REJECTED = answers(math.log(3) - 4, lengths=[2], ref=[-4.0]), answers(-5.0, lengths=[4], ref=[-5.0])


@pytest.mark.parametrize(
    ("function", "options", "expected"),
    [
        (dpo, {"beta": 1.0}, -math.log(3 / 4)),
        (dpo, {"beta": 1.0, "label_smoothing": 0.2}, -0.8 * math.log(3 / 4) - 0.2 * math.log(1 / 4)),
        (robust_dpo, {"beta": 1.0, "label_smoothing": 0.2}, (-0.8 * math.log(3 / 4) + 0.2 * math.log(1 / 4)) / 0.6),
        (hinge, {"beta": 0.5}, 1 - 0.5 * math.log(3)),
        (hinge, {"beta": 1.0}, 0.0),
        (ipo, {"beta": 0.5}, (math.log(3) / 2 - 1) ** 2),
        (simpo, {"beta": 2.0, "gamma": 1.0}, math.log(1 + math.exp(-(2 * ((math.log(3) - 4) / 2 + 5 / 4) - 1)))),
    ],
)
def test_one_pair_by_hand(function, options, expected):
    loss, _ = function(CHOSEN, REJECTED, **options)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_orpo_by_hand():
    # Mean probabilities of a token 3/4 and 1/4: odds 3 and 1/3, their ratio 9, whose sigmoid(log) is 9/10.
    chosen, rejected = answers(2 * math.log(3 / 4), lengths=[2]), answers(3 * math.log(1 / 4), lengths=[3])
    loss, stats = orpo(chosen, rejected, beta=0.5)
    assert loss.item() == pytest.approx(-math.log(3 / 4) - 0.5 * math.log(0.9), rel=1e-12)
    found = [stats[name].item() for name in ("nll_loss", "log_odds_ratio", "log_odds_chosen")]
    assert found == pytest.approx([-math.log(3 / 4), math.log(0.9), math.log(9)], rel=1e-12)


def test_kto_by_hand():
    both = answers(math.log(3) - 4, math.log(3) - 4, lengths=[2, 2], ref=[-4.0, -4.0])
    kl = torch.tensor(math.log(1.5), dtype=torch.float64)  # h - z = ln 2: sigmoid 2/3
    loss, stats = kto(both, torch.tensor([True, False]), kl, beta=1.0, desirable_weight=2.0, undesirable_weight=0.5)
    assert loss.item() == pytest.approx(2.0 / 3 + 0.5 * 2 / 3, rel=1e-12)
    assert stats["kl"].item() == pytest.approx(2 * math.log(1.5), rel=1e-12)
    assert stats["rewards/chosen"].item() == stats["rewards/rejected"].item() == pytest.approx(math.log(3), rel=1e-12)
    assert stats["logps/rejected"].item() == pytest.approx(math.log(3) - 4, rel=1e-12)
    assert (stats["count/chosen"].item(), stats["count/rejected"].item()) == (1, 1)


def test_the_statistics_of_a_pair_by_hand():
    _, stats = dpo(CHOSEN, REJECTED, beta=0.5)
    expected = {
        "rewards/chosen": 0.5 * math.log(3), "rewards/rejected": 0.0, "rewards/margins": 0.5 * math.log(3),
        "rewards/accuracies": 1.0, "logps/chosen": math.log(3) - 4, "logps/rejected": -5.0,
    }  # fmt: skip
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(expected, rel=1e-12)
    _, stats = simpo(CHOSEN, REJECTED, beta=2.0)
    assert stats["rewards/chosen"].item() == pytest.approx(math.log(3) - 4, rel=1e-12)  # 2 * the mean of 2 tokens
    assert stats["logps/rejected"].item() == pytest.approx(-5 / 4, rel=1e-12)


def naive(name, w, l, lw, ll, rw, rl):
    """One pair's loss in plain Python, with the options of `test_the_losses_equal_a_loop`."""
    d = (w - rw) - (l - rl)
    if name == "dpo":
        return -0.9 * math.log(sigmoid(0.3 * d)) - 0.1 * math.log(1 - sigmoid(0.3 * d))
    if name == "robust":
        return (-0.9 * math.log(sigmoid(0.3 * d)) + 0.1 * math.log(1 - sigmoid(0.3 * d))) / 0.8
    if name == "hinge":
        return max(0.0, 1 - 0.3 * d)
    if name == "ipo":
        return ((w - rw) / lw - (l - rl) / ll - 1 / 0.6) ** 2
    if name == "simpo":
        return -math.log(sigmoid(0.3 * (w / lw - l / ll) - 0.5))
    p, q = math.exp(w / lw), math.exp(l / ll)
    return -w / lw - 0.3 * math.log(sigmoid(math.log(p / (1 - p)) - math.log(q / (1 - q))))


@pytest.mark.parametrize("name", PAIRED)
def test_the_losses_equal_a_loop(name):
    sides = drawn(), drawn(seed=1)
    options = {"beta": 0.3} | ({"label_smoothing": 0.1} if name in ("dpo", "robust") else {})
    options |= {"gamma": 0.5} if name == "simpo" else {}
    loss, stats = call(name, sides, **options)
    columns = [x.tolist() for x in (sides[0].logps, sides[1].logps, sides[0].lengths, sides[1].lengths)]
    columns += [side.ref_logps.tolist() for side in sides]
    assert loss.item() == pytest.approx(sum(naive(name, *row) for row in zip(*columns)), rel=1e-12)
    by_mean = not LOSSES[name].reference
    rewards = [0.3 * (side.mean if by_mean else side.log_ratio) for side in sides]
    assert stats["rewards/margins"].item() == pytest.approx((rewards[0] - rewards[1]).sum().item(), rel=1e-12)
    assert stats["rewards/accuracies"].item() == (rewards[0] > rewards[1]).sum().item()


def test_kto_equals_a_loop():
    side, kl = drawn(), torch.tensor(0.4, dtype=torch.float64)
    desirable = torch.tensor([True, False, True, True, False])
    loss, stats = kto(side, desirable, kl, beta=0.3, desirable_weight=1.3, undesirable_weight=0.7)
    expected = 0.0
    for h, good in zip(side.log_ratio.tolist(), desirable.tolist()):
        expected += 1.3 * (1 - sigmoid(0.3 * (h - 0.4))) if good else 0.7 * (1 - sigmoid(0.3 * (0.4 - h)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert stats["rewards/rejected"].item() == pytest.approx(0.3 * side.log_ratio[~desirable].sum().item(), rel=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_passes_gradcheck_and_gives_the_reference_no_gradient(name):
    sides = drawn(), drawn(seed=1)
    inputs = [side.logps.clone().requires_grad_() for side in sides]
    refs = [side.ref_logps.clone().requires_grad_() for side in sides]

    def loss(first, second):
        return call(name, [Answers(x, s.lengths, r) for x, s, r in zip((first, second), sides, refs)])[0]

    if LOSSES[name].paired:
        assert torch.autograd.gradcheck(loss, inputs)
    else:  # the second side only moves the baseline, which is data
        assert torch.autograd.gradcheck(lambda first: loss(first, inputs[1].detach()), inputs[:1])
    loss(*inputs).backward()
    assert all(ref.grad is None for ref in refs)


def test_smoothing_puts_the_minimum_at_the_odds_of_the_labels():
    gained = torch.tensor([math.log(0.9 / 0.1) / 0.5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.long)
    dpo(Answers(gained, one, zero), Answers(zero, one, zero), beta=0.5, label_smoothing=0.1)[0].backward()
    assert gained.grad.item() == pytest.approx(0, abs=1e-12)


def test_the_robust_loss_on_flipped_labels_has_the_mean_of_the_plain_loss_on_clean_ones():
    sides = drawn(), drawn(seed=1)
    clean = dpo(*sides, beta=0.3)[0]
    right, flipped = (robust_dpo(*pair, beta=0.3, label_smoothing=0.2)[0] for pair in (sides, sides[::-1]))
    torch.testing.assert_close(0.8 * right + 0.2 * flipped, clean, rtol=1e-12, atol=0)


def test_ipo_does_not_care_how_long_an_answer_is_and_its_minimum_is_a_finite_distance():
    long, short = answers(-8.0, lengths=[8], ref=[-16.0]), answers(-1.0, lengths=[1], ref=[-2.0])
    assert ipo(long, short)[0].item() == pytest.approx(1 / (2 * 0.1) ** 2, rel=1e-12)  # both gained 1 a token
    assert ipo(answers(-3.0, ref=[-8.0]), answers(-3.0, ref=[-3.0]), beta=0.1)[0].item() == pytest.approx(0, abs=1e-24)


def test_a_negative_estimate_of_the_kl_is_taken_for_zero():
    side, desirable = drawn(), torch.ones(5, dtype=torch.bool)
    below, zero = (kto(side, desirable, torch.tensor(kl, dtype=torch.float64)) for kl in (-3.0, 0.0))
    assert below[0].item() == zero[0].item()
    assert below[1]["kl"].item() == 0


def test_at_the_start_every_margin_is_zero_and_a_tie_is_half_right():
    start = answers(-3.0, -4.0, ref=[-3.0, -4.0])
    for name in ("dpo", "robust", "hinge", "ipo"):
        _, stats = call(name, (start, start))
        assert (stats["rewards/margins"].item(), stats["rewards/accuracies"].item()) == (0.0, 1.0)
    assert dpo(start, start)[0].item() == pytest.approx(2 * math.log(2), rel=1e-12)


def test_hopeless_pairs_cost_their_distance_and_never_infinity():
    bad, good = answers(-5000.0, ref=[0.0]), answers(0.0, ref=[-5000.0])
    assert dpo(bad, good, beta=0.1)[0].item() == pytest.approx(1000.0, rel=1e-12)
    assert kto(bad, torch.tensor([True]), torch.zeros((), dtype=torch.float64))[0].item() == pytest.approx(1.0)


def test_answers_known_by_heart_leave_finite_odds_and_gradients():
    for mean in (0.0, -1e-9, -1e-7, -1e-4):
        logps = torch.tensor([mean], requires_grad=True)
        one = torch.ones(1, dtype=torch.long)
        for sides in ((logps, torch.tensor([-1.0])), (torch.tensor([-1.0]), logps)):
            loss, _ = orpo(*(Answers(x, one) for x in sides))
            assert loss.isfinite()
            assert torch.autograd.grad(loss, logps)[0].isfinite().all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_halves_of_a_batch_sum_to_the_whole_and_no_pair_to_zero(name):
    sides = drawn(), drawn(seed=1)
    kl = torch.tensor(0.2, dtype=torch.float64)
    desirable = torch.tensor([True, False, True, True, False])

    def part(rows):
        cut = [Answers(*(x[rows] for x in side)) for side in sides]
        return LOSSES[name].function(*(cut if LOSSES[name].paired else (cut[0], desirable[rows], kl)))

    whole, halves, nothing = part(slice(None)), [part(slice(0, 2)), part(slice(2, None))], part(slice(0, 0))
    torch.testing.assert_close(halves[0][0] + halves[1][0], whole[0], rtol=1e-12, atol=0)
    for key, value in whole[1].items():
        torch.testing.assert_close(halves[0][1][key] + halves[1][1][key], value, rtol=1e-12, atol=1e-15)
        assert nothing[1][key].item() == 0
    assert nothing[0].item() == 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_half_precision_is_computed_in_fp32_and_a_nan_shows(name):
    sides = drawn(dtype=torch.bfloat16), drawn(seed=1, dtype=torch.bfloat16)
    loss, stats = call(name, sides)
    wide = [Answers(s.logps.float(), s.lengths, s.ref_logps.float()) for s in sides]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, call(name, wide)[0])
    assert not any(value.requires_grad for value in stats.values())
    sides[0].logps[3] = math.nan
    assert call(name, sides)[0].isnan()


def test_what_does_not_fit_is_refused_by_name():
    good = answers(-1.0, -2.0, ref=[-1.0, -2.0])
    with pytest.raises(ValueError, match=r"rejected_logps has shape \(1,\), expected \(2,\)"):
        dpo(good, answers(-1.0, ref=[-1.0]))
    with pytest.raises(ValueError, match=r"chosen_logps has shape \(2, 1\), expected 1 dimension$"):
        simpo(Answers(good.logps[:, None], good.lengths[:, None]), good)
    with pytest.raises(ValueError, match=r"chosen_lengths has shape \(1,\), expected \(2,\)"):
        orpo(good._replace(lengths=good.lengths[:1]), good)
    with pytest.raises(ValueError, match=r"rejected_lengths of row 1 is 0, expected at least 1: leave the row out"):
        ipo(good, answers(-1.0, 0.0, lengths=[1, 0], ref=[-1.0, 0.0]))
    with pytest.raises(ValueError, match=r"rejected_ref_logps is None, expected \(B,\): this loss compares with a reference"):
        hinge(good, answers(-1.0, -2.0))
    with pytest.raises(ValueError, match=r"chosen_ref_logps has shape \(1,\)"):
        dpo(good._replace(ref_logps=good.ref_logps[:1]), good)
    for bad in (-0.1, 0.5, math.nan):
        for function in (dpo, robust_dpo):
            with pytest.raises(ValueError, match="label_smoothing is"):
                function(good, good, label_smoothing=bad)
    for bad in (0.0, -1.0, math.nan, math.inf):
        for name in PAIRED:
            with pytest.raises(ValueError, match="beta is"):
                call(name, (good, good), beta=bad)
    zero, both = torch.zeros(()), torch.tensor([True, False])
    with pytest.raises(ValueError, match=r"desirable has dtype torch.int64, expected torch.bool"):
        kto(good, both.long(), zero)
    with pytest.raises(ValueError, match=r"desirable has shape \(1,\), expected \(2,\)"):
        kto(good, both[:1], zero)
    with pytest.raises(ValueError, match=r"kl has shape \(2,\), expected 0 dimensions"):
        kto(good, both, torch.zeros(2))
    with pytest.raises(ValueError, match=r"undesirable_weight is 0, expected a number above 0"):
        kto(good, both, zero, undesirable_weight=0)


def test_the_settings_of_a_loss_are_its_keyword_arguments():
    assert LOSSES["simpo"].options == {"beta": 2.0, "gamma": 1.0}
    assert LOSSES["kto"].options == {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}
