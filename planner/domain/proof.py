"""What was simulated to prove a plan, and what came of it. Field names as in plan.json."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ProofEnd(StrEnum):
    """How the search for a plan that holds ended."""

    HELD = "held"
    """The plan holds, and nothing cheaper that was tried does."""
    MISSED = "missed"
    """No plan was found that holds."""
    TIME_LIMIT = "time-limit"
    """The time limit came first; the plan is the best one until then."""
    INTERRUPTED = "interrupted"
    """Ctrl-C; the plan is the best one until then."""


class ProofStep(StrEnum):
    """Where a fleet that was simulated came from."""

    ALONE = "alone"
    """Replicas of one kind for a whole service."""
    PLAN = "plan"
    """A search with the utilisation caps of its round."""
    REMOVE = "remove"
    """The best fleet without one instance."""
    SWAP = "swap"
    """The best fleet with one instance replaced by cheaper ones."""
    BALANCE = "balance"
    """The fleet before, with its load moved from pools that miss to those that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSlo:
    """One objective of one service, simulated."""

    service: str
    metric: str
    statistic: str
    bound_s: float
    simulated_s: float | None
    """The statistic; None where requests were never answered."""
    attainment: float
    """Part of the requests that are within the bound."""
    attainment_low: float
    """Lower end of its 95% interval, by batch means."""
    met: bool
    sure: bool
    """Whether the interval is on the same side of the objective as the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundService:
    """How one service fared in one round."""

    service: str
    factor: float
    """What all utilisation caps of the service were multiplied by."""
    worst: str
    """The objective that is nearest to being missed: "ttft p99"."""
    bound_s: float
    simulated_s: float | None
    attainment: float
    met: bool
    sure: bool
    late_adapters: int = 0
    """Adapters that surely miss an objective by themselves: a fleet with any does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRound:
    """One fleet that was simulated."""

    step: ProofStep
    cost_usd_per_hour: float
    holds: bool
    """Whether every objective holds, with confidence where that can be had."""
    services: tuple[RoundService, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilizationCap:
    """How full replicas of one kind may be."""

    service: str
    option: str
    """As `Allocation.option`; the cap holds for all offers of the same GPU and engine configuration."""
    utilization_cap: float
    """Largest load per replica, headroom included; 1 = the throughput under the SLO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceProof:
    """What was replayed of one service, and what it says of the headroom that it needs."""

    service: str
    traffic: str
    """Name of the trace, or what arrivals were drawn from."""
    rate_rps: float
    """Mean rate of the replay."""
    requests: int
    """Requests that count: those after the fleet has filled."""
    other_cap: float
    """Utilisation cap of the kinds of replicas that `caps` does not name."""
    knee: float | None
    """Largest multiple of the planned rate at which the plan holds; None = not looked for, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodMiss:
    """A period of a schedule in which a service by itself misses an objective that it keeps over all of them."""

    period: int
    """Counted from 0."""
    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAdapter:
    """An adapter that by itself surely misses an objective."""

    adapter: str
    requests: int
    attainment: float
    """Part of its requests that are within every bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterProof:
    """How the adapters of a service fared one by one."""

    service: str
    asked: int
    """Adapters that were asked for in what was replayed."""
    met: int
    """Of these, adapters whose own requests keep every objective by their values."""
    late: tuple[LateAdapter, ...] = ()
    """Those that surely miss one, the worst first; none where the plan holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whether a plan holds its objectives request by request, and how that was found."""

    holds: bool
    sure: bool
    """False: the replay is too short for confidence, so the values alone decided; or the plan does not hold."""
    ended: ProofEnd
    load: float
    """What the planned rates were multiplied by: 1 + headroom."""
    seed: int
    requests: int
    """Requests of one replay, all services."""
    fleets: int
    """Different fleets that were simulated."""
    unproven_usd_per_hour: float
    """What the plan costs whose SLOs enter through throughput alone."""
    extra_usd_per_hour: float
    """What this plan costs more; negative where there was room to spare."""
    bound_of: str
    """What `bound_usd_per_hour` is a bound of."""
    slos: tuple[SimulatedSlo, ...]
    services: tuple[ServiceProof, ...]
    caps: tuple[UtilizationCap, ...]
    rounds: tuple[ProofRound, ...]
    removals: int = 0
    """Fleets without one instance of an option of the plan, each of which was replayed and misses."""
    missed_periods: tuple[PeriodMiss, ...] = ()
    """Empty where there is no schedule."""
    adapters: tuple[AdapterProof, ...] = ()
    """Of the services that have adapters."""
    notes: tuple[str, ...] = ()
    """What was replayed of the plan, and what was not."""
