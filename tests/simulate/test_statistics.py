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


def test_as_many_clustered_requests_more_stay_below_what_is_said_as_often_as_it_says():
    """Four in five: starts that ten requests in a row wait for are one event, not ten."""
    rng = np.random.default_rng(5)

    def waits():
        return np.repeat(rng.exponential(1.0, 120) * (rng.random(120) < 0.3), 10)

    pairs = [(waits(), waits()) for _ in range(1000)]
    assert 0.75 <= np.mean([later.mean() <= statistics.next_mean(seen, 0.8) for seen, later in pairs]) <= 0.85
    naive = [later.mean() <= seen.mean() + 0.84 * seen.std() / math.sqrt(len(seen)) for seen, later in pairs]
    assert np.mean(naive) < 0.65
    shares = [((seen <= 0.5).astype(float), (later <= 0.5).astype(float)) for seen, later in pairs]
    rooms = [statistics.next_share(seen, 0.8, 0.8) - 0.8 for seen, _ in shares]
    kept = [later.mean() >= seen.mean() - room for (seen, later), room in zip(shares, rooms, strict=True)]
    assert 0.75 <= np.mean(kept) <= 0.85


def test_little_is_said_of_a_few_requests_to_come():
    assert statistics.next_mean(np.ones(9), 0.8) == math.inf  # nothing is known of the spread
    assert statistics.next_mean(np.array([1.0] * 39 + [math.inf]), 0.8) == math.inf
    assert statistics.next_mean(np.ones(20), 0.8) == 1.0
    assert statistics.next_share(np.ones(9), 0.5, 0.8) == 1.0
    alone = 0.5 + 0.8416 * math.sqrt(2 * 0.25 / 100)
    assert statistics.next_share(np.ones(100), 0.5, 0.8) == pytest.approx(alone, abs=1e-4)


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
