"""Statistics of few requests: a value, and an interval that says how little is known."""

import math

import numpy as np
import pytest

from planner.domain.distributions import student_t_quantile
from planner.simulate import statistics


@pytest.mark.parametrize("n", [1, 2, 19])
def test_a_percentile_of_fewer_requests_than_batches_has_no_upper_bound(n):
    values = np.arange(n, dtype=np.float64)
    found = statistics.percentile(values, 99.0)
    assert (found.value, found.low, found.high, found.n) == (n - 1, 0, math.inf, n)


def test_a_mean_of_fewer_requests_than_batches_may_be_anywhere():
    found = statistics.mean(np.array([1.0, 3.0]))
    assert (found.value, found.low, found.high) == (2, -math.inf, math.inf)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(7)
    found = [statistics.mean(rng.exponential(1.0, 400)) for _ in range(2000)]
    covered = np.mean([each.low <= 1.0 <= each.high for each in found])
    assert 0.93 <= covered <= 0.97
    widths = np.array([each.high - each.low for each in found])
    assert np.mean(widths) == pytest.approx(2 * student_t_quantile(0.975, 19) / math.sqrt(400), rel=0.05)


def test_the_upper_end_of_a_mean_is_one_that_clustered_requests_stay_below():
    """Four in five: starts that ten requests in a row wait for are one event, not ten."""
    rng = np.random.default_rng(5)
    below, naive = [], []
    for _ in range(1000):
        waits = np.repeat(rng.exponential(1.0, 60) * (rng.random(60) < 0.3), 10)
        below.append(statistics.upper_mean(waits, 0.8) >= 0.3)
        naive.append(waits.mean() + 0.84 * waits.std() / math.sqrt(len(waits)) >= 0.3)
    assert 0.75 <= np.mean(below) <= 0.87
    assert np.mean(naive) < 0.65
    assert statistics.upper_mean(np.ones(9), 0.8) == math.inf  # nothing is known of the spread
    assert statistics.upper_mean(np.array([1.0] * 39 + [math.inf]), 0.8) == math.inf
    assert statistics.upper_mean(np.ones(20), 0.8) == 1.0


@pytest.mark.parametrize(
    ("asked", "n"), [(0.99, 500), (0.99, 800), (0.99, 2000), (0.95, 100), (0.95, 1000), (0.5, 400)]
)
def test_a_share_is_seldom_thought_surely_larger_than_it_is(asked, n):
    """Of independent requests as late as may be, the interval lies above in one case of forty, at most."""
    rng = np.random.default_rng(11)
    found = [statistics.fraction((rng.random(n) < asked).astype(float)) for _ in range(4000)]
    assert np.mean([each.low >= asked for each in found]) <= 0.03
    assert np.mean([each.high < asked for each in found]) <= 0.05


def test_the_interval_of_a_percentile_covers_it_and_is_no_wider_than_it_need_be():
    rng = np.random.default_rng(3)
    true = -math.log(0.05)
    found = [statistics.percentile(rng.exponential(1.0, 2000), 95.0) for _ in range(1000)]
    covered = np.mean([each.low <= true <= each.high for each in found])
    assert 0.93 <= covered <= 0.995
    deviation = math.sqrt(0.95 * 0.05 / 2000) / 0.05  # of the sample percentile, asymptotically
    assert np.median([each.high - each.low for each in found]) < 2 * 2.5 * deviation


def test_requests_that_come_late_together_widen_the_interval():
    values = np.ones(2000)
    values[500:520] = 0.0
    spread = np.ones(2000)
    spread[::100] = 0.0
    assert statistics.fraction(values).low < statistics.fraction(spread).low
