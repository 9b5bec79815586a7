"""What came of a replay: every service against its objectives, over time, and over replications."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.planning.replay_adapters import adapters_csv, adapters_dict
from planner.simulate.statistics import across, across_outcomes, fraction, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.slo import Slo
    from planner.planning.replay_adapters import AdapterOutcome, Objectives
    from planner.planning.replay_given_back import GivenBackOutcome
    from planner.simulate.events import AnyEvent
    from planner.simulate.plans import Stretch
    from planner.simulate.records import RequestRecords
    from planner.simulate.run import Simulation
    from planner.simulate.statistics import Estimate, SloOutcome

N_PHASES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOutcome:
    """How one service fares."""

    service: str
    n_requests: int
    """That came in, those turned away among them."""
    n_unanswered: int
    """That were sent to the fleet and never answered."""
    n_turned_away: int
    """That the plan leaves unserved."""
    rate_rps: float
    slos: tuple[SloOutcome, ...]
    attainment: Estimate
    """Fraction of the requests that are not turned away which are within every bound."""
    attainment_of_all: Estimate
    """The same of all requests: one that is turned away is not within any."""

    @property
    def is_met(self) -> bool:
        """Whether every objective holds."""
        return all(found.is_met for found in self.slos)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePhase:
    """One service in a stretch of the replay."""

    n_requests: int
    n_turned_away: int
    attainment: float
    """As `ServiceOutcome.attainment`; NaN without any request."""
    simulated_s: tuple[float, ...]
    """Each objective's statistic; NaN where no request has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the replay; times in seconds since what counts began."""

    start_s: float
    end_s: float
    events: tuple[str, ...]
    """What was wrong in it."""
    services: Mapping[str, ServicePhase]
    period: int | None = None
    """Position in the plan's schedule."""
    replicas: int = 0
    """That the plan has then, of all services."""

    @property
    def attainment(self) -> dict[str, float]:
        """Fraction of the requests that came in then which are within every bound, by service; NaN without any."""
        return {name: found.attainment for name, found in self.services.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOutcome:
    """How busy one pool's replicas are."""

    name: str
    """Service on option."""
    replicas: int
    utilization: float
    """Mean part of the time in which they serve that they are at work."""
    at_a_time: float
    """Requests that one replica has on average, those that wait among them; NaN where it serves but a part of each."""
    peak_kv_fraction: float
    """Largest part of the KV memory of any that was given out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A simulated plan."""

    services: tuple[ServiceOutcome, ...]
    phases: tuple[Phase, ...]
    """The time cut at the periods and events, or into `N_PHASES` equal parts without any."""
    pools: tuple[PoolOutcome, ...]
    simulation: Simulation
    """The first replication."""
    n_replications: int = 1
    notes: tuple[str, ...] = ()
    """What was replayed, and what was not."""
    origin_s: float = 0.0
    """When the time that counts begins, in the time of the records."""
    counts_from_s: float = 0.0
    """The same without a schedule too: a fleet starts empty, and what arrives until then does not count."""
    n_lost: int = 0
    """Times that a replica was lost, in the first replication."""
    adapters: tuple[AdapterOutcome, ...] = ()
    """Of every service, the worst of each first; in the first replication."""
    adapter_names: tuple[str, ...] = ()
    """By the number that records have."""
    objectives: Mapping[str, Objectives] = field(default_factory=dict)
    """What each service promises to whom."""
    given_back: tuple[GivenBackOutcome, ...] = ()
    """Services that the fleet does not serve."""

    @property
    def is_met(self) -> bool:
        """Whether every objective of every service holds, and no adapter surely misses one by itself."""
        services = all(item.is_met for item in self.services) and all(item.is_met for item in self.given_back)
        return services and not any(a.is_surely_late for a in self.adapters)

    @property
    def utilization(self) -> dict[str, float]:
        """Mean part of the time in which a replica of each pool was at work, by "service on option"."""
        return {pool.name: pool.utilization for pool in self.pools}

    @property
    def slos(self) -> dict[str, tuple[Slo, ...]]:
        """The objectives by service."""
        return {service.service: tuple(found.slo for found in service.slos) for service in self.services}

    def adapters_of(self, service: str) -> tuple[AdapterOutcome, ...]:
        """Return how the adapters of a service fare that were asked for, the worst first; () where it has none."""
        return tuple(item for item in self.adapters if item.service == service)

    def to_adapters_csv(self) -> str:
        """Return a row for each adapter and each of its objectives as CSV."""
        return adapters_csv(self.adapters)

    def missed_periods(self) -> list[tuple[int, str]]:
        """Return period and service wherever one period by itself does not hold an objective."""
        found = [
            (phase.period, name)
            for phase in self.phases
            if phase.period is not None
            for name, part in phase.services.items()
            if any(value > slo.bound_s for value, slo in zip(part.simulated_s, self.slos[name], strict=True))
        ]
        return list(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON-ready data; statistics that no request has are null."""
        return {
            "requests": len(self.simulation.records),
            "replications": self.n_replications,
            "met": self.is_met,
            "services": {
                service.service: _service_dict(service, self.adapters_of(service.service)) for service in self.services
            },
            **({"given_back": {item.service: item.to_dict() for item in self.given_back}} if self.given_back else {}),
            "phases": [_phase_dict(phase) for phase in self.phases],
            "utilization": self.utilization,
            "pools": [asdict(pool) | {"at_a_time": finite(pool.at_a_time)} for pool in self.pools],
            "replicas_lost": self.n_lost,
            "notes": list(self.notes),
            "events": self.simulation.n_events,
            "seconds": self.simulation.seconds,
        }


def across_replications(replays: Sequence[Replay]) -> Replay:
    """Return one outcome of independent replications: means of every statistic, intervals from their scatter."""
    first = replays[0]
    if len(replays) == 1:
        return first
    services = [_service_across([each.services[i] for each in replays]) for i in range(len(first.services))]
    phases = [_phase_across([each.phases[i] for each in replays]) for i in range(len(first.phases))]
    return replace(
        first,
        services=tuple(services),
        phases=tuple(phases),
        pools=tuple(_pool_across([each.pools[i] for each in replays]) for i in range(len(first.pools))),
        n_replications=len(replays),
    )


def _pool_across(found: Sequence[PoolOutcome]) -> PoolOutcome:
    return replace(
        found[0],
        utilization=float(np.mean([each.utilization for each in found])),
        at_a_time=float(np.mean([each.at_a_time for each in found])),
        peak_kv_fraction=max(each.peak_kv_fraction for each in found),
    )


def _service_across(found: Sequence[ServiceOutcome]) -> ServiceOutcome:
    return ServiceOutcome(
        service=found[0].service,
        n_requests=sum(each.n_requests for each in found),
        n_unanswered=sum(each.n_unanswered for each in found),
        n_turned_away=sum(each.n_turned_away for each in found),
        rate_rps=float(np.mean([each.rate_rps for each in found])),
        slos=tuple(across_outcomes([each.slos[i] for each in found]) for i in range(len(found[0].slos))),
        attainment=_as_fraction(across([each.attainment for each in found])),
        attainment_of_all=_as_fraction(across([each.attainment_of_all for each in found])),
    )


def _as_fraction(found: Estimate) -> Estimate:
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _phase_across(found: Sequence[Phase]) -> Phase:
    """Return a stretch over replications: requests in all of them, means of what they saw."""
    services = {}
    for name, first in found[0].services.items():
        parts = [each.services[name] for each in found]
        asked = [part.attainment for part in parts if not math.isnan(part.attainment)]
        services[name] = ServicePhase(
            n_requests=sum(part.n_requests for part in parts),
            n_turned_away=sum(part.n_turned_away for part in parts),
            attainment=float(np.mean(asked)) if asked else math.nan,
            simulated_s=tuple(
                float(np.mean([part.simulated_s[i] for part in parts])) for i in range(len(first.simulated_s))
            ),
        )
    return replace(found[0], services=services)


def service_outcome(service: str, objectives: Objectives, records: RequestRecords) -> ServiceOutcome:
    """Return how the requests of one service fare."""
    span_s = float(np.ptp(records.arrival_s)) if len(records) > 1 else 0.0
    served = records.select(~records.is_turned_away)
    return ServiceOutcome(
        service=service,
        n_requests=len(records),
        n_unanswered=int(np.sum(~served.is_answered)),
        n_turned_away=len(records) - len(served),
        rate_rps=(len(records) - 1) / span_s if span_s else 0.0,
        slos=tuple(_outcomes(served, objectives)),
        attainment=fraction(is_within(served, objectives).astype(np.float64)),
        attainment_of_all=fraction((is_within(records, objectives) & ~records.is_turned_away).astype(np.float64)),
    )


def _outcomes(served: RequestRecords, objectives: Objectives) -> Iterator[SloOutcome]:
    """Yield how each part of a service's requests fares against each of its objectives."""
    for part, mask in objectives.masks(served):
        mine = served.select(mask) if part.name else served
        yield from (outcome(mine, slo, of=part.name) for slo in part.slos)


def is_within(records: RequestRecords, objectives: Objectives) -> NDArray[np.bool_]:
    """Return for each request of a service whether it is within every bound that applies to it."""
    within = np.ones(len(records), dtype=bool)
    for part, mask in objectives.masks(records):
        for slo in part.slos:
            within &= ~(mask & (records.values(slo.metric) > slo.bound_s))  # NaN: the objective does not apply
    return within


def phases_of(
    objectives: Mapping[str, Objectives],
    records: RequestRecords,
    events: Sequence[AnyEvent],
    stretches: Sequence[Stretch],
    replicas: Sequence[int],
    *,
    step_s: float | None = None,
) -> Iterator[Phase]:
    """Yield the stretches of a replay, cut where a period or an event begins or ends, and every `step_s` if given.

    Parameters
    ----------
    objectives : by service, in the order in which records number them.
    events : in the time of the simulation, as records are.
    replicas : that the plan has in each of `stretches`.
    """
    counted = [(stretch, n) for stretch, n in zip(stretches, replicas, strict=True) if stretch.is_counted]
    origin_s = counted[0][0].start_s
    last_s = stretches[-1].end_s  # not that of the last request, which replications do not have in common
    edges = _edges([stretch for stretch, _ in counted], events, last_s, step_s)
    for start_s, end_s in pairwise(edges):
        inside = (records.arrival_s >= start_s) & ((records.arrival_s < end_s) | (end_s == last_s))
        at, n_replicas = next(
            ((stretch, n) for stretch, n in reversed(counted) if stretch.start_s <= start_s), counted[0]
        )
        yield Phase(
            start_s=start_s - origin_s,
            end_s=end_s - origin_s,
            events=tuple(event.text for event in events if event.start_s < end_s and event.end_s > start_s),
            services={
                name: _service_phase(records.select(inside & (records.service == index)), objectives[name])
                for index, name in enumerate(objectives)
            },
            period=at.period,
            replicas=n_replicas,
        )


def _edges(counted: Sequence[Stretch], events: Sequence[AnyEvent], last_s: float, step_s: float | None) -> list[float]:
    origin_s = counted[0].start_s
    passing = [event for event in events if math.isfinite(event.end_s)]
    if not passing and counted[0].period is None and step_s is None:
        return [float(edge) for edge in np.linspace(origin_s, last_s, N_PHASES + 1)]
    cuts = {event.start_s for event in passing} | {event.end_s for event in passing}
    cuts |= {stretch.start_s for stretch in counted}
    if step_s is not None:
        cuts |= set(np.arange(origin_s, last_s, step_s).tolist())
    return [origin_s, *sorted(cut for cut in cuts if origin_s < cut < last_s), last_s]


def _service_phase(records: RequestRecords, objectives: Objectives) -> ServicePhase:
    served = records.select(~records.is_turned_away)
    return ServicePhase(
        n_requests=len(records),
        n_turned_away=len(records) - len(served),
        attainment=float(is_within(served, objectives).mean()) if len(served) else math.nan,
        simulated_s=tuple(item.simulated.value for item in _outcomes(served, objectives)),
    )


def _phase_dict(phase: Phase) -> dict[str, Any]:
    return {
        "start_s": phase.start_s,
        "end_s": phase.end_s,
        "events": list(phase.events),
        **({} if phase.period is None else {"period": phase.period, "replicas": phase.replicas}),
        "attainment": {name: finite(value) for name, value in phase.attainment.items()},
        "services": {
            name: {
                "requests": found.n_requests,
                "turned_away": found.n_turned_away,
                "simulated_s": [finite(value) for value in found.simulated_s],
            }
            for name, found in phase.services.items()
        },
    }


def slo_dict(item: SloOutcome) -> dict[str, Any]:
    """Return one objective's outcome as JSON-ready data."""
    return {
        "metric": str(item.slo.metric),
        "statistic": item.slo.statistic,
        **({"of": item.of} if item.of else {}),
        "bound_s": item.slo.bound_s,
        "simulated_s": finite(item.simulated.value),
        "interval_s": [finite(item.simulated.low), finite(item.simulated.high)],
        "met": item.is_met,
        "sure": item.is_sure,
        "attainment": finite(item.attainment.value),
        "attainment_interval": [finite(item.attainment.low), finite(item.attainment.high)],
    }


def _service_dict(found: ServiceOutcome, adapters: Sequence[AdapterOutcome]) -> dict[str, Any]:
    return {
        "requests": found.n_requests,
        "unanswered": found.n_unanswered,
        "turned_away": found.n_turned_away,
        "rate_rps": found.rate_rps,
        "slo": [slo_dict(item) for item in found.slos],
        "attainment": finite(found.attainment.value),
        "attainment_interval": [finite(found.attainment.low), finite(found.attainment.high)],
        "attainment_of_all": finite(found.attainment_of_all.value),
        **({"adapters": adapters_dict(adapters)} if adapters else {}),
    }


def finite(value: float) -> float | None:
    """Return a number that JSON can hold; None for what is not finite."""
    return value if math.isfinite(value) else None
