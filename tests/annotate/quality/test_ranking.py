"""Bradley and Terry's model with ties and length, against scikit-learn and a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from annotate.quality.choice import fit_choice
from annotate.quality.estimates import Resampling
from annotate.quality.ranking import bradley_terry, length_feature, ranking_pairs
from rlhf_kit.errors import InputError

FEW = Resampling(resamples=10)
STRENGTHS = np.array([0.8, 0.3, -0.2, -0.9])


def simulated(n: int, nu: float = 0.0, length: float = 0.0, seed: int = 0, strengths=STRENGTHS):
    """Models, outcomes and lengths drawn from the model itself."""
    rng = np.random.default_rng(seed)
    m = len(strengths)
    first = rng.integers(m, size=n)
    second = (first + rng.integers(1, m, size=n)) % m
    lengths = rng.integers(10, 400, size=(n, 2))
    gap = strengths[first] - strengths[second] + length * length_feature(lengths)
    chances = np.stack([np.exp(gap / 2), np.exp(-gap / 2), np.full(n, nu)], 1)
    chances /= chances.sum(1, keepdims=True)
    drawn = (rng.random((n, 1)) > chances.cumsum(1)).sum(1)
    return first.tolist(), second.tolist(), np.array([1, -1, 0])[drawn], lengths


def by_model(ranking):
    order = np.argsort(ranking.models)
    return np.array([ranking.strengths[i].value for i in order])


def scikit(features, outcomes, weights=None):
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    return model.fit(features, outcomes > 0, sample_weight=weights).coef_[0]


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_it_is_scikit_learn_s_logistic_regression(seed):
    first, second, outcomes, _ = simulated(300, seed=seed)
    features = np.eye(4)[first] - np.eye(4)[second]
    expected = np.append(0, scikit(features[:, 1:], outcomes))
    np.testing.assert_allclose(by_model(bradley_terry(first, second, outcomes, how=FEW)), expected - expected.mean(), atol=1e-8)


def test_length_control_without_ties_is_scikit_learn_s_logistic_regression():
    first, second, outcomes, lengths = simulated(400, length=0.7)
    features = np.column_stack([(np.eye(4)[first] - np.eye(4)[second])[:, 1:], length_feature(lengths)])
    expected = scikit(features, outcomes)
    found = bradley_terry(first, second, outcomes, lengths=lengths, how=FEW)
    assert found.length.value == pytest.approx(expected[3], abs=1e-8)
    models = np.append(0, expected[:3])
    np.testing.assert_allclose(by_model(found), models - models.mean(), atol=1e-8)


def test_weights_are_scikit_learn_s_sample_weights():
    first, second, outcomes, _ = simulated(200, seed=4)
    weights = np.random.default_rng(0).uniform(0.5, 3, 200)
    expected = np.append(0, scikit((np.eye(4)[first] - np.eye(4)[second])[:, 1:], outcomes, weights))
    found = by_model(bradley_terry(first, second, outcomes, weights=weights, how=FEW))
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-8)


@pytest.mark.parametrize("controlled", [False, True])
def test_with_ties_it_is_the_maximum_that_a_general_optimiser_finds(controlled):
    first, second, outcomes, lengths = simulated(300, nu=0.8, length=0.5)
    extra = length_feature(lengths) if controlled else np.zeros(300)

    def loss(x):
        strengths, nu, slope = np.append(0, x[:3]), np.exp(x[3]), x[4]
        worth = np.exp(strengths)
        total = 0.0
        for a, b, outcome, more in zip(first, second, outcomes, extra):
            p, q = worth[a] * np.exp(slope * more), worth[b]
            tie = nu * np.sqrt(p * q)  # Davidson's eq. 2.3
            total -= np.log({1: p, -1: q, 0: tie}[int(outcome)] / (p + q + tie))
        return total + 1e-3 * (x[4] ** 2 if not controlled else 0)

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7}).x
    found = bradley_terry(first, second, outcomes, lengths=lengths if controlled else None, how=FEW)
    models = np.append(0, best[:3])
    # BFGS with numerical gradients is good to about the root of the rounding.
    np.testing.assert_allclose(by_model(found), models - models.mean(), atol=2e-5)
    order = np.argsort(found.models)
    tie = found.tie[np.ix_(order, order)]
    gap = models[:, None] - models
    nu = np.exp(best[3])
    np.testing.assert_allclose(tie, nu / (np.exp(gap / 2) + np.exp(-gap / 2) + nu), atol=2e-5)


def test_the_gradient_is_zero_at_the_fit_and_the_covariance_is_the_inverse_of_the_curvature():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 3))
    outcomes = rng.integers(-1, 2, 120).astype(float)
    fit = fit_choice(features, outcomes)

    def log_likelihood(x):
        gap = features @ x[:3]
        top = np.where(outcomes == 0, x[3], outcomes * gap / 2)
        return (top - np.log(np.exp(gap / 2) + np.exp(-gap / 2) + np.exp(x[3]))).sum()

    at = np.append(fit.coefficients, fit.log_nu)
    assert fit.log_likelihood == pytest.approx(log_likelihood(at), abs=1e-10)
    step = 1e-4
    e = np.eye(4) * step
    gradient = [(log_likelihood(at + e[i]) - log_likelihood(at - e[i])) / (2 * step) for i in range(4)]
    np.testing.assert_allclose(gradient, 0, atol=1e-6)  # central differences: step squared times the third derivative
    curvature = [
        [
            (log_likelihood(at + e[i] + e[j]) - log_likelihood(at + e[i] - e[j]) - log_likelihood(at - e[i] + e[j])
             + log_likelihood(at - e[i] - e[j])) / (4 * step**2)
            for j in range(4)
        ]
        for i in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(fit.covariance @ -np.array(curvature), np.eye(4), atol=1e-4)


def test_strengths_and_intervals_are_those_that_the_data_were_drawn_from():
    inside, hessian = 0, 0
    for seed in range(20):
        first, second, outcomes, _ = simulated(400, nu=0.5, seed=seed)
        found = bradley_terry(first, second, outcomes, how=Resampling(resamples=100, seed=seed))
        for model, estimate, (low, high) in zip(found.models, found.strengths, found.hessian):
            truth = STRENGTHS[model] - STRENGTHS.mean()
            inside += estimate.low <= truth <= estimate.high
            hessian += low <= truth <= high
    # 80 intervals, correlated within a run: 76 expected, standard deviation about 3.
    assert 67 <= inside <= 80
    assert 67 <= hessian <= 80


def test_a_long_winded_model_loses_its_lead_when_length_is_held_equal():
    rng = np.random.default_rng(0)
    long, short = rng.integers(200, 400, 600), rng.integers(50, 300, 600)
    gap = 2.0 * length_feature(np.stack([long, short], 1))
    outcomes = np.where(rng.random(600) < 1 / (1 + np.exp(-gap)), 1, -1)
    plain = bradley_terry(["long"] * 600, ["short"] * 600, outcomes, how=FEW)
    controlled = bradley_terry(
        ["long"] * 600, ["short"] * 600, outcomes, lengths=np.stack([long, short], 1), how=Resampling(resamples=100)
    )
    assert plain.models[0] == "long" and plain.win[0, 1] > 0.7
    low, high = sorted(e.value for e in controlled.strengths)
    assert high - low < 0.6  # no difference in truth; a standard error of 0.15
    assert controlled.length.low < 2.0 < controlled.length.high


def test_win_tie_and_loss_are_all_there_is_and_two_models_give_their_own_frequencies():
    found = bradley_terry(["a"] * 10, ["b"] * 10, [1] * 5 + [-1] * 2 + [0] * 3, how=FEW)
    assert found.models == ["a", "b"]
    np.testing.assert_allclose([found.win[0, 1], found.win[1, 0], found.tie[0, 1]], [0.5, 0.2, 0.3], atol=1e-10)
    np.testing.assert_allclose(found.expected, [0.65, 0.35], atol=1e-10)
    np.testing.assert_array_equal(found.comparisons, [10, 10])


def test_clusters_are_resampled_together():
    first, second, outcomes, _ = simulated(60, seed=1)
    once = bradley_terry(first, second, outcomes, how=Resampling(resamples=200))
    copied = bradley_terry(first * 4, second * 4, [*outcomes] * 4, clusters=[*range(60)] * 4, how=Resampling(resamples=200))
    for one, other in zip(once.strengths, copied.strengths):
        assert other.value == pytest.approx(one.value, abs=1e-9)
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-9)
    assert (copied.hessian[:, 1] - copied.hessian[:, 0] < 0.6 * (once.hessian[:, 1] - once.hessian[:, 0])).all()


@pytest.mark.parametrize(
    ("games", "reason"),
    [
        ([("a", "b", 1), ("a", "b", -1), ("c", "d", 0)], "no comparison links 'a', 'b' with 'c', 'd'"),
        ([("a", "b", 1), ("a", "b", -1), ("a", "c", 1), ("b", "c", 1)], "'c' lost every comparison with the others"),
        ([("c", "a", -1), ("c", "b", -1), ("a", "b", 0)], "'c' lost every comparison with the others"),
        ([("a", "b", 0), ("b", "c", 0)], "every comparison is a tie"),
    ],
)
def test_strengths_without_a_bound_are_not_given_and_it_says_why(games, reason):
    found = bradley_terry(*zip(*games), how=FEW)
    assert reason in found.reason
    assert all(estimate.value is None and reason in estimate.reason for estimate in found.strengths)


def test_resamples_without_a_ranking_are_left_out_and_reported():
    outcomes = [1] * 6 + [-1]
    found = bradley_terry(["a"] * 7, ["b"] * 7, outcomes, how=Resampling(resamples=100))
    assert found.strengths[0].value == pytest.approx(np.log(6) / 2, abs=1e-10)
    assert "of 100 resamples, which the interval leaves out" in found.strengths[0].reason


def test_length_that_tells_models_apart_cannot_be_controlled_for():
    found = bradley_terry(["a"] * 6, ["b"] * 6, [1, 1, -1, 1, -1, 1], lengths=[[20, 10]] * 6, how=FEW)
    assert found.reason == "length and model cannot be told apart"


def test_a_ranking_becomes_all_its_pairs():
    assert ranking_pairs([2, 0, 1]) == [(2, 0), (2, 1), (0, 1)]
    with pytest.raises(InputError, match="each answer once"):
        ranking_pairs([0, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"second": ["a", "b"]}, "comparison 0 is 'a', expected two different models"),
        ({"outcomes": [1]}, "one length for all"),
        ({"weights": [1, -1]}, "weights is -1.0"),
        ({"lengths": [1, 2]}, "expected two lengths"),
        ({"outcomes": [1, float("nan")]}, "finite"),
    ],
)
def test_bad_input_is_named(changes, words):
    games = {"first": ["a", "a"], "second": ["b", "b"], "outcomes": [1, -1], **changes}
    with pytest.raises(InputError, match=words):
        bradley_terry(**games)
