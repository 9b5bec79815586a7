"""Demand in buckets: nothing is lost, rates are what was asked, peaks are counted as by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.workload import Trace
from planner.errors import InputError
from planner.workload.adaptive import least_loss_edges
from planner.workload.buckets import (
    BucketGrid,
    Peak,
    adaptive_grid,
    compression_error,
    constant_demand,
    demand_from_trace,
    melange_grid,
    parse_peak,
)
from planner.workload.rates import full_window_counts, mean_rate_rps, peak_rate_rps, window_rates_rps
from planner.workload.read import read_trace
from planner.workload.summary import summarize

DATA = Path(__file__).resolve().parents[1] / "data" / "workload"


@pytest.fixture(scope="module")
def conv():
    return read_trace("bundled:azure_conv_2023")


@pytest.fixture(scope="module")
def code():
    return read_trace("bundled:azure_code_2023")


def make(inputs, outputs, arrivals=None, **kwargs):
    times = np.arange(len(inputs), dtype=float) if arrivals is None else np.asarray(arrivals, dtype=float)
    return Trace(
        arrival_s=times, input_tokens=np.asarray(inputs), output_tokens=np.asarray(outputs), source="made", **kwargs
    )


TRACES = st.lists(
    st.tuples(st.integers(1, 300_000), st.integers(1, 40_000), st.floats(0, 5000, allow_nan=False)),
    min_size=2,
    max_size=60,
).map(lambda rows: make(*zip(*[row[:2] for row in rows], strict=True), arrivals=_zero_based(row[2] for row in rows)))


def _zero_based(times):
    ordered = np.sort(np.fromiter(times, dtype=float))
    return ordered - ordered[0]


# --- conservation ----------------------------------------------------------------------------------------------------


@given(trace=TRACES, rate_rps=st.floats(1e-3, 1e5), is_adaptive=st.booleans())
def test_rates_and_tokens_are_conserved(trace, rate_rps, is_adaptive):
    grid = adaptive_grid(trace) if is_adaptive else melange_grid()
    demand = demand_from_trace(trace, service="s", grid=grid, rate_rps=rate_rps)
    assert demand.total_rate_rps == pytest.approx(rate_rps, rel=1e-9)
    tokens_in = sum(bucket.rate_rps * bucket.input_tokens for bucket in demand.buckets)
    tokens_out = sum(bucket.rate_rps * bucket.output_tokens for bucket in demand.buckets)
    assert tokens_in == pytest.approx(rate_rps * trace.input_tokens.mean(), rel=1e-9)
    assert tokens_out == pytest.approx(rate_rps * trace.output_tokens.mean(), rel=1e-9)
    for bucket in demand.buckets:
        assert bucket.rate_rps > 0
        assert bucket.input_range[0] <= bucket.input_tokens < bucket.input_range[1]
        assert bucket.output_range[0] <= bucket.output_tokens < bucket.output_range[1]
    places = [(bucket.row, bucket.column) for bucket in demand.buckets]
    assert places == sorted(set(places))


def test_buckets_count_what_is_in_them(code):
    grid = melange_grid()
    demand = demand_from_trace(code, service="s", grid=grid)
    for bucket in demand.buckets:
        inside = (code.input_tokens >= bucket.input_range[0]) & (code.input_tokens < bucket.input_range[1])
        inside &= (code.output_tokens >= bucket.output_range[0]) & (code.output_tokens < bucket.output_range[1])
        assert bucket.rate_rps == pytest.approx(inside.sum() / code.arrival_s[-1], rel=1e-12)
        assert bucket.input_tokens == pytest.approx(code.input_tokens[inside].mean(), rel=1e-12)
        assert bucket.input_range == grid.input_range(bucket.row)
    # Counted independently (a histogram of the same trace on the same grid, published beside the planner's sources).
    assert demand.buckets[0].rate_rps * code.arrival_s[-1] == pytest.approx(100)
    assert len(demand.buckets) == 38


def test_a_size_on_an_edge_belongs_to_the_range_above():
    demand = demand_from_trace(make([24, 25, 100], [1, 1, 1]), service="s", rate_rps=3.0)
    assert [(bucket.row, bucket.input_range) for bucket in demand.buckets] == [
        (0, (0, 25)),
        (1, (25, 100)),
        (2, (100, 250)),
    ]


# --- the total rate --------------------------------------------------------------------------------------------------


def test_mean_of_the_trace(conv):
    demand = demand_from_trace(conv, service="chat")
    assert demand.total_rate_rps == pytest.approx(19_366 / 3501.721937, rel=1e-9)
    assert demand.service == "chat"
    assert demand.basis == "mean rate of bundled:azure_conv_2023: 19,366 requests in 58.4 min"
    assert demand.output_tokens_per_s == pytest.approx(5.530422 * 211.125942, rel=1e-6)


def test_rescaling_keeps_the_mix(conv):
    plain, scaled = demand_from_trace(conv, service="s"), demand_from_trace(conv, service="s", rate_rps=30.0)
    factor = 30.0 / plain.total_rate_rps
    assert scaled.total_rate_rps == pytest.approx(30.0, rel=1e-9)
    assert [b.rate_rps for b in scaled.buckets] == pytest.approx([b.rate_rps * factor for b in plain.buckets])
    assert "30 req/s as given" in scaled.basis


@pytest.mark.parametrize(("text", "golden"), [("p99 of 1m", 8.189), ("max of 1m", 8.45), ("max of 10s", 9.8)])
def test_peaks_of_the_conversation_trace(conv, text, golden):
    demand = demand_from_trace(conv, service="s", peak=parse_peak(text))
    assert demand.total_rate_rps == pytest.approx(golden, abs=5e-4)
    assert f"{golden / 5.530422:.2f} x its mean" in demand.basis
    both = demand_from_trace(conv, service="s", peak=parse_peak(text), rate_rps=20.0)
    assert both.total_rate_rps == pytest.approx(20 * demand.total_rate_rps / mean_rate_rps(conv), rel=1e-9)


def test_windows_are_counted_as_by_hand():
    times = np.array([0.0, 0.5, 9.99, 10.0, 19.0, 19.5, 19.9, 20.0, 24.0])
    assert full_window_counts(times, 10.0).tolist() == [3, 4]
    # The rest, 20 to 24 s, is covered by the full window (14, 24]: 19, 19.5, 19.9, 20 and 24.
    assert window_rates_rps(times, 10.0).tolist() == pytest.approx([0.3, 0.4, 0.5])
    trace = make(np.ones(9, int), np.ones(9, int), times)
    assert peak_rate_rps(trace, Peak(window_s=10.0, percentile=100)) == pytest.approx(0.5)
    assert peak_rate_rps(trace, Peak(window_s=10.0, percentile=50)) == pytest.approx(0.4)


def test_a_partial_last_window_neither_exaggerates_nor_hides():
    lone = make(np.ones(102, int), np.ones(102, int), np.append(np.arange(101.0), 100.001))
    assert peak_rate_rps(lone, Peak(window_s=10.0, percentile=100)) == pytest.approx(1.1)  # not 1 in 1 ms
    burst = make(np.ones(150, int), np.ones(150, int), np.append(np.arange(100.0), np.linspace(101, 103, 50)))
    assert peak_rate_rps(burst, Peak(window_s=10.0, percentile=100)) > 5  # the 50 at the end are not lost


@given(times=st.lists(st.floats(0, 200, allow_nan=False), min_size=2, max_size=50), window_s=st.floats(0.5, 50))
def test_windows_against_brute_force(times, window_s):
    arrivals = _zero_based(times)
    end = arrivals[-1]
    whole = int(np.floor(end / window_s))
    expected = [int(((arrivals >= k * window_s) & (arrivals < (k + 1) * window_s)).sum()) for k in range(whole)]
    assert full_window_counts(arrivals, window_s).tolist() == expected
    rates = window_rates_rps(arrivals, window_s)
    assert len(rates) == (whole + 1 if whole else 0)
    if whole:
        assert rates[-1] == pytest.approx((arrivals > end - window_s).sum() / window_s)


def test_windows_too_many_for_memory_are_refused():
    year = make([5, 5], [5, 5], [0, 3.1e7])
    with pytest.raises(InputError, match="31,000,000 windows of 1 s"):
        demand_from_trace(year, service="s", peak=parse_peak("max of 1s"))
    assert [window.window_s for window in summarize(year).windows] == [10, 60]


def test_a_peak_is_never_below_the_median_window_and_grows_with_the_percentile(code):
    rates = [peak_rate_rps(code, Peak(window_s=60.0, percentile=p)) for p in (50, 90, 99, 100)]
    assert rates == sorted(rates)
    assert peak_rate_rps(code, parse_peak("max of 10s")) > rates[-1]


@pytest.mark.parametrize(
    "text", ["p99", "99 of 1m", "p101 of 1m", "p0 of 1m", "max of 10", "max of 0s", "mean of 1m", "", None, 5]
)
def test_parse_peak_refuses(text):
    with pytest.raises(InputError):
        parse_peak(text)


def test_rates_that_cannot_be_had():
    lengths = read_trace(DATA / "sharegpt_lengths.csv")
    with pytest.raises(InputError, match=r"has no arrival times.*Give a rate"):
        demand_from_trace(lengths, service="s")
    with pytest.raises(InputError, match="has no arrival times, so it has no peak"):
        demand_from_trace(lengths, service="s", rate_rps=1.0, peak=parse_peak("max of 1s"))
    assert demand_from_trace(lengths, service="s", rate_rps=2.0).total_rate_rps == pytest.approx(2.0)
    at_once = make([5, 5], [5, 5], [0, 0])
    with pytest.raises(InputError, match="spans no time"):
        demand_from_trace(at_once, service="s")
    with pytest.raises(InputError, match="less than one window of 10 s"):
        demand_from_trace(make([5, 5], [5, 5], [0, 9.9]), service="s", peak=parse_peak("max of 10s"))
    for rate_rps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="makes no demand"):
            demand_from_trace(lengths, service="s", rate_rps=rate_rps)


# --- warnings --------------------------------------------------------------------------------------------------------


def codes(demand):
    return [warning.code for warning in demand.warnings]


def test_a_short_trace_is_warned_of():
    few = demand_from_trace(make([5] * 999, [5] * 999), service="s")
    assert codes(few) == ["W301"]
    assert (few.warnings[0].observed, few.warnings[0].threshold) == (999, 1000)
    brief = demand_from_trace(make([5] * 1200, [5] * 1200, np.linspace(0, 599, 1200)), service="s")
    assert codes(brief) == ["W301"]
    assert codes(demand_from_trace(make([5] * 1000, [5] * 1000), service="s")) == []


def test_planning_a_bursty_trace_by_its_mean_is_warned_of(code, conv):
    demand = demand_from_trace(code, service="s")
    assert codes(demand) == ["W302"]
    assert demand.warnings[0].observed == pytest.approx(3.7300, abs=1e-3)
    assert "3.73 x the mean" in demand.warnings[0].message
    assert codes(demand_from_trace(conv, service="s", rate_rps=30.0)) == ["W302"]
    assert codes(demand_from_trace(code, service="s", peak=parse_peak("p99 of 1m"))) == []


def test_requests_beyond_the_grid_widen_it():
    trace = read_trace(DATA / "mooncake_conversation_200.jsonl")
    demand = demand_from_trace(trace, service="s")
    assert "W303" in codes(demand)
    warning = next(warning for warning in demand.warnings if warning.code == "W303")
    assert warning.observed == (trace.input_tokens >= 16_000).sum()
    assert "extended to 128,000 in, 2,000 out" in warning.message
    assert max(bucket.input_range[1] for bucket in demand.buckets) == 128_000
    assert sum(bucket.rate_rps for bucket in demand.buckets) == pytest.approx(mean_rate_rps(trace))


def test_a_size_on_the_last_edge_is_beyond_the_grid():
    demand = demand_from_trace(make([16_000, 15_999], [2000, 1999]), service="s", rate_rps=2.0)
    assert [(b.input_range, b.output_range) for b in demand.buckets] == [
        ((12_000, 16_000), (1000, 2000)),
        ((16_000, 32_000), (2000, 4000)),
    ]
    assert "1 requests (50.00%)" in demand.warnings[-1].message


def test_dropped_rows_are_warned_of():
    trace = make([5] * 1000, [5] * 1000, n_bad_rows=10)
    (warning,) = demand_from_trace(trace, service="s").warnings
    assert warning.code == "W304"
    assert "10 malformed rows of made were dropped (0.99%)" in warning.message


# --- grids -----------------------------------------------------------------------------------------------------------


def test_melange_grid_is_the_published_one():
    grid = melange_grid()
    assert grid.shape == (10, 6)
    assert grid.input_edges == (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
    assert grid.output_edges == (25, 100, 250, 500, 1000, 2000)


@pytest.mark.parametrize("edges", [(), (0, 5), (5, 5), (9, 5), (-1, 5)])
def test_edges_that_are_not_ascending_are_refused(edges):
    with pytest.raises(InputError, match="not ascending"):
        BucketGrid(input_edges=edges, output_edges=(5,))
    with pytest.raises(InputError, match="not ascending"):
        BucketGrid(input_edges=(5,), output_edges=edges)


def loss_of(tokens, edges):
    cells = np.searchsorted(np.asarray(edges), tokens, side="right")
    roots = np.sqrt(tokens)
    return sum(((roots[cells == cell] - roots[cells == cell].mean()) ** 2).sum() for cell in np.unique(cells))


@given(tokens=st.lists(st.integers(1, 5000), min_size=1, max_size=12), n_ranges=st.integers(1, 4))
def test_adaptive_edges_are_the_best_of_all(tokens, n_ranges):
    values = np.array(tokens)
    sizes = np.unique(values)
    edges = least_loss_edges(values, n_ranges)
    assert edges[-1] == sizes[-1] + 1
    assert len(edges) == min(n_ranges, len(sizes))
    every = (
        (*(int(size) + 1 for size in chosen), int(sizes[-1]) + 1)
        for chosen in combinations(sizes[:-1], min(n_ranges, len(sizes)) - 1)
    )
    assert loss_of(values, edges) == pytest.approx(min(loss_of(values, other) for other in every), abs=1e-6)


@pytest.mark.parametrize("name", ["conv", "code"])
def test_adaptive_grid_loses_less_attention_work_than_the_fixed_one(name, request):
    trace = request.getfixturevalue(name)
    fixed, fitted = compression_error(trace, melange_grid()), compression_error(trace, adaptive_grid(trace))
    assert abs(fitted.prefill_error) < abs(fixed.prefill_error) / 2
    assert adaptive_grid(trace).shape == (10, 6)
    assert adaptive_grid(trace, rows=3, columns=2).shape == (3, 2)


def equal_shares(tokens, weights, n_ranges):
    order = np.argsort(tokens)
    total = np.cumsum(weights[order])
    at = np.searchsorted(total, total[-1] * np.arange(1, n_ranges) / n_ranges)
    return tuple(int(edge) for edge in np.unique(np.append(tokens[order][at], tokens.max()) + 1))


@pytest.mark.parametrize(
    ("name", "of_requests", "of_tokens", "fitted"),
    [("conv", -0.0213, -0.0150, -0.0051), ("code", -0.0119, -0.0097, -0.0050)],
)
def test_what_other_grids_lose_as_the_docs_say(name, of_requests, of_tokens, fitted, request):
    trace = request.getfixturevalue(name)
    for is_by_tokens, golden in ((False, of_requests), (True, of_tokens)):
        edges = {
            f"{side}_edges": equal_shares(tokens, tokens if is_by_tokens else np.ones_like(tokens), n_ranges)
            for side, tokens, n_ranges in (("input", trace.input_tokens, 10), ("output", trace.output_tokens, 6))
        }
        assert compression_error(trace, BucketGrid(**edges)).prefill_error == pytest.approx(golden, abs=1.5e-4)
    assert compression_error(trace, adaptive_grid(trace)).prefill_error == pytest.approx(fitted, abs=1e-4)


def test_adaptive_grid_of_one_size():
    assert adaptive_grid(make([7, 7], [9, 9])).shape == (1, 1)
    with pytest.raises(InputError, match="has no buckets"):
        adaptive_grid(make([7], [9]), rows=0)


# --- what a grid loses -----------------------------------------------------------------------------------------------


def test_compression_error_by_hand():
    loss = compression_error(make([10, 30], [4, 8]), BucketGrid(input_edges=(100,), output_edges=(100,)))
    assert loss.prefill_error == pytest.approx(2 * 20**2 / (10**2 + 30**2) - 1)
    assert loss.kv_error == pytest.approx(2 * 6 * (20 + 3) / (4 * (10 + 2) + 8 * (30 + 4)) - 1)
    assert (loss.max_input_spread, loss.max_output_spread) == (pytest.approx(1.0), pytest.approx(4 / 6))
    assert loss.worst_error == pytest.approx(0.2)
    assert [(b.row, b.column, b.n_requests) for b in loss.buckets] == [(0, 0, 2)]


def test_one_bucket_per_size_loses_nothing():
    trace = make([10, 30, 30], [4, 8, 8])
    loss = compression_error(trace, BucketGrid(input_edges=(11, 31), output_edges=(9,)))
    assert loss.worst_error == pytest.approx(0, abs=1e-12)
    assert loss.n_buckets == 2


def test_compression_error_goldens(conv, code):
    assert compression_error(conv, melange_grid()).prefill_error == pytest.approx(-0.01321, abs=1e-5)
    assert compression_error(conv, melange_grid()).kv_error == pytest.approx(-0.00128, abs=1e-5)
    assert compression_error(code, melange_grid()).prefill_error == pytest.approx(-0.03934, abs=1e-5)


@given(trace=TRACES)
def test_squares_are_never_overstated_and_a_finer_grid_is_never_worse(trace):
    coarse = BucketGrid(input_edges=(400_000,), output_edges=(50_000,))
    fine = BucketGrid(input_edges=(100, 5000, 400_000), output_edges=(50_000,))
    errors = [compression_error(trace, grid).prefill_error for grid in (coarse, fine)]
    assert errors[0] - 1e-12 <= errors[1] <= 1e-12


# --- constant --------------------------------------------------------------------------------------------------------


def test_constant_demand():
    demand = constant_demand("chat", 2.5, 128, 2048)
    (bucket,) = demand.buckets
    assert (bucket.rate_rps, bucket.input_tokens, bucket.output_tokens) == (2.5, 128, 2048)
    assert bucket.input_range == (128, 129)
    assert demand.basis == "constant 2.5 req/s of 128 input and 2048 output tokens"
    for arguments in ((0, 5, 5), (1, 0, 5), (1, 5, float("nan")), (1, 5, 0.5)):
        with pytest.raises(InputError):
            constant_demand("chat", *arguments)
