"""Requests for adapters: out of their traces, or made up at their rates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.workload.adapter_traffic import DAY_S, AdapterTraffic, traffic_at_rates
from planner.workload.read import read_trace
from planner.workload.source import resolve_trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from planner.domain.adapters import Adapter
    from planner.domain.distributions import HyperExponential, Weibull
    from planner.simulate.steps import Floats


def function_traffic(
    adapters: Sequence[Adapter],
    *,
    gaps: HyperExponential | Weibull,
    duration_s: float | None,
    rng: np.random.Generator,
    base_dir: Path,
) -> tuple[tuple[Adapter, ...], AdapterTraffic]:
    """Return the adapters, those with a trace with its mean rate, and their requests.

    Traces are played as they are, all from their own first request on.

    Parameters
    ----------
    gaps : shape of the gaps between requests that are made up.
    duration_s : how long; None = a day, or as long as the longest trace.

    Raises
    ------
    InputError: if some adapters have a trace and some a rate, or a trace has no arrival times.
    """
    traced = [adapter for adapter in adapters if adapter.trace is not None]
    if not traced:
        rates = [adapter.rate_rps or 0.0 for adapter in adapters]
        return tuple(adapters), traffic_at_rates(rates, rng, duration_s=duration_s or DAY_S, gaps=gaps)
    if len(traced) < len(adapters):
        other = next(adapter for adapter in adapters if adapter.trace is None)
        raise InputError(
            f"Adapter {traced[0].name!r} has a trace and {other.name!r} a rate: they cannot be played together.",
            hint="Give all of them a trace, or all of them a rate.",
        )
    arrivals = [_arrivals_s(adapter, base_dir) for adapter in traced]
    longest_s = max(float(times[-1]) for times in arrivals)
    end_s = min(longest_s, math.inf if duration_s is None else duration_s)
    if end_s <= 0:
        raise InputError(
            "The traces of all adapters end as they begin: there is no time to play.", hint="Give rates instead."
        )
    kept = [times[times < end_s] if end_s < longest_s else times for times in arrivals]
    times = np.concatenate(kept)
    order = np.argsort(times, kind="stable")
    rates = [len(part) / end_s for part in kept]
    return (
        tuple(replace(adapter, rate_rps=rate, trace=None) for adapter, rate in zip(traced, rates, strict=True)),
        AdapterTraffic(
            arrival_s=times[order],
            adapter=np.repeat(np.arange(len(kept)), [len(part) for part in kept])[order],
            rates_rps=np.array(rates),
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
