"""How the endpoint profiler decides: sequential tests, the search, and both against queues of known capacity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profilers.queue_replay import found_rate, judged, mm1_rate, share_beyond

from planner.domain.slo import Metric
from planner.errors import InputError
from planner.files.slo import parse_slo
from planner.profilers.endpoint.metrics import ServerState, parse_metrics, summary
from planner.profilers.endpoint.records import Failure, FailureKind, Request
from planner.profilers.endpoint.schedule import BLOCK, Size, arrivals, measuring_order, parse_sizes
from planner.profilers.endpoint.search import (
    BernoulliTest,
    RateSearch,
    Tried,
    Verdict,
    clustering,
    mean_verdict,
    share_interval,
)
from planner.profilers.endpoint.verdict import Monitor, is_beyond

P90 = parse_slo("ttft p90 <= 200ms")
MEAN_S = 0.02


def exponential(rng):
    return rng.exponential(MEAN_S)


def fixed(rng):
    return MEAN_S


# --- the sequential test ---------------------------------------------------------------------------------------------


def decided(test, share, rng, most=100_000):
    n = beyond = 0
    while n < most:
        n += 1
        beyond += bool(rng.random() < share)
        if (verdict := test.verdict(n, beyond)) is not Verdict.OPEN:
            return verdict
    return Verdict.OPEN


@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.1, 0.5])
def test_the_sequential_test_errs_no_more_often_than_promised(allowed):
    test = BernoulliTest(allowed=allowed, confidence=0.95)
    rng = np.random.default_rng(7)
    n = 400
    false_alarms = sum(decided(test, test.good, rng) is Verdict.FAILS for _ in range(n))
    missed = sum(decided(test, test.bad, rng) is Verdict.HOLDS for _ in range(n))
    limit = 0.05 * n + 3 * math.sqrt(0.05 * 0.95 * n)
    assert false_alarms <= limit
    assert missed <= limit


@given(allowed=st.floats(0.001, 0.6), confidence=st.floats(0.6, 0.999), n=st.integers(1, 5000), share=st.floats(0, 1))
def test_more_requests_beyond_the_bound_never_help(allowed, confidence, n, share):
    test = BernoulliTest(allowed=allowed, confidence=confidence)
    order = {Verdict.HOLDS: 0, Verdict.OPEN: 1, Verdict.FAILS: 2}
    beyond = int(share * n)
    one, more = test.verdict(n, beyond), test.verdict(n, min(beyond + 1, n))
    assert order[one] <= order[more]
    assert test.verdict(n, beyond, clustering=4.0) in {one, Verdict.OPEN}
    assert test.verdict(test.fewest, 0) is Verdict.HOLDS
    assert test.verdict(test.fewest - 1, 0) is Verdict.OPEN


def test_clusters_are_seen_and_independent_requests_have_none():
    rng = np.random.default_rng(3)
    independent = [clustering(rng.random(2000) < 0.05) for _ in range(200)]
    assert np.median(independent) < 1.2
    clustered = [clustering(np.repeat(rng.random(400) < 0.05, 5)) for _ in range(200)]
    assert 3.5 < np.median(clustered) < 6.5


def test_the_test_of_a_mean_errs_no_more_often_than_promised_and_finds_what_is_clear():
    rng = np.random.default_rng(11)

    def verdict(mean):
        values = rng.exponential(mean, 4096)
        for n in (100, 128, 256, 512, 1024, 2048, 4096):
            if (found := mean_verdict(values[:n], 1.0, 0.95)) is not Verdict.OPEN:
                return found
        return Verdict.OPEN

    wrong = [verdict(1.0001) is Verdict.HOLDS for _ in range(400)]
    assert np.mean(wrong) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean([verdict(0.8) is Verdict.HOLDS for _ in range(100)]) > 0.9
    assert np.mean([verdict(1.3) is Verdict.FAILS for _ in range(100)]) > 0.9


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 20, 0.0, 0.1684), (1, 20, 0.0013, 0.2487), (10, 10, 0.6915, 1)]
)
def test_clopper_pearson_intervals_are_those_of_the_tables(k, n, low, high):
    """Figures: the interval's closed form, beta quantiles (scipy.stats.beta.ppf)."""
    assert share_interval(k, n, 0.95) == pytest.approx((low, high), abs=1e-4)


# --- the search ------------------------------------------------------------------------------------------------------


