"""Decisions of a measurement without any I/O: is this rate within the objectives, and which rate is tried next?

A rate is judged by sequential tests on the requests in order of arrival: as few requests as the evidence needs. The
largest rate that holds is then bracketed and bisected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.distributions import student_t_quantile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

ZONE = 2.0
"""Indifference zone of the test on a percentile: with a share q of the requests allowed beyond the bound, q / ZONE
counts as surely good and q x ZONE as surely bad. A smaller zone takes more requests, roughly with 1 / log(ZONE)^2."""

BATCHES = 16
"""Consecutive batches of requests that clustering is told from."""

FIRST_LOOK = 128
"""Values at the first look of the test on a mean: the means of batches of fewer than 8 are too far from normal."""

MOST_CLUSTERING = 8.0
"""Evidence is divided by this at most: longer clusters could not be told from a drift within one run."""

FIRST_STEPS = (1.3, 2.0)
"""Factor of the first step from a start that is informed by a neighbour or an estimate, and from one that is not."""

LARGEST_STEP = 4.0

CONFIRMATIONS = 2
"""How many more runs must say the same of either end of the answer than say the opposite."""

MOST_RUNS = 5
"""At one rate: if they do not agree until then, it fails."""


class Verdict(StrEnum):
    """What a run at one rate has shown so far."""

    OPEN = "open"
    HOLDS = "holds"
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class BernoulliTest:
    """Wald's sequential probability ratio test on the share of requests beyond a bound.

    Good is a share of `allowed` / ZONE, bad one of `allowed` x ZONE (at most half way to 1); each is missed with a
    probability of at most 1 - `confidence`. Source: Wald, Sequential Tests of Statistical Hypotheses, Annals of
    Mathematical Statistics 16 (1945), sec. 3.
    """

    allowed: float
    """Share of the requests that may be beyond the bound, in (0, 1): 0.01 for a p99."""
    confidence: float

    @property
    def good(self) -> float:
        """Share beyond the bound at which the test should find that the objective holds."""
        return self.allowed / ZONE

    @property
    def bad(self) -> float:
        """Share at which the test should find that it fails."""
        return min(self.allowed * ZONE, (1.0 + self.allowed) / 2.0)

    @property
    def fewest(self) -> int:
        """Requests within the bound that show the objective to hold if none is beyond it."""
        return math.ceil(self._threshold / math.log((1.0 - self.good) / (1.0 - self.bad)))

    @property
    def _threshold(self) -> float:
        return math.log(self.confidence / (1.0 - self.confidence))

    def verdict(self, n_requests: int, n_beyond: int, clustering: float = 1.0) -> Verdict:
        """Return what `n_beyond` of `n_requests` beyond the bound show.

        Parameters
        ----------
        clustering : by what factor the requests tell less than as many independent ones would; >= 1.

        Examples
        --------
        >>> test = BernoulliTest(allowed=0.01, confidence=0.95)
        >>> test.fewest, str(test.verdict(193, 0)), str(test.verdict(50, 5)), str(test.verdict(100, 1))
        (194, 'open', 'fails', 'open')
        """
        within = n_requests - n_beyond
        ratio = n_beyond * math.log(self.bad / self.good) + within * math.log((1.0 - self.bad) / (1.0 - self.good))
        evidence = ratio / max(clustering, 1.0)
        if evidence <= -self._threshold and n_beyond <= self.allowed * n_requests:
            return Verdict.HOLDS
        if evidence >= self._threshold and n_beyond > self.allowed * n_requests:
            return Verdict.FAILS
        return Verdict.OPEN


def clustering(is_beyond: ArrayLike) -> float:
    """Return by what factor the count of flagged requests scatters more than independent ones would; 1 .. 8.

    The index of dispersion of counts in `BATCHES` consecutive batches, corrected for the share: with independent
    requests its mean is 1, with clusters of c alike requests about c.

    Examples
    --------
    >>> clustering([False] * 100), clustering(([True] * 10 + [False] * 90) * 4) > 4
    (1.0, True)
    """
    flags = np.asarray(is_beyond, dtype=np.float64)
    size = len(flags) // BATCHES
    share = float(flags.mean()) if len(flags) else 0.0
    if size < 2 or not 0.0 < share < 1.0:
        return 1.0
    counts = flags[: size * BATCHES].reshape(BATCHES, size).sum(axis=1)
    expected = size * share * (1.0 - share)
    return float(min(max(counts.var(ddof=1) / expected, 1.0), MOST_CLUSTERING))


def mean_verdict(values: NDArray[np.float64], bound: float, confidence: float) -> Verdict:
    """Return whether the mean of a stationary series is at most `bound`, by the means of `BATCHES` batches.

    The test looks at 2^k x FIRST_LOOK values only, and spends (1 - confidence) / 2^(k + 1) of its error on look k, so
    that all looks together err with at most 1 - confidence. Quantiles of Student's t by Hill's expansion
    (Communications of the ACM 13, 1970, algorithm 396, first terms).

    Parameters
    ----------
    values : seconds, in order of arrival; those after the last look are not used.
    """
    if len(values) < FIRST_LOOK:
        return Verdict.OPEN
    look = math.floor(math.log2(len(values) / FIRST_LOOK))
    used = values[: FIRST_LOOK * 2**look]
    batches = used.reshape(BATCHES, -1).mean(axis=1)
    error = float(batches.std(ddof=1)) / math.sqrt(BATCHES)
    margin = student_t_quantile(1.0 - (1.0 - confidence) / 2 ** (look + 1), BATCHES - 1) * error
    mean = float(used.mean())
    if mean + margin <= bound:
        return Verdict.HOLDS
    return Verdict.FAILS if mean - margin > bound else Verdict.OPEN


def share_interval(n_beyond: int, n_requests: int, confidence: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share: exact for independent requests.

    Source: Clopper and Pearson, Biometrika 26 (1934). Found by bisection on the binomial distribution.

    Examples
    --------
    >>> low, high = share_interval(0, 300, 0.95)
    >>> low, round(high, 4)
    (0.0, 0.0122)
    """
    tail = (1.0 - confidence) / 2.0
    low = _bisect(lambda share: 1.0 - _binomial_cdf(n_beyond - 1, n_requests, share) - tail) if n_beyond else 0.0
    high = _bisect(lambda share: tail - _binomial_cdf(n_beyond, n_requests, share)) if n_beyond < n_requests else 1.0
    return low, high


