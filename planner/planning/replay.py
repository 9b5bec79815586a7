"""`gpuplan simulate`: does a plan hold its objectives, request by request?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.domain.disaggregation import Role
from planner.errors import InputError
from planner.planning.explain import question_of
from planner.simulate.events import Loss, Surge, faults_of, with_surge
from planner.simulate.plans import merged, planned_fleet, requests_of, rows_of
from planner.simulate.run import Policy, simulate
from planner.simulate.statistics import Estimate, SloOutcome, fraction, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.domain.slo import Slo
    from planner.domain.workload import Trace
    from planner.planning.question import Question, ReplaySource
    from planner.simulate.plans import PlannedFleet
    from planner.simulate.records import RequestRecords
    from planner.simulate.run import Simulation, Traffic

N_PHASES = 10
WARM_UP_FRACTION = 0.05
"""A fleet starts empty; what arrives in this first part of the time does not count."""

DEFAULT_REQUESTS = 100_000
"""Requests of each service that are replayed unless the user says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How to replay a plan."""

    load: float = 1.0
    """Rates are multiplied by it."""
    policy: Policy = Policy.WEIGHTS
    seed: int = 0
    is_exact: bool = False
    n_requests: int = DEFAULT_REQUESTS
    events: tuple[Loss | Surge, ...] = ()
    """What goes wrong on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOutcome:
    """How one service fares."""

    service: str
    n_requests: int
    n_unanswered: int
    rate_rps: float
    slos: tuple[SloOutcome, ...]
    attainment: Estimate
    """Fraction of requests that are within every bound."""

    @property
    def is_met(self) -> bool:
        """Whether every objective holds."""
        return all(found.is_met for found in self.slos)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the replay."""

    start_s: float
    end_s: float
    events: tuple[str, ...]
    """What was wrong in it."""
    attainment: Mapping[str, float]
    """Fraction of the requests that came in then which are within every bound, by service; NaN without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A simulated plan."""

    services: tuple[ServiceOutcome, ...]
    phases: tuple[Phase, ...]
    """The time cut at the events, or into `N_PHASES` equal parts without any."""
    utilization: Mapping[str, float]
    """Mean part of the time that a replica of each pool was at work, by "service on option"."""
    simulation: Simulation

    @property
    def is_met(self) -> bool:
        """Whether every objective of every service holds."""
        return all(service.is_met for service in self.services)

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data; statistics that no request has are null."""
        return {
            "requests": len(self.simulation.records),
            "services": {service.service: _service_dict(service) for service in self.services},
            "phases": [
                {
                    "start_s": phase.start_s,
                    "end_s": phase.end_s,
                    "events": list(phase.events),
                    "attainment": {name: _finite(value) for name, value in phase.attainment.items()},
                }
                for phase in self.phases
            ],
            "utilization": dict(self.utilization),
            "events": self.simulation.n_events,
            "seconds": self.simulation.seconds,
        }


def replay(
    plan: Plan,
    *,
    plan_path: Path,
    traces: Mapping[str, Trace] | None = None,
    settings: ReplaySettings | None = None,
) -> Replay:
    """Return how `plan` fares on its own traffic, or on that of `traces` by service.

    Raises
    ------
    InputError: if the plan has nothing to simulate, does not fit its request, or a trace is of no service of it.
    """
    return replay_of(question_of(plan, plan_path), plan, traces=traces, settings=settings)


def replay_of(
    question: Question,
    plan: Plan,
    *,
    traces: Mapping[str, Trace] | None = None,
    settings: ReplaySettings | None = None,
) -> Replay:
    """Return how `plan`, an answer to `question`, fares; see `replay`."""
    settings = settings or ReplaySettings()
    _check_can_be_replayed(plan)
    if question.replay is None:
        raise InputError(
            "This plan has throughputs alone: nothing says how long an engine step takes.",
            hint="Plan a PlanRequest, whose models and GPUs are known.",
        )
    services = [demand.service for demand in question.problem.demands]
    for name in traces or {}:
        if name not in services:
            raise InputError(f"The plan has no service {name!r}.", hint=f"There are: {', '.join(services)}.")
    fleet = planned_fleet(question.problem, plan, question.replay.engine, policy=settings.policy)
    traffic = _traffic(question.problem, question.replay, fleet, traces or {}, settings)
    losses = [event for event in settings.events if isinstance(event, Loss)]
    simulation = simulate(
        fleet.pools,
        traffic,
        fleet.router,
        seed=settings.seed,
        is_exact=settings.is_exact,
        faults=tuple(faults_of(losses, fleet.allocation)),
    )
    warm = simulation.records.arrival_s >= WARM_UP_FRACTION * simulation.records.arrival_s[-1]
    counted = simulation.records.select(warm)
    return Replay(
        services=tuple(
            _outcome(name, question.replay.slos[name], counted.select(counted.service == index))
            for index, name in enumerate(services)
        ),
        phases=tuple(_phases(services, question.replay.slos, simulation.records, settings.events)),
        utilization=_utilization(fleet, simulation),
        simulation=simulation,
    )


