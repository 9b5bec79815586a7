"""How often to repeat a measurement: until its median is known well enough, or its share of the time is spent."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TARGET_HALF_WIDTH_FRACTION = 0.03
"""Repeat until half the 95% interval of the median is at most this part of it."""

LEAST_SAMPLES = 6
"""The fewest samples whose range is a 95% interval of the median: 1 - 2 x 0.5^6 = 0.97."""

MOST_SAMPLES = 200

SAMPLE_S = 1e-3
"""One sample is at least so long: clocks and events are good to about a microsecond."""

MOST_CALLS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The time of one call of a kernel, from repeated samples of several calls each."""

    median_s: float
    low_s: float
    """Lower end of the 95% interval of the median; the least sample where there are too few for an interval."""
    high_s: float
    n_samples: int
    calls_per_sample: int
    is_settled: bool
    """Whether the interval is as narrow as was asked."""


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return (median, low, high) of `samples`, with the distribution-free 95% interval of the median.

    The interval runs from the k-th smallest to the k-th largest sample, k the largest with 2 P(Bin(n, 1/2) < k) <= 5%.
    Source: Conover, Practical Nonparametric Statistics, 3rd ed., sec. 3.2.

    Raises
    ------
    ValueError: if there are no samples.

    Examples
    --------
    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (3.5, 1.0, 6.0)
    """
    ordered = sorted(samples)
    n = len(ordered)
    tail, rank = 0.0, 0
    while rank < n // 2:
        tail += math.comb(n, rank) / 2.0**n
        if 2 * tail > 0.05:
            break
        rank += 1
    at = max(rank - 1, 0)
    return statistics.median(ordered), ordered[at], ordered[n - 1 - at]


def is_settled(samples: Sequence[float]) -> bool:
    """Return whether the samples' median is known as well as is asked."""
    if len(samples) < LEAST_SAMPLES:
        return False
    middle, low, high = median_interval(samples)
    return high - low <= 2 * TARGET_HALF_WIDTH_FRACTION * middle


def collect(
    sample: Callable[[int], float], *, limit_s: float, clock: Callable[[], float], least_calls: int = 1
) -> Timing:
    """Return the timing of a kernel from as many samples as it takes.

    Parameters
    ----------
    sample : runs a number of calls, one after the other, and returns the seconds that all of them took.
    limit_s : stop after this long, settled or not; two samples are always taken.
    clock : seconds from any start.
    least_calls : calls of one sample at least, e.g. so that each copy of an operand has its turn.
    """
    start = clock()
    first_s = max(sample(1), 1e-9)
    n_calls = max(least_calls, min(MOST_CALLS, math.ceil(SAMPLE_S / first_s)))
    samples = [] if n_calls > 1 else [first_s]
    while len(samples) < MOST_SAMPLES and not is_settled(samples):
        if len(samples) >= 2 and clock() - start >= limit_s:
            break
        samples.append(sample(n_calls) / n_calls)
    middle, low, high = median_interval(samples)
    return Timing(
        median_s=middle,
        low_s=low,
        high_s=high,
        n_samples=len(samples),
        calls_per_sample=n_calls,
        is_settled=is_settled(samples),
    )
