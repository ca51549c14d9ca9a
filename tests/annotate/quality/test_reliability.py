"""Dawid and Skene's model against a naive one, and on people whose confusion matrices are known."""

import numpy as np
import pytest

from annotate.quality.labels import LabelMatrix
from annotate.quality.reliability import dawid_skene
from rlhf_kit.errors import InputError

ACCURACIES = [0.95, 0.9, 0.8, 0.7, 0.6]


def simulated(items: int, accuracies, seed: int = 0, missing: float = 0.0, prior=(0.45, 0.1, 0.45)):
    """Labels -1, 0, 1 of people who are right with the given chance and otherwise wrong either way."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, size=items, p=prior)
    wrong = (truth[:, None] + rng.integers(1, 3, size=(items, len(accuracies)))) % 3
    codes = np.where(rng.random((items, len(accuracies))) < accuracies, truth[:, None], wrong)
    codes = np.where(rng.random(codes.shape) < missing, -1, codes).astype(np.int16)
    return LabelMatrix(codes, list(range(items)), [f"p{i}" for i in range(len(accuracies))], [-1, 0, 1]), truth


def naive(matrix: LabelMatrix, steps: int, smoothing: float):
    """The paper's equations as loops, in plain probabilities."""
    n, people, k = len(matrix.items), len(matrix.annotators), len(matrix.categories)
    codes = matrix.codes
    posterior = np.array([[smoothing + sum(codes[i, a] == c for a in range(people)) for c in range(k)] for i in range(n)])
    posterior = posterior / posterior.sum(1, keepdims=True)
    for _ in range(steps):
        prior = np.array([smoothing + sum(posterior[i, c] for i in range(n)) for c in range(k)])
        prior = prior / prior.sum()
        confusion = np.zeros((people, k, k))
        for a in range(people):
            for true in range(k):
                for label in range(k):
                    pseudo = smoothing * (2 if true == label else 1)
                    confusion[a, true, label] = pseudo + sum(posterior[i, true] for i in range(n) if codes[i, a] == label)
                confusion[a, true] /= confusion[a, true].sum()
        for i in range(n):
            for c in range(k):
                posterior[i, c] = prior[c] * np.prod([confusion[a, c, codes[i, a]] for a in range(people) if codes[i, a] >= 0])
            posterior[i] /= posterior[i].sum()
    return posterior, prior, confusion


def test_it_is_the_naive_algorithm_step_for_step():
    matrix, _ = simulated(25, ACCURACIES, missing=0.3)
    matrix.codes[:, 0] = np.maximum(matrix.codes[:, 0], 0)  # nobody goes unlabelled
    for steps in (1, 2, 7):
        found = dawid_skene(matrix, iterations=steps, tolerance=0.0)
        posterior, prior, confusion = naive(matrix, steps, 0.5)
        np.testing.assert_allclose(found.posterior, posterior, atol=1e-12)
        np.testing.assert_allclose(found.prior, prior, atol=1e-12)
        np.testing.assert_allclose(found.confusion, confusion, atol=1e-12)


def test_known_confusion_matrices_come_back():
    matrix, truth = simulated(4000, ACCURACIES, missing=0.2)
    found = dawid_skene(matrix)
    assert found.converged
    # 3,200 labels a person: a standard error of at most 0.009, and four of them.
    np.testing.assert_allclose(found.accuracy, ACCURACIES, atol=0.035)
    majority = matrix.counts().argmax(1)
    assert (found.posterior.argmax(1) == truth).mean() > (majority == truth).mean() + 0.01


def test_each_step_raises_the_objective():
    matrix, _ = simulated(200, ACCURACIES, missing=0.4, seed=3)
    objective = np.array(dawid_skene(matrix).objective)
    assert len(objective) > 5
    assert (np.diff(objective) > -1e-9 * np.abs(objective[:-1])).all()


def test_turning_every_pair_round_turns_the_answer_round_and_nothing_else():
    matrix, _ = simulated(150, ACCURACIES, missing=0.4, seed=5)
    turned = matrix._replace(codes=np.where(matrix.codes < 0, -1, 2 - matrix.codes).astype(np.int16))
    one, other = dawid_skene(matrix), dawid_skene(turned)
    np.testing.assert_allclose(one.posterior, other.posterior[:, ::-1], atol=1e-12)
    np.testing.assert_allclose(one.accuracy, other.accuracy, atol=1e-12)


def test_somebody_who_answers_the_wrong_way_round_is_seen_and_read_the_right_way_round():
    matrix, truth = simulated(600, [0.85, 0.85, 0.8, 0.02], seed=1, prior=(0.5, 0.0, 0.5))
    found = dawid_skene(matrix)
    assert found.accuracy[3] < 0.1
    assert (found.posterior.argmax(1) == truth).mean() > 0.85


def test_gold_decides_where_most_people_are_wrong():
    matrix, truth = simulated(400, [0.9, 0.1, 0.1], seed=2, prior=(0.5, 0.0, 0.5))
    gold = np.where(np.arange(400) < 100, truth, -1)
    without, given = dawid_skene(matrix), dawid_skene(matrix, gold=gold)
    assert without.accuracy.argmax() != 0
    assert given.accuracy.argmax() == 0 and given.accuracy[0] > 0.85
    np.testing.assert_array_equal(given.posterior[:100].argmax(1), truth[:100])
    assert (given.posterior[:100].max(1) == 1).all()


def test_expected_right_counts_the_posterior_of_what_was_said():
    matrix, _ = simulated(60, ACCURACIES, missing=0.3, seed=7)
    found = dawid_skene(matrix)
    by_hand = [sum(found.posterior[i, c] for i, c in enumerate(column) if c >= 0) for column in matrix.codes.T]
    np.testing.assert_allclose(found.expected_right, by_hand, atol=1e-12)
    np.testing.assert_array_equal(found.labels, (matrix.codes >= 0).sum(0))


def test_bad_input_is_named():
    matrix, _ = simulated(5, ACCURACIES)
    with pytest.raises(InputError, match="smoothing is 0"):
        dawid_skene(matrix, smoothing=0)
    with pytest.raises(InputError, match="expected 5 codes below 3"):
        dawid_skene(matrix, gold=[3, 0, 0, 0, 0])
