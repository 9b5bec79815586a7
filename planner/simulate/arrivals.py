"""When requests come in: a trace at another speed, or a random process of a given rate and burstiness.

Every function returns ascending times in seconds from 0 and depends on its generator alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.simulate.steps import Floats


def poisson(rate_rps: float, n: int, rng: np.random.Generator) -> Floats:
    """Return `n` arrivals of a Poisson process."""
    return np.cumsum(rng.exponential(1.0 / rate_rps, n))


def gamma(rate_rps: float, n: int, rng: np.random.Generator, *, cv: float) -> Floats:
    """Return `n` arrivals whose gaps are gamma-distributed with coefficient of variation `cv`; 1 is Poisson."""
    shape = 1.0 / cv**2
    return np.cumsum(rng.gamma(shape, 1.0 / (rate_rps * shape), n))


def mmpp(
    rates_rps: Sequence[float], mean_stay_s: Sequence[float], duration_s: float, rng: np.random.Generator
) -> Floats:
    """Return the arrivals within `duration_s` of a Markov-modulated Poisson process that goes round its states.

    Parameters
    ----------
    rates_rps : rate in each state.
    mean_stay_s : mean of the exponential time spent in each state before the next one.
    """
    parts, now_s, state = [], 0.0, 0
    while now_s < duration_s:
        stay_s = min(float(rng.exponential(mean_stay_s[state])), duration_s - now_s)
        count = rng.poisson(rates_rps[state] * stay_s)
        parts.append(now_s + np.sort(rng.random(count)) * stay_s)
        now_s += stay_s
        state = (state + 1) % len(rates_rps)
    return np.concatenate(parts)


def varying(rates_rps: Sequence[float], step_s: float, rng: np.random.Generator) -> Floats:
    """Return the arrivals of a Poisson process whose rate is `rates_rps[i]` in the i-th period of `step_s`."""
    counts = rng.poisson(np.asarray(rates_rps, dtype=np.float64) * step_s)
    parts = [(i + np.sort(rng.random(count))) * step_s for i, count in enumerate(counts)]
    return np.concatenate(parts) if parts else np.zeros(0)


def at_rate(arrival_s: Floats, rate_rps: float) -> Floats:
    """Return a trace's arrivals played faster or slower so that their mean rate is `rate_rps`.

    Bursts stay bursts: every gap is multiplied by the same factor. The mean rate of n requests is (n - 1) over the
    time from the first to the last.
    """
    if len(arrival_s) < 2 or arrival_s[-1] <= arrival_s[0]:
        return np.zeros(len(arrival_s))
    own_rps = (len(arrival_s) - 1) / float(arrival_s[-1] - arrival_s[0])
    scaled: Floats = (arrival_s - arrival_s[0]) * (own_rps / rate_rps)
    return scaled
