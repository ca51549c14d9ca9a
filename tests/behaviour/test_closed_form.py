"""The world whose optimum is known: the oracle itself, and how close the algorithms come to it."""

import statistics

import pytest
import torch

from benchmarks.closed_form import BETA, LENGTH, PROMPTS, VOCAB, make_world, run


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


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
@pytest.mark.timeout(900)
def test_the_policy_comes_within_a_tenth_of_a_nat_of_the_optimum(algorithm, tmp_path):
    distances = [run(algorithm, seed, tmp_path / str(seed))[0] for seed in range(5)]
    assert statistics.mean(distances) < 0.1, distances