@given(
    limit=st.floats(0.01, 1e4),
    start=st.floats(0.01, 1e4),
    resolution=st.floats(0.02, 0.5),
    is_informed=st.booleans(),
    served=st.booleans(),
)
def test_the_search_brackets_any_limit_from_any_start(limit, start, resolution, is_informed, served):
    search = RateSearch(start_rps=start, resolution=resolution, is_informed=is_informed, lowest_rps=limit / 1e3)
    while not search.is_closed:
        rate = search.next_rps()
        search.record(Tried(rate_rps=rate, holds=rate <= limit, served_rps=limit if served and rate > limit else 0.0))
        assert len(search.tried) < 60
    assert search.holds_rps <= limit < search.fails_rps <= search.holds_rps * (1 + resolution) * (1 + 1e-9)


@given(answers=st.lists(st.booleans(), min_size=200, max_size=200))
def test_the_search_ends_whatever_the_answers_are(answers):
    search = RateSearch(start_rps=1.0, resolution=0.05, lowest_rps=0.01)
    for answer in answers:
        if search.is_closed:
            break
        rate = search.next_rps()
        assert rate >= 0.01
        search.record(Tried(rate_rps=rate, holds=answer))
        if search.holds_rps > 1e6:
            return
    assert search.is_closed
    assert search.holds_rps == 0.0 or search.holds_rps < search.fails_rps


def test_objectives_that_no_rate_meets_end_the_search_without_a_rate():
    search = RateSearch(start_rps=4.0, resolution=0.05, lowest_rps=0.1)
    while not search.is_closed:
        search.record(Tried(rate_rps=search.next_rps(), holds=False))
    assert search.holds_rps == 0.0
    with pytest.raises(ValueError, match="closed"):
        search.next_rps()


# --- against queues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "limit_rps"),
    [(exponential, mm1_rate(MEAN_S, 0.2, 0.1)), (fixed, 44.0)],
    ids=["M/M/1", "M/D/1"],
)
def test_found_rates_lie_near_the_known_ones_and_hold_at_95_percent_and_fail_at_120(service, limit_rps):
    """M/M/1: P(sojourn > t) = exp(-(mu - lambda) t). M/D/1: by a run of 200,000 requests."""
    assert share_beyond(limit_rps, 0.2, service) == pytest.approx(0.1, abs=0.03)
    found = [found_rate(20.0, [P90], service, seed=100 * k)[0] for k in range(5)]
    assert np.median(found) == pytest.approx(limit_rps, rel=0.1)
    assert all(0.8 * limit_rps < one < 1.2 * limit_rps for one in found)
    assert sum(share_beyond(0.95 * one, 0.2, service, n=40_000) <= 0.1 for one in found) >= 4
    assert sum(share_beyond(1.2 * one, 0.2, service, n=40_000) > 0.1 for one in found) >= 4


def test_an_overloaded_queue_fails_before_its_backlog_reaches_the_bound():
    """At 1.2 times the capacity a wait of 20 s takes 100 s to build up; a run that only waits for it would pass it."""
    judgement, n = judged(60.0, [parse_slo("ttft p90 <= 20s")], fixed)
    assert judgement.verdict is Verdict.FAILS
    assert n < 60 * 1000


def test_a_rate_with_time_to_spare_holds_with_the_fewest_requests():
    judgement, n = judged(10.0, [P90], fixed)
    assert judgement.verdict is Verdict.HOLDS
    assert judgement.is_sure
    assert n < 1.5 * BLOCK


def test_objectives_on_the_mean_are_judged_too():
    slow, quick = parse_slo("ttft mean <= 25ms"), parse_slo("ttft mean <= 60ms")
    assert judged(25.0, [slow], exponential)[0].verdict is Verdict.FAILS
    assert judged(25.0, [quick], exponential)[0].verdict is Verdict.HOLDS


# --- requests --------------------------------------------------------------------------------------------------------


def request(**changes):
    return Request(size=Size(10, 11), due_s=100.0, **changes)


def test_requests_that_still_wait_are_beyond_a_bound_as_soon_as_their_age_is():
    ttft, tpot, e2e = parse_slo("ttft p99 <= 1s"), parse_slo("tpot p99 <= 100ms"), parse_slo("e2e p99 <= 3s")
    waiting = request()
    assert [is_beyond(waiting, ttft, at) for at in (100.5, 101.5)] == [None, True]
    assert is_beyond(waiting, tpot, 200.0) is None
    started = request(first_s=100.4)
    assert is_beyond(started, ttft, 200.0) is False
    assert [is_beyond(started, tpot, at) for at in (101.3, 101.5)] == [None, True]
    done = request(first_s=100.4, last_s=101.4, end_s=101.5, output_tokens=11)
    assert [is_beyond(done, slo, 200.0) for slo in (ttft, tpot, e2e)] == [False, False, False]
    failed = request(failure=Failure(kind=FailureKind.OVERLOAD, message="busy"), end_s=100.1)
    assert is_beyond(failed, ttft, 100.1) is True
    one_token = request(first_s=100.4, last_s=100.4, end_s=100.5, output_tokens=1)
    assert is_beyond(one_token, tpot, 200.0) is False


