"""From a trace to the demand that a fleet is planned for: how many requests of which size per second."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.provenance import Warning_
from planner.domain.workload import Bucket, Demand
from planner.errors import InputError
from planner.units import format_duration
from planner.workload.adaptive import adaptive_grid
from planner.workload.grid import BucketGrid, CompressionError, compression_error, count_cells, mean_sizes, melange_grid
from planner.workload.rates import Peak, duration_s, mean_rate_rps, parse_peak, peak_rate_rps, window_rates_rps

if TYPE_CHECKING:
    from planner.domain.workload import Trace

__all__ = [
    "BucketGrid",
    "CompressionError",
    "Peak",
    "adaptive_grid",
    "compression_error",
    "constant_demand",
    "demand_from_trace",
    "melange_grid",
    "parse_peak",
]

MIN_REQUESTS = 1000
"""With fewer, a 99th percentile rests on fewer than ten requests."""
MIN_DURATION_S = 600.0
"""A shorter trace says little about the load's ups and downs."""
BURSTY_RATIO = 1.2
"""Above it, planning for the mean leaves the busy minutes short."""
BURSTY_PEAK = Peak(window_s=60.0, percentile=99.0)

W_SHORT = "W301"
W_MEAN_OF_BURSTY = "W302"
W_BEYOND_GRID = "W303"
W_BAD_ROWS = "W304"


def demand_from_trace(
    trace: Trace,
    *,
    service: str,
    grid: BucketGrid | None = None,
    rate_rps: float | None = None,
    peak: Peak | None = None,
) -> Demand:
    """Return the demand that a trace makes, in buckets of request size.

    The mix of sizes is that of the whole trace; its total rate is

    - the mean, requests / (last - first arrival), if nothing else is asked;
    - `rate_rps` if given: the trace rescaled so that this is its mean;
    - the rate of the `peak` windows if asked; with `rate_rps` too, rate_rps x (peak / mean of the trace).

    Parameters
    ----------
    grid : Mélange's if not given; rows and columns are added for requests beyond its last edges, with a warning.
    rate_rps : mean rate in requests per second, above 0.
    peak : plan for a percentile of windowed rates instead of the mean.

    Raises
    ------
    InputError: if a rate is needed and the trace has no arrival times, or the rate or peak makes no sense.
    """
    total_rps, basis = _total_rate(trace, rate_rps=rate_rps, peak=peak)
    asked = grid or melange_grid()
    used = asked.covering(max_input=int(trace.input_tokens.max()), max_output=int(trace.output_tokens.max()))
    warnings = [*quality_warnings(trace), *_burst_warnings(trace, peak), *_grid_warnings(trace, asked, used)]
    return Demand(service=service, buckets=_buckets(trace, used, total_rps), basis=basis, warnings=tuple(warnings))


def _total_rate(trace: Trace, *, rate_rps: float | None, peak: Peak | None) -> tuple[float, str]:
    if rate_rps is not None:
        check_rate(rate_rps)
    mean = mean_rate_rps(trace)
    if peak is None:
        if rate_rps is not None:
            return rate_rps, f"mean rate of {rate_rps:g} req/s as given; sizes as in {trace.source}"
        if mean is None:
            what = "spans no time" if trace.has_arrivals else "has no arrival times"
            raise InputError(f"{trace.source} {what}, so it has no rate.", hint="Give a rate, e.g. '30 req/s'.")
        return (
            mean,
            f"mean rate of {trace.source}: {trace.n_requests:,} requests in {format_duration(duration_s(trace))}",
        )
    peak_rps = peak_rate_rps(trace, peak)
    if mean is None:  # a trace without duration has no windows either: peak_rate_rps has refused it
        raise InputError(f"{trace.source} spans no time.", hint="Give a rate and no peak instead.")
    ratio = peak_rps / mean
    words = f"{peak} of {trace.source}, {ratio:.2f} x its mean"
    if rate_rps is None:
        return peak_rps, words
    return rate_rps * ratio, f"{words}, on a mean rate of {rate_rps:g} req/s as given"


def check_rate(rate_rps: float) -> None:
    """Raise if a rate is not a positive number of requests per second.

    Raises
    ------
    InputError: if it is not.
    """
    if not (math.isfinite(rate_rps) and rate_rps > 0):
        raise InputError(f"A rate of {rate_rps:g} req/s makes no demand.", hint="Give one above 0, e.g. '30 req/s'.")