def _bisect(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2.0


def _binomial_cdf(k: int, n: int, share: float) -> float:
    counts = np.arange(k + 1)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in counts.tolist()]
    terms = np.array(logs) + counts * math.log(share) + (n - counts) * math.log1p(-share)
    return float(np.exp(terms).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One rate that was judged."""

    rate_rps: float
    holds: bool
    served_rps: float = 0.0
    """Completions per second seen while the rate failed: what the server can do, if it was overloaded; 0 = not seen."""


@dataclass(slots=True, kw_only=True)
class RateSearch:
    """Bracketing, then bisection of the largest rate that holds; both ends of the answer are tried anew.

    The largest of many rates that passed a test is more often than not one that was lucky, and one pause of a server or
    its machine fails a rate that it could serve. So what stands is what most runs at a rate say.
    """

    start_rps: float
    resolution: float
    """The bracket is closed once its ends differ by no more than this part."""
    is_informed: bool = False
    """The start comes from a neighbour or an estimate: the first step away from it is small."""
    lowest_rps: float = 0.0
    """Below this rate nothing is tried: the objectives cannot be met."""
    tried: list[Tried] = field(default_factory=list)

    @property
    def fails_rps(self) -> float:
        """Smallest rate that failed; infinite = none did."""
        return min((rate for rate in self._rates if self._is_failed(rate)), default=math.inf)

    @property
    def holds_rps(self) -> float:
        """Largest rate that held, below every one that failed; 0 = none did."""
        failing = self.fails_rps
        return max((rate for rate in self._rates if self._lead(rate) > 0 and rate < failing), default=0.0)

    @property
    def is_closed(self) -> bool:
        """Whether the answer is known as well as was asked, or that there is none."""
        if not self.holds_rps:
            return self.fails_rps <= self.lowest_rps and self._is_settled(self.fails_rps)
        return self._is_narrow and self._is_settled(self.holds_rps) and self._is_settled(self.fails_rps)

    @property
    def _rates(self) -> set[float]:
        return {one.rate_rps for one in self.tried}

    @property
    def _is_narrow(self) -> bool:
        return self.fails_rps <= self.holds_rps * (1.0 + self.resolution)

    def _runs(self, rate_rps: float) -> list[bool]:
        return [one.holds for one in self.tried if one.rate_rps == rate_rps]

    def _lead(self, rate_rps: float) -> int:
        """Return how many more runs held at this rate than failed."""
        return sum(1 if held else -1 for held in self._runs(rate_rps))

    def _is_failed(self, rate_rps: float) -> bool:
        lead = self._lead(rate_rps)
        return lead < 0 or (lead < CONFIRMATIONS and len(self._runs(rate_rps)) >= MOST_RUNS)

    def _is_settled(self, rate_rps: float) -> bool:
        return abs(self._lead(rate_rps)) >= CONFIRMATIONS or len(self._runs(rate_rps)) >= MOST_RUNS

    def next_rps(self) -> float:
        """Return the rate to try next.

        Raises
        ------
        ValueError: if the search is closed.
        """
        if self.is_closed:
            msg = "the search is closed"
            raise ValueError(msg)
        low, high = self.holds_rps, self.fails_rps
        if undecided := [rate for rate in self._rates if self._lead(rate) == 0 and low < rate < high]:
            return min(undecided)
        if low and self._is_narrow:
            return high if self._is_settled(low) else low
        if low and math.isfinite(high):
            return math.sqrt(low * high)
        return self._one_sided(low, high)

    def _one_sided(self, low: float, high: float) -> float:
        """Return the next rate where everything held, or nothing did: in growing steps, small from a good start."""
        if not self.tried:
            return max(self.start_rps, self.lowest_rps)
        outcomes = {one.holds for one in self.tried}
        first = FIRST_STEPS[0 if self.is_informed or len(outcomes) > 1 else 1]
        step = min(first ** (1 if len(outcomes) > 1 else len(self._rates)), LARGEST_STEP)
        if low:
            return low * step
        served = [one.served_rps for one in self.tried if not one.holds and one.served_rps > 0]
        below = min(high / step, 0.9 * min(served, default=math.inf))
        return max(below, self.lowest_rps)

    def record(self, tried: Tried) -> None:
        """Add a judged rate."""
        self.tried.append(tried)
