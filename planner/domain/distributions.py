"""Distributions of times that vary much: cold starts, and the gaps between requests; and of the errors of means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

SMALLEST_SHAPE, LARGEST_SHAPE = 0.02, 50.0
"""Weibull shapes that moments and samples are searched in; the coefficients of variation there are 3e14 and 0.025."""
_STEPS = 200
"""Bisections of an interval of doubles never need more."""
_CERTAIN = 700.0
"""At odds of e^700 a time is long; more would overflow."""
_STILL = 1e-10
"""Change of a fraction in one round at which a fit has come to rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """A time whose logarithm is normal."""

    mu: float
    """Mean of the logarithm of the time in seconds."""
    sigma: float
    """Standard deviation of the logarithm."""

    def __post_init__(self) -> None:
        """Refuse a spread that is none."""
        if not (math.isfinite(self.mu) and 0 < self.sigma < math.inf):
            msg = f"a log-normal distribution needs a finite mu and sigma > 0, not {self.mu!r} and {self.sigma!r}"
            raise ValueError(msg)

    @classmethod
    def from_moments(cls, *, mean_s: float, sd_s: float) -> LogNormal:
        """Return the distribution with this mean and standard deviation: sigma^2 = ln(1 + (sd / mean)^2).

        Examples
        --------
        >>> found = LogNormal.from_moments(mean_s=3.24, sd_s=7.10)
        >>> round(found.mu, 4), round(found.sigma, 4), round(found.median_s, 3)
        (0.2965, 1.326, 1.345)
        """
        _check_moments(mean_s, sd_s)
        variance = math.log1p((sd_s / mean_s) ** 2)
        return cls(mu=math.log(mean_s) - variance / 2, sigma=math.sqrt(variance))

    @classmethod
    def from_quantiles(cls, *, p50_s: float, p99_s: float) -> LogNormal:
        """Return the distribution with this median and 99th percentile: sigma = ln(p99 / p50) / 2.326.

        Raises
        ------
        ValueError: unless 0 < p50 < p99.

        Examples
        --------
        >>> found = LogNormal.from_quantiles(p50_s=1.345, p99_s=29.4)
        >>> round(found.median_s, 3), round(found.quantile_s(0.99), 1)
        (1.345, 29.4)
        """
        if not 0 < p50_s < p99_s < math.inf:
            msg = f"a median and a larger 99th percentile above 0 are needed, not {p50_s!r} and {p99_s!r}"
            raise ValueError(msg)
        return cls(mu=math.log(p50_s), sigma=math.log(p99_s / p50_s) / NormalDist().inv_cdf(0.99))

    @property
    def mean_s(self) -> float:
        """The mean."""
        return math.exp(self.mu + self.sigma**2 / 2)

    @property
    def sd_s(self) -> float:
        """The standard deviation."""
        return self.mean_s * math.sqrt(math.expm1(self.sigma**2))

    @property
    def median_s(self) -> float:
        """The median."""
        return math.exp(self.mu)

    def quantile_s(self, fraction: float) -> float:
        """Return the time that this fraction of all times stays below; 0 < fraction < 1."""
        return math.exp(self.mu + self.sigma * NormalDist().inv_cdf(fraction))

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `n` independent times in seconds."""
        return rng.lognormal(self.mu, self.sigma, n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weibull:
    """A time that is exceeded with probability exp(-(t / scale)^shape).

    Shape 1 is the exponential distribution; below 1 the longer a gap has lasted, the longer it goes on.
    """

    shape: float
    scale_s: float

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not (0 < self.shape < math.inf and 0 < self.scale_s < math.inf):
            msg = f"a Weibull distribution needs shape and scale > 0, not {self.shape!r} and {self.scale_s!r}"
            raise ValueError(msg)

    @classmethod
    def from_moments(cls, *, mean_s: float, sd_s: float) -> Weibull:
        """Return the distribution with this mean and standard deviation.

        Raises
        ------
        ValueError: if no shape from 0.02 to 50 has their ratio.

        Examples
        --------
        >>> found = Weibull.from_moments(mean_s=1.25, sd_s=3.66)
        >>> round(found.shape, 4), round(found.scale_s, 4)
        (0.4176, 0.4217)
        """
        _check_moments(mean_s, sd_s)
        wanted = 2 * math.log(sd_s / mean_s)
        shape = _root(lambda k: wanted - math.log(_squared_cv(k)), f"a coefficient of variation of {sd_s / mean_s:g}")
        return cls(shape=shape, scale_s=mean_s / math.gamma(1 + 1 / shape))

    @classmethod
    def of_mean(cls, mean_s: float, *, shape: float) -> Weibull:
        """Return the distribution of this mean and shape."""
        return cls(shape=shape, scale_s=mean_s / math.gamma(1 + 1 / shape))

    @classmethod
    def fitted(cls, samples_s: ArrayLike) -> Weibull:
        """Return the most likely distribution of positive `samples_s`, shape (samples,).

        Solves sum(x^k ln x) / sum(x^k) - 1 / k = mean(ln x) for the shape k; the left side grows with k
        (Cohen, Technometrics 7, 1965).

        Raises
        ------
        ValueError: if there are not at least two different samples above 0, or no shape from 0.02 to 50 fits.
        """
        samples = np.asarray(samples_s, dtype=np.float64)
        if samples.ndim != 1 or len(samples) < 2 or not np.all((samples > 0) & np.isfinite(samples)):
            msg = "a Weibull distribution is fitted to at least two finite samples above 0"
            raise ValueError(msg)
        logs = np.log(samples / samples.max())  # of numbers up to 1, so that powers do not overflow

        def excess(k: float) -> float:
            weights = np.exp(k * logs)
            return float(weights @ logs / weights.sum() - 1 / k - logs.mean())

        shape = _root(excess, "these samples")
        scale = float(samples.max()) * float(np.mean(np.exp(shape * logs))) ** (1 / shape)
        return cls(shape=shape, scale_s=scale)

    def stretched(self, mean_s: float) -> Weibull:
        """Return the distribution of the same shape with another mean."""
        return Weibull.of_mean(mean_s, shape=self.shape)

    @property
    def mean_s(self) -> float:
        """The mean."""
        return self.scale_s * math.gamma(1 + 1 / self.shape)

    @property
    def sd_s(self) -> float:
        """The standard deviation."""
        return self.mean_s * math.sqrt(_squared_cv(self.shape))

    def survival(self, time_s: float) -> float:
        """Return the probability that the time is longer."""
        return math.exp(-((max(time_s, 0.0) / self.scale_s) ** self.shape))

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `n` independent times in seconds."""
        return self.scale_s * rng.weibull(self.shape, n)

    def residual(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `n` independent times from a moment chosen at random to the end of the gap that it falls in.

        A moment falls in a gap with probability proportional to its length. Where x has the density f, the length of
        the gap hit has x f(x) / mean; of a Weibull distribution (x / scale)^shape is then gamma(1 + 1 / shape), and the
        moment lies anywhere in it. Renewals that begin so have one rate from the start (Cox, Renewal Theory, 1962).
        """
        lengths = self.scale_s * rng.gamma(1 + 1 / self.shape, 1.0, n) ** (1 / self.shape)
        return np.asarray(lengths * rng.random(n), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperExponential:
    """A time that is short or long: exponential of one mean or, less often, of another one.

    The gaps of requests that come in sessions: short within one, long between two.
    """

    short_fraction: float
    """Part of the times that are short."""
    short_mean_s: float
    long_mean_s: float

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        if not (0 < self.short_fraction < 1 and 0 < self.short_mean_s <= self.long_mean_s < math.inf):
            msg = f"a hyper-exponential distribution needs 0 < fraction < 1 and 0 < short <= long mean, not {self}"
            raise ValueError(msg)

    @classmethod
    def fitted(cls, samples_s: ArrayLike, *, rounds: int = 1000) -> HyperExponential:
        """Return a distribution that is likelier than its neighbours for positive `samples_s`, shape (samples,).

        By expectation maximisation, which gains likelihood in each round, from times that are short below a tenth of
        their mean; it stops when the parameters do, or after `rounds`.

        Raises
        ------
        ValueError: if there are not at least two finite samples above 0.
        """
        samples = np.asarray(samples_s, dtype=np.float64)
        if samples.ndim != 1 or len(samples) < 2 or not np.all((samples > 0) & np.isfinite(samples)):
            msg = "a hyper-exponential distribution is fitted to at least two finite samples above 0"
            raise ValueError(msg)
        mean_s = float(samples.mean())
        part, short_s, long_s = 0.5, mean_s / 10, mean_s * 5
        for _ in range(rounds):
            exponent = np.minimum(samples / short_s * (1 - short_s / long_s), _CERTAIN)
            odds = (1 - part) / part * short_s / long_s * np.exp(exponent)
            is_short = 1 / (1 + odds)
            before = part
            part = float(is_short.mean())
            if not 0 < part < 1:
                part = before
                break
            short_s = float(is_short @ samples) / (part * len(samples))
            long_s = float((1 - is_short) @ samples) / ((1 - part) * len(samples))
            if abs(part - before) < _STILL:
                break
        return cls(short_fraction=part, short_mean_s=min(short_s, long_s), long_mean_s=max(short_s, long_s))

    def stretched(self, mean_s: float) -> HyperExponential:
        """Return the distribution of the same shape with another mean."""
        factor = mean_s / self.mean_s
        return HyperExponential(
            short_fraction=self.short_fraction,
            short_mean_s=self.short_mean_s * factor,
            long_mean_s=self.long_mean_s * factor,
        )

    @property
    def mean_s(self) -> float:
        """The mean."""
        return self.short_fraction * self.short_mean_s + (1 - self.short_fraction) * self.long_mean_s

    @property
    def sd_s(self) -> float:
        """The standard deviation."""
        square = self.short_fraction * self.short_mean_s**2 + (1 - self.short_fraction) * self.long_mean_s**2
        return math.sqrt(2 * square - self.mean_s**2)

    def survival(self, time_s: float) -> float:
        """Return the probability that the time is longer."""
        passed = max(time_s, 0.0)
        return self.short_fraction * math.exp(-passed / self.short_mean_s) + (1 - self.short_fraction) * math.exp(
            -passed / self.long_mean_s
        )

    def sample(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `n` independent times in seconds."""
        return self._drawn(self.short_fraction, n, rng)

    def residual(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `n` independent times from a moment chosen at random to the end of the gap that it falls in.

        It falls in a short gap with probability fraction x short mean / mean, and the rest of an exponential time is
        as long as the whole of it.
        """
        return self._drawn(self.short_fraction * self.short_mean_s / self.mean_s, n, rng)

    def _drawn(self, short_fraction: float, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        means = np.where(rng.random(n) < short_fraction, self.short_mean_s, self.long_mean_s)
        return np.asarray(rng.exponential(1.0, n) * means, dtype=np.float64)


@lru_cache(maxsize=1024)
def student_t_quantile(level: float, freedom: int) -> float:
    """Return the number that a variable of Student's t distribution stays below with probability `level`.

    Found by bisection on the distribution, which for whole degrees of freedom is a finite sum (Abramowitz and Stegun,
    Handbook of Mathematical Functions, 26.7.3 and 26.7.4): P(|T| < t) with t = sqrt(freedom) tan(angle).

    Parameters
    ----------
    level : 0 < level < 1; 0.975 for a two-sided interval of 95%.
    freedom : degrees of freedom; >= 1.

    Raises
    ------
    ValueError: if one of them is out of its range.

    Examples
    --------
    >>> round(student_t_quantile(0.975, 1), 4), round(student_t_quantile(0.975, 19), 4)
    (12.7062, 2.093)
    """
    if not 0 < level < 1 or freedom < 1:
        msg = (
            f"Student's t needs a level between 0 and 1 and at least one degree of freedom, not {level!r}, {freedom!r}"
        )
        raise ValueError(msg)
    if level < 0.5:
        return -student_t_quantile(1 - level, freedom)
    is_odd = freedom % 2
    steps = np.arange(1, freedom // 2)
    terms = np.concatenate(
        ([1.0], np.cumprod((2 * steps) / (2 * steps + 1) if is_odd else (2 * steps - 1) / (2 * steps)))
    )
    powers = 2 * np.arange(len(terms))

    def within(angle: float) -> float:
        series = math.sin(angle) * float(terms @ math.cos(angle) ** powers)
        if not is_odd:
            return series
        return (angle + math.cos(angle) * series * (freedom > 1)) * 2 / math.pi

    low, high = 0.0, math.pi / 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if within(middle) < 2 * level - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _squared_cv(shape: float) -> float:
    """Return variance / mean^2: gamma(1 + 2/k) / gamma(1 + 1/k)^2 - 1."""
    return math.expm1(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape))


def _check_moments(mean_s: float, sd_s: float) -> None:
    if not (0 < mean_s < math.inf and 0 < sd_s < math.inf):
        msg = f"mean and standard deviation must be above 0 and finite, not {mean_s!r} and {sd_s!r}"
        raise ValueError(msg)


def _root(rising: Callable[[float], float], what: str) -> float:
    """Return the shape at which an increasing function is 0."""
    low, high = SMALLEST_SHAPE, LARGEST_SHAPE
    if not rising(low) < 0 < rising(high):
        msg = f"no Weibull distribution with a shape from {SMALLEST_SHAPE} to {LARGEST_SHAPE} has {what}"
        raise ValueError(msg)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