def _buckets(trace: Trace, grid: BucketGrid, total_rps: float) -> tuple[Bucket, ...]:
    n_rows, n_columns = grid.shape
    cells = grid.cells(trace)
    counts = count_cells(cells, n_rows * n_columns)
    mean_in = mean_sizes(cells, trace.input_tokens, n_rows * n_columns)
    mean_out = mean_sizes(cells, trace.output_tokens, n_rows * n_columns)
    return tuple(
        Bucket(
            row=cell // n_columns,
            column=cell % n_columns,
            rate_rps=total_rps * float(counts[cell]) / trace.n_requests,
            input_range=grid.input_range(cell // n_columns),
            output_range=grid.output_range(cell % n_columns),
            input_tokens=float(mean_in[cell]),
            output_tokens=float(mean_out[cell]),
        )
        for cell in map(int, np.flatnonzero(counts))
    )


def quality_warnings(trace: Trace) -> list[Warning_]:
    """Return what makes a trace a weak basis: too short (W301), rows dropped (W304)."""
    warnings = []
    duration = duration_s(trace)
    if trace.n_requests < MIN_REQUESTS:
        message = f"{trace.source} has {trace.n_requests:,} requests; its tails are guesses below {MIN_REQUESTS:,}."
        warnings.append(
            Warning_(code=W_SHORT, message=message, observed=float(trace.n_requests), threshold=float(MIN_REQUESTS))
        )
    if trace.has_arrivals and duration < MIN_DURATION_S:
        message = f"{trace.source} lasts {format_duration(duration)}; it does not show how the load goes up and down."
        warnings.append(Warning_(code=W_SHORT, message=message, observed=duration, threshold=MIN_DURATION_S))
    if trace.n_bad_rows:
        share = trace.n_bad_rows / (trace.n_bad_rows + trace.n_requests + trace.n_failed_requests)
        message = f"{trace.n_bad_rows:,} malformed rows of {trace.source} were dropped ({share:.2%})."
        warnings.append(Warning_(code=W_BAD_ROWS, message=message, observed=float(trace.n_bad_rows), threshold=0.0))
    return warnings


def _burst_warnings(trace: Trace, peak: Peak | None) -> list[Warning_]:
    ratio = burst_ratio(trace)
    if peak is not None or ratio is None or ratio <= BURSTY_RATIO:
        return []
    message = (
        f"The {BURSTY_PEAK} of {trace.source} is {ratio:.2f} x the mean that is planned for; "
        "ask for a peak to serve the busy minutes too."
    )
    return [Warning_(code=W_MEAN_OF_BURSTY, message=message, observed=ratio, threshold=BURSTY_RATIO)]


def burst_ratio(trace: Trace) -> float | None:
    """Return the 99th percentile of one-minute rates over the mean rate; None for a trace of less than a minute."""
    mean = mean_rate_rps(trace)
    if mean is None:
        return None
    rates = window_rates_rps(trace.arrival_s, BURSTY_PEAK.window_s)
    return float(np.percentile(rates, BURSTY_PEAK.percentile)) / mean if len(rates) else None


def _grid_warnings(trace: Trace, asked: BucketGrid, used: BucketGrid) -> list[Warning_]:
    if used == asked:
        return []
    last_input, last_output = asked.input_edges[-1], asked.output_edges[-1]
    is_beyond = (trace.input_tokens >= last_input) | (trace.output_tokens >= last_output)
    n_beyond = int(np.count_nonzero(is_beyond))
    message = (
        f"{n_beyond:,} requests ({n_beyond / trace.n_requests:.2%}) of {trace.source} lie beyond the grid's last edges "
        f"({last_input:,} in, {last_output:,} out); it was extended to {used.input_edges[-1]:,} in, "
        f"{used.output_edges[-1]:,} out."
    )
    return [Warning_(code=W_BEYOND_GRID, message=message, observed=float(n_beyond), threshold=0.0)]


def constant_demand(service: str, rate_rps: float, input_tokens: float, output_tokens: float) -> Demand:
    """Return the demand of requests that are all of one size, at a constant rate in requests per second.

    Raises
    ------
    InputError: if the rate or a size makes no sense.

    Examples
    --------
    >>> constant_demand("chat", 2.0, 128, 2048).total_rate_rps
    2.0
    """
    check_rate(rate_rps)
    for name, tokens in (("input", input_tokens), ("output", output_tokens)):
        if not (math.isfinite(tokens) and tokens >= 1):
            raise InputError(f"{tokens:g} {name} tokens are no request.", hint="Give at least 1.")
    bucket = Bucket(
        row=0,
        column=0,
        rate_rps=rate_rps,
        input_range=(math.floor(input_tokens), math.floor(input_tokens) + 1),
        output_range=(math.floor(output_tokens), math.floor(output_tokens) + 1),
        input_tokens=float(input_tokens),
        output_tokens=float(output_tokens),
    )
    basis = f"constant {rate_rps:g} req/s of {input_tokens:g} input and {output_tokens:g} output tokens"
    return Demand(service=service, buckets=(bucket,), basis=basis)
