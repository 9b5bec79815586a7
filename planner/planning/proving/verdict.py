"""Whether a replay proves that a plan holds its objectives: with confidence where the requests are enough for it.

An objective "p99 <= 2 s" holds if at least 99% of the requests are within 2 s. So what is asked is whether the lower
end of the 95% interval of that fraction, by batch means, reaches 99%. That has an answer also where the
percentile's own interval has no upper end because the slowest 1% came together. Where requests are so few that even
without one miss the interval's lower end stays below what is asked (fewer than 476 for p99), nothing is proven: there
the value itself decides, and the plan says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.proof import AdapterProof, LateAdapter, SimulatedSlo
from planner.simulate.statistics import N_BATCHES, wilson

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.planning.replay import Replay, ServiceOutcome
    from planner.simulate.statistics import SloOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One objective, judged."""

    slo: SimulatedSlo
    holds: bool
    is_long_enough: bool
    """Whether the requests are enough for confidence."""
    margin: float
    """How far within the objective its interval ends, as a fraction of what it allows; negative = not within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceVerdict:
    """One service, judged."""

    service: str
    rate_rps: float
    requests: int
    objectives: tuple[Judged, ...]
    n_late: int = 0
    """Adapters that surely miss an objective by themselves. A pool of equal replicas shares its requests; adapters
    share nothing but what holds them, so that all together may hold while one replica's never do."""

    @property
    def holds(self) -> bool:
        """Whether every objective holds, for each adapter too as far as can be told."""
        return all(item.holds for item in self.objectives) and not self.n_late

    @property
    def worst(self) -> Judged:
        """The objective that is nearest to being missed."""
        return min(self.objectives, key=lambda item: (item.holds, item.margin))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A plan, judged by one replay."""

    services: tuple[ServiceVerdict, ...]
    requests: int
    """That were replayed, all services."""
    missed_periods: tuple[tuple[int, str], ...] = ()
    """Period and service wherever one period of a schedule by itself does not hold an objective."""
    adapters: tuple[AdapterProof, ...] = ()
    """How the adapters of each service fare that has any."""
    notes: tuple[str, ...] = ()
    """What was replayed, and what was not."""

    @property
    def holds(self) -> bool:
        """Whether every objective of every service holds."""
        return all(service.holds for service in self.services)

    @property
    def is_long_enough(self) -> bool:
        """Whether the requests are enough for confidence in every objective."""
        return all(item.is_long_enough for service in self.services for item in service.objectives)

    @property
    def missed(self) -> frozenset[str]:
        """Services that miss."""
        return frozenset(service.service for service in self.services if not service.holds)


def judge(replay: Replay) -> Verdict:
    """Return whether the objectives of `replay` hold."""
    return Verdict(
        services=tuple(
            _judge_service(found, sum(item.is_surely_late for item in replay.adapters_of(found.service)))
            for found in replay.services
        ),
        requests=len(replay.simulation.records),
        missed_periods=tuple(replay.missed_periods()),
        adapters=tuple(_judge_adapters(replay)),
        notes=replay.notes,
    )


def _judge_adapters(replay: Replay) -> Iterator[AdapterProof]:
    for service in replay.services:
        found = replay.adapters_of(service.service)
        if found:
            late = (
                LateAdapter(adapter=item.adapter, requests=item.n_requests, attainment=item.attainment)
                for item in found
                if item.is_surely_late
            )
            met = sum(item.is_met for item in found)
            yield AdapterProof(service=service.service, asked=len(found), met=met, late=tuple(late))


def _judge_service(found: ServiceOutcome, n_late: int) -> ServiceVerdict:
    return ServiceVerdict(
        service=found.service,
        rate_rps=found.rate_rps,
        requests=found.n_requests,
        objectives=tuple(_judge(found.service, item) for item in found.slos),
        n_late=n_late,
    )


def _judge(service: str, found: SloOutcome) -> Judged:
    asked = None if found.slo.percentile is None else found.slo.percentile / 100.0
    n, bound_s = found.simulated.n, found.slo.bound_s
    value, low = found.attainment.value, found.attainment.low
    if n == 0:  # no request that the objective is about
        is_long, is_met, is_sure, margin, value, low = False, True, False, math.inf, 1.0, 0.0
    elif asked is None:
        is_long = n >= N_BATCHES
        is_met = found.simulated.value <= bound_s
        is_sure = is_long and (found.simulated.high <= bound_s or found.simulated.low > bound_s)
        end = found.simulated.high if is_long else found.simulated.value
        margin = max((bound_s - end) / bound_s, -1e9)
    else:
        is_long = n >= N_BATCHES and wilson(1.0, n)[0] >= asked
        is_met = value >= asked
        is_sure = is_long and (low >= asked or found.attainment.high < asked)
        margin = ((low if is_long else value) - asked) / (1.0 - asked)
    slo = SimulatedSlo(
        service=service,
        metric=str(found.slo.metric),
        statistic=found.slo.statistic,
        bound_s=bound_s,
        simulated_s=found.simulated.value if math.isfinite(found.simulated.value) else None,
        attainment=value,
        attainment_low=low,
        met=is_met,
        sure=is_sure,
    )
    return Judged(slo=slo, holds=is_met and (is_sure or not is_long), is_long_enough=is_long, margin=margin)
