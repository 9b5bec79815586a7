"""Requests for adapters: out of their traces, or made up at their rates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.simulate.arrivals import at_rates, in_unit_rate, repeated
from planner.workload.adapter_traffic import DAY_S, AdapterTraffic, traffic_at_rates
from planner.workload.rates import mean_rate_rps
from planner.workload.read import read_trace
from planner.workload.source import resolve_trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from planner.domain.adapters import Adapter
    from planner.domain.distributions import HyperExponential, Weibull
    from planner.domain.workload import Trace
    from planner.simulate.steps import Floats


def function_traffic(
    adapters: Sequence[Adapter],
    *,
    gaps: HyperExponential | Weibull,
    duration_s: float | None,
    rng: np.random.Generator,
    base_dir: Path,
    times: float = 1.0,
) -> tuple[tuple[Adapter, ...], AdapterTraffic]:
    """Return the adapters, those with a trace with its mean rate, and their requests.

    Where all have a trace, each is played as it is, from its own first request on. Where some have a rate, traces are
    played over and over beside what is made up for the others, as `gpuplan simulate` does.

    Parameters
    ----------
    gaps : shape of the gaps between requests that are made up.
    duration_s : how long; None = a day, or as long as the longest trace.
    times : as often as their rates and traces say.

    Raises
    ------
    InputError: if a trace has no arrival times, or no time to be played in.
    """
    traced = [adapter for adapter in adapters if adapter.trace is not None]
    if not traced:
        rates = [times * (adapter.rate_rps or 0.0) for adapter in adapters]
        asked = tuple(replace(adapter, rate_rps=rate) for adapter, rate in zip(adapters, rates, strict=True))
        return asked, traffic_at_rates(rates, rng, duration_s=duration_s or DAY_S, gaps=gaps)
    arrivals = {adapter.name: _arrivals_s(adapter, base_dir) / times for adapter in traced}
    longest_s = max(float(own[-1]) for own in arrivals.values())
    if longest_s <= 0:
        raise InputError(
            "The traces of all adapters end as they begin: there is no time to play.", hint="Give rates instead."
        )
    if len(traced) < len(adapters):
        return _side_by_side(adapters, arrivals, times, gaps=gaps, end_s=duration_s or longest_s, rng=rng)
    end_s = min(longest_s, math.inf if duration_s is None else duration_s)
    kept = [own[own < end_s] if end_s < longest_s else own for own in arrivals.values()]
    return _merged(adapters, kept, end_s, rates_rps=[len(part) / end_s for part in kept])


def mean_rates_rps(adapters: Sequence[Adapter], traces: Mapping[str, Trace]) -> tuple[float, ...]:
    """Return how often each adapter is asked for on average, by its rate or its trace in `traces`; 0 if that has none.

    traces : by adapter.
    """
    rates = (
        mean_rate_rps(traces[adapter.name]) if adapter.name in traces else adapter.rate_rps for adapter in adapters
    )
    return tuple(rate or 0.0 for rate in rates)


def _side_by_side(
    adapters: Sequence[Adapter],
    arrivals: Mapping[str, Floats],
    times: float,
    *,
    gaps: HyperExponential | Weibull,
    end_s: float,
    rng: np.random.Generator,
) -> tuple[tuple[Adapter, ...], AdapterTraffic]:
    """Return traces over and over at their mean rates, and made-up requests for the adapters without one."""
    made_up = [0.0 if adapter.trace is not None else times * (adapter.rate_rps or 0.0) for adapter in adapters]
    drawn = traffic_at_rates(made_up, rng, duration_s=end_s, gaps=gaps)
    kept, rates = [], []
    for index, adapter in enumerate(adapters):
        if adapter.name not in arrivals:
            kept.append(drawn.of(index))
            rates.append(made_up[index])
            continue
        own = arrivals[adapter.name]
        if own[-1] <= 0:
            raise InputError(
                f"The trace {adapter.trace} of adapter {adapter.name!r} has no duration, so no rate.",
                hint="Give a rate.",
            )
        rate = len(own) / float(own[-1])
        unit = repeated(in_unit_rate(own), math.ceil(rate * end_s) + len(own))
        kept.append(at_rates(unit, np.array([0.0, end_s]), np.array([rate])))
        rates.append(rate)
    return _merged(adapters, kept, end_s, rates_rps=rates)


def _merged(
    adapters: Sequence[Adapter], arrivals: Sequence[Floats], end_s: float, *, rates_rps: Sequence[float]
) -> tuple[tuple[Adapter, ...], AdapterTraffic]:
    """Return the adapters with their rates, and all their requests in the order of arrival."""
    times = np.concatenate(arrivals)
    order = np.argsort(times, kind="stable")
    return (
        tuple(replace(adapter, rate_rps=rate, trace=None) for adapter, rate in zip(adapters, rates_rps, strict=True)),
        AdapterTraffic(
            arrival_s=times[order],
            adapter=np.repeat(np.arange(len(arrivals)), [len(part) for part in arrivals])[order],
            rates_rps=np.array(rates_rps),
            duration_s=end_s,
        ),
    )


def _arrivals_s(adapter: Adapter, base_dir: Path) -> Floats:
    trace = read_trace(resolve_trace(str(adapter.trace), base_dir=base_dir))
    if not trace.has_arrivals:
        raise InputError(
            f"The trace {adapter.trace} of adapter {adapter.name!r} has no arrival times.", hint="Give a rate instead."
        )
    return trace.arrival_s
