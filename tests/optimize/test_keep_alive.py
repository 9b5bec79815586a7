"""Keep-alive times against closed forms, enumeration, and the properties that an optimum has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.distributions import Weibull
from planner.optimize.keep_alive import (
    COMMON_KEEP_ALIVE_S,
    HUAWEI_KEEP_ALIVE_S,
    HybridHistogram,
    IdleGaps,
    KeepAlivePrices,
    Window,
    best_keep_alive,
    best_window,
    compare_rules,
    cost_of,
    cost_of_windows,
    idle_gaps,
    pod_utility_ratio,
    poisson_cold_fraction,
    poisson_keep_alive_s,
    weibull_keep_alive_s,
)

H100_IDLE = 3.67 / 3600
PRICES = KeepAlivePrices(idle_usd_per_s=H100_IDLE, cold_start_usd=0.01)

# Eighths of seconds and of prices, so that sums are exact and ties are ties.
eighths = st.integers(1, 4000).map(lambda n: n / 8)
gap_lists = st.lists(eighths, max_size=40)
prices = st.builds(
    KeepAlivePrices,
    idle_usd_per_s=st.integers(0, 16).map(lambda n: n / 8),
    cold_start_usd=st.integers(0, 800).map(lambda n: n / 8),
)
tails = st.integers(0, 4000).map(lambda n: n / 8)


def recorded(gaps, tail_s=0.0):
    return IdleGaps(gaps_s=np.array(gaps, dtype=np.float64), n_requests=len(gaps) + 1, tail_s=tail_s)


def weibull_cost(gaps, tau_s, given_prices):
    """Return c_i E[min(gap, tau)] + c_c P(gap > tau) by summing the survival function up."""
    grid = np.concatenate([[0.0], np.geomspace(1e-9, tau_s, 4000)]) if tau_s > 0 else np.zeros(1)
    survival = np.array([gaps.survival(time_s) for time_s in grid])
    mean_idle_s = float(np.sum((survival[1:] + survival[:-1]) / 2 * np.diff(grid)))
    return given_prices.idle_usd_per_s * mean_idle_s + given_prices.cold_start_usd * gaps.survival(tau_s)


# --- published checks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period_s", "n_cold"), [(61.0, 1000), (59.0, 1), (60.0, 1)])
def test_a_timer_just_beyond_the_keep_alive_is_always_cold(period_s, n_cold):
    """T23, on the recording."""
    idle = idle_gaps(period_s * np.arange(1000))
    found = cost_of(Window(until_s=HUAWEI_KEEP_ALIVE_S), idle, PRICES)
    assert found.n_cold == n_cold
    assert found.cold_fraction == n_cold / 1000


def test_a_gpu_is_kept_for_more_than_one_request_in_ten_seconds():
    """T24. 3.67 USD/h and 0.01 USD per cold start: one request per 9.8 s decides (published example)."""
    decisive_s = PRICES.cold_start_usd / PRICES.idle_usd_per_s
    assert decisive_s == pytest.approx(9.8, abs=0.02)
    assert poisson_keep_alive_s(1 / (decisive_s * 0.999), PRICES) == math.inf
    assert poisson_keep_alive_s(1 / (decisive_s * 1.001), PRICES) == 0.0
    assert poisson_cold_fraction(1 / 60, 60.0) == pytest.approx(math.exp(-1))


def test_a_pod_is_of_use_for_what_it_lives_beyond_its_keep_alive():
    """T22, the ratio; what a replay says of many pods is in tests/simulate/test_functions.py."""
    assert pod_utility_ratio(lifetime_s=70.0, keep_alive_s=60.0, cold_start_s=20.0) == 0.5
    with pytest.raises(ValueError, match="lives"):
        pod_utility_ratio(lifetime_s=50.0, keep_alive_s=60.0, cold_start_s=20.0)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean_gap_s", "is_kept"), [(4.0, True), (40.0, False)])
def test_on_poisson_arrivals_the_best_is_all_or_nothing(mean_gap_s, is_kept):
    gaps = np.random.default_rng(1).exponential(mean_gap_s, 20_000)
    tau_s = best_keep_alive(recorded(gaps), PRICES).until_s
    assert tau_s > 3 * mean_gap_s if is_kept else tau_s < 0.1 * mean_gap_s
    closed_s = poisson_keep_alive_s(1 / mean_gap_s, PRICES)
    best_usd = cost_of(Window(until_s=tau_s), recorded(gaps), PRICES).total_usd
    assert best_usd == pytest.approx(cost_of(Window(until_s=closed_s), recorded(gaps), PRICES).total_usd, rel=0.01)


@pytest.mark.parametrize("shape", [0.3, 0.5, 0.8])
def test_on_bursty_arrivals_the_best_is_where_the_hazard_meets_the_prices(shape):
    gaps = Weibull.of_mean(30.0, shape=shape)
    tau_s = weibull_keep_alive_s(gaps, PRICES)
    assert 0 < tau_s < math.inf
    hazard = gaps.shape / gaps.scale_s * (tau_s / gaps.scale_s) ** (gaps.shape - 1)
    assert hazard == pytest.approx(PRICES.idle_usd_per_s / PRICES.cold_start_usd)
    around = [weibull_cost(gaps, tau_s * factor, PRICES) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    assert min(around) == around[2]
    sample = recorded(gaps.sample(50_000, np.random.default_rng(2)))
    best_usd = cost_of(best_keep_alive(sample, PRICES), sample, PRICES).total_usd
    closed_usd = cost_of(Window(until_s=tau_s), sample, PRICES).total_usd
    assert best_usd <= closed_usd <= best_usd * 1.005
    assert best_usd / sample.n_requests == pytest.approx(around[2], rel=0.02)


def test_gaps_of_even_length_are_kept_or_not():
    regular = Weibull.of_mean(5.0, shape=4.0)
    assert weibull_keep_alive_s(regular, PRICES) == math.inf
    assert weibull_keep_alive_s(Weibull.of_mean(50.0, shape=4.0), PRICES) == 0.0
    assert weibull_keep_alive_s(Weibull.of_mean(9.7, shape=1.0), PRICES) == poisson_keep_alive_s(1 / 9.7, PRICES)
    assert weibull_keep_alive_s(Weibull.of_mean(9.9, shape=1.0), PRICES) == poisson_keep_alive_s(1 / 9.9, PRICES)


def test_what_is_free_is_used():
    gaps = Weibull.of_mean(30.0, shape=0.5)
    assert weibull_keep_alive_s(gaps, KeepAlivePrices(idle_usd_per_s=0.0, cold_start_usd=1.0)) == math.inf
    assert weibull_keep_alive_s(gaps, KeepAlivePrices(idle_usd_per_s=1.0, cold_start_usd=0.0)) == 0.0
    assert weibull_keep_alive_s(gaps, KeepAlivePrices(idle_usd_per_s=0.0, cold_start_usd=0.0)) == 0.0
    near_1 = Weibull.of_mean(30.0, shape=0.9999)
    assert weibull_keep_alive_s(near_1, KeepAlivePrices(idle_usd_per_s=1e-9, cold_start_usd=1.0)) == math.inf


# --- the optimum on a recording --------------------------------------------------------------------------------------


@given(gap_lists, tails, prices, eighths)
def test_no_fixed_time_is_cheaper(gaps, tail_s, given_prices, other_s):
    idle = recorded(gaps, tail_s)
    best_usd = cost_of(best_keep_alive(idle, given_prices), idle, given_prices).total_usd
    for until_s in (0.0, other_s, HUAWEI_KEEP_ALIVE_S, COMMON_KEEP_ALIVE_S, math.inf):
        assert best_usd <= cost_of(Window(until_s=until_s), idle, given_prices).total_usd + 1e-9


@given(gap_lists, tails, prices)
def test_no_window_is_cheaper(gaps, tail_s, given_prices):
    idle = recorded(gaps, tail_s)
    best = best_window(idle, given_prices)
    best_usd = cost_of(best, idle, given_prices).total_usd
    ends = [0.0, *gaps, *(gap + 1 / 16 for gap in gaps[:3]), 1e6]
    for until_s in ends:
        for reload_s in ends:
            if reload_s <= until_s:
                other = cost_of(Window(reload_s=reload_s, until_s=until_s), idle, given_prices)
                assert best_usd <= other.total_usd + 1e-9
    assert best_usd <= cost_of(best_keep_alive(idle, given_prices), idle, given_prices).total_usd + 1e-9


@given(gap_lists, tails, prices, st.integers(1, 800))
def test_dearer_cold_starts_are_never_waited_less_for(gaps, tail_s, given_prices, more):
    idle = recorded(gaps, tail_s)
    dearer = KeepAlivePrices(
        idle_usd_per_s=given_prices.idle_usd_per_s, cold_start_usd=given_prices.cold_start_usd + more / 8
    )
    now, then = (best_keep_alive(idle, each) for each in (given_prices, dearer))
    assert then.until_s >= now.until_s
    assert cost_of(then, idle, dearer).n_cold <= cost_of(now, idle, given_prices).n_cold
    assert cost_of(then, idle, dearer).total_usd >= cost_of(now, idle, given_prices).total_usd


@given(gap_lists, tails, eighths)
def test_idle_time_and_cold_starts_add_up(gaps, tail_s, until_s):
    found = cost_of(
        Window(until_s=until_s), recorded(gaps, tail_s), KeepAlivePrices(idle_usd_per_s=2, cold_start_usd=3)
    )
    assert found.idle_s == sum(min(gap, until_s) for gap in [*gaps, tail_s])
    assert found.n_cold == 1 + sum(gap > until_s for gap in gaps)
    assert found.total_usd == 2 * found.idle_s + 3 * found.n_cold


def test_a_slow_timer_is_fetched_just_before_it_fires():
    idle = idle_gaps(3600.0 * np.arange(100))
    assert best_keep_alive(idle, PRICES).until_s == 0.0
    window = best_window(idle, PRICES)
    assert (window.reload_s, window.until_s) == (3600.0, 3600.0)
    found = compare_rules(idle, PRICES)
    assert found["best window"].n_cold == 1
    assert found["best keep-alive"].n_cold == found["60 s"].n_cold == 100
    assert found["hybrid histogram"].n_cold == 1
    assert found["hybrid histogram"].total_usd < found["always"].total_usd
    assert found["best window"].total_usd == min(cost.total_usd for cost in found.values())


def test_a_recording_without_requests_or_gaps():
    assert cost_of(Window(until_s=60.0), idle_gaps([]), PRICES).total_usd == 0.0
    assert cost_of(Window(until_s=60.0), idle_gaps([]), PRICES).cold_fraction == 0.0
    lone = idle_gaps([5.0], end_s=1000.0)
    assert best_keep_alive(lone, PRICES).until_s == best_window(lone, PRICES).until_s == 0.0
    assert cost_of(Window(until_s=60.0), lone, PRICES).idle_s == 60.0


def test_requests_that_overlap_have_no_gap():
    idle = idle_gaps([0.0, 1.0, 1.0, 8.0], service_s=[5.0, 1.0, 1.0, 1.0], end_s=11.0)
    assert idle.gaps_s.tolist() == [3.0]
    assert (idle.n_requests, idle.tail_s) == (4, 2.0)


# --- the histogram ---------------------------------------------------------------------------------------------------


def test_the_histogram_learns_a_period():
    idle = idle_gaps(1830.0 * np.arange(50))
    windows = HybridHistogram().windows(idle)
    assert len(windows) == 50
    assert windows[0] == Window(until_s=4 * 3600.0)
    assert (windows[-1].reload_s, windows[-1].until_s) == (pytest.approx(0.9 * 1800), pytest.approx(1.1 * 1860))


def test_the_histogram_keeps_what_it_does_not_know():
    rule = HybridHistogram(range_s=600.0)
    spread = recorded([30.0 + 60.0 * i for i in range(10)])  # one in each bin
    assert set(rule.windows(spread)[-1:]) == {Window(until_s=600.0)}
    beyond = recorded([10_000.0] * 20)
    assert set(rule.windows(beyond)) == {Window(until_s=600.0)}
    assert cost_of_windows(rule.windows(beyond), beyond, PRICES).n_cold == 21


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KeepAlivePrices(idle_usd_per_s=-1.0, cold_start_usd=0.0), "prices"),
        (lambda: KeepAlivePrices(idle_usd_per_s=0.0, cold_start_usd=math.inf), "prices"),
        (lambda: Window(reload_s=2.0, until_s=1.0), "window"),
        (lambda: Window(until_s=math.nan), "window"),
        (lambda: idle_gaps([1.0, 0.0]), "ascending"),
        (lambda: idle_gaps([0.0, math.nan]), "finite"),
        (lambda: idle_gaps([0.0, 1.0], service_s=-1.0), "service"),
        (lambda: idle_gaps([0.0, 1.0], end_s=0.5), "before its last request"),
        (lambda: cost_of_windows([], recorded([1.0]), PRICES), "0 windows for 1 gaps"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
