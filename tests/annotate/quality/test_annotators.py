"""Biases against scipy and scikit-learn, and flags on people who misbehave in a known way."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from annotate.quality.annotators import profile_annotators
from annotate.quality.biases import left_rate, length_slope, longest_run, robust_z, run_bound, too_fast
from annotate.quality.estimates import Resampling
from annotate.quality.flags import Check, Thresholds, raise_flags
from annotate.quality.labels import Judgment
from rlhf_kit.errors import InputError

FEW = Resampling(resamples=60)


def test_the_left_rate_leaves_ties_out():
    rate, p = left_rate([1] * 8 + [-1] * 2 + [0] * 5)
    assert (rate.value, rate.n) == (0.8, 10)
    assert p == pytest.approx(2 * (1 + 10 + 45) / 2**10, abs=1e-15)
    nothing, p = left_rate([0, 0])
    assert nothing.value is None and nothing.reason == "no pair was decided" and p == 1.0


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e4])
def test_the_length_slope_is_scikit_learn_s_and_scales_with_its_unit(unit):
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=200) * 80
    left = np.where(rng.random(200) < 1 / (1 + np.exp(-0.4 - 0.01 * gaps)), 1, -1)
    left[::7] = 0
    expected = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(
        gaps[left != 0, None], left[left != 0] > 0
    )
    found = length_slope(left, gaps * unit)
    assert found.value * unit == pytest.approx(expected.coef_[0, 0], rel=1e-8)
    p = expected.predict_proba(gaps[left != 0, None])[:, 1]
    design = np.column_stack([np.ones(len(p)), gaps[left != 0]])
    error = np.sqrt(np.linalg.inv(design.T * (p * (1 - p)) @ design)[1, 1])
    assert (found.high - found.value) * unit == pytest.approx(1.959963984540054 * error, rel=1e-6)


@pytest.mark.parametrize(
    ("choices", "gaps", "reason"),
    [
        ([0, 0], [1, 2], "no pair was decided"),
        ([1, 1, 1], [1, 2, 3], "choices of both sides"),
        ([1, -1], [5, 5], "same in every pair"),
        ([1, 1, -1, -1], [3, 2, 1, 2], "no bound"),
        ([], [], "no pair was decided"),
    ],
)
def test_a_length_slope_that_is_not_there_says_why(choices, gaps, reason):
    found = length_slope(choices, gaps)
    assert found.value is None and reason in found.reason


def test_too_fast_is_faster_than_reading():
    found = too_fast([10, 20.0, 60, 0.1], [233, 233, 233, 0], words_a_minute=700)  # 233 words take 19.97 seconds
    assert (found.value, found.n) == (0.25, 4)
    with pytest.raises(InputError, match="words_a_minute is 0"):
        too_fast([1], [1], words_a_minute=0)


def test_robust_z_does_not_let_an_outlier_hide_itself():
    values = [*np.random.default_rng(0).normal(size=50), 9.0]
    z = robust_z(values)
    assert z[-1] > 6 > 4 > np.abs(z[:-1]).max()
    np.testing.assert_allclose(robust_z([1, 2, 3, 4, 5]), np.array([-2, -1, 0, 1, 2]) / 1.4826, atol=1e-15)
    assert robust_z([1.0, 1.0, 1.0, 7.0]).tolist() == [0, 0, 0, 0]


def test_the_longest_run_and_where_it_starts():
    assert longest_run([1, 2, 2, 1, 1, 1, 2, 2, 2]) == (3, 3)
    assert longest_run([]) == (0, 0)
    assert longest_run([5]) == (1, 0)


def test_the_bound_on_runs_is_above_their_frequency_and_close_to_it_in_the_tail():
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.3, 0.2])
    longest = np.array([longest_run(rng.choice(3, size=60, p=shares))[0] for _ in range(4000)])
    for length in (4, 7, 9, 11):
        seen = (longest >= length).mean()
        assert run_bound(length, 60, shares) >= seen - 4 * np.sqrt(seen / 4000)
    assert run_bound(11, 60, shares) < 1.5 * (longest >= 11).mean()
    assert run_bound(61, 60, shares) == 0
    assert run_bound(3, 3, [0.5, 0.5]) == pytest.approx(2 * 0.5**3)


def team(n_items: int = 200, seed: int = 0, **people):
    """Judgments of ten ordinary people and of those given: (rng, truth, longer, first on the left) -> (strength, seconds)."""
    rng = np.random.default_rng(seed)

    def ordinary(rng, truth, longer, first_left):
        return (truth if rng.random() < 0.85 else -truth) * int(rng.integers(1, 4)), float(rng.lognormal(3.6, 0.4))

    behaviours = {f"good{i}": ordinary for i in range(10)} | people
    judgments = []
    for item in range(n_items):
        truth, words = int(rng.choice([-1, 1])), tuple(int(w) for w in rng.integers(40, 160, 2))
        for name, behave in behaviours.items():
            if rng.random() < 0.5:
                first_left = bool(rng.integers(2))
                strength, seconds = behave(rng, truth, 1 if words[0] > words[1] else -1, first_left)
                gold = truth if item % 8 == 0 else None
                judgments.append(
                    Judgment(item, name, strength, first_left, seconds, words, 20, gold=gold, at=float(len(judgments)))
                )
    return judgments


def usual(rng, truth):
    return (truth if rng.random() < 0.85 else -truth) * int(rng.integers(1, 4))


CULPRITS = {
    "left": ("side", lambda rng, t, longer, left: ((1 if left else -1) if rng.random() < 0.6 else usual(rng, t), 40.0)),
    "random": ("agreement", lambda rng, t, longer, left: (int(rng.choice([-2, -1, 1, 2])), 40.0)),
    "long": ("length", lambda rng, t, longer, left: (longer * 2 if rng.random() < 0.5 else usual(rng, t), 40.0)),
    "hasty": ("too fast", lambda rng, t, longer, left: (usual(rng, t), 4.0)),
    "one key": ("same key", lambda rng, t, longer, left: (2 if left else -2, 40.0)),
    "slow": ("pace", lambda rng, t, longer, left: (usual(rng, t), 900.0)),
    "wrong": ("gold", lambda rng, t, longer, left: (-usual(rng, t), 40.0)),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_each_misbehaviour_raises_its_flag_and_nobody_else_s(name):
    kind, behave = CULPRITS[name]
    profiles = {p.annotator: p for p in profile_annotators(team(**{name: behave}), how=FEW)}
    flags = {flag.kind: flag for flag in profiles[name].flags}
    assert kind in flags
    assert flags[kind].p_adjusted is None or flags[kind].p_adjusted < 0.05
    assert str(profiles[name].run) in flags[kind].sentence if kind == "same key" else flags[kind].sentence.endswith(".")
    assert not [flag for p in profiles.values() if p.annotator != name for flag in p.flags]


def test_a_profile_s_figures_are_those_of_the_judgments():
    judgments = team(60)
    mine = [j for j in judgments if j.annotator == "good3"]
    profile = next(p for p in profile_annotators(judgments, how=FEW) if p.annotator == "good3")
    gold = [j for j in mine if j.gold]
    assert profile.labels == len(mine)
    assert (profile.gold.value, profile.gold.n) == (np.mean([j.winner == j.gold for j in gold]), len(gold))
    assert profile.left.value == np.mean([(j.strength > 0) == j.first_on_left for j in mine])
    assert profile.median_seconds == np.median([j.seconds for j in mine])
    pairs = [a.winner == b.winner for a in mine for b in judgments if b.item == a.item and b.annotator != "good3"]
    assert profile.agreement.value == pytest.approx(np.mean(pairs), abs=1e-15)
    assert profile.reliability.low < 0.87 < profile.reliability.high


def test_only_the_three_needed_fields_give_a_profile_that_says_what_is_missing():
    judgments = [Judgment(i, a, 1 if i % 2 else -1) for i in range(12) for a in "ab"]
    profile = profile_annotators(judgments, how=FEW)[0]
    assert profile.agreement.value == 1
    reasons = [profile.gold.reason, profile.left.reason, profile.length.reason, profile.too_fast.reason]
    assert reasons == ["no gold item was judged", "the sides were not kept", "sides or lengths were not kept", "no time was kept"]
    assert profile.median_seconds is None and profile.run is None and profile.flags == []


def test_honest_people_are_hardly_ever_flagged():
    flagged = sum(bool(p.flags) for seed in range(8) for p in profile_annotators(team(100, seed), how=FEW))
    assert flagged <= 3  # of 80 people, seven checks each


def test_flags_allow_for_the_number_of_looks():
    def check(p):
        return Check(0.7, 0.1, p, True, "Leans.")

    one = raise_flags({"a": {"side": check(0.03)}})
    many = raise_flags({"a": {"side": check(0.03)}} | {f"b{i}": {"side": check(0.5)} for i in range(9)})
    assert [f.p_adjusted for f in one["a"]] == [0.03]
    assert many["a"] == []
    assert raise_flags({"a": {"side": check(0.001)._replace(matters=False)}})["a"] == []
    assert raise_flags({"a": {"pace": check(None)}})["a"][0].p_adjusted is None


def test_nobody_is_judged_on_a_handful_of_judgments():
    few = [j for j in team(200, **{"one key": CULPRITS["one key"][1]}) if j.annotator != "one key" or j.item < 16]
    assert not [p.flags for p in profile_annotators(few, Thresholds(fewest=20), FEW) if p.annotator == "one key" and p.flags]
