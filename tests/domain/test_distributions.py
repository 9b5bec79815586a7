from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.domain.distributions import LogNormal, Weibull, student_t_quantile
from planner.profilers.serverless_figures import cold_start_durations, cold_start_gaps


def test_sampled_cold_starts_are_as_long_as_published():
    """T21. LogNormal of mean 3.24 s and sd 7.10 s: moments within 5%, median within 2% (arXiv 2410.06145)."""
    published = cold_start_durations()
    assert (published.mu, published.sigma) == pytest.approx((0.2965, 1.3260), abs=1e-4)
    times = published.sample(1_000_000, np.random.default_rng(6))
    assert times.mean() == pytest.approx(3.24, rel=0.05)
    assert times.std() == pytest.approx(7.10, rel=0.05)
    assert np.median(times) == pytest.approx(1.345, rel=0.02)
    assert [published.quantile_s(p) for p in (0.5, 0.9, 0.95, 0.99)] == pytest.approx(
        [1.345, 7.36, 11.9, 29.4], rel=0.01
    )


def test_sampled_gaps_between_cold_starts_are_as_published():
    published = cold_start_gaps()
    assert (published.shape, published.scale_s) == pytest.approx((0.4176, 0.4217), abs=1e-4)
    times = published.sample(1_000_000, np.random.default_rng(6))
    assert times.mean() == pytest.approx(1.25, rel=0.02)
    assert times.std() == pytest.approx(3.66, rel=0.05)
    assert np.mean(times > 2.0) == pytest.approx(published.survival(2.0), abs=0.002)


@given(st.floats(1e-3, 1e4), st.floats(0.05, 20.0))
def test_moments_are_kept(mean_s, cv):
    for kind in (LogNormal, Weibull):
        found = kind.from_moments(mean_s=mean_s, sd_s=cv * mean_s)
        assert (found.mean_s, found.sd_s) == pytest.approx((mean_s, cv * mean_s), rel=1e-6)


@given(st.floats(0.2, 5.0), st.floats(1e-3, 1e5), st.integers(0, 100))
@settings(max_examples=20)
def test_a_fit_finds_what_was_sampled(shape, scale_s, seed):
    found = Weibull.fitted(Weibull(shape=shape, scale_s=scale_s).sample(5_000, np.random.default_rng(seed)))
    assert found.shape == pytest.approx(shape, rel=0.06)
    assert found.scale_s == pytest.approx(scale_s, rel=0.4)


def test_the_exponential_distribution_is_the_one_of_shape_1():
    found = Weibull.from_moments(mean_s=2.0, sd_s=2.0)
    assert found.shape == pytest.approx(1.0)
    assert found.survival(2.0) == pytest.approx(math.exp(-1))
    assert Weibull.of_mean(2.0, shape=1.0).scale_s == pytest.approx(2.0)


@pytest.mark.parametrize("shape", [0.4, 1.0, 2.5])
def test_what_is_left_of_a_gap_is_half_its_mean_and_more_where_gaps_differ(shape):
    """E[residual] = E[x^2] / (2 E[x]) of any renewal process."""
    gaps = Weibull.of_mean(3.0, shape=shape)
    found = gaps.residual(400_000, np.random.default_rng(1)).mean()
    assert found == pytest.approx((gaps.sd_s**2 + gaps.mean_s**2) / (2 * gaps.mean_s), rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogNormal(mu=0.0, sigma=0.0),
        lambda: LogNormal(mu=math.nan, sigma=1.0),
        lambda: LogNormal.from_moments(mean_s=0.0, sd_s=1.0),
        lambda: Weibull(shape=0.0, scale_s=1.0),
        lambda: Weibull.from_moments(mean_s=1.0, sd_s=1e-3),
        lambda: Weibull.fitted([1.0]),
        lambda: Weibull.fitted([1.0, 1.0]),
        lambda: Weibull.fitted([1.0, 0.0]),
        lambda: Weibull.fitted([1.0, math.inf]),
    ],
)
def test_what_is_no_distribution_is_refused(make):
    with pytest.raises(ValueError, match=r"distribution|standard deviation"):
        make()


def test_a_log_normal_time_with_two_quantiles():
    found = LogNormal.from_quantiles(p50_s=2.0, p99_s=10.0)
    assert (found.quantile_s(0.5), found.quantile_s(0.99)) == pytest.approx((2.0, 10.0))
    for p50_s, p99_s in ((2.0, 2.0), (0.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="99th percentile"):
            LogNormal.from_quantiles(p50_s=p50_s, p99_s=p99_s)


LEVELS = [1e-6, 0.01, 0.3, 0.5, 0.6, 0.9, 0.975, 0.999, 1 - 1e-6]


@pytest.mark.parametrize("level", LEVELS)
def test_students_t_has_closed_forms_for_one_two_and_four_degrees_of_freedom(level):
    odds = 4 * level * (1 - level)
    assert student_t_quantile(level, 1) == pytest.approx(math.tan(math.pi * (level - 0.5)), rel=1e-8, abs=1e-12)
    assert student_t_quantile(level, 2) == pytest.approx((2 * level - 1) * math.sqrt(2 / odds), rel=1e-8, abs=1e-12)
    inner = math.cos(math.acos(math.sqrt(odds)) / 3) / math.sqrt(odds)
    four = math.copysign(2 * math.sqrt(max(inner - 1, 0.0)), level - 0.5)
    assert student_t_quantile(level, 4) == pytest.approx(four, rel=1e-8, abs=1e-7)


@pytest.mark.parametrize(
    ("level", "freedom", "tabled"),
    [
        (0.975, 3, 3.182), (0.975, 9, 2.262), (0.975, 10, 2.228), (0.975, 19, 2.093), (0.975, 30, 2.042),
        (0.975, 120, 1.980), (0.95, 5, 2.015), (0.99, 15, 2.602), (0.995, 15, 2.947), (0.9995, 15, 4.073),
    ],
)  # fmt: skip
def test_students_t_is_as_in_printed_tables(level, freedom, tabled):
    """Handbook of Mathematical Functions, table 26.10."""
    assert student_t_quantile(level, freedom) == pytest.approx(tabled, abs=6e-4)


def test_students_t_is_the_normal_law_where_there_is_much_data_and_wider_where_there_is_less():
    assert student_t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=3e-5)
    found = [student_t_quantile(0.975, freedom) for freedom in range(1, 60)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("level", "freedom"), [(0.0, 3), (1.0, 3), (math.nan, 3), (0.9, 0)])
def test_students_t_refuses_what_is_no_level_or_no_freedom(level, freedom):
    with pytest.raises(ValueError, match="Student's t needs"):
        student_t_quantile(level, freedom)