def test_a_request_whose_fate_is_open_holds_up_the_later_ones():
    """Else long requests would be counted last, or never."""
    monitor = Monitor([P90], confidence=0.95, lone_s={Metric.TTFT: 0.01}, rate_rps=100.0)
    quick = [Request(size=Size(1, 1), due_s=0.01 * i, first_s=0.01 * i, last_s=0.01 * i + 0.01, end_s=0.01 * i + 0.01)
             for i in range(50)]  # fmt: skip
    monitor.judge(quick, 0.0, 0.5)
    assert monitor.warm_s == 0.5
    later = [Request(size=Size(1, 1), due_s=0.51 + 0.01 * i) for i in range(10)]
    for one in later[1:]:
        one.first_s = one.last_s = one.end_s = one.due_s + 0.001
    monitor.judge([*quick, *later], 0.0, 0.65)
    assert monitor.n_judged == 0
    monitor.judge([*quick, *later], 0.0, 0.75)
    assert monitor.n_judged == 10
    assert [count for _, count in monitor.beyond()] == [1]


# --- sizes, arrivals, metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "128", "128x", "0x5", "axb", "1x2x3", "-1x2"])
def test_wrong_sizes_are_refused(text):
    with pytest.raises(InputError):
        parse_sizes(text)


def test_corners_come_first_then_the_largest_gap_weighted_by_demand():
    grid = [Size(i, o) for i in (10, 30, 100, 1000) for o in (10, 100, 1000)]
    assert set(measuring_order(grid)[:4]) == {Size(10, 10), Size(1000, 1000), Size(10, 1000), Size(1000, 10)}
    weights = dict.fromkeys(grid, 0.01) | {Size(30, 10): 1.0}
    assert measuring_order(grid, weights)[4] == Size(30, 10)
    assert sorted(measuring_order(grid)) == sorted(grid)


def test_arrivals_have_the_rate_asked_for_and_are_as_irregular_as_poisson_ones():
    rng = np.random.default_rng(5)
    schedule = arrivals(50.0, {Size(1, 1): 0.25, Size(2, 2): 0.75}, rng)
    found = [next(schedule) for _ in range(BLOCK * 40)]
    times = np.array([at_s for at_s, _ in found])
    assert (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx(BLOCK * 40 / 50, rel=0.01)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    assert np.mean([size == Size(2, 2) for _, size in found]) == pytest.approx(0.75, abs=0.02)
    counts = np.histogram(times, bins=int(times[-1] / 0.2))[0]  # windows of 10 requests
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.15)


def test_metrics_of_engines_are_read_and_garbage_is_passed_over():
    vllm = parse_metrics(
        '# HELP x\nvllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:num_requests_waiting{a="x y"} 2.0\n'
        'vllm:num_requests_waiting{a="z"} 1.0\nvllm:num_preemptions_total 7\n'
    )
    assert vllm == ServerState(kv_usage_fraction=0.25, n_waiting=3.0, n_preemptions=7.0)
    assert parse_metrics("tgi_queue_size 4\n").n_waiting == 4.0
    assert parse_metrics("<html>\x00 \nvllm:num_requests_waiting oops\nvllm:num_requests_waiting NaN\n}{\n") is None
    later = ServerState(kv_usage_fraction=0.2, n_waiting=0.0, n_preemptions=9.0)
    assert summary([vllm, later]) == {"kv_usage_fraction": 0.25, "n_waiting": 3.0, "n_preemptions": 2.0}


@pytest.mark.parametrize("wrong_runs", [{1}, {3}, {4}, {5}, {6}, {7}, {2, 6}])
def test_a_run_that_goes_wrong_by_chance_does_not_decide(wrong_runs):
    """A pause fails a rate that could be served, a lucky run holds one that could not: neither is the answer."""
    capacity = 15.0
    search = RateSearch(start_rps=6.0, resolution=0.05)
    for number in range(60):
        if search.is_closed:
            break
        rate = search.next_rps()
        holds = (rate <= capacity) != (number in wrong_runs)
        search.record(Tried(rate_rps=rate, holds=holds))
    assert search.is_closed
    assert search.holds_rps <= capacity < search.fails_rps <= search.holds_rps * 1.05 * (1 + 1e-9)
