"""Percentiles and attainment of simulated requests, with what their scatter says about them.

Requests that follow one another see the same queue, so they are not independent: intervals come from batch means. The
requests are cut into `N_BATCHES` runs of equal length in the order of arrival; the spread of a fraction between the
batches is its error. A percentile's interval is that of the fraction of requests below it, read off the sorted values
(Law, Simulation Modeling and Analysis, 5th ed., section 9.5: batch means and quantiles).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.distributions import student_t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.slo import Slo
    from planner.simulate.records import RequestRecords
    from planner.simulate.steps import Floats

N_BATCHES = 20
SMALLEST_BATCH = 5
"""Values of a batch at least, where there are too few for as many batches."""

_LEVEL_95 = 0.975
"""Of the upper end of a two-sided interval of 95%."""
_Z_95 = 1.959964


def level_95(among: int = 1) -> float:
    """Return the level of the upper end of a two-sided interval of 95%, or of each of `among` such intervals.

    among : so many intervals shall all hold with 95% together (Bonferroni), each by itself with more.

    Examples
    --------
    >>> level_95(), level_95(among=100)
    (0.975, 0.99975)
    """
    return 1.0 - (1.0 - _LEVEL_95) / among


def z_95(among: int = 1) -> float:
    """Return how many standard deviations a 95% interval reaches to each side; `among` as for `level_95`."""
    return _Z_95 if among == 1 else NormalDist().inv_cdf(level_95(among))


@cache
def t_95(freedom: int, among: int = 1) -> float:
    """Return Student's t for 95%, two sides, with so many degrees of freedom; `among` as for `level_95`."""
    return student_t_quantile(_LEVEL_95 if among == 1 else level_95(among), freedom)


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
    of: str = ""
    """Whose requests they are in words, where not all of the service's."""

    def __str__(self) -> str:
        return f"{self.slo} ({self.of})" if self.of else str(self.slo)

    @property
    def is_met(self) -> bool:
        """Whether the statistic is within its bound, or there is no request that the objective is about."""
        return self.simulated.n == 0 or self.simulated.value <= self.slo.bound_s

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval is on the same side of the bound."""
        return self.simulated.high <= self.slo.bound_s or self.simulated.low > self.slo.bound_s


def mean(values: Floats, among: int = 1) -> Estimate:
    """Return the mean of `values`, which are in the order of arrival; NaN without any. `among` as for `level_95`."""
    if len(values) == 0:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)
    value = float(np.mean(values))
    spread = _half_width(values, among)
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
    below = fraction((values <= value).astype(np.float64))
    low, high = share - max(below.value - below.low, 1.0 / n), share + max(below.high - below.value, 1.0 / n)
    return Estimate(value=value, low=at(max(0.0, low)), high=at(high) if high < 1 else math.inf, n=n)


def fraction(is_true: Floats, among: int = 1) -> Estimate:
    """Return the share of ones among zeros and ones in the order of arrival.

    Batch means know nothing of what is too rare to be in most batches, so the interval is at least as wide as that of
    independent requests. `among` as for `level_95`.
    """
    found = mean(is_true, among)
    if found.n == 0:
        return found
    low, high = wilson(found.value, found.n, among)
    return Estimate(
        value=found.value, low=max(0.0, min(found.low, low)), high=min(1.0, max(found.high, high)), n=found.n
    )


def wilson(share: float, n: int, among: int = 1) -> tuple[float, float]:
    """Return the 95% interval of a probability of which `share` was seen in `n` independent trials.

    Wilson's score interval with correction for continuity (Newcombe, Statistics in Medicine 17, 1998, method 4), which
    covers at least as much as it says where events are rare. `among` as for `level_95`.

    Examples
    --------
    >>> [round(end, 4) for end in wilson(1.0, 100)]
    [0.9539, 1.0]
    """
    z = z_95(among)
    z2, rest = z**2, 1.0 - share
    width = z * math.sqrt(max(0.0, z2 - 2 - 1 / n + 4 * share * (n * rest + 1)))
    low = (2 * n * share + z2 - 1 - width) / (2 * (n + z2))
    width = z * math.sqrt(max(0.0, z2 + 2 - 1 / n + 4 * share * (n * rest - 1)))
    high = (2 * n * share + z2 + 1 + width) / (2 * (n + z2))
    return (0.0 if share == 0 else max(0.0, low)), (1.0 if share == 1 else min(1.0, high))


def across(replications: Sequence[Estimate]) -> Estimate:
    """Return the mean of a statistic over independent replications, with the 95% interval of their scatter.

    One replication keeps the interval that it has of its own. Infinite where it is infinite in any.
    """
    if len(replications) == 1:
        return replications[0]
    values = np.array([found.value for found in replications])
    n = sum(found.n for found in replications)
    if np.isnan(values).any():
        return Estimate(value=math.nan, low=math.nan, high=math.nan, n=n)
    if np.isinf(values).any():
        return Estimate(value=math.inf, low=float(values.min()), high=math.inf, n=n)
    half = t_95(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    middle = float(values.mean())
    return Estimate(value=middle, low=middle - half, high=middle + half, n=n)


def across_outcomes(replications: Sequence[SloOutcome]) -> SloOutcome:
    """Return how an objective fares over independent replications."""
    attained = across([found.attainment for found in replications])
    return SloOutcome(
        slo=replications[0].slo,
        of=replications[0].of,
        simulated=across([found.simulated for found in replications]),
        attainment=replace(attained, low=max(0.0, attained.low), high=min(1.0, attained.high)),
    )


def next_mean(values: Floats, level: float) -> float:
    """Return what the mean of as many values to come stays below with probability `level`.

    They go on from `values`, which are in the order of arrival.

    By batch means, `N_BATCHES` of them or fewer of at least `SMALLEST_BATCH` values. Both means scatter, so the error
    of one counts sqrt(2) times. Infinite for fewer than two batches, or if a value is.
    """
    n_batches = min(N_BATCHES, len(values) // SMALLEST_BATCH)
    if n_batches < 2 or not np.isfinite(values).all():
        return math.inf
    length = len(values) // n_batches
    batches = values[: length * n_batches].reshape(n_batches, length).mean(axis=1)
    error = float(batches.std(ddof=1)) / math.sqrt(n_batches)
    return float(values.mean()) + student_t_quantile(level, n_batches - 1) * math.sqrt(2.0) * error


def next_share(is_true: Floats, share: float, level: float) -> float:
    """Return how much of zeros and ones has to be ones for `share` of as many to come to be, with probability `level`.

    With room for chance by batch means, and at least that of independent requests of which `share` are ones: batch
    means know nothing of what is too rare to be in most batches. At most 1.
    """
    alone = NormalDist().inv_cdf(level) * math.sqrt(2.0 * share * (1.0 - share) / len(is_true))
    return min(1.0, share + max(alone, next_mean(is_true, level) - float(is_true.mean())))


def _half_width(values: Floats, among: int) -> float:
    """Return half the width of the mean's 95% interval by batch means; infinite for fewer values than batches."""
    length = len(values) // N_BATCHES
    if length == 0:
        return math.inf
    if not np.isfinite(values).all():
        return math.inf
    batches = values[: length * N_BATCHES].reshape(N_BATCHES, length).mean(axis=1)
    return float(t_95(N_BATCHES - 1, among) * batches.std(ddof=1) / math.sqrt(N_BATCHES))


def outcome(records: RequestRecords, slo: Slo, of: str = "") -> SloOutcome:
    """Return how requests fare against an objective of theirs; `of` says whose they are, where not all of a service."""
    values = records.values(slo.metric)
    values = values[~np.isnan(values)]
    simulated = mean(values) if slo.percentile is None else percentile(values, slo.percentile)
    attained = fraction((values <= slo.bound_s).astype(np.float64))
    return SloOutcome(slo=slo, simulated=simulated, attainment=attained, of=of)
