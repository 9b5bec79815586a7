"""Made-up traffic of many adapters: who is asked for how often, and when, over a day or any other time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.workload.popularity import default_gaps, default_popularity

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from planner.domain.distributions import HyperExponential, Weibull
    from planner.workload.popularity import Popularity

DAY_S = 86_400.0
_SPREAD = 4.0
"""Standard deviations of a count that are drawn beyond its mean at once; what is missing is drawn after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTraffic:
    """Requests of many adapters in order of time."""

    arrival_s: NDArray[np.float64]
    """Shape (requests,), ascending, within [0, duration_s)."""
    adapter: NDArray[np.int64]
    """Which adapter each asks for, shape (requests,); 0 is the most popular one."""
    rates_rps: NDArray[np.float64]
    """Mean rate of each adapter that the requests were drawn with, shape (adapters,)."""
    duration_s: float

    def of(self, adapter: int) -> NDArray[np.float64]:
        """Return the arrivals of one adapter, ascending."""
        return np.asarray(self.arrival_s[self.adapter == adapter], dtype=np.float64)


def adapter_traffic(
    n_adapters: int,
    total_rate_rps: float,
    rng: np.random.Generator,
    *,
    duration_s: float = DAY_S,
    popularity: Popularity | None = None,
    gaps: HyperExponential | Weibull | None = None,
    hourly_factors: ArrayLike | None = None,
) -> AdapterTraffic:
    """Return random requests for `n_adapters` adapters with a total mean rate of `total_rate_rps`.

    Each adapter is a renewal process of its own: its gaps have the distribution `gaps`, stretched to its mean, and its
    first request comes as if it had begun long ago, so that its expected count is rate x duration. Adapter i draws from
    the i-th child of `rng`: more adapters do not change the random numbers of those that were there.

    Parameters
    ----------
    popularity : how the rate is shared; None = as fitted to a production trace.
    gaps : of what shape the gaps are, whatever their mean; None = as fitted to the same trace.
    hourly_factors : rate of each hour over the mean rate, shape (hours,), which repeat; None = the same all the time.
        They are brought to a mean of 1 over the duration, so that the expected counts stay.

    Raises
    ------
    ValueError: for a rate or duration that is not above 0, or factors that are negative or all 0.
    """
    if not (0 < total_rate_rps < math.inf and 0 < duration_s < math.inf):
        msg = f"rate and duration must be above 0 and finite, not {total_rate_rps!r} req/s and {duration_s!r} s"
        raise ValueError(msg)
    rates = total_rate_rps * (popularity or default_popularity()).shares(n_adapters)
    return traffic_at_rates(rates, rng, duration_s=duration_s, gaps=gaps, hourly_factors=hourly_factors)


def traffic_at_rates(
    rates_rps: ArrayLike,
    rng: np.random.Generator,
    *,
    duration_s: float = DAY_S,
    gaps: HyperExponential | Weibull | None = None,
    hourly_factors: ArrayLike | None = None,
) -> AdapterTraffic:
    """Return random requests for adapters whose mean rates are given, shape (adapters,); else as `adapter_traffic`.

    An adapter of rate 0 has no requests.

    Raises
    ------
    ValueError: for rates that are negative or not finite, a duration that is not above 0, or factors that are negative
        or all 0.
    """
    rates = np.asarray(rates_rps, dtype=np.float64)
    if not (0 < duration_s < math.inf and np.all((rates >= 0) & np.isfinite(rates))):
        msg = f"rates must be at least 0 and the duration above 0 and finite, not {duration_s!r} s"
        raise ValueError(msg)
    shape = gaps or default_gaps()
    clock = _clock(hourly_factors, duration_s)
    parts = [
        np.interp(_renewals(shape.stretched(1.0 / rate), duration_s, child), *clock) if rate > 0 else np.zeros(0)
        for rate, child in zip(rates.tolist(), rng.spawn(len(rates)), strict=True)
    ]
    arrivals = np.concatenate(parts)
    adapters = np.repeat(np.arange(len(rates)), [len(part) for part in parts])
    order = np.argsort(arrivals, kind="stable")
    return AdapterTraffic(
        arrival_s=arrivals[order], adapter=adapters[order], rates_rps=rates, duration_s=float(duration_s)
    )


def _renewals(gaps: HyperExponential | Weibull, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the renewals within [0, duration_s) of a process that began long ago."""
    parts = [gaps.residual(1, rng)]
    while parts[-1][-1] < duration_s:
        expected = (duration_s - parts[-1][-1]) / gaps.mean_s
        n = math.ceil(expected + _SPREAD * gaps.sd_s / gaps.mean_s * math.sqrt(expected) + _SPREAD)
        parts.append(parts[-1][-1] + np.cumsum(gaps.sample(n, rng)))
    times = np.concatenate(parts)
    return times[times < duration_s]


def _clock(hourly_factors: ArrayLike | None, duration_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points of the map from evenly running time to time in which rates follow the factors: (even, real)."""
    if hourly_factors is None:
        return np.array([0.0, duration_s]), np.array([0.0, duration_s])
    factors = np.asarray(hourly_factors, dtype=np.float64)
    if factors.ndim != 1 or not len(factors) or not np.all((factors >= 0) & np.isfinite(factors)):
        msg = "hourly factors are at least 0 and finite"
        raise ValueError(msg)
    n_hours = math.ceil(duration_s / 3600.0)
    edges = np.minimum(np.arange(n_hours + 1) * 3600.0, duration_s)
    passed = np.concatenate([[0.0], np.cumsum(np.resize(factors, n_hours) * np.diff(edges))])
    if passed[-1] == 0:
        msg = "hourly factors are all 0"
        raise ValueError(msg)
    return passed * (duration_s / passed[-1]), edges  # an hour without requests is a jump from one edge to the next
