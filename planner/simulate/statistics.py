"""Percentiles and attainment of simulated requests, with what their scatter says about them.

Requests that follow one another see the same queue, so they are not independent: intervals come from batch means. The
requests are cut into `N_BATCHES` runs of equal length in the order of arrival; the spread of a fraction between the
batches is its error. A percentile's interval is that of the fraction of requests below it, read off the sorted values
(Law, Simulation Modeling and Analysis, 5th ed., section 9.5: batch means and quantiles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.domain.slo import Slo
    from planner.simulate.records import RequestRecords
    from planner.simulate.steps import Floats

N_BATCHES = 20
T_95 = 2.093
"""Student's t for 95%, two sides, with N_BATCHES - 1 degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A statistic with its 95% interval."""

    value: float
    low: float
    high: float
    n: int
    """Requests behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloOutcome:
    """One objective of one service, simulated."""

    slo: Slo
    simulated: Estimate
    """The objective's statistic, in seconds."""
    attainment: Estimate
    """Fraction of requests whose own value is within the bound."""

    @property
    def is_met(self) -> bool:
        """Whether the statistic is within its bound."""
        return self.simulated.value <= self.slo.bound_s

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval is on the same side of the bound."""
        return self.simulated.high <= self.slo.bound_s or self.simulated.low > self.slo.bound_s


def mean(values: Floats) -> Estimate:
    """Return the mean of `values`, which are in the order of arrival; NaN without any."""
    if len(values) == 0:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)
    value = float(np.mean(values))
    spread = _half_width(values)
    return Estimate(value=value, low=value - spread, high=value + spread, n=len(values))


def percentile(values: Floats, level: float) -> Estimate:
    """Return the `level` (in (0, 100)) percentile of `values`, which are in the order of arrival; NaN without any.

    The smallest value that at least that share of the requests does not exceed.
    """
    n = len(values)
    if n == 0:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)
    ranked = np.sort(values)
    share = level / 100.0

    def at(fraction: float) -> float:
        return float(ranked[min(n - 1, max(0, math.ceil(fraction * n - 1e-9) - 1))])

    value = at(share)
    spread = max(_half_width((values <= value).astype(np.float64)), 1.0 / n)
    return Estimate(
        value=value,
        low=at(max(0.0, share - spread)),
        high=at(share + spread) if share + spread < 1 else math.inf,
        n=n,
    )


def fraction(is_true: Floats) -> Estimate:
    """Return the share of ones among zeros and ones in the order of arrival."""
    found = mean(is_true)
    return Estimate(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high), n=found.n)


def _half_width(values: Floats) -> float:
    """Return half the width of the mean's 95% interval by batch means; infinite for fewer values than batches."""
    length = len(values) // N_BATCHES
    if length == 0:
        return math.inf
    if not np.isfinite(values).all():
        return math.inf
    batches = values[: length * N_BATCHES].reshape(N_BATCHES, length).mean(axis=1)
    return float(T_95 * batches.std(ddof=1) / math.sqrt(N_BATCHES))


def outcome(records: RequestRecords, slo: Slo) -> SloOutcome:
    """Return how the requests of one service fare against one of its objectives."""
    values = records.values(slo.metric)
    values = values[~np.isnan(values)]
    simulated = mean(values) if slo.percentile is None else percentile(values, slo.percentile)
    return SloOutcome(slo=slo, simulated=simulated, attainment=fraction((values <= slo.bound_s).astype(np.float64)))
