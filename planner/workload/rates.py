"""Arrival rates over windows of time: the peaks and the burstiness that a mean hides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from planner.errors import InputError
from planner.units import format_duration, parse_duration_s

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.domain.workload import Trace

MAX_WINDOWS = 20_000_000
"""Windows of one second in 231 days; a few hundred megabytes."""

_PEAK = re.compile(r"\s*(max|p(\d+(?:\.\d+)?))\s+of\s+(\S.*?)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Which rate to plan for instead of the mean: a percentile of the rates of windows of `window_s` seconds."""

    kind: Literal["window"] = "window"
    window_s: float
    percentile: float
    """In (0, 100]; 100 = the busiest window."""

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            hint = "It is above 0 and at most 100, e.g. 'p99 of 1m'."
            raise InputError(f"{self.percentile:g} is not a percentile.", hint=hint)
        if not 0 < self.window_s < float("inf"):
            raise InputError(f"A window of {self.window_s:g} s has no length.", hint="Write e.g. 'p99 of 1m'.")

    def __str__(self) -> str:
        name = "max" if self.percentile == 100 else f"p{self.percentile:g}"
        return f"{name} of {format_duration(self.window_s)} windows"


def parse_peak(text: object) -> Peak:
    """Return the peak that "p99 of 1m" or "max of 10s" asks for.

    Raises
    ------
    InputError: if it is neither.

    Examples
    --------
    >>> parse_peak("p99 of 1m").window_s, parse_peak("max of 10s").percentile
    (60.0, 100.0)
    """
    match = _PEAK.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        hint = "Write 'p99 of 1m' (a percentile of one-minute windows) or 'max of 10s'."
        raise InputError(f"{text!r} does not say which peak.", hint=hint)
    percentile = 100.0 if match[2] is None else float(match[2])
    return Peak(window_s=parse_duration_s(match[3]), percentile=percentile)


def duration_s(trace: Trace) -> float:
    """Return the time from the first to the last arrival in seconds; 0 without arrivals."""
    return float(trace.arrival_s[-1]) if trace.has_arrivals else 0.0


def mean_rate_rps(trace: Trace) -> float | None:
    """Return requests / duration in requests per second; None if the trace has no duration."""
    duration = duration_s(trace)
    return trace.n_requests / duration if duration > 0 else None


def full_window_counts(arrival_s: NDArray[np.float64], window_s: float) -> NDArray[np.int64]:
    """Return the arrivals in each whole window [k w, (k + 1) w) that the trace covers to its end; shape (windows,).

    Raises
    ------
    InputError: if there are more windows than memory should be spent on.
    """
    n_windows = int(np.floor(arrival_s[-1] / window_s))
    if n_windows > MAX_WINDOWS:
        raise InputError(
            f"The trace has {n_windows:,} windows of {format_duration(window_s)}.",
            hint=f"Ask for longer ones; {MAX_WINDOWS:,} can be looked at.",
        )
    edges = window_s * np.arange(n_windows + 1)
    return np.diff(np.searchsorted(arrival_s, edges, side="left"))


def window_rates_rps(arrival_s: NDArray[np.float64], window_s: float) -> NDArray[np.float64]:
    """Return the rates of the windows that cover a trace, in requests per second; empty if it is shorter than one.

    Windows follow one another from the first arrival on. What is left at the end is covered by one more window of
    full length that ends with the last arrival: a window cut short would have a rate of chance (one request in 10 ms
    is not 100 req/s), and leaving it out could lose the very burst that is asked for.
    """
    end_s = float(arrival_s[-1])
    counts = full_window_counts(arrival_s, window_s)
    if len(counts) == 0:
        return np.empty(0)
    last = len(arrival_s) - int(np.searchsorted(arrival_s, end_s - window_s, side="right"))
    return np.append(counts, last) / window_s


def peak_rate_rps(trace: Trace, peak: Peak) -> float:
    """Return the peak rate of a trace in requests per second.

    Percentiles interpolate linearly between windows (numpy's default).

    Raises
    ------
    InputError: if the trace has no arrival times or is shorter than one window.
    """
    if not trace.has_arrivals:
        raise InputError(
            f"{trace.source} has no arrival times, so it has no peak.", hint="Give a rate and no peak instead."
        )
    rates = window_rates_rps(trace.arrival_s, peak.window_s)
    if len(rates) == 0:
        raise InputError(
            f"{trace.source} lasts {format_duration(duration_s(trace))}, "
            f"less than one window of {format_duration(peak.window_s)}.",
            hint="Ask for a shorter window or give a longer trace.",
        )
    return float(np.percentile(rates, peak.percentile))
