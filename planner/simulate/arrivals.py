"""When requests come in: a trace at another speed, or a random process of a given rate and burstiness.

Every function returns ascending times in seconds from 0 and depends on its generator alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.units import parse_duration_s, parse_fraction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from planner.simulate.steps import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """How requests arrive, whatever their rate."""

    kind: str
    """One of `KINDS`."""
    cv: float = 1.0
    """Of the gaps (gamma): standard deviation over mean."""
    factor: float = 1.0
    """Rate in a burst over the mean rate (mmpp)."""
    burst_s: float = 1.0
    """Mean length of a burst."""
    share: float = 0.5
    """Part of the time that is in bursts."""


MOST_CV = 100.0
"""Beyond it nearly all requests come at once, and the length of the replay is chance alone."""

KINDS = ("trace", "poisson", "gamma", "mmpp")
_HINT = "Write trace, poisson, gamma:CV (gamma:3) or mmpp:FACTOR,LENGTH,SHARE of bursts (mmpp:3,1min,10%)."


def parse_process(text: str) -> Process:
    """Return the arrival process that "poisson", "gamma:3" or "mmpp:3,1min,10%" names.

    Raises
    ------
    InputError: if it names none.

    Examples
    --------
    >>> parse_process("gamma:2.5").cv
    2.5
    >>> found = parse_process("mmpp:3,1min,10%")
    >>> found.factor, found.burst_s, found.share
    (3.0, 60.0, 0.1)
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS or bool(rest) != (kind in {"gamma", "mmpp"}):
        raise InputError(f"{text!r} is no way for requests to arrive.", hint=_HINT)
    if kind == "gamma":
        cv = _number(rest, text)
        if cv > MOST_CV:
            raise InputError(f"{text!r}: gaps that scatter by {cv:g} times their mean.", hint=f"At most {MOST_CV:g}.")
        return Process(kind=kind, cv=cv)
    if kind == "mmpp":
        return _mmpp_process(rest.split(","), text)
    return Process(kind=kind)


def _number(word: str, text: str) -> float:
    try:
        value = float(word)
    except ValueError as error:
        raise InputError(f"{word!r} in {text!r} is not a number.", hint=_HINT) from error
    if not 0 < value < math.inf:
        raise InputError(f"{word!r} in {text!r} is not above 0 and finite.", hint=_HINT)
    return value


def _mmpp_process(words: Sequence[str], text: str) -> Process:
    if len(words) != 3:
        raise InputError(f"{text!r} does not say how strong, how long and how frequent bursts are.", hint=_HINT)
    factor, burst_s, share = _number(words[0], text), parse_duration_s(words[1]), parse_fraction(words[2])
    if not (burst_s > 0 and 0 < share < 1):
        raise InputError(f"{text!r}: bursts have a length above 0 and a share of the time below 100%.", hint=_HINT)
    if factor * share > 1:
        raise InputError(
            f"{text!r}: {share:.3g} of the time at {factor:g} times the mean rate is more than all requests.",
            hint="FACTOR times SHARE is at most 1.",
        )
    return Process(kind="mmpp", factor=factor, burst_s=burst_s, share=share)


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


def in_unit_rate(trace_s: Floats, step_s: float | None = None) -> Floats:
    """Return a trace's arrivals in the time in which its mean rate is 1; the first is at 1.

    step_s : how the rate changes between stretches of this length is taken out as well, so that a schedule can put
        its own in; bursts within a stretch stay. None = only the mean is scaled.
    """
    n = len(trace_s)
    if n < 2 or trace_s[-1] <= trace_s[0]:
        return np.arange(1.0, n + 1)
    times = trace_s - trace_s[0]
    n_steps = 1 if step_s is None else max(1, round(times[-1] / step_s))
    edges = np.append(np.arange(n_steps) * (step_s or 0.0), times[-1])
    counts = np.append(np.searchsorted(times, edges[:-1], side="left"), n - 1)
    return np.asarray(np.interp(times, edges, counts) + 1.0)


