"""What a replay plays: which stretches of time, and the requests that come in then."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError
from planner.simulate.events import AdapterBurst, Surge, with_burst, with_surge
from planner.simulate.plans import Stretch
from planner.simulate.requests import (
    AdapterTraffic,
    Rates,
    ServiceTraffic,
    adapter_requests_of,
    adapter_rows,
    merged,
    requests_of,
    rows_of,
)
from planner.simulate.tenants import adapter_numbers, tenants_of
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.workload import Demand, Trace
    from planner.planning.question import Question, ReplaySource
    from planner.simulate.arrivals import Process
    from planner.simulate.events import AnyEvent
    from planner.simulate.plans import PlannedFleet
    from planner.simulate.run import Traffic

DEFAULT_REQUESTS = 100_000
"""Requests of each service that are replayed unless the user says otherwise; of a schedule, over all its periods."""

LEAST_WINDOW_S = 120.0
"""Of every period of a schedule so much is played at least, unless the user asks for so and so many requests."""

MOST_LEAD_IN_S = 600.0
"""A schedule is played from so long before its first period on, at most: the fleet is then as full as it would be."""

TRAFFIC_STREAM, FAULT_STREAM, ADAPTER_STREAM = 2, 1, 3
"""Random numbers for the three are independent of each other and of those that route requests."""

_PERIODS = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """How many requests come in, and how."""

    load: float = 1.0
    n_requests: int | None = None
    periods: tuple[int, int] | None = None
    """First and last position in the schedule; None = all."""
    process: Process | None = None
    events: tuple[AnyEvent, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Who asks for what, and when."""

    demands: tuple[Demand, ...]
    traces: Mapping[str, Trace | None]
    """By service."""
    rates: Mapping[str, Rates]
    """By service."""
    stretches: tuple[Stretch, ...]
    n_most: Mapping[str, int]
    """By service, requests of a trace that is played at one rate."""
    settings: TrafficSettings
    adapters: Mapping[str, AdapterTraffic] = field(default_factory=dict)
    """By service, of those that have adapters."""

    @property
    def origin_s(self) -> float:
        """When the time that counts begins."""
        return next(stretch.start_s for stretch in self.stretches if stretch.is_counted)

    @property
    def end_s(self) -> float:
        """When the last stretch ends."""
        return self.stretches[-1].end_s


def parse_periods(text: str) -> tuple[int, int]:
    """Return the first and the last period that "8-17" names, counted from 0; "8" is one period.

    Raises
    ------
    InputError: if it names none.
    """
    match = _PERIODS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise InputError(f"{text!r} names no periods.", hint="Write --periods 8-17, counted from 0, or --periods 8.")
    return first, last


def scene_of(question: Question, source: ReplaySource, traces: Mapping[str, Trace], settings: TrafficSettings) -> Scene:
    """Return what is to be played.

    Raises
    ------
    InputError: if periods are asked for that the plan does not have, or nothing is asked for in them.
    """
    demands = question.problem.demands
    found = {d.service: traces.get(d.service, source.traffic[d.service].trace) for d in demands}
    means = {d.service: source.traffic[d.service].rate_rps * settings.load for d in demands}
    if question.problem.horizon is not None:
        return _over_a_horizon(question, found, means, settings)
    if settings.periods is not None:
        raise InputError("The plan is for one steady state: it has no periods.", hint="Leave --periods out.")
    most = DEFAULT_REQUESTS if settings.n_requests is None else settings.n_requests
    lengths = {name: most if trace is None else min(trace.n_requests, most) for name, trace in found.items()}
    span_s = min(lengths[name] / means[name] for name in lengths)
    stretch = Stretch(start_s=0.0, end_s=span_s)
    return Scene(
        demands=demands,
        traces=found,
        rates={
            name: Rates(edges_s=np.array([0.0, span_s]), rates_rps=np.array([rate])) for name, rate in means.items()
        },
        stretches=(stretch,),
        n_most={name: max(1, round(span_s * rate)) for name, rate in means.items()},
        settings=settings,
        adapters=dict(_adapter_traffic(question, source, replaced=traces)),
    )


def _adapter_traffic(
    question: Question, source: ReplaySource, *, replaced: Mapping[str, Trace]
) -> Iterator[tuple[str, AdapterTraffic]]:
    """Yield by service who its requests are for; where another trace is `replaced`, that holds all of them."""
    numbers = adapter_numbers(question.problem)
    for service, known in source.adapters.items():
        tenants = tenants_of(question.problem.tenancies, service)
        traces = {} if service in replaced else known.traces
        yield (
            service,
            AdapterTraffic(
                numbers=np.array([numbers[service, tenant.name] for tenant in tenants], dtype=np.int64),
                rates_rps=np.array([tenant.rate_rps for tenant in tenants]),
                sizes=known.sizes,
                traces={numbers[service, t.name]: traces[t.name] for t in tenants if t.name in traces},
            ),
        )


