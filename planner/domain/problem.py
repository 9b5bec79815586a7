"""The planning problem: demands, the options that could serve them, and limits. What `optimize` solves."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.domain.hardware import Market

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from planner.domain.adapters import AdapterSlots, Tenancy
    from planner.domain.disaggregation import Handover
    from planner.domain.egress import Egress
    from planner.domain.energy import Energy
    from planner.domain.hardware import EngineConfig, Offer
    from planner.domain.jobs import Job
    from planner.domain.provenance import Provenance
    from planner.domain.workload import Demand
    from planner.units import WattsPerReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOption:
    """A column of the problem: one service served by replicas of one engine configuration on one offer.

    For a job's own replicas `service` is the job's name, and the throughput has one element: its units per second.
    """

    service: str
    offer: Offer
    gpus_per_replica: int
    throughput_rps: NDArray[np.float64]
    """Largest steady rate that ONE replica serves within the SLO; shape (buckets of the service,); 0 = it cannot."""
    config: EngineConfig | None = None
    """None where only a throughput table is known (Mélange's form)."""
    power_w: WattsPerReplica | None = None
    """Peak power of one replica."""
    idle_power_w: WattsPerReplica | None = None
    """Mean draw of a replica that waits for requests."""
    busy_power_w: WattsPerReplica | None = None
    """Mean draw of a replica under its full load."""
    provenance: tuple[Provenance, ...] = ()
    """Of each bucket's throughput, same order; or one for all of them."""
    limiting: tuple[str, ...] = ()
    """What bounds each bucket's throughput in words ("ttft p99", "kv memory", "does not fit"); empty = not known."""
    scenario_rps: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By scenario, as `throughput_rps`, of the buckets that it has; where it is the same as planned, it is left out."""

    def throughput_in(self, scenario: str) -> NDArray[np.float64]:
        """Return the largest steady rates of one replica in `scenario`."""
        return self.scenario_rps.get(scenario, self.throughput_rps)

    role: Role = Role.BOTH
    """What part of each request it serves; `throughput_rps` then counts requests whose part it serves."""
    handover: Handover | None = None
    """None if and only if it serves requests as a whole."""

    @property
    def meeting_point(self) -> tuple[str, str, str, str] | None:
        """Where KV caches pass from one option to another: both have the same; None where requests stay whole."""
        if self.handover is None:
            return None
        return (self.service, self.offer.provider, self.offer.region, self.handover.group)

    utilization_cap: float = 1.0
    """Largest load per replica, beside that of the whole problem; above 1 where all requests together keep an SLO that
    every bucket alone would not."""

    @property
    def usable_rps(self) -> NDArray[np.float64]:
        """Largest steady rates that a plan may send to one replica; shape (buckets of the service,)."""
        return self.throughput_rps * self.utilization_cap

    slots: AdapterSlots | None = None
    """Adapters that one replica holds; None for a service without adapters. `throughput_rps` allows for all of them."""

    loose_rps: NDArray[np.float64] | None = None
    """At least what one replica serves of any requests in each bucket, as `throughput_rps`; None = that itself.

    A bucket can stand for requests of several sizes and objectives: a plan takes them as they are together, or as the
    dearest, and the bound of its cost takes all of them as the cheapest."""

    job_rates: Mapping[str, float] = field(default_factory=dict)
    """By job that may use what is left of a replica: its units per second on ONE replica with nothing else to do."""


class Resource(StrEnum):
    """What a limit counts."""

    INSTANCES = "instances"
    GPUS = "gpus"
    VCPUS = "vcpus"
    USD_PER_HOUR = "usd_per_hour"
    WATTS = "watts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which offers a limit covers; None = any. All given fields must match."""

    provider: str | None = None
    region: str | None = None
    gpu: str | None = None
    market: str | None = None
    offer: str | None = None

    def covers(self, offer: Offer) -> bool:
        """Return whether `offer` is inside this scope."""
        pairs = (
            (self.provider, offer.provider),
            (self.region, offer.region),
            (self.gpu, offer.gpu),
            (self.market, offer.market),
        )
        is_named = self.offer is None or self.offer in {offer.name, offer.listing}
        return is_named and all(wanted is None or wanted == have for wanted, have in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most `bound` of `resource` over the offers in `scope`: budget, power, availability and quota alike.

    Instances, GPUs, vCPUs and dollars count what is rented (whole instances); watts count running replicas at peak.
    """

    name: str
    """Shown to the user: "budget", "power dc1", "available H100-80GB", "quota aws us-east-1 vcpus"."""
    resource: Resource
    bound: float
    scope: Scope = Scope()
    factor: float = 1.0
    """Where watts are counted: what one watt of GPU peak counts for, as PUE and hosts make it more."""
    beside: float = 0.0
    """Spent beside the fleet of what was asked for, `bound` + `beside`."""


class Measure(StrEnum):
    """What a plan can have little of."""

    COST = "cost"
    """Price of everything rented, and of electricity and emissions where they have one."""
    POWER = "power"
    """Peak power of all replicas."""
    GPUS = "gpus"
    """Rented GPUs."""
    ENERGY = "energy"
    """Mean power of all replicas at their load, with PUE."""
    CARBON = "carbon"
    """CO2e that this emits."""


MEASURE_UNITS = {
    Measure.COST: "USD/h",
    Measure.POWER: "kW",
    Measure.GPUS: "GPUs",
    Measure.ENERGY: "kW",
    Measure.CARBON: "kg/h",
}
"""What one of each measure is, in results and for weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What to minimise where that is not the cost alone."""

    stages: tuple[Mapping[Measure, float], ...]
    """One objective after the other, each a weighted sum of measures in their units; the cost breaks ties."""
    within: float = 0.0
    """By what fraction of itself an objective may be missed for the sake of those after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shedding:
    """Demand may stay unserved where the limits do not hold all of it: as little as possible, most important last."""

    priority: Mapping[str, int]
    """Service -> 1 (most important) and up; a service that is not named has 1.

    Unserved req/s are least for priority 1 first, then for 2, and so on; only then is the cost.
    """


class Facet(StrEnum):
    """A way to group offers: those that agree in it are one group."""

    GPU = "gpu"
    PROVIDER = "provider"
    REGION = "region"
    ZONE = "zone"
    OFFER = "offer"
    MARKET = "market"

    def of(self, offer: Offer) -> str:
        """Return the group that `offer` is in; regions of two providers are two, whatever they are called.

        An offer that names no zone is in one with all others of its region that name none.
        """
        if self in {Facet.REGION, Facet.ZONE}:
            zone = offer.zone if self is Facet.ZONE else None
            return " ".join(part for part in (offer.provider, offer.region, zone) if part)
        return {
            Facet.GPU: offer.gpu,
            Facet.PROVIDER: offer.provider,
            Facet.OFFER: offer.listing,
            Facet.MARKET: str(offer.market),
        }[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class VarietyLimit:
    """At most `bound` different groups of offers are rented: GPU types, providers or offers."""

    name: str
    """Shown to the user: "GPU types", "providers", "offers"."""
    facet: Facet
    bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """At least `bound` of `resource` (instances or GPUs) are rented over the offers in `scope`, used or not."""

    name: str
    """Shown to the user: "minimum aws gpus", "must use owned/8xH100-80GB/dc1/owned"."""
    resource: Resource
    bound: float
    scope: Scope = Scope()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareCap:
    """At most the fraction `bound` of a service's requests is served by any one group of the offers in `scope`."""

    name: str
    """Shown to the user: "share of one provider"."""
    facet: Facet
    bound: float
    service: str | None = None
    """None = every service, each by itself."""
    scope: Scope = Scope()
    """Groups outside are not limited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Replicas of one option that run today."""

    service: str
    offer: str
    option: str
    """Its key in the plan that it comes from."""
    gpus_per_replica: int
    replicas: int
    precision: str = ""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    engine: str = ""
    role: Role = Role.BOTH
    power_cap_w: float | None = None
    slots: AdapterSlots | None = None
    """Room for adapters that they were started with; None for a service without adapters."""
    merged: Mapping[str, int] = field(default_factory=dict)
    """Of replicas with an adapter in their weights: how many there are of each adapter."""
    holds: tuple[Mapping[str, tuple[float, ...]], ...] = ()
    """For each replica with room for adapters the req/s of each that it serves, by size where sizes go apart."""

    def is_of(self, option: ServingOption) -> bool:
        """Return whether these are replicas of `option`."""
        is_room_alike = option.slots is None if self.slots is None else self.slots.is_like(option.slots)
        if self.role is not option.role or not is_room_alike:
            return False
        config = option.config
        engine, precision = (config.engine, config.precision) if config else ("", "")
        degrees = (config.tensor_parallel, config.pipeline_parallel) if config else (option.gpus_per_replica, 1)
        return (self.service, self.offer, self.gpus_per_replica) == (
            option.service,
            option.offer.name,
            option.gpus_per_replica,
        ) and (self.engine, self.precision, self.tensor_parallel, self.pipeline_parallel, self.power_cap_w) == (
            engine,
            precision,
            *degrees,
            config.power_cap_w if config else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeCost:
    """What it costs to get from the fleet that runs today to the plan, spread over the time that the plan will hold."""

    running: tuple[Running, ...]
    instances: Mapping[str, int]
    """Instances that are rented today, by offer."""
    start_usd: float = 0.0
    """Per replica started."""
    stop_usd: float = 0.0
    """Per replica stopped."""
    horizon_hours: float = 1.0
    """How long the plan will hold: changes cost (start + stop) / horizon in USD/h."""

    @property
    def is_priced(self) -> bool:
        """Whether changes cost anything; otherwise today's fleet matters for the rollout alone."""
        return self.start_usd > 0 or self.stop_usd > 0

    def replicas_of(self, option: ServingOption) -> int:
        """Return how many replicas of `option` run today."""
        return sum(item.replicas for item in self.running if item.is_of(option))

    def merged_replicas_of(self, option: ServingOption) -> Counter[str]:
        """Return how many replicas of `option` run today with each adapter in their weights."""
        found: Counter[str] = Counter()
        for item in self.running:
            if item.is_of(option):
                found.update(item.merged)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What is left after the loss of any one group of offers in `scope` serves the fraction `bound` of all demand."""

    name: str
    """Shown to the user: "survive provider"."""
    facet: Facet
    bound: float = 1.0
    """Of every bucket's requests, without headroom."""
    scope: Scope = Scope()
    """Groups outside are not lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLoss:
    """What is left after the loss of any `count` instances serves the fraction `bound` of all demand.

    Which replicas share an instance is not planned, so the guarantee holds wherever they are: every option on an offer
    that loses instances loses as many replicas as these can hold of it, or all.
    """

    name: str
    """Shown to the user: "survive largest 1 instance"."""
    count: int
    bound: float = 1.0
    """Of every bucket's requests, without headroom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoss:
    """N+k: what is left after the loss of any `count` replicas of a service serves `bound` of its demand."""

    name: str
    """Shown to the user: "1 spare replica of chat"."""
    count: int
    service: str
    bound: float = 1.0
    """Of every bucket's requests, without headroom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyBudget:
    """At most `bound` of energy (mean kW) or of carbon (kg CO2e per hour) over the offers in `scope`.

    Over a horizon it is the mean that counts, not every period.
    """

    name: str
    """Shown to the user: "carbon", "energy"."""
    measure: Measure
    bound: float
    scope: Scope = Scope()


Redundancy = Survival | InstanceLoss | ReplicaLoss
"""Rules that ask for more than today's requests need, so that something may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What may come instead of what is planned for: the same fleet, its requests routed anew, must serve that too.

    How fast the options are then stands in `ServingOption.scenario_rps`.
    """

    name: str
    """Shown to the user: "launch", "H100-80GB slow"."""
    demands: tuple[Demand, ...]
    """What is asked of every service then."""
    bound: float = 1.0
    """Part of every bucket's requests that must be served, above 0."""
    headroom_fraction: float = 0.0
    """Demand is multiplied by (1 + headroom) here."""
    probability: float | None = None
    """None = not stated."""
    description: str = ""
    """What is different, in words."""


Rule = VarietyLimit | Minimum | ShareCap | Survival | InstanceLoss | ReplicaLoss | Scenario | EnergyBudget
"""What a plan must keep besides its limits; each can be priced, relaxed and named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Periods of equal length that follow one another and then repeat, and how fast capacity follows demand.

    After the last period comes the first one again: what runs at the end of the day is there when the next one begins.
    """

    step_s: float
    """Length of a period."""
    factors: Mapping[str, tuple[float, ...]]
    """By service, each period's demand as a multiple of the rates in its `Demand`; 0 = nothing is asked then."""
    start_up_s: float = 0.0
    """An instance is rented this long before it serves."""
    minimum_lease_s: float = 0.0
    """An instance that has started to serve is kept at least this long, in whole periods."""

    @property
    def n_periods(self) -> int:
        """Number of periods."""
        return len(next(iter(self.factors.values()), ()))

    @property
    def length_s(self) -> float:
        """Length of the whole horizon."""
        return self.n_periods * self.step_s

    @property
    def lease_periods(self) -> int:
        """Periods that an instance is kept at least; 1 = it may go after any period."""
        return max(1, math.ceil(self.minimum_lease_s / self.step_s - 1e-9))

    @property
    def lead_periods(self) -> int:
        """Periods before the one it serves in, in part or in whole, in which an instance is already rented."""
        return math.ceil(self.start_up_s / self.step_s - 1e-9)


COMMITTED_MARKETS = frozenset({Market.RESERVED_1Y, Market.RESERVED_3Y})
"""What is bought there is paid for in every period, whether it is used or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProblem:
    """Everything the optimiser needs; nothing it could misread a file for."""

    demands: tuple[Demand, ...]
    options: tuple[ServingOption, ...]
    limits: tuple[Limit, ...] = ()
    headroom_fraction: float = 0.0
    """Demand is multiplied by (1 + headroom)."""
    utilization_cap: float = 1.0
    """Largest load per replica."""
    shed: Shedding | None = None
    """None = every request must be served."""
    goal: Goal | None = None
    """None = the least cost."""
    rules: tuple[Rule, ...] = ()
    """Limits on variety, minima and caps on shares; see `planner.optimize.rows`."""
    change: ChangeCost | None = None
    """None = nothing runs today, or changes are free."""
    horizon: Horizon | None = None
    """Periods with demands of their own; None = one steady state."""
    egress: Egress | None = None
    """Where users are; None = nothing is said of it."""
    energy: Energy | None = None
    """Electricity of the places that offers stand in; None = not known."""
    jobs: tuple[Job, ...] = ()
    """Work with a deadline."""
    tenancies: tuple[Tenancy, ...] = ()
    """Services whose requests are for adapters: a request is served where its adapter is."""

    def mean_factor(self, service: str) -> float:
        """Return what a service's rates are multiplied by on average over the horizon; 1 without one."""
        if self.horizon is None:
            return 1.0
        factors = self.horizon.factors[service]
        return sum(factors) / len(factors)
