"""How long an idle instance should wait for the next request before it is given back.

After each request an instance idles. A rule keeps it in memory from `reload_s` to `until_s` after the request's end:
(0, tau) is a plain keep-alive, (0, 0) gives it back at once, and a later start fetches it again just before the next
request is expected. With c_i USD per idle second and c_c USD per cold start, the idle gaps g of one function cost

    sum over gaps of   c_i (min(g, until) - min(g, reload)) + c_c [g < reload or g > until],

and the first request is always cold. Idle gaps are what the rules see; requests that overlap have no gap between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from planner.domain.distributions import Weibull
    from planner.optimize.milp import FloatArray, IntArray

HUAWEI_KEEP_ALIVE_S = 60.0
"""What Huawei's serverless cloud keeps, counted anew at each request (arXiv 2410.06145)."""
COMMON_KEEP_ALIVE_S = 600.0
"""Ten minutes: what public clouds were found to keep (Shahrad et al., USENIX ATC 2020)."""


LARGEST_EXPONENT = 700.0
"""e^700 seconds is for ever, and close to the largest double."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAlivePrices:
    """What an idle second and a cold start cost."""

    idle_usd_per_s: float
    """The instance, or the share of a GPU's memory that the function holds."""
    cold_start_usd: float
    """What a late answer is worth to its user, with the GPU time that loading takes."""

    def __post_init__(self) -> None:
        """Refuse prices that decide nothing."""
        for price in (self.idle_usd_per_s, self.cold_start_usd):
            if not 0 <= price < math.inf:
                msg = f"prices must be at least 0 and finite, not {price!r}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When an idle instance is in memory, in seconds from the end of its last request."""

    reload_s: float = 0.0
    """0 = it was never given back."""
    until_s: float
    """inf = for good."""

    def __post_init__(self) -> None:
        """Refuse a window that ends before it begins."""
        if not 0 <= self.reload_s <= self.until_s:
            msg = f"a window goes from 0 or later to no earlier, not from {self.reload_s!r} to {self.until_s!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleGaps:
    """The gaps of one function's requests, and how long it was idle after the last one."""

    gaps_s: FloatArray
    """Idle time before each request but the first, in order of time; requests that overlap another one have none."""
    n_requests: int
    tail_s: float = 0.0
    """From the end of the last request to the end of what was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAliveCost:
    """What a rule costs one function over a recording."""

    n_requests: int
    n_cold: int
    """The first request included."""
    idle_s: float
    idle_usd: float
    cold_usd: float

    @property
    def total_usd(self) -> float:
        """Idle time and cold starts."""
        return self.idle_usd + self.cold_usd

    @property
    def cold_fraction(self) -> float:
        """Part of the requests that were cold; 0 without requests."""
        return self.n_cold / self.n_requests if self.n_requests else 0.0


def idle_gaps(arrival_s: ArrayLike, *, service_s: ArrayLike = 0.0, end_s: float | None = None) -> IdleGaps:
    """Return the idle gaps of an instance that begins every request as it arrives.

    Parameters
    ----------
    arrival_s : ascending times in seconds, shape (requests,).
    service_s : how long each request keeps the instance busy, shape (requests,) or one number.
    end_s : end of the recording; None = the end of the last request.

    Raises
    ------
    ValueError: if arrivals do not ascend, a service time is negative, or the recording ends before its last arrival.

    Examples
    --------
    >>> found = idle_gaps([0.0, 2.0, 10.0], service_s=3.0, end_s=20.0)
    >>> found.gaps_s.tolist(), found.tail_s
    ([5.0], 7.0)
    """
    arrivals = np.asarray(arrival_s, dtype=np.float64)
    services = np.broadcast_to(np.asarray(service_s, dtype=np.float64), arrivals.shape)
    if not (np.all(np.isfinite(arrivals)) and np.all(np.diff(arrivals) >= 0)):
        msg = "arrivals must be finite and in ascending order"
        raise ValueError(msg)
    if not np.all((services >= 0) & np.isfinite(services)):
        msg = "service times must be at least 0 and finite"
        raise ValueError(msg)
    if not len(arrivals):
        return IdleGaps(gaps_s=np.zeros(0), n_requests=0)
    if end_s is not None and end_s < arrivals[-1]:
        msg = f"the recording ends at {end_s!r} s, before its last request at {float(arrivals[-1])!r} s"
        raise ValueError(msg)
    busy_until = np.maximum.accumulate(arrivals + services)
    gaps = arrivals[1:] - busy_until[:-1]
    tail_s = 0.0 if end_s is None else max(0.0, end_s - float(busy_until[-1]))
    return IdleGaps(gaps_s=gaps[gaps > 0], n_requests=len(arrivals), tail_s=tail_s)


def cost_of(window: Window, idle: IdleGaps, prices: KeepAlivePrices) -> KeepAliveCost:
    """Return what a rule costs: idle time in memory, and cold starts.

    A gap that is as long as the window is still served warm.
    """
    return cost_of_windows([window] * (len(idle.gaps_s) + 1), idle, prices)


def cost_of_windows(windows: Sequence[Window], idle: IdleGaps, prices: KeepAlivePrices) -> KeepAliveCost:
    """Return what a rule costs that changes its window from gap to gap.

    windows : one for each gap, and one for the time after the last request.

    Raises
    ------
    ValueError: if there are not as many.
    """
    if len(windows) != len(idle.gaps_s) + 1:
        msg = f"{len(windows)} windows for {len(idle.gaps_s)} gaps and the time after them"
        raise ValueError(msg)
    reload_s = np.array([window.reload_s for window in windows])
    until_s = np.array([window.until_s for window in windows])
    lengths = np.append(idle.gaps_s, idle.tail_s)
    is_cold = (idle.gaps_s < reload_s[:-1]) | (idle.gaps_s > until_s[:-1])
    idle_s = float((np.minimum(lengths, until_s) - np.minimum(lengths, reload_s)).sum())
    n_cold = int(is_cold.sum()) + (1 if idle.n_requests else 0)
    return KeepAliveCost(
        n_requests=idle.n_requests,
        n_cold=n_cold,
        idle_s=idle_s,
        idle_usd=idle_s * prices.idle_usd_per_s,
        cold_usd=n_cold * prices.cold_start_usd,
    )


def best_keep_alive(idle: IdleGaps, prices: KeepAlivePrices) -> Window:
    """Return the keep-alive time (a window from 0) that would have cost least; the shortest of equally cheap ones.

    Between two gaps the cost only rises with the time kept, and at a gap it falls by one cold start, so one of the gaps
    or 0 is best. All are tried at once: O(n log n).

    Examples
    --------
    >>> every_minute = idle_gaps([60.0 * i for i in range(100)])
    >>> best_keep_alive(every_minute, KeepAlivePrices(idle_usd_per_s=1e-4, cold_start_usd=0.01)).until_s
    60.0
    >>> best_keep_alive(every_minute, KeepAlivePrices(idle_usd_per_s=1e-3, cold_start_usd=0.01)).until_s
    0.0
    """
    candidates = _candidates(idle)
    return Window(until_s=float(candidates[np.argmin(_cost_until(candidates, idle, prices))]))


def best_window(idle: IdleGaps, prices: KeepAlivePrices) -> Window:
    """Return the window that would have cost least, given back and fetched again in between where that pays.

    The cost is F(until) + G(reload): F as of a plain keep-alive, and

        G(r) = c_c #(g < r) - c_i sum min(g, r),

    which falls between gaps and jumps up right after one, so the gaps and 0 are the only candidates for both; the best
    reload for each end is a running minimum. O(n log n). Fetching is charged like any idle second and not as a cold
    start, so windows of many reloads look a little cheaper than they are.
    """
    candidates = _candidates(idle)
    until = _cost_until(candidates, idle, prices)
    lengths = np.sort(np.append(idle.gaps_s, idle.tail_s))
    early = np.searchsorted(np.sort(idle.gaps_s), candidates, side="left")
    reload = prices.cold_start_usd * early - prices.idle_usd_per_s * _sum_of_least(lengths, candidates)
    best_reload = _running_argmin(reload)
    end = int(np.argmin(until + reload[best_reload]))
    return Window(reload_s=float(candidates[best_reload[end]]), until_s=float(candidates[end]))


def _candidates(idle: IdleGaps) -> FloatArray:
    """Return the times at which something changes, ascending: 0 and every gap."""
    return np.concatenate([[0.0], np.unique(idle.gaps_s)])


def _cost_until(candidates: FloatArray, idle: IdleGaps, prices: KeepAlivePrices) -> FloatArray:
    """Return the cost of keeping an instance for each of `candidates` seconds, but for the first cold start."""
    lengths = np.sort(np.append(idle.gaps_s, idle.tail_s))
    late = len(idle.gaps_s) - np.searchsorted(np.sort(idle.gaps_s), candidates, side="right")
    return np.asarray(
        prices.idle_usd_per_s * _sum_of_least(lengths, candidates) + prices.cold_start_usd * late, dtype=np.float64
    )


def _sum_of_least(lengths: FloatArray, bounds: FloatArray) -> FloatArray:
    """Return sum(min(length, bound)) over ascending lengths for each bound."""
    sums = np.concatenate([[0.0], np.cumsum(lengths)])
    shorter = np.searchsorted(lengths, bounds, side="right")
    return np.asarray(sums[shorter] + bounds * (len(lengths) - shorter), dtype=np.float64)


def _running_argmin(values: FloatArray) -> IntArray:
    """Return for each position where the least value up to there is, the first of equal ones."""
    is_new = np.concatenate([[True], values[1:] < np.minimum.accumulate(values)[:-1]])
    return np.maximum.accumulate(np.where(is_new, np.arange(len(values)), 0))


def poisson_keep_alive_s(rate_rps: float, prices: KeepAlivePrices) -> float:
    """Return the best keep-alive time for Poisson arrivals: for ever if rate > c_i / c_c, else not at all.

    A gap that has lasted says nothing of when it ends, so what is right for its first second is right for all of them.

    Examples
    --------
    >>> gpu = KeepAlivePrices(idle_usd_per_s=3.67 / 3600, cold_start_usd=0.01)
    >>> poisson_keep_alive_s(1 / 9.7, gpu), poisson_keep_alive_s(1 / 9.9, gpu)
    (inf, 0.0)
    """
    return math.inf if rate_rps * prices.cold_start_usd > prices.idle_usd_per_s else 0.0


def weibull_keep_alive_s(gaps: Weibull, prices: KeepAlivePrices) -> float:
    """Return the best keep-alive time for independent Weibull gaps of shape k and scale s.

    The cost c_i E[min(gap, tau)] + c_c P(gap > tau) has the slope (c_i - c_c h(tau)) P(gap > tau), where the hazard
    h(t) = (k/s) (t/s)^(k-1) is the chance per second that a gap of this age ends. For k < 1 it falls, and the instance
    is kept until h = c_i / c_c:

        tau* = s (k / (s c_i / c_c))^(1 / (1 - k)).

    For k > 1 it rises, so the best is not at all or for ever, whichever is cheaper: c_c or c_i x the mean gap; for
    k = 1 the arrivals are Poisson.
    """
    if prices.idle_usd_per_s == 0:
        return math.inf if prices.cold_start_usd > 0 else 0.0
    if prices.cold_start_usd == 0:
        return 0.0
    if gaps.shape >= 1:
        return math.inf if prices.cold_start_usd > prices.idle_usd_per_s * gaps.mean_s else 0.0
    ratio = gaps.shape * prices.cold_start_usd / (gaps.scale_s * prices.idle_usd_per_s)
    exponent = math.log(ratio) / (1 - gaps.shape) + math.log(gaps.scale_s)
    return math.exp(exponent) if exponent < LARGEST_EXPONENT else math.inf


def poisson_cold_fraction(rate_rps: float, keep_alive_s: float) -> float:
    """Return the part of Poisson requests to one instance that is cold: exp(-rate x keep-alive)."""
    return math.exp(-rate_rps * keep_alive_s)


def pod_utility_ratio(*, lifetime_s: float, keep_alive_s: float, cold_start_s: float) -> float:
    """Return how long an instance was of use for each second of its cold start (arXiv 2410.06145).

    U = (lifetime - keep-alive) / cold start; below 1 it took longer to start than it worked.

    Examples
    --------
    >>> pod_utility_ratio(lifetime_s=100.0, keep_alive_s=60.0, cold_start_s=10.0)
    4.0
    """
    if not (cold_start_s > 0 and 0 <= keep_alive_s <= lifetime_s):
        msg = (
            f"no instance lives {lifetime_s!r} s with {keep_alive_s!r} s of keep-alive and {cold_start_s!r} s to start"
        )
        raise ValueError(msg)
    return (lifetime_s - keep_alive_s) / cold_start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridHistogram:
    """The rule of Shahrad et al. (USENIX ATC 2020, section 4): a window from a histogram of the gaps seen so far.

    The instance is given back at once and fetched at the `head` percentile of the gaps, less a margin, and kept to the
    `tail` percentile, more a margin. While the histogram says little (few gaps, or counts that are as even as chance:
    coefficient of variation below a threshold) the instance is kept for the histogram's range. Their forecast for gaps
    beyond the range (ARIMA) is left out: these gaps are cold here.
    """

    bin_s: float = 60.0
    range_s: float = 4 * 3600.0
    head_percentile: float = 5.0
    tail_percentile: float = 99.0
    margin_fraction: float = 0.10
    least_cv: float = 2.0
    least_gaps: int = 2
    """Below this many gaps nothing is known. Not in the paper."""

    def windows(self, idle: IdleGaps) -> tuple[Window, ...]:
        """Return the window in force during each gap, made from the ones before it, and the one after all of them."""
        n_bins = math.ceil(self.range_s / self.bin_s)
        counts = np.zeros(n_bins, dtype=np.int64)
        windows = [self._window(counts)]
        for gap_s in idle.gaps_s.tolist():
            index = math.floor(gap_s / self.bin_s)
            if index < n_bins:
                counts[index] += 1
            windows.append(self._window(counts))
        return tuple(windows)

    def _window(self, counts: IntArray) -> Window:
        total = int(counts.sum())
        if total < self.least_gaps or counts.std() < self.least_cv * counts.mean():
            return Window(until_s=self.range_s)
        ranks = np.cumsum(counts)
        head = int(np.searchsorted(ranks, self.head_percentile / 100 * total))
        tail = int(np.searchsorted(ranks, self.tail_percentile / 100 * total)) + 1
        return Window(
            reload_s=head * self.bin_s * (1 - self.margin_fraction),
            until_s=tail * self.bin_s * (1 + self.margin_fraction),
        )


def compare_rules(idle: IdleGaps, prices: KeepAlivePrices) -> Mapping[str, KeepAliveCost]:
    """Return what each rule costs this function, by name: the best ones in hindsight, and common ones."""
    rules = {
        "best keep-alive": best_keep_alive(idle, prices),
        "best window": best_window(idle, prices),
        "never": Window(until_s=0.0),
        "60 s": Window(until_s=HUAWEI_KEEP_ALIVE_S),
        "10 min": Window(until_s=COMMON_KEEP_ALIVE_S),
        "always": Window(until_s=math.inf),
    }
    found = {name: cost_of(window, idle, prices) for name, window in rules.items()}
    found["hybrid histogram"] = cost_of_windows(HybridHistogram().windows(idle), idle, prices)
    return found
