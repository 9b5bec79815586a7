"""How requests spread over adapters and in time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.domain.distributions import HyperExponential, Weibull
from planner.files.bundled import bundled
from planner.optimize.keep_alive import KeepAlivePrices, compare_rules, idle_gaps
from planner.workload.adapter_traffic import DAY_S, adapter_traffic
from planner.workload.popularity import Popularity, default_gaps, default_popularity, fitted_parameters

POISSON = Weibull(shape=1.0, scale_s=1.0)


def rng(seed=1):
    return np.random.default_rng(seed)


# --- popularity ------------------------------------------------------------------------------------------------------


@given(st.floats(0.3, 3.0), st.floats(0.0, 20.0), st.integers(20, 400))
@settings(max_examples=40)
def test_a_fit_finds_the_law_that_made_the_counts(exponent, shift, n):
    made = Popularity(exponent=exponent, shift=shift)
    found = Popularity.fitted(1e6 * made.shares(n))
    assert found.shares(n) == pytest.approx(made.shares(n), rel=0.02, abs=1e-6)


def test_a_fit_without_a_shift_is_zipfs_law():
    found = Popularity.fitted(np.arange(1, 201) ** -1.1, is_shifted=False)
    assert (found.exponent, found.shift) == (pytest.approx(1.1, abs=1e-6), 0.0)
    assert Popularity.fitted([5.0, 5.0, 5.0], is_shifted=False).exponent == pytest.approx(0.0, abs=1e-6)


@given(st.floats(0.0, 8.0), st.floats(0.0, 50.0), st.integers(1, 500))
def test_shares_fall_and_sum_to_one(exponent, shift, n):
    shares = Popularity(exponent=exponent, shift=shift).shares(n)
    assert shares.sum() == pytest.approx(1.0)
    assert np.all(np.diff(shares) <= 1e-15)


def test_the_fitted_law_has_the_head_that_the_trace_has():
    known = fitted_parameters()
    shares = default_popularity().shares(239)
    assert shares[:23].sum() == pytest.approx(known["busiest_tenth_share"], abs=0.02)
    assert shares[0] == pytest.approx(known["first_share"], abs=0.02)
    plain = Popularity(exponent=known["exponent_without_shift"]).shares(239)
    assert abs(plain[0] - known["first_share"]) > abs(shares[0] - known["first_share"])


def test_only_parameters_ship():
    lines = bundled("profiles", "lora", "popularity.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 14
    assert all("fit to alibaba/clusterdata" in line for line in lines[1:])
    assert default_gaps().mean_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Popularity(exponent=-1.0), "exponent"),
        (lambda: Popularity(exponent=1.0, shift=math.inf), "shift"),
        (lambda: Popularity(exponent=1.0).shares(0), "n must be"),
        (lambda: Popularity.fitted([1.0]), "at least two"),
        (lambda: Popularity.fitted([1.0, 0.0]), "above 0"),
        (lambda: HyperExponential(short_fraction=1.0, short_mean_s=1.0, long_mean_s=2.0), "hyper-exponential"),
        (lambda: HyperExponential.fitted([1.0]), "at least two"),
    ],
)
def test_what_is_no_law_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- gaps of sessions ------------------------------------------------------------------------------------------------


def test_gaps_of_sessions_have_their_moments_and_their_fit():
    made = HyperExponential(short_fraction=0.85, short_mean_s=20.0, long_mean_s=3000.0)
    times = made.sample(400_000, rng())
    assert times.mean() == pytest.approx(made.mean_s, rel=0.02)
    assert times.std() == pytest.approx(made.sd_s, rel=0.02)
    assert np.mean(times > 100.0) == pytest.approx(made.survival(100.0), abs=0.002)
    assert made.residual(400_000, rng()).mean() == pytest.approx(
        (made.sd_s**2 + made.mean_s**2) / (2 * made.mean_s), rel=0.02
    )
    found = HyperExponential.fitted(times[:20_000])
    assert found.short_fraction == pytest.approx(0.85, abs=0.01)
    assert (found.short_mean_s, found.long_mean_s) == pytest.approx((20.0, 3000.0), rel=0.05)
    assert made.stretched(10.0).mean_s == pytest.approx(10.0)
    assert made.stretched(10.0).sd_s / 10.0 == pytest.approx(made.sd_s / made.mean_s)


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_a_day_has_the_rate_and_every_adapter_its_share():
    traffic = adapter_traffic(50, 2.0, rng(), gaps=POISSON, popularity=Popularity(exponent=1.0))
    assert np.all(np.diff(traffic.arrival_s) >= 0)
    assert traffic.arrival_s[0] >= 0
    assert traffic.arrival_s[-1] < DAY_S
    assert len(traffic.arrival_s) == pytest.approx(2.0 * DAY_S, rel=0.01)
    counts = np.bincount(traffic.adapter, minlength=50)
    expected = traffic.rates_rps * DAY_S
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    assert len(traffic.of(3)) == counts[3]


@pytest.mark.parametrize("gaps", [None, Weibull(shape=0.4, scale_s=1.0)])
def test_bursty_adapters_have_their_mean_counts_too(gaps):
    """Rare requests as well: the first one comes as if the process had begun long ago."""
    traffic = adapter_traffic(4000, 4000 * 2 / DAY_S, rng(), gaps=gaps, popularity=Popularity(exponent=0.0))
    counts = np.bincount(traffic.adapter, minlength=4000)
    assert counts.mean() == pytest.approx(2.0, rel=0.1)
    assert counts.var() > 3 * counts.mean()
    by_quarter = np.histogram(traffic.arrival_s, bins=4, range=(0, DAY_S))[0]
    assert by_quarter / len(traffic.arrival_s) == pytest.approx([0.25] * 4, abs=0.04)


def test_the_same_seed_gives_the_same_and_more_adapters_disturb_no_one():
    law = Popularity(exponent=0.0)
    few = adapter_traffic(3, 3.0, rng(), popularity=law, duration_s=600.0)
    again = adapter_traffic(3, 3.0, rng(), popularity=law, duration_s=600.0)
    more = adapter_traffic(6, 6.0, rng(), popularity=law, duration_s=600.0)
    assert np.array_equal(few.arrival_s, again.arrival_s)
    for adapter in range(3):
        assert np.array_equal(few.of(adapter), more.of(adapter))


def test_rates_follow_the_hour_and_keep_their_mean():
    factors = [0.0, 3.0, 1.0, 0.0]
    traffic = adapter_traffic(
        20, 1.0, rng(), gaps=POISSON, popularity=Popularity(exponent=1.0), duration_s=8 * 3600.0, hourly_factors=factors
    )
    by_hour = np.histogram(traffic.arrival_s, bins=8, range=(0, 8 * 3600.0))[0]
    assert by_hour.sum() == pytest.approx(8 * 3600, rel=0.03)
    assert by_hour[[0, 3, 4, 7]].sum() == 0
    assert by_hour[[1, 5]].sum() / by_hour.sum() == pytest.approx(0.75, abs=0.02)


def test_adapters_of_the_tail_are_not_worth_keeping_and_those_of_the_head_are():
    traffic = adapter_traffic(200, 0.5, rng())
    prices = KeepAlivePrices(idle_usd_per_s=3.67 / 3600 / 6, cold_start_usd=0.01)
    costs = [
        compare_rules(idle_gaps(traffic.of(adapter), end_s=DAY_S), prices)
        for adapter in (0, int(np.flatnonzero(np.bincount(traffic.adapter) > 3)[-1]))
    ]
    assert costs[0]["always"].total_usd < costs[0]["never"].total_usd
    assert costs[1]["always"].total_usd > costs[1]["never"].total_usd
    for cost in costs:
        assert cost["best keep-alive"].total_usd <= min(cost[name].total_usd for name in ("60 s", "10 min", "never"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_rate_rps": 0.0}, "rate and duration"),
        ({"duration_s": math.inf}, "rate and duration"),
        ({"n_adapters": 0}, "n must be"),
        ({"hourly_factors": [-1.0]}, "at least 0"),
        ({"hourly_factors": []}, "at least 0"),
        ({"hourly_factors": [0.0, 0.0]}, "all 0"),
    ],
)
def test_traffic_that_is_none_is_refused(changes, words):
    given = {"n_adapters": 2, "total_rate_rps": 1.0, "duration_s": 60.0} | changes
    n_adapters, total_rate_rps = given.pop("n_adapters"), given.pop("total_rate_rps")
    with pytest.raises(ValueError, match=words):
        adapter_traffic(n_adapters, total_rate_rps, rng(), **given)