def repeated(unit: Floats, n: int) -> Floats:
    """Return `n` arrivals of a unit-rate trace, which begins again as often as is needed."""
    rounds = -(-n // len(unit))
    return np.concatenate([unit + i * len(unit) for i in range(rounds)])[:n]


def at_rates(unit: Floats, edges_s: Floats, rates_rps: Floats) -> Floats:
    """Return when arrivals of unit rate come if the rate is `rates_rps[i]` from edges_s[i] to edges_s[i + 1].

    Time is stretched so that the number expected by then is what has come in unit time; what would come after the last
    edge is left out.
    """
    expected = np.concatenate([[0.0], np.cumsum(rates_rps * np.diff(edges_s))])
    keep = unit[unit < expected[-1]]
    return np.asarray(np.interp(keep, expected, edges_s))


def drawn(process: Process, edges_s: Floats, rates_rps: Floats, rng: np.random.Generator) -> Floats:
    """Return the arrivals of a random process whose mean rate is `rates_rps[i]` between two edges.

    Raises
    ------
    ValueError: if the process is a trace, which is not random.
    """
    if process.kind == "mmpp":
        edges_s, rates_rps = _with_bursts(process, edges_s, rates_rps, rng)
    expected = float(np.sum(rates_rps * np.diff(edges_s)))
    if process.kind == "gamma":
        n = int(expected + 10 * (process.cv + 1) * math.sqrt(expected + 1) + 10 * (process.cv + 1) ** 2)
        return at_rates(gamma(1.0, n, rng, cv=process.cv), edges_s, rates_rps)
    if process.kind not in {"poisson", "mmpp"}:
        msg = f"{process.kind} is no random process"
        raise ValueError(msg)
    return at_rates(np.sort(rng.random(rng.poisson(expected))) * expected, edges_s, rates_rps)


def _with_bursts(
    process: Process, edges_s: Floats, rates_rps: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return edges and rates with bursts and calm in turns; the rate of calm keeps the mean."""
    end_s, calm_s = float(edges_s[-1]), process.burst_s * (1 - process.share) / process.share
    calm = (1 - process.factor * process.share) / (1 - process.share)
    is_burst = bool(rng.random() < process.share)
    changes, states, now_s = [float(edges_s[0])], [is_burst], float(edges_s[0])
    while True:
        now_s += float(rng.exponential(process.burst_s if is_burst else calm_s))
        if now_s >= end_s:
            break
        is_burst = not is_burst
        changes.append(now_s)
        states.append(is_burst)
    edges = np.unique(np.concatenate([edges_s, changes]))
    base = rates_rps[np.searchsorted(edges_s, edges[:-1], side="right") - 1]
    in_burst = np.array(states)[np.searchsorted(changes, edges[:-1], side="right") - 1]
    return edges, base * np.where(in_burst, process.factor, calm)


def resampled(n: int, n_blocks: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return numbers of requests, blocks of consecutive ones drawn at random from a trace of `n` that closes in a ring.

    Circular block bootstrap (Politis & Romano 1992): what is within a block keeps its order and its gaps.
    """
    length = max(1, -(-n // n_blocks))
    starts = rng.integers(0, n, size=-(-n // length))
    return np.asarray((starts[:, None] + np.arange(length)[None, :]).ravel()[:n] % n)


def gaps_of(arrival_s: Floats, chosen: NDArray[np.int64]) -> Floats:
    """Return arrivals with the gaps that stand before the chosen requests; before the first it is the mean gap."""
    gaps = np.diff(arrival_s, prepend=arrival_s[0])
    gaps[0] = (arrival_s[-1] - arrival_s[0]) / max(1, len(arrival_s) - 1)
    times = np.cumsum(gaps[chosen])
    return np.asarray(times - times[0])
