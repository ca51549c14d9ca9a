"""Intervals of shares, exact binomial tails and adjusted p-values, against scipy."""

import numpy as np
import pytest
from scipy import stats

from annotate.quality.estimates import (
    Resampling,
    benjamini_hochberg,
    binomial_at_least,
    binomial_at_most,
    fair_coin_test,
    percentile_interval,
    wilson,
)
from rlhf_kit.errors import InputError


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (1, 7), (40, 50), (0, 1), (999, 2000)])
def test_wilson_is_scipy_s(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    found = wilson(k, n, 0.9)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert found.low <= k / n <= found.high


def test_wilson_of_nothing_says_so_and_a_count_out_of_range_is_refused():
    assert wilson(0, 0, reason="no gold item").reason == "no gold item"
    assert wilson(0, 0).value is None
    with pytest.raises(InputError, match="successes is 4"):
        wilson(4, 3)


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 10, 0.5), (3, 10, 0.7), (10, 10, 0.2), (-1, 4, 0.5), (480, 1000, 0.5), (5, 4000, 0.1)]
)
def test_binomial_tails_are_scipy_s(k, n, p):
    assert binomial_at_most(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-10)
    assert binomial_at_least(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-10)


@pytest.mark.parametrize(("k", "n"), [(0, 8), (4, 8), (7, 8), (61, 100), (39, 100), (5, 9)])
def test_the_coin_test_is_scipy_s(k, n):
    assert fair_coin_test(k, n) == pytest.approx(stats.binomtest(k, n).pvalue, rel=1e-10)


def test_adjusted_p_values_are_scipy_s():
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-14)
    assert benjamini_hochberg([]).size == 0


def test_an_interval_needs_a_figure_in_more_than_half_of_the_resamples():
    draws = np.array([np.nan, np.nan, 1.0, 2.0])
    assert percentile_interval(draws, Resampling(resamples=4))[:2] == (None, None)
    low, high, note = percentile_interval(np.array([np.nan, 0.0, 1.0, 2.0]), Resampling(resamples=4))
    assert (low, high) == pytest.approx((0.05, 1.95))
    assert note == "undefined in 1 of 4 resamples, which the interval leaves out"