def _over_a_horizon(
    question: Question, traces: Mapping[str, Trace | None], means: Mapping[str, float], settings: TrafficSettings
) -> Scene:
    """Return a schedule's periods, each for its first part, behind a lead-in with the end of the one before."""
    horizon = question.problem.horizon
    if horizon is None:
        msg = "there is no horizon"
        raise ValueError(msg)
    first, last = settings.periods or (0, horizon.n_periods - 1)
    if last >= horizon.n_periods:
        raise InputError(
            f"The plan has no period {last}.", hint=f"It has {horizon.n_periods}, counted from 0 to its last."
        )
    played = range(first, last + 1)
    rates = {name: mean * np.array(horizon.factors[name]) for name, mean in means.items()}
    busiest = max(float(each[first : last + 1].sum()) for each in rates.values())
    if busiest <= 0:
        raise InputError("Nothing is asked for in the periods that are to be replayed.", hint="Choose others.")
    if settings.n_requests is None:
        window_s = min(horizon.step_s, max(LEAST_WINDOW_S, DEFAULT_REQUESTS / busiest))
    else:
        window_s = min(horizon.step_s, settings.n_requests / busiest)
    lead_s = min(window_s, MOST_LEAD_IN_S)
    before = (first - 1) % horizon.n_periods
    stretches = [Stretch(start_s=0.0, end_s=lead_s, period=before, is_counted=False)]
    for number, period in enumerate(played):
        start_s = lead_s + number * window_s
        stretches.append(Stretch(start_s=start_s, end_s=start_s + window_s, period=period))
    edges = np.array([0.0, *(stretch.end_s for stretch in stretches)])
    return Scene(
        demands=question.problem.demands,
        traces=traces,
        rates={
            name: Rates(edges_s=edges, rates_rps=each[[before, *played]], step_s=horizon.step_s)
            for name, each in rates.items()
        },
        stretches=tuple(stretches),
        n_most={},
        settings=settings,
    )


def traffic_of(scene: Scene, fleet: PlannedFleet, seed: int, *, is_resampled: bool) -> Traffic:
    """Return the requests of all services, routed and those turned away marked.

    Raises
    ------
    InputError: if none come in.
    """
    rng = np.random.default_rng([seed, TRAFFIC_STREAM])  # not the numbers that choose replicas
    adapter_rng = np.random.default_rng([seed, ADAPTER_STREAM])
    asked, rows = [], []
    for demand in scene.demands:
        requests = _requests(scene, demand, rng, adapter_rng, is_resampled=is_resampled)
        asked.append(requests)
        if requests.adapter is not None:
            rows.append(adapter_rows(fleet.classes, demand.service, requests, requests.adapter))
        else:
            rows.append(rows_of(fleet.classes, demand.service, requests.input_tokens, requests.output_tokens))
    traffic = merged(asked, rows)
    for event in scene.settings.events:
        if isinstance(event, Surge):
            traffic = with_surge(traffic, event, rng)
        elif isinstance(event, AdapterBurst):
            service, number = fleet.adapter_named(event.name)
            index = [demand.service for demand in scene.demands].index(service)
            row_of = partial(adapter_rows, fleet.classes, service)
            traffic = with_burst(traffic, event, service=index, adapter=number, row_of=row_of, rng=adapter_rng)
    if len(traffic.arrival_s) == 0:
        raise InputError("No request comes in in the time that is replayed.", hint="Replay more, or at a higher load.")
    return fleet.routed(traffic, rng)


def _requests(
    scene: Scene, demand: Demand, rng: np.random.Generator, adapter_rng: np.random.Generator, *, is_resampled: bool
) -> ServiceTraffic:
    name, process = demand.service, scene.settings.process
    trace, rates, n_most = scene.traces[name], scene.rates[name], scene.n_most.get(name)
    who = scene.adapters.get(name)
    if who is None:
        return requests_of(demand, trace, rates, process=process, n_most=n_most, rng=rng, is_resampled=is_resampled)
    return adapter_requests_of(
        who,
        trace,
        rates,
        process=process,
        n_most=n_most,
        rng=rng,
        adapter_rng=adapter_rng,
        is_resampled=is_resampled,
    )


def scene_notes(scene: Scene, step_s: float | None) -> Iterator[str]:
    """Yield what is played of a schedule, and how often a trace begins again."""
    counted = [stretch for stretch in scene.stretches if stretch.is_counted]
    if step_s is None:
        return
    window_s = counted[0].end_s - counted[0].start_s
    lead = format_duration(scene.origin_s)
    what = (
        "in whole" if window_s >= step_s else f"for its first {format_duration(window_s)} of {format_duration(step_s)}"
    )
    yield (
        f"Every one of {len(counted)} period{'s' if len(counted) > 1 else ''} is played {what}, at its own rate and "
        f"with its own fleet and routing, one after the other; {lead} of the period before come first and do not count."
    )
    for name, trace in scene.traces.items():
        rounds = _expected(scene.rates[name]) / trace.n_requests if trace is not None else 0.0
        if rounds > 1:
            yield f"{name}: the trace is played {rounds:.1f} times over."


def _expected(rates: Rates) -> float:
    return float(np.sum(rates.rates_rps * np.diff(rates.edges_s)))


def moved_events(events: Sequence[AnyEvent], origin_s: float) -> tuple[AnyEvent, ...]:
    """Return events whose time counts from `origin_s` in the time of the simulation."""
    return tuple(event.moved(origin_s) for event in events)
