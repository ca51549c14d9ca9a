"""The other questions to the world whose optimum is known: their exact quantities by another way, and small runs of each."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.closed_form.best_of_n import at, best_of
from benchmarks.closed_form.dpo import SoftLabels, learn_fixed
from benchmarks.closed_form.ours import WorldPairs
from benchmarks.closed_form.overoptimisation import rarest_repeat, repeats, rewards_of, watched
from benchmarks.closed_form.reward_model import exact, train
from benchmarks.closed_form.world import BETA, judged_pairs, make_world
from rlhf_kit.objectives.preference import Answers, dpo
from rlhf_kit.training.preference import answer_logps


@pytest.fixture(scope="module")
def world():
    return make_world(0)


# ---- best of n --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_best_of_n_is_what_drawing_all_n_answers_says_ties_and_all(n):
    torch.manual_seed(n)
    logprobs = torch.log_softmax(torch.randn(6, dtype=torch.double), 0)
    scores = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0, 3.0])
    drawn = torch.zeros(6, dtype=torch.double)
    for answers in itertools.product(range(6), repeat=n):
        best = max(answers, key=lambda i: float(scores[i]))  # the first of equals: each place is as likely as any
        drawn[best] += logprobs[list(answers)].sum().exp()
    torch.testing.assert_close(best_of(logprobs, scores, n).exp(), drawn, rtol=1e-12, atol=0)


def test_without_ties_the_distance_of_best_of_n_nears_the_formula_and_ties_only_lower_it():
    logprobs = torch.full((200_000,), -math.log(200_000), dtype=torch.double)
    scores = torch.arange(200_000.0)
    for n in (2, 4, 16):
        formula = math.log(n) - (n - 1) / n
        chosen = best_of(logprobs, scores, n)
        assert float((chosen.exp() * (chosen - logprobs)).sum()) == pytest.approx(formula, rel=1e-4)  # a sum for an integral
        tied = best_of(logprobs, (scores / 50_000).floor(), n)
        assert float((tied.exp() * (tied - logprobs)).sum()) < formula - 0.01


def test_a_path_is_read_between_its_points_and_not_beyond_them():
    assert at([(0.0, 0.0), (1.0, 2.0), (3.0, 4.0)], 2.0) == pytest.approx(3.0)
    assert at([(0.0, 0.0), (1.0, 2.0)], 1.5) is None


# ---- reward model -----------------------------------------------------------------------------------------------------


def test_accuracy_ceiling_and_calibration_are_those_of_all_pairs_one_by_one():
    torch.manual_seed(0)
    small = SimpleNamespace(ref_logprobs=torch.log_softmax(torch.randn(2, 7), 1), rewards=torch.randn(7))
    scores = torch.randn(2, 7)
    scores[0, 3] = scores[0, 4]  # a tie
    found = exact(small, scores, bins=4)
    right, best, bins = 0.0, 0.0, {}
    for p, i, j in itertools.product(range(2), range(7), range(7)):
        mass = math.exp(float(small.ref_logprobs[p, i] + small.ref_logprobs[p, j])) / 2
        gap, truth = float(scores[p, i] - scores[p, j]), float(small.rewards[i] - small.rewards[j])
        people = 1 / (1 + math.exp(-truth))  # how often they prefer the first
        agreed = people if gap > 0 else 1 - people if gap < 0 else 0.5
        confidence = 1 / (1 + math.exp(-abs(gap)))
        right, best = right + mass * agreed, best + mass * max(people, 1 - people)
        place = min(int((confidence - 0.5) * 8), 3)
        bins[place] = bins.get(place, 0.0) + mass * (agreed - confidence)
    assert found["accuracy"] == pytest.approx(right, rel=1e-6)  # the small world is fp32
    assert found["ceiling"] == pytest.approx(best, rel=1e-6)
    assert found["ece"] == pytest.approx(sum(map(abs, bins.values())), rel=1e-5)


def test_the_true_reward_reaches_the_ceiling_and_is_calibrated(world):
    found = exact(world, world.rewards.expand(4, -1))
    assert found["accuracy"] == pytest.approx(found["ceiling"], rel=1e-12)
    assert found["ece"] < 1e-12


def test_more_pairs_teach_more_and_never_more_than_can_be_known(world, tmp_path):
    found = [exact(world, train(world, judged_pairs(world, n, 0), tmp_path / str(n))) for n in (256, 4_096)]
    assert 0.5 < found[0]["accuracy"] < found[1]["accuracy"] < found[1]["ceiling"]
    assert found[1]["ece"] < found[0]["ece"]


# ---- DPO --------------------------------------------------------------------------------------------------------------


def test_soft_labels_weigh_both_orders_of_a_pair_by_their_probability(world):
    stage = SoftLabels(copy.deepcopy(world.reference), world)
    policy = stage.model
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # away from the reference, so that D is not 0
    pairs = judged_pairs(world, 8, 0)
    (batch,) = WorldPairs(world, pairs, 8).micro_batches(0, 0, 1)
    found, _ = stage(batch)
    sides = []
    for ids, mask, answer in (
        (batch.chosen_ids, batch.chosen_mask, batch.chosen_answer),
        (batch.rejected_ids, batch.rejected_mask, batch.rejected_answer),
    ):
        logps = [answer_logps(model, ids, mask, answer) for model in (policy, world.reference)]
        sides.append(Answers(logps[0], answer.sum(1), logps[1]))
    rewards = [
        world.reward_of(ids[answer].view(-1, 4))
        for ids, answer in ((batch.chosen_ids, batch.chosen_answer), (batch.rejected_ids, batch.rejected_answer))
    ]
    expected = 0.0
    for i, p in enumerate(torch.sigmoid(rewards[0] - rewards[1])):
        chosen, rejected = (Answers(*(x[i : i + 1] for x in side)) for side in sides)
        expected += p * dpo(chosen, rejected, beta=BETA)[0] + (1 - p) * dpo(rejected, chosen, beta=BETA)[0]
    torch.testing.assert_close(found, expected)


def test_few_pairs_seen_often_lead_away_from_the_optimum_and_held_out_pairs_say_when_to_stop(world, tmp_path):
    found = learn_fixed(world, tmp_path, pairs=512, epochs=10)
    assert found["kl"] < found["start"]
    assert found["kl"] < 0.6 * found["last"]
    assert found["kept_epoch"] < found["points"][-1]["epoch"]
    assert found["points"][-1]["train_loss"] < found["points"][0]["train_loss"]
    assert world.kl_to_optimum(world.reference) == pytest.approx(found["start"])


# ---- over-optimisation ------------------------------------------------------------------------------------------------


def test_people_dislike_what_the_proxy_pays_for_and_the_reference_hardly_says_it(world):
    token = rarest_repeat(world)
    hacks = repeats(world.answers, token)
    gold, proxy = rewards_of(world)
    assert float((world.ref_logprobs.exp() * hacks).sum(1).mean()) < 0.02
    assert hacks.max() == 3
    torch.testing.assert_close(gold, world.rewards - hacks)
    torch.testing.assert_close(proxy, world.rewards + 4 * hacks)


def test_the_gold_score_falls_while_the_proxy_climbs_and_an_alarm_that_needs_no_gold_comes_first(world, tmp_path):
    found = watched(world, "proxy", tmp_path, judge_count=0, total_steps=32)
    points, falls, alarms = found["points"], found["falls"], found["alarms"]
    start, peak, end = points[0], points[falls["peak"]], points[-1]
    assert start["gold"] < peak["gold"] > 0.5
    assert end["gold"] < start["gold"] - 1
    assert end["proxy"] > peak["proxy"] + 3
    assert alarms["Reward and gold score part"] < falls["peak"]
    assert alarms["Some answers score far above the rest"] < falls["10%"]
    assert alarms["The reward model is over-optimised"] > falls["25%"]
    assert falls["peak"] < falls["10%"] <= falls["25%"] <= falls["50%"] <= falls["100%"]
