"""The world whose optimum is known: the oracle itself, and how close the algorithms come to it."""

import statistics

import pytest
import torch

from benchmarks.closed_form import ours, theirs
from benchmarks.closed_form.algorithms import curves, main, summary, table
from benchmarks.closed_form.world import (
    BETA,
    EPISODES,
    LENGTH,
    PROMPTS,
    VOCAB,
    divergence,
    enumerate_logprobs,
    judged_pairs,
    make_world,
)


@pytest.fixture(scope="module")
def world():
    return make_world(0)


def test_every_answer_is_enumerated_once_and_the_distributions_sum_to_one(world):
    assert len(world.answers) == VOCAB**LENGTH
    assert len(world.answers.unique(dim=0)) == VOCAB**LENGTH
    torch.testing.assert_close(world.ref_logprobs.exp().sum(1), torch.ones(len(PROMPTS)), rtol=1e-5, atol=0)
    torch.testing.assert_close(world.optimum.exp().sum(1), torch.ones(len(PROMPTS)), rtol=1e-5, atol=0)
    assert torch.equal(world.reward_of(world.answers), world.rewards)


def test_what_a_policy_lacks_is_beta_times_its_distance_from_the_optimum(world):
    """J* - J(pi) = beta KL(pi || pi*), for the reference and for a random policy."""

    def objective(logprobs):
        p = logprobs.exp()
        return ((p * world.rewards).sum(1) - BETA * (p * (logprobs - world.ref_logprobs)).sum(1)).mean()

    for logprobs in (world.ref_logprobs, torch.log_softmax(torch.randn(len(PROMPTS), VOCAB**LENGTH), 1)):
        distance = (logprobs.exp() * (logprobs - world.optimum)).sum(1).mean()
        torch.testing.assert_close(objective(world.optimum) - objective(logprobs), BETA * distance, rtol=1e-4, atol=1e-5)


def test_answers_that_share_a_beginning_have_the_probabilities_of_a_whole_forward(world):
    logprobs = enumerate_logprobs(world.reference)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.cat([torch.tensor(prompt).expand(50, -1), world.answers[:50]], 1)
        with torch.no_grad():
            each = world.reference(input_ids=ids).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
        whole = each.gather(2, world.answers[:50].unsqueeze(2)).sum((1, 2))
        torch.testing.assert_close(logprobs[i, :50], whole, rtol=1e-5, atol=1e-5)  # fp32 over four tokens


def test_people_choose_as_bradley_and_terry_say(world):
    pairs = judged_pairs(world, 40_000, seed=3)
    chosen, rejected = world.rewards[pairs.chosen], world.rewards[pairs.rejected]
    gap = (chosen - rejected).abs()
    expected = torch.sigmoid(gap).mean()  # how often the better answer of such a pair is chosen
    found = torch.where(gap == 0, 0.5, (chosen > rejected).float()).mean()
    assert float(found) == pytest.approx(float(expected), abs=0.01)  # four standard deviations of 40,000 choices


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
@pytest.mark.timeout(900)
def test_the_policy_comes_within_a_tenth_of_a_nat_of_the_optimum(algorithm, tmp_path):
    found = [ours.run(algorithm, make_world(seed), tmp_path / str(seed))["kl"] for seed in range(5)]
    assert statistics.mean(found) < 0.1, found


@pytest.mark.parametrize(
    ("side", "algorithm"),
    [(side, algorithm) for side in (ours, theirs) for algorithm in side.SETTINGS],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_both_sides_start_at_the_reference_and_move_towards_the_optimum_as_they_are_paid(
    side, algorithm, world, tmp_path, monkeypatch
):
    for module in (ours, theirs):
        monkeypatch.setattr(module, "EPISODES", EPISODES // 20)
    found = side.run(algorithm, world, tmp_path)
    assert [episodes for episodes, _ in found["curve"]] == [EPISODES // 20]
    assert 0 < found["kl"] < 0.8 * divergence(world.ref_logprobs, world.optimum)


def test_a_setting_given_on_the_command_line_is_of_ours_alone(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ours, "EPISODES", EPISODES // 20)
    still = ours.run("rloo", world, tmp_path, learning_rate=0.0)["kl"]
    assert still == pytest.approx(divergence(world.ref_logprobs, world.optimum), abs=1e-6)
    with pytest.raises(SystemExit):
        main(["--settings", '{"learning_rate": 0.0}'])
    assert "add --sides ours" in capsys.readouterr().err


def test_the_table_and_the_picture_hold_both_sides():
    runs = [{"kl": 0.1 * k, "seconds": 2.0, "peak_mb": 5.0, "curve": [(640, 1.0), (1280, 0.1 * k)]} for k in (1, 2, 3)]
    sides = {"ours": {"ppo": summary(runs)}, "trl": {"ppo": summary(runs[:2])}}
    assert "0.2000 +- 0.1000" in table(sides, 2.0)
    assert "0.1500 +- 0.0707" in table(sides, 2.0)
    found = {
        "ours": {"ppo": summary(runs)},
        "trl": {"ppo": summary([run | {"kl": run["kl"] - gap} for run, gap in zip(runs, (0.1, 0.2, 0.3))])},
    }
    assert "+0.2000 +- 0.0577" in table(found, 2.0)  # by hand: gaps of .1, .2, .3; their deviation .1 over the root of 3
    assert curves(sides).count('class="line c1"') == 3 + 1  # the legend's too