def _check_can_be_replayed(plan: Plan) -> None:
    """Refuse plans whose fleet is not one of equal rights over one stretch of time."""
    if not plan.allocation:
        raise InputError("The plan rents nothing: there is nothing to simulate.", hint="Plan with demand.")
    for is_so, what, hint in (
        (plan.schedule, "is a schedule", "Plan the busiest hour without a horizon, and simulate that."),
        (plan.unserved, "leaves requests unserved", "Plan without constraints.shed to simulate the fleet."),
        (plan.jobs, "does work with a deadline", "Plan the services without `deferrable`."),
        (
            any(item.role is not Role.BOTH for item in plan.allocation),
            "serves prefill and decode apart",
            "Plan with disaggregate: never.",
        ),
        (
            any(item.power_cap_w is not None for item in plan.allocation),
            "runs GPUs at a lower power limit",
            "Plan without engine.power_caps.",
        ),
    ):
        if is_so:
            raise InputError(f"This plan {what}, which cannot be simulated yet.", hint=hint)


def _traffic(
    problem: FleetProblem,
    source: ReplaySource,
    fleet: PlannedFleet,
    traces: Mapping[str, Trace],
    settings: ReplaySettings,
) -> Traffic:
    """Return the requests of all services over the time that the shortest traffic lasts."""
    found = {d.service: traces.get(d.service, source.traffic[d.service].trace) for d in problem.demands}
    rates = {d.service: source.traffic[d.service].rate_rps * settings.load for d in problem.demands}
    lengths = {
        name: settings.n_requests if t is None else min(t.n_requests, settings.n_requests) for name, t in found.items()
    }
    span_s = min(lengths[name] / rates[name] for name in lengths)
    rng = np.random.default_rng(settings.seed)
    asked, rows = [], []
    for demand in problem.demands:
        name = demand.service
        n_requests = max(1, round(span_s * rates[name]))
        requests = requests_of(demand, found[name], rate_rps=rates[name], n_requests=n_requests, rng=rng)
        asked.append(requests)
        rows.append(rows_of(fleet.routes, name, requests.input_tokens, requests.output_tokens))
    traffic = merged(asked, rows)
    for event in settings.events:
        if isinstance(event, Surge):
            traffic = with_surge(traffic, event, rng)
    return traffic


def _phases(
    services: Sequence[str],
    slos: Mapping[str, tuple[Slo, ...]],
    records: RequestRecords,
    events: Sequence[Loss | Surge],
) -> Iterator[Phase]:
    last_s = float(records.arrival_s[-1])
    if events:
        cuts = {event.start_s for event in events} | {event.end_s for event in events}
        edges = [0.0, *sorted(cut for cut in cuts if 0 < cut < last_s), last_s]
    else:
        edges = np.linspace(0.0, last_s, N_PHASES + 1).tolist()
    within = {name: (_is_within(records, slos[name]), records.service == index) for index, name in enumerate(services)}
    for start_s, end_s in pairwise(edges):
        inside = (records.arrival_s >= start_s) & ((records.arrival_s < end_s) | (end_s == last_s))
        yield Phase(
            start_s=start_s,
            end_s=end_s,
            events=tuple(event.text for event in events if event.start_s < end_s and event.end_s > start_s),
            attainment={
                name: float(held[inside & mine].mean()) if (inside & mine).any() else math.nan
                for name, (held, mine) in within.items()
            },
        )


def _is_within(records: RequestRecords, slos: tuple[Slo, ...]) -> NDArray[np.bool_]:
    """Return for each request whether it is within every bound that applies to it."""
    within = np.ones(len(records), dtype=bool)
    for slo in slos:
        within &= ~(records.values(slo.metric) > slo.bound_s)  # NaN: the objective does not apply
    return within


def _outcome(service: str, slos: tuple[Slo, ...], records: RequestRecords) -> ServiceOutcome:
    span_s = float(np.ptp(records.arrival_s)) if len(records) > 1 else 0.0
    return ServiceOutcome(
        service=service,
        n_requests=len(records),
        n_unanswered=int(np.sum(~records.is_answered)),
        rate_rps=(len(records) - 1) / span_s if span_s else 0.0,
        slos=tuple(outcome(records, slo) for slo in slos),
        attainment=fraction(_is_within(records, slos).astype(np.float64)),
    )


def _utilization(fleet: PlannedFleet, simulation: Simulation) -> dict[str, float]:
    ends = np.cumsum(fleet.pools.replicas)
    return {
        f"{item.service} on {item.option}": float(simulation.utilization[end - item.replicas : end].mean())
        for item, end in zip(fleet.allocation, ends.tolist(), strict=True)
    }


def _service_dict(found: ServiceOutcome) -> dict[str, Any]:
    return {
        "requests": found.n_requests,
        "unanswered": found.n_unanswered,
        "rate_rps": found.rate_rps,
        "slo": [
            {
                "metric": str(item.slo.metric),
                "statistic": item.slo.statistic,
                "bound_s": item.slo.bound_s,
                "simulated_s": _finite(item.simulated.value),
                "interval_s": [_finite(item.simulated.low), _finite(item.simulated.high)],
                "met": item.is_met,
                "sure": item.is_sure,
                "attainment": _finite(item.attainment.value),
            }
            for item in found.slos
        ],
        "attainment": _finite(found.attainment.value),
        "attainment_interval": [_finite(found.attainment.low), _finite(found.attainment.high)],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
