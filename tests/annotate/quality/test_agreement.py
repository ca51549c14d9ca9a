"""Agreement against scikit-learn, the `krippendorff` package, naive loops and worked examples from the papers."""

import itertools

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from annotate.quality.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, raw_agreement
from annotate.quality.estimates import Resampling
from annotate.quality.labels import LabelMatrix, label_matrix
from rlhf_kit.errors import InputError
from rlhf_kit.evaluation.intervals import resample_weights

FEW = Resampling(resamples=20)
# Krippendorff (2011), section C: 4 observers, 12 units, 0 is missing.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]
# Fleiss (1971) in its well-known form: 10 subjects, 14 raters, 5 categories.
FLEISS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def random_matrix(seed: int, items: int = 40, people: int = 5, categories: int = 4, missing: float = 0.4) -> LabelMatrix:
    """People who mostly agree with a hidden truth, and labels that are missing at random."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(categories, size=(items, 1))
    codes = np.where(rng.random((items, people)) < 0.6, truth, rng.integers(categories, size=(items, people)))
    codes = np.where(rng.random((items, people)) < missing, -1, codes).astype(np.int16)
    return LabelMatrix(codes, list(range(items)), list(range(people)), [-3, -1, 0, 2][:categories])


def from_counts(counts) -> LabelMatrix:
    rows = [list(itertools.chain(*([k] * c for k, c in enumerate(row)))) for row in counts]
    return label_matrix((i, a, label) for i, row in enumerate(rows) for a, label in enumerate(row))


@pytest.mark.parametrize("scale", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(6))
def test_alpha_is_that_of_the_krippendorff_package(seed, scale):
    matrix = random_matrix(seed)
    values = np.where(matrix.codes < 0, np.nan, np.array(matrix.categories, dtype=float)[matrix.codes]).T
    expected = krippendorff.alpha(values, level_of_measurement=scale, value_domain=matrix.categories)
    assert krippendorff_alpha(matrix, scale, FEW).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_paper_s_own_example(scale, published):
    records = [(unit, person, v) for person, row in enumerate(KRIPPENDORFF) for unit, v in enumerate(row) if v]
    found = krippendorff_alpha(label_matrix(records), scale, FEW)
    assert round(found.value, 3) == published
    assert found.n == 11  # unit 12 has one label, which nothing can be compared with


@pytest.mark.parametrize("weights", ["nominal", "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_that_of_scikit_learn(seed, weights):
    matrix = random_matrix(seed)
    for a, b in itertools.combinations(matrix.annotators, 2):
        both = (matrix.codes[:, [a, b]] >= 0).all(1)
        x, y = matrix.codes[both, a], matrix.codes[both, b]
        expected = cohen_kappa_score(x, y, labels=range(4), weights=None if weights == "nominal" else weights)
        found = cohen_kappa(matrix, a, b, weights, FEW)
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert found.n == both.sum()


def test_a_step_of_the_scale_that_nobody_used_still_counts_as_a_step():
    records = [(0, "a", -2), (0, "b", 2), (1, "a", 2), (1, "b", 2), (2, "a", 1), (2, "b", 2), (3, "a", -2), (3, "b", -2)]
    whole, used = label_matrix(records, [-2, -1, 0, 1, 2]), label_matrix(records)
    # Linear costs: observed (4 + 0 + 1 + 0) / 4; a has {-2: 2, 1: 1, 2: 1}, b {-2: 1, 2: 3}:
    # expected (2 * 3 * 4 + 1 * 1 * 3 + 1 * 3 * 1 + 1 * 1 * 4) / 16 = 34 / 16.
    assert cohen_kappa(whole, "a", "b", "linear", FEW).value == pytest.approx(1 - (5 / 4) / (34 / 16), abs=1e-12)
    assert cohen_kappa(used, "a", "b", "linear", FEW).value != pytest.approx(1 - (5 / 4) / (34 / 16), abs=1e-3)


def test_fleiss_of_the_well_known_example():
    found = fleiss_kappa(from_counts(FLEISS), FEW)
    assert round(found.value, 3) == 0.210
    assert found.reason == ""


@pytest.mark.parametrize("seed", range(4))
def test_fleiss_is_the_naive_loop_over_pairs_of_raters(seed):
    matrix = random_matrix(seed, people=4, missing=0.0)
    rows = matrix.codes.tolist()
    agreeing = [np.mean([a == b for a, b in itertools.permutations(row, 2)]) for row in rows]
    everything = list(itertools.chain(*rows))
    chance = sum((everything.count(k) / len(everything)) ** 2 for k in range(4))
    expected = (np.mean(agreeing) - chance) / (1 - chance)
    assert fleiss_kappa(matrix, FEW).value == pytest.approx(expected, abs=1e-12)


def test_fleiss_says_which_items_it_left_out():
    matrix = label_matrix([(0, "a", 1), (0, "b", 1), (1, "a", 0), (1, "b", 1), (2, "a", 0), (2, "b", 0), (3, "a", 0)])
    found = fleiss_kappa(matrix, FEW)
    assert found.n == 3
    assert "1 of 4 items left out: they do not have 2 labels" in found.reason
    # Agreement 2/3 over three items; three labels of each kind: chance 1/2.
    assert found.value == pytest.approx((2 / 3 - 1 / 2) / (1 / 2), abs=1e-15)


def test_raw_agreement_counts_each_pair_of_labels_once():
    matrix = label_matrix([(0, "a", 1), (0, "b", 1), (0, "c", 0), (1, "a", 1), (1, "b", 1), (2, "c", 1)])
    found = raw_agreement(matrix, FEW)
    assert found.value == pytest.approx(2 / 4, abs=1e-15)  # one of three pairs, and one of one
    assert found.n == 2


@pytest.mark.parametrize("measure", [raw_agreement, fleiss_kappa, krippendorff_alpha])
def test_without_overlap_a_measure_is_undefined_and_says_so(measure):
    found = measure(label_matrix([(0, "a", 1), (1, "b", 0)]))
    assert found.value is None and found.low is None
    assert found.reason == "no item has labels from two people"


@pytest.mark.parametrize(
    "measure", [fleiss_kappa, krippendorff_alpha, lambda m: krippendorff_alpha(m, "ordinal"), lambda m: cohen_kappa(m, "a", "b")]
)
def test_where_all_labels_are_the_same_agreement_beyond_chance_is_undefined_and_says_so(measure):
    found = measure(label_matrix([(i, a, "left") for i in range(5) for a in "ab"]))
    assert found.value is None and found.high is None
    assert found.reason == "all 10 labels are 'left': nothing could disagree, so agreement beyond chance is 0/0"


def test_two_who_share_no_item_have_no_kappa():
    found = cohen_kappa(label_matrix([(0, "a", 1), (1, "b", 0)]), "a", "b")
    assert (found.value, found.n) == (None, 0)
    assert found.reason == "'a' and 'b' share no item"


def test_perfect_and_opposite_agreement():
    same = label_matrix([(i, a, i % 2) for i in range(6) for a in "ab"])
    opposite = label_matrix([(i, a, (i + j) % 2) for i in range(6) for j, a in enumerate("ab")])
    assert cohen_kappa(same, "a", "b", how=FEW).value == 1
    assert cohen_kappa(opposite, "a", "b", how=FEW).value == -1


def test_the_interval_is_the_bootstrap_of_the_measure_itself():
    matrix = random_matrix(0, items=15, missing=0.2)
    how = Resampling(resamples=50, seed=3)
    rated = (matrix.codes >= 0).sum(1) >= 2
    kept = matrix._replace(codes=matrix.codes[rated])
    draws = []
    for weights in np.concatenate(list(resample_weights(len(kept.codes), None, how.resamples, how.seed))):
        again = kept._replace(codes=np.repeat(kept.codes, weights.astype(int), axis=0))
        draws.append(krippendorff_alpha(again, "ordinal", Resampling(resamples=1)).value)
    found = krippendorff_alpha(matrix, "ordinal", how)
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-12)


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100():
    # Two people who agree by chance on one half and always on the other have kappa 1/2 over two even categories.
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        first = rng.integers(2, size=150)
        second = np.where(rng.random(150) < 0.5, first, rng.integers(2, size=150))
        matrix = LabelMatrix(np.stack([first, second], 1).astype(np.int16), list(range(150)), ["a", "b"], [0, 1])
        found = cohen_kappa(matrix, "a", "b", how=Resampling(resamples=300))
        covered += found.low <= 0.5 <= found.high
    assert 178 <= covered <= 199  # 190 expected, standard deviation 3; a percentile bootstrap of 150 items falls a little short


def test_a_resample_in_which_the_measure_is_undefined_is_left_out_and_reported():
    matrix = label_matrix([(i, a, int(i == 0 and a == "a")) for i in range(4) for a in "ab"])
    found = cohen_kappa(matrix, "a", "b", how=Resampling(resamples=200))
    assert found.value == 0
    assert "of 200 resamples, which the interval leaves out" in found.reason
    assert found.low == found.high == 0
    assert "every resample gives the same" in found.reason


def test_full_agreement_on_a_few_items_is_not_certainty():
    found = raw_agreement(label_matrix([(i, a, i % 2) for i in range(6) for a in "ab"]), FEW)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 6), abs=1e-12)  # Clopper and Pearson's bound for 6 of 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: cohen_kappa(m, "a", "z"), "second is 'z'"),
        (lambda m: cohen_kappa(m, "a", "a"), "another annotator"),
        (lambda m: cohen_kappa(m, "a", "b", "cubic"), "weights is 'cubic'"),
        (lambda m: krippendorff_alpha(m, "ratio"), "scale is 'ratio'"),
        (lambda m: krippendorff_alpha(m, "interval"), "expected numbers for an interval scale"),
        (lambda m: label_matrix([]), "labels is 'empty'"),
        (lambda m: label_matrix([(0, "a", 1), (0, "a", 1)]), "keep the one that stands"),
        (lambda m: label_matrix([(0, "a", 5)], [0, 1]), "label of 0 by 'a' is 5"),
        (lambda m: Resampling(resamples=0), "resamples is 0"),
        (lambda m: Resampling(level=1.0), "level is 1.0"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(label_matrix([(0, "a", "x"), (0, "b", "y")]))
