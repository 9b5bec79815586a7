"""What a trace is like: rates, sizes, and the burstiness that decides tail latencies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.workload.rates import MAX_WINDOWS, duration_s, full_window_counts, mean_rate_rps, window_rates_rps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.domain.workload import PrefixHashes, Trace

WINDOWS_S = (1.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSummary:
    """Tokens per request."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSummary:
    """Arrivals in windows of one length; the None are for a trace too short to have them."""

    window_s: float
    n_windows: int
    """Whole windows."""
    p99_rps: float | None
    max_rps: float | None
    dispersion: float | None
    """Index of dispersion of counts, variance / mean over whole windows: 1 for a Poisson process, more if bursty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """A trace in figures."""

    source: str
    format_name: str
    sha256: str
    n_requests: int
    n_bad_rows: int
    n_failed_requests: int
    duration_s: float | None
    """From the first to the last arrival; None without arrival times."""
    mean_rate_rps: float | None
    interarrival_cv: float | None
    """Standard deviation / mean of the gaps between arrivals: 1 for a Poisson process, 0 for a metronome."""
    windows: tuple[WindowSummary, ...]
    input_tokens: SizeSummary
    output_tokens: SizeSummary
    size_correlation: float | None
    """Pearson's, of input and output tokens; None if either never changes."""
    prefix_reuse_fraction: float | None
    """Share of input tokens in prefix blocks that an earlier request had: the hit rate of a cache that never forgets.
    None without prefix hashes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON has it."""
        return asdict(self)


def summarize(trace: Trace) -> TraceSummary:
    """Return a trace's figures."""
    rate = mean_rate_rps(trace)
    return TraceSummary(
        source=trace.source,
        format_name=trace.format_name,
        sha256=trace.sha256,
        n_requests=trace.n_requests,
        n_bad_rows=trace.n_bad_rows,
        n_failed_requests=trace.n_failed_requests,
        duration_s=duration_s(trace) if trace.has_arrivals else None,
        mean_rate_rps=rate,
        interarrival_cv=None if rate is None else interarrival_cv(trace.arrival_s),
        windows=() if rate is None else _windows(trace.arrival_s),
        input_tokens=_sizes(trace.input_tokens),
        output_tokens=_sizes(trace.output_tokens),
        size_correlation=_correlation(trace.input_tokens, trace.output_tokens),
        prefix_reuse_fraction=None if trace.prefix is None else prefix_reuse(trace.prefix, trace.input_tokens),
    )


def interarrival_cv(arrival_s: NDArray[np.float64]) -> float | None:
    """Return the coefficient of variation of the gaps between arrivals; None if there are no two gaps."""
    gaps = np.diff(arrival_s)
    return float(np.std(gaps) / np.mean(gaps)) if len(gaps) > 1 and np.mean(gaps) > 0 else None


def _windows(arrival_s: NDArray[np.float64]) -> tuple[WindowSummary, ...]:
    lengths = [window_s for window_s in WINDOWS_S if arrival_s[-1] / window_s <= MAX_WINDOWS]
    return tuple(_window(arrival_s, window_s) for window_s in lengths)


def _window(arrival_s: NDArray[np.float64], window_s: float) -> WindowSummary:
    counts = full_window_counts(arrival_s, window_s)
    rates = window_rates_rps(arrival_s, window_s)
    mean = float(np.mean(counts)) if len(counts) else 0.0
    return WindowSummary(
        window_s=window_s,
        n_windows=len(counts),
        p99_rps=float(np.percentile(rates, 99)) if len(rates) else None,
        max_rps=float(np.max(rates)) if len(rates) else None,
        dispersion=float(np.var(counts, ddof=1)) / mean if len(counts) > 1 and mean > 0 else None,
    )


def _sizes(tokens: NDArray[np.int64]) -> SizeSummary:
    p50, p90, p95, p99 = (float(value) for value in np.percentile(tokens, (50, 90, 95, 99)))
    return SizeSummary(mean=float(np.mean(tokens)), p50=p50, p90=p90, p95=p95, p99=p99, max=int(np.max(tokens)))


def _correlation(inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> float | None:
    if np.ptp(inputs) == 0 or np.ptp(outputs) == 0:
        return None
    return float(np.corrcoef(inputs, outputs)[0, 1])


def prefix_reuse(prefix: PrefixHashes, input_tokens: NDArray[np.int64]) -> float:
    """Return the share of input tokens whose prefix block occurred before in the trace.

    A request's last block holds what its full blocks leave over.
    """
    counts = np.diff(prefix.offsets)
    block_tokens = np.full(len(prefix.hashes), float(prefix.block_tokens))
    has_blocks = counts > 0
    last = prefix.offsets[1:][has_blocks] - 1
    rest = input_tokens[has_blocks] - (counts[has_blocks] - 1) * prefix.block_tokens
    block_tokens[last] = np.clip(rest, 0, prefix.block_tokens)
    is_repeat = np.ones(len(prefix.hashes), dtype=np.bool_)
    is_repeat[np.unique(prefix.hashes, return_index=True)[1]] = False
    return float(np.sum(block_tokens[is_repeat]) / np.sum(input_tokens))
