"""The answer: what to rent, what it serves, what it costs and how sure that is. Field names as in plan.json."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from planner.domain.disaggregation import Role
from planner.domain.provenance import ProvenanceKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.adapters import Isolation
    from planner.domain.proof import Proof
    from planner.domain.provenance import Warning_
    from planner.domain.robustness import Robustness
    from planner.domain.scaling import FleetWithout, ScalingChoice


class PlanStatus(StrEnum):
    """What is known of a plan."""

    OPTIMAL = "optimal"
    """Proven within the asked gap."""
    FEASIBLE = "feasible"
    """A verified plan, but a limit stopped the proof."""
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"
    """A limit was reached before any plan was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverInfo:
    """Which solver said so."""

    name: str
    version: str
    seconds: float
    termination: str
    """One of planner.optimize.termination.Termination."""
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Replicas of one option."""

    service: str
    offer: str
    option: str
    """Key of routing weights: the offer's name, with the engine configuration where a plan could use several."""
    gpu: str
    gpus_per_replica: int
    replicas: int
    cost_usd_per_hour: float
    """These replicas' share of their instances' price, by GPUs occupied plus idle GPUs of the last instance."""
    power_w: float | None
    """Peak, all replicas; None = not known."""
    utilization: float
    """Mean load per replica without headroom, 0..1."""
    work_utilization: float = 0.0
    """Mean load per replica of work with a deadline, on top."""
    provider: str = ""
    region: str = ""
    market: str = ""
    instance_type: str = ""
    instances: int = 0
    """Instances of the offer in the plan; an offer shared by several options repeats it."""
    engine: str = ""
    precision: str = ""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    rate_rps: float = 0.0
    output_tokens_per_s: float | None = None
    provenance: ProvenanceKind = ProvenanceKind.GIVEN
    provenance_note: str = ""
    price_as_of: str | None = None
    mean_power_w: float | None = None
    """Mean draw of all replicas at their load, with the site's PUE; None = not known."""
    carbon_kg_per_hour: float | None = None
    """CO2e that this emits; None = not known."""
    role: Role = Role.BOTH
    """What part of its requests these replicas serve."""
    transfer_bytes_per_s: float | None = None
    """KV caches that all these replicas hand over or take over; None where requests stay whole."""
    engine_flags: str = ""
    """How the engine is started for this role; empty where requests stay whole."""
    power_cap_w: float | None = None
    """Power limit to set on each GPU; None = its own."""
    error_fraction: float | None = None
    """By what part of itself the weakest of these throughputs may be too large, one case in ten excepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rental:
    """Instances of one offer to rent."""

    offer: str
    provider: str
    instance_type: str
    region: str
    market: str
    gpu: str
    gpus_per_instance: float
    instances: int
    cost_usd_per_hour: float
    price_as_of: str | None = None
    price_source: str = ""
    interruptions_per_day: float | None = None
    """Of all these instances, at most, on spot; None = not known, or not spot."""
    zone: str = ""
    """Where zones matter: the offer's own, or the number of one of the region's zones; empty = any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where one bucket's requests go; weights sum to 1 and are keyed by `Allocation.option`."""

    service: str
    input_tokens: tuple[int, int] | None
    output_tokens: tuple[int, int] | None
    row: int
    column: int
    rate_rps: float
    weights: Mapping[str, float]
    provenance: Mapping[str, ProvenanceKind] = field(default_factory=dict)
    group: int | None = None
    """Of the service's adapters: whose requests these are; None where they are for the model itself."""
    decode_weights: Mapping[str, float] = field(default_factory=dict)
    """Where the answers of the requests that `weights` send to prefill replicas are generated, as shares of the
    bucket: of every region they sum to what its prefill replicas get."""

    @property
    def shares(self) -> Mapping[str, float]:
        """Part of the bucket's requests that each option has anything to do with."""
        return {**self.weights, **self.decode_weights}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved:
    """Requests of one bucket that the plan leaves unserved, because the limits do not hold all demand."""

    service: str
    input_tokens: tuple[int, int] | None
    output_tokens: tuple[int, int] | None
    row: int
    column: int
    rate_rps: float
    fraction: float
    """Of the bucket's requests, 0..1."""
    priority: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveValue:
    """What a plan comes to in one of the objectives that it was made for."""

    minimise: str
    """E.g. "power", or "1 cost + 0.05 power" for a weighted sum."""
    value: float
    bound: float | None
    """No plan that is as good in the objectives before this one comes to less; None = not known."""
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The best plan that uses a single GPU type."""

    offer: str
    """The GPU type's name."""
    replicas: int
    cost_usd_per_hour: float | None
    """None if that GPU type alone cannot serve the demand."""
    feasible: bool
    reason: str = ""
    """Why it is not feasible."""
    bound_usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One requirement that stands in the way, and the smallest relaxation of it alone that makes a plan possible."""

    requirement: str
    """E.g. "chat: ttft p99 <= 200 ms"."""
    explanation: str
    current: float | None = None
    relaxed: float | None = None
    """The smallest value with which a plan exists, everything else unchanged; None = no value of it alone helps."""
    unit: str = ""
    suggestion: str = ""
    """In words: "ttft p99 0.2 s -> 0.31 s"."""


class RolloutAction(StrEnum):
    """What a step of a rollout does."""

    START = "start"
    ROUTE = "route"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    """One step on the way from the current plan to this one: first start, then move the traffic, then stop."""

    action: RolloutAction
    service: str
    offer: str = ""
    """Where replicas start or stop; empty where traffic moves."""
    option: str = ""
    replicas: int = 0
    """Replicas that start or stop."""
    instances: int = 0
    """Instances of the offer to rent before (start) or to release after (stop); once per offer, at its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodAllocation:
    """Replicas of one option in one period."""

    service: str
    option: str
    """As `Allocation.option`."""
    replicas: int
    utilization: float
    """Mean load per replica without headroom, 0..1."""
    cost_usd_per_hour: float
    """Their share of what is rented in this period, as in `Allocation`; starting up included."""
    work_utilization: float = 0.0
    """As in `Allocation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodRental:
    """Instances of one offer in one period."""

    offer: str
    instances: int
    """Instances that can serve."""
    starting: int = 0
    """How many of them were started for this period: they are rented `start_up` before it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodRoute:
    """Where one bucket's requests go in one period."""

    service: str
    row: int
    column: int
    rate_rps: float
    weights: Mapping[str, float]
    decode_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def shares(self) -> Mapping[str, float]:
        """Part of the bucket's requests that each option has anything to do with."""
        return {**self.weights, **self.decode_weights}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodUnserved:
    """Requests of one bucket that one period leaves unserved."""

    service: str
    row: int
    column: int
    rate_rps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One period of the schedule."""

    start_s: float
    """Seconds since the horizon began."""
    duration_s: float
    rate_rps: float
    cost_usd_per_hour: float
    """What is rented in this period, with what it cost to start it up."""
    allocation: tuple[PeriodAllocation, ...] = ()
    rentals: tuple[PeriodRental, ...] = ()
    routing: tuple[PeriodRoute, ...] = ()
    unserved: tuple[PeriodUnserved, ...] = ()
    mean_power_w: float | None = None
    """As `Plan.mean_power_w`."""
    carbon_kg_per_hour: float | None = None
    """As `Plan.carbon_kg_per_hour`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """Instances to reserve: paid in every period."""

    offer: str
    market: str
    gpu: str
    instances: int
    cost_usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RedundancyPrice:
    """What it costs to be able to lose something: this plan against one that need not survive the loss."""

    requirement: str
    """As in `binding`; or all of them together."""
    cost_without_usd_per_hour: float | None
    """Of the cheapest plan found without it, everything else kept; None = a limit came before any."""
    extra_usd_per_hour: float | None
    """What this plan costs more."""
    is_proven: bool
    """False: this search or the one without it was stopped; an optimal plan then costs at least so much more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """What one option does of a job, in one period or in a steady state."""

    period: int | None
    """Position in `Plan.schedule`; None in a steady state."""
    service: str
    """Whose replicas they are: the job's own name, or the service beside whose requests the work is done."""
    option: str
    """As `Allocation.option`."""
    amount: float
    """In the job's unit; in a steady state over the whole window."""
    busy_replicas: float
    """Replicas that the work takes up on average while the job may run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """When and where work with a deadline is done."""

    job: str
    amount: float
    unit: str
    release_s: float
    deadline_s: float
    finish_s: float
    """End of the last period in which it runs; the deadline in a steady state. Counted like the deadline."""
    harvested_fraction: float
    """Part of the work that is done beside a service's requests."""
    own_usd_per_hour: float
    """Share of the cost that the job's own replicas bear."""
    extra_usd_per_hour: float | None = None
    """What the plan costs more than the cheapest one without this job; None = not known."""
    runs: tuple[JobRun, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedAdapter:
    """An adapter on a replica, and what the replica serves of its requests."""

    adapter: str
    rate_rps: float
    by_size_rps: tuple[float, ...] = ()
    """The same by size: of each bucket of its group, in the order of the routing; empty where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTiers:
    """What a replica has ready beside the adapters that it serves; all others of the service are on disk for it."""

    gpu: tuple[str, ...]
    """In slots that would be empty."""
    host: tuple[str, ...]
    """In host memory, and in no slot."""
    host_bytes: float
    """Of all adapters in host memory: what is in a slot is there too, as engines keep it."""
    host_room_bytes: float
    """That they may take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReplica:
    """One replica and the adapters that it holds."""

    option: str
    """As `Allocation.option`."""
    utilization: float
    """Mean load without headroom, 0..1."""
    adapters: tuple[HostedAdapter, ...]
    """In slots, with requests."""
    tiers: ReplicaTiers | None = None
    """None = nobody chose what else is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterHost:
    """Replicas of one option, and the room that each has for adapters."""

    option: str
    """As `Allocation.option`."""
    isolation: Isolation
    """What the adapters of a replica share; dedicated: it has one, merged into its weights."""
    slots: int
    """Adapters that a replica holds at once."""
    slot_bytes: float
    """Memory that is set aside for each of them over all GPUs of the replica."""
    replicas: int
    rank: int = 0
    """That a slot is made for; 0 = any, or not known."""
    engine_flags: str = ""
    held: int = 0
    """Adapters that a replica may have in host memory, those in slots among them; 0 = nobody chose."""
    container_bytes: float = 0.0
    """Host memory of each of them beside its own: a process that waits; 0 where one engine holds them all."""
    host_wait_s: float | None = None
    """What a request waits for the largest adapter that is in host memory only; None = not known, or never."""
    disk_wait_s: float | None = None
    """The same of one that is on disk only."""


class PreloadMethod(StrEnum):
    """How what is ready was chosen."""

    PROGRAMME = "integer-programme"
    DENSITY = "value-per-byte"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPreload:
    """How well it was chosen what is ready on the replicas of a service beside the adapters that they serve."""

    method: PreloadMethod
    saved_s_per_s: float
    """Seconds of waiting that it saves in each second."""
    bound_s_per_s: float
    """Nothing saves more."""
    on_disk: tuple[str, ...]
    """Adapters that no replica has in a slot or in host memory."""
    unfit: tuple[str, ...] = ()
    """Of these, adapters that no replica has room for: the engine would have to be started anew for them."""
    disk_bytes: float = 0.0
    """Of all adapters of the service: each machine's disk has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterShare:
    """What one adapter costs: its part of the replicas that hold it, by load."""

    adapter: str
    rate_rps: float
    replicas: int
    """That hold it."""
    usd_per_month: float
    group: int = 0
    """Of like adapters, as the routing has it."""


class AdapterWay(StrEnum):
    """A way to serve adapters."""

    PLAN = "this plan"
    DEDICATED = "dedicated"
    """Replicas of its own for every adapter."""
    ONE_POOL = "one pool"
    """Equal replicas that all take part in one pool."""
    SERVERLESS = "serverless"
    """A container with weights of its own for each adapter, while it is asked for and as long as clouds keep it."""
    KEPT = "kept"
    """The same, each kept as long as was learnt from its own requests."""
    SHARED_BACKBONE = "shared-backbone"
    """A process for each adapter on one copy of the weights, loaded ahead and given back as was learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAlternative:
    """What a way to serve the adapters costs, the rest of the request being the same, and how requests fare."""

    way: AdapterWay
    cost_usd_per_hour: float | None
    """Of the cheapest plan found; None = there is none, or a limit came before any."""
    bound_usd_per_hour: float | None
    """No plan of this way costs less; None = not known."""
    reason: str = ""
    """Why there is no cost."""
    is_met: bool | None = None
    """Whether every objective held in a replay; None = planned at mean rates, and not replayed."""
    attainment: float | None = None
    """Part of the replayed requests within all bounds on percentiles; None = not known."""
    ttft_p50_s: float | None = None
    """Of the replay; None = not replayed, or not told."""
    ttft_p99_s: float | None = None
    requests: int = 0
    """That were replayed and judged."""
    offer: str = ""
    """What is rented and given back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """Which adapters of a service live where."""

    service: str
    adapters: int
    """With requests."""
    idle: tuple[str, ...]
    """Adapters without requests: no replica has any of its load from them."""
    groups: int
    """Groups of like adapters that the programme saw."""
    added_replicas: int
    """More replicas than the programme over groups has, because adapters are whole."""
    hosts: tuple[AdapterHost, ...]
    placement: tuple[AdapterReplica, ...]
    shares: tuple[AdapterShare, ...]
    alternatives: tuple[AdapterAlternative, ...] = ()
    preload: AdapterPreload | None = None
    """None = nobody chose what is ready beside what is served."""
    moved: tuple[str, ...] | None = None
    """Adapters that are on other replicas than in the plan that runs today; None = that is not known, or has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A verified plan, or the reason why there is none."""

    status: PlanStatus
    cost_usd_per_hour: float | None
    bound_usd_per_hour: float | None
    gap: float | None
    solver: SolverInfo
    allocation: tuple[Allocation, ...] = ()
    rentals: tuple[Rental, ...] = ()
    routing: tuple[Route, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    savings_vs_best_single: float | None = None
    binding: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    warnings: tuple[Warning_, ...] = ()
    assumptions: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Hashes and dates of everything that was read, the command that reproduces the plan, and the request itself."""
    name: str = ""
    rate_rps: float = 0.0
    output_tokens_per_s: float | None = None
    power_w: float | None = None
    unserved: tuple[Unserved, ...] = ()
    """Empty where everything is served; else `rate_rps`, `output_tokens_per_s` and `routing` count what is served.
    Over a schedule the means of its periods."""
    objectives: tuple[ObjectiveValue, ...] = ()
    """In the order in which they were minimised; empty for a plan of the least cost."""
    change_usd_per_hour: float | None = None
    """What starting and stopping replicas costs, spread over the plan's horizon; not in `cost_usd_per_hour`."""
    rollout: tuple[RolloutStep, ...] = ()
    """Steps from the plan given with `--current` to this one, in order; empty without one."""
    schedule: tuple[Period, ...] = ()
    """Period by period, where the request has a horizon; then `allocation` and `rentals` count the most that any
    period has, and costs, rates and utilisations are means over the horizon."""
    commitments: tuple[Commitment, ...] = ()
    egress_gb_per_hour: float | None = None
    """Prompts and answers of users who are served from another region; None = nobody said where they are."""
    egress_usd_per_hour: float | None = None
    """What that costs, not in `cost_usd_per_hour`."""
    redundancy: tuple[RedundancyPrice, ...] = ()
    """The price of each loss that the fleet survives; empty where none was asked for."""
    mean_power_w: float | None = None
    """Mean draw of all replicas at their load, with each site's PUE; None = not known."""
    carbon_kg_per_hour: float | None = None
    """CO2e that this emits, of the places where that is known."""
    carbon_unknown_w: float | None = None
    """The part of `mean_power_w` of which the emissions are not known."""
    energy_usd_per_hour: float | None = None
    """Electricity and emissions at the prices that the request states; not in `cost_usd_per_hour`."""
    robustness: Robustness | None = None
    """The price of the scenarios that the request wants to survive; None where it has none."""
    proof: Proof | None = None
    """The simulation that the plan holds its objectives in; None where it was not simulated."""
    jobs: tuple[JobPlan, ...] = ()
    """Work with a deadline; not in `rate_rps` and `routing`, nor in the utilisation of a service's replicas."""
    adapters: tuple[AdapterPlan, ...] = ()
    """Services whose requests are for adapters; the key is left out of documents of plans without any."""
    scale_to_zero: tuple[ScalingChoice, ...] = ()
    """Services that were compared with replicas that are given back; the key is left out where there are none."""
    fleets_without: tuple[FleetWithout, ...] = ()
    """What was compared to decide which of them to give back, the plan with all always on first; empty where nothing
    was decided. The key is left out then."""

    @property
    def given_back(self) -> tuple[ScalingChoice, ...]:
        """Services that the fleet does not serve, since they are given back while nobody asks."""
        return tuple(choice for choice in self.scale_to_zero if choice.is_applied)

    @property
    def given_back_usd_per_hour(self) -> float:
        """What these are expected to cost, beside `cost_usd_per_hour`."""
        return math.fsum(choice.way.cost_usd_per_hour for choice in self.given_back)

    @property
    def with_given_back_usd_per_hour(self) -> float | None:
        """Fleet and what is given back together; None without a plan."""
        return None if self.cost_usd_per_hour is None else self.cost_usd_per_hour + self.given_back_usd_per_hour
