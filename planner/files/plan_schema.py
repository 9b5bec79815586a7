"""Reading plan.json, and its schema: field for field the dataclasses of `planner.domain.plan`; a test compares them.

Units stand in the names; a null means "not known", never "failed".
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from planner.domain.disaggregation import Role
from planner.domain.plan import (
    Allocation,
    Baseline,
    Commitment,
    Conflict,
    JobPlan,
    JobRun,
    ObjectiveValue,
    Period,
    PeriodAllocation,
    PeriodRental,
    PeriodRoute,
    PeriodUnserved,
    Plan,
    PlanStatus,
    RedundancyPrice,
    Rental,
    RolloutAction,
    RolloutStep,
    Route,
    SolverInfo,
    Unserved,
)
from planner.domain.provenance import ProvenanceKind, Warning_
from planner.errors import InputError, UnsupportedFormatError
from planner.files.adapter_plan_schema import AdapterPlanDocument
from planner.files.documents import Document, load_document, validation_error
from planner.files.parts import Count, NonNegative, Part
from planner.files.plan_document import DERIVED, DERIVED_OF_GIVEN_BACK, KIND, SCHEMA_VERSION
from planner.files.proof_schema import ProofDocument
from planner.files.robustness_schema import RobustnessDocument
from planner.files.scaling_schema import FleetWithoutDocument, ScalingChoiceDocument

SUPPORTED_VERSIONS = (SCHEMA_VERSION,)
MAX_PLAN_BYTES = 500_000_000
"""Room for the routing of 500,000 buckets; a request's limit would refuse what a large plan writes."""
WEIGHT_TOLERANCE = 1e-6
"""How far a route's weights may sum from 1; rounding to 12 digits moves them by far less."""

Weight = Annotated[float, Field(ge=0, le=1 + WEIGHT_TOLERANCE)]
TokenRange = Annotated[tuple[Count, Count], Field(description="[from, to) in tokens: from is inside, to is not.")]


class SolverDocument(Part):
    """Which solver said so, and how it ended."""

    name: str = Field(description="Name of the back end: highs, cbc, scip, cp-sat.")
    version: str = Field(description="Version of the library that holds the back end.")
    seconds: NonNegative = Field(
        description="Wall-clock time of the solver. The only field that differs between two runs on the same input."
    )
    termination: str = Field(description="Why the solver stopped, e.g. optimal or time-limit.")
    seed: int = Field(0, description="Seed of the solver's own randomness.")
    threads: int = Field(1, ge=0, description="Threads that the solver was given.")


class AllocationDocument(Part):
    """Replicas of one serving option: a service on an offer with one engine configuration."""

    service: str = Field(description='The service that these replicas serve; "default" if the request names none.')
    offer: str = Field(description="The offer's name, as in `rentals`.")
    option: str = Field(
        description="Key of routing weights: the offer, with the engine configuration where it could have several."
    )
    gpu: str = Field(description="Canonical name of the GPU.")
    gpus_per_replica: int = Field(ge=1, description="GPUs that one replica occupies.")
    replicas: Count = Field(description="Replicas to run.")
    cost_usd_per_hour: NonNegative = Field(
        description="These replicas' share of their instances' price, by the GPUs that they occupy; idle GPUs included."
    )
    power_w: NonNegative | None = Field(None, description="Peak power of all these replicas in watts.")
    utilization: NonNegative = Field(description="Mean load per replica without headroom; 1 = saturated.")
    work_utilization: NonNegative = Field(0.0, description="Mean load of work with a deadline per replica, on top.")
    provider: str = Field("", description='Cloud or owner; "" if the request gives prices without one.')
    region: str = Field("", description="Region as the provider names it.")
    market: str = Field("", description="on-demand, spot, reserved-1y, reserved-3y or owned.")
    instance_type: str = Field("", description="Instance type as the provider names it.")
    instances: Count = Field(
        0, description="Instances of the offer in the whole plan; repeated for each of its options."
    )
    engine: str = Field("", description='Inference engine, e.g. vllm; "" where only throughputs were given.')
    precision: str = Field("", description="Number format of the weights: bf16, fp8, int8, int4, nvfp4, mxfp4.")
    tensor_parallel: int = Field(1, ge=1, description="Tensor-parallel degree of a replica.")
    pipeline_parallel: int = Field(1, ge=1, description="Pipeline-parallel degree of a replica.")
    rate_rps: NonNegative = Field(0.0, description="Requests per second that these replicas serve, without headroom.")
    output_tokens_per_s: NonNegative | None = Field(None, description="Tokens per second that these replicas generate.")
    provenance: ProvenanceKind = Field(
        ProvenanceKind.GIVEN, description="The weakest origin among the throughputs that this row relies on."
    )
    provenance_note: str = Field("", description="The origin in words.")
    price_as_of: str | None = Field(None, description="Date of the price, YYYY-MM-DD.")
    mean_power_w: NonNegative | None = Field(
        None, description="Mean draw of all these replicas at their load, with the site's PUE; null = not known."
    )
    carbon_kg_per_hour: NonNegative | None = Field(None, description="CO2e that this emits; null = not known.")
    role: Role = Field(
        Role.BOTH, description="What part of its requests these replicas serve: both, or prefill or decode apart."
    )
    transfer_bytes_per_s: NonNegative | None = Field(
        None, description="KV caches that these replicas hand over or take over; null where requests stay whole."
    )
    engine_flags: str = Field("", description="How the engine is started for a role of its own.")
    power_cap_w: NonNegative | None = Field(
        None, description="Power limit to set on each GPU in watts; null = leave the GPU's own."
    )
    error_fraction: NonNegative | None = Field(
        None,
        description="By what part of itself the weakest of these throughputs may be too large, one case in ten"
        " excepted; null = not known.",
    )


class RentalDocument(Part):
    """Instances of one offer to rent."""

    offer: str = Field(description='Unique name, "provider/instance_type/region/market", or the user\'s own.')
    provider: str = Field(description="Cloud or owner.")
    instance_type: str = Field(description="Instance type as the provider names it.")
    region: str = Field(description="Region as the provider names it.")
    market: str = Field(description="on-demand, spot, reserved-1y, reserved-3y or owned.")
    gpu: str = Field(description="Canonical name of the GPU.")
    gpus_per_instance: float = Field(gt=0, description="GPUs of one instance.")
    instances: Count = Field(description="Instances to rent.")
    cost_usd_per_hour: NonNegative = Field(description="Price of all these instances.")
    price_as_of: str | None = Field(None, description="Date of the price, YYYY-MM-DD.")
    price_source: str = Field("", description="Where the price was read.")
    interruptions_per_day: NonNegative | None = Field(
        None, description="How often one of these spot instances is taken back, at most; null = not known, or not spot."
    )
    zone: str = Field("", description="The offer's zone, or the number of one of its region's; empty = any.")


class RouteDocument(Part):
    """Where the requests of one bucket go."""

    service: str = Field(description="The service whose requests these are.")
    input_tokens: TokenRange | None = Field(
        description="Prompt length; null where the bucket is known by position only."
    )
    output_tokens: TokenRange | None = Field(description="Answer length; null where known by position only.")
    row: Count = Field(description="Input-size row of the bucket, 0-based.")
    column: Count = Field(description="Output-size column of the bucket, 0-based.")
    rate_rps: NonNegative = Field(description="Requests per second of this bucket, without headroom.")
    weights: dict[str, Weight] = Field(description="Share of the bucket's requests by `option`; they sum to 1.")
    provenance: dict[str, ProvenanceKind] = Field(
        default_factory=dict, description="Origin of each option's throughput for this bucket."
    )
    group: Count | None = Field(
        None,
        description="Group of like adapters whose requests these are (`adapters`, `shares`); the key is not there where"
        " they are for the model itself.",
    )
    decode_weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="Where the answers are generated of requests that `weights` send to prefill replicas, as shares of"
        " the bucket; in every region they sum to what its prefill replicas get.",
    )

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "RouteDocument":
        total = sum(self.weights.values())
        if abs(total - 1) > WEIGHT_TOLERANCE:
            raise InputError(
                f"The weights of {self.service!r}, bucket row {self.row} column {self.column}, sum to {total:.6g}.",
                hint="They must sum to 1: every request has to go somewhere.",
            )
        return self


class UnservedDocument(Part):
    """Requests of one bucket that the plan leaves unserved, because the limits do not hold all demand."""

    service: str = Field(description="The service whose requests these are.")
    input_tokens: TokenRange | None = Field(
        description="Prompt length; null where the bucket is known by position only."
    )
    output_tokens: TokenRange | None = Field(description="Answer length; null where known by position only.")
    row: Count = Field(description="Input-size row of the bucket, 0-based.")
    column: Count = Field(description="Output-size column of the bucket, 0-based.")
    rate_rps: NonNegative = Field(description="Requests per second that are not served.")
    fraction: Weight = Field(description="Share of the bucket's requests that is not served.")
    priority: int = Field(1, ge=1, description="Of the service; 1 = most important.")


class ObjectiveValueDocument(Part):
    """What a plan comes to in one of the objectives that it was made for."""

    minimise: str = Field(
        description='The measure: cost, power, gpus, energy, carbon; or a weighted sum, "1 cost + 0.05 power".'
    )
    value: float = Field(description="What the plan comes to, in `unit`.")
    bound: float | None = Field(
        description="No plan that is as good in the objectives before this one comes to less; null = not known."
    )
    unit: str = Field("", description='Unit of `value` and `bound`; "" for a weighted sum.')


class BaselineDocument(Part):
    """The best plan that uses a single GPU type, for comparison."""

    offer: str = Field(description="The GPU type's name.")
    replicas: Count = Field(description="Replicas of that plan.")
    cost_usd_per_hour: NonNegative | None = Field(description="null if that GPU type alone cannot serve the demand.")
    feasible: bool = Field(description="Whether that GPU type alone can serve the demand.")
    reason: str = Field("", description="Why it cannot.")
    bound_usd_per_hour: NonNegative | None = Field(None, description="Proven lower bound of the baseline's own cost.")


class ConflictDocument(Part):
    """One requirement that stands in the way of a plan."""

    requirement: str = Field(description='E.g. "chat: ttft p99 <= 200 ms".')
    explanation: str = Field(description="Why it cannot be met.")
    current: float | None = Field(None, description="What was asked, in `unit`.")
    relaxed: float | None = Field(
        None,
        description="Smallest value with which a plan exists, all else unchanged; null = no value of it alone helps.",
    )
    unit: str = Field("", description="Unit of `current` and `relaxed`.")
    suggestion: str = Field("", description="The change in words.")


class RolloutStepDocument(Part):
    """One step from the current plan to this one: everything starts, then traffic moves, then the rest stops."""

    action: RolloutAction = Field(description="start, route (send requests as `routing` says) or stop.")
    service: str = Field(description='The service whose replicas or requests these are; "" for bare instances.')
    offer: str = Field("", description="Where replicas start or stop.")
    option: str = Field("", description="Which option: for what stops, its key in the current plan.")
    replicas: Count = Field(0, description="Replicas that start or stop.")
    instances: Count = Field(
        0, description="Instances of the offer to rent before this step, or to release after it; once per offer."
    )


class WarningDocument(Part):
    """Something to know about the result; docs/reference/warnings.md lists the codes."""

    code: str = Field(pattern=r"^W\d{3}$", description="Stable code.")
    message: str = Field(description="What was found.")
    observed: int | float | str | None = Field(None, description="The value that was seen.")
    threshold: int | float | str | None = Field(None, description="The value that it was compared with.")


class PeriodAllocationDocument(Part):
    """Replicas of one serving option in one period."""

    service: str = Field(description="The service that these replicas serve.")
    option: str = Field(description="As `option` of the plan's `allocation`.")
    replicas: Count = Field(description="Replicas to run in this period.")
    utilization: NonNegative = Field(description="Mean load per replica without headroom; 1 = saturated.")
    cost_usd_per_hour: NonNegative = Field(description="Their share of what is rented, starting up included.")
    work_utilization: NonNegative = Field(0.0, description="Mean load of work with a deadline per replica, on top.")


class PeriodRentalDocument(Part):
    """Instances of one offer in one period."""

    offer: str = Field(description="The offer's name, as in `rentals`.")
    instances: Count = Field(description="Instances that can serve in this period.")
    starting: Count = Field(0, description="How many of them were started for it, the start-up time before it begins.")


class PeriodRouteDocument(Part):
    """Where the requests of one bucket go in one period."""

    service: str = Field(description="The service whose requests these are.")
    row: Count = Field(description="Input-size row of the bucket, 0-based.")
    column: Count = Field(description="Output-size column of the bucket, 0-based.")
    rate_rps: NonNegative = Field(description="Requests per second of this bucket in this period, without headroom.")
    weights: dict[str, Weight] = Field(description="Share of the bucket's requests by `option`; they sum to 1.")
    decode_weights: dict[str, Weight] = Field(
        default_factory=dict, description="As `decode_weights` of the plan's `routing`."
    )


class PeriodUnservedDocument(Part):
    """Requests of one bucket that one period leaves unserved."""

    service: str = Field(description="The service whose requests these are.")
    row: Count = Field(description="Input-size row of the bucket, 0-based.")
    column: Count = Field(description="Output-size column of the bucket, 0-based.")
    rate_rps: NonNegative = Field(description="Requests per second that are not served in this period.")


class PeriodDocument(Part):
    """One period of the schedule."""

    start_s: NonNegative = Field(description="Seconds from the horizon's begin to this period's.")
    duration_s: Annotated[float, Field(gt=0)] = Field(description="Length of the period in seconds.")
    rate_rps: NonNegative = Field(description="Requests per second over all services, without headroom.")
    cost_usd_per_hour: NonNegative = Field(
        description="What is rented in this period, and what it cost to start up what was started for it."
    )
    allocation: list[PeriodAllocationDocument] = Field(default_factory=list, description="Replicas.")
    rentals: list[PeriodRentalDocument] = Field(default_factory=list, description="Instances, by offer.")
    routing: list[PeriodRouteDocument] = Field(default_factory=list, description="Routing weights by bucket.")
    unserved: list[PeriodUnservedDocument] = Field(
        default_factory=list, description="What the limits do not hold in this period, by bucket."
    )
    mean_power_w: NonNegative | None = Field(None, description="Mean draw of all replicas; null = not known.")
    carbon_kg_per_hour: NonNegative | None = Field(None, description="CO2e that this emits, where it is known.")

    def to_period(self) -> Period:
        """Return the domain's period."""
        parts: dict[str, Any] = {
            "allocation": tuple(PeriodAllocation(**dict(row)) for row in self.allocation),
            "rentals": tuple(PeriodRental(**dict(row)) for row in self.rentals),
            "routing": tuple(PeriodRoute(**dict(row)) for row in self.routing),
            "unserved": tuple(PeriodUnserved(**dict(row)) for row in self.unserved),
        }
        return Period(**(dict(self) | parts))


class CommitmentDocument(Part):
    """Instances to reserve: paid in every period."""

    offer: str = Field(description="The offer's name, as in `rentals`.")
    market: str = Field(description="reserved-1y or reserved-3y.")
    gpu: str = Field(description="Canonical name of the GPU.")
    instances: Count = Field(description="Instances to reserve.")
    cost_usd_per_hour: NonNegative = Field(description="Price of all these instances.")


class RedundancyPriceDocument(Part):
    """What it costs to be able to lose something."""

    requirement: str = Field(description="The rule, e.g. `survive zone`; or all of them together.")
    cost_without_usd_per_hour: NonNegative | None = Field(
        description="Cost of the cheapest plan found without it; null = a limit came before any was found."
    )
    extra_usd_per_hour: NonNegative | None = Field(description="What this plan costs more; null as before.")
    is_proven: bool = Field(
        description="False: a search was stopped; a plan that is optimal then costs at least so much more."
    )


class JobRunDocument(Part):
    """What one option does of a job, in one period or in a steady state."""

    period: Count | None = Field(description="Position in `schedule`, from 0; null in a steady state.")
    service: str = Field(
        description="Whose replicas they are: the job's own name, or the service beside whose requests it is done."
    )
    option: str = Field(description="As `option` of the plan's `allocation`.")
    amount: NonNegative = Field(description="In the job's unit; in a steady state over the whole window.")
    busy_replicas: NonNegative = Field(description="Replicas that it takes up on average while the job may run.")


class JobPlanDocument(Part):
    """When and where work with a deadline is done."""

    job: str = Field(description="Name of the job.")
    amount: NonNegative = Field(description="How much there is to do; once per horizon, if there is one.")
    unit: str = Field(description="What `amount` counts: requests or tokens.")
    release_s: NonNegative = Field(description="Not before; seconds from now or from the start of the horizon.")
    deadline_s: NonNegative = Field(
        description="All is done by then; counted alike. Not after `release_s`: the next round's."
    )
    finish_s: NonNegative = Field(
        description="End of the last period in which it runs, counted alike; the deadline in a steady state."
    )
    harvested_fraction: NonNegative = Field(description="Part of the work that is done beside a service's requests.")
    own_usd_per_hour: NonNegative = Field(description="Part of the cost that the job's own replicas bear.")
    extra_usd_per_hour: float | None = Field(
        None, description="What the plan costs more than the cheapest without this job; null if that is not known."
    )
    runs: list[JobRunDocument] = Field(default_factory=list, description="What is done where and when.")

    def to_job_plan(self) -> JobPlan:
        """Return the domain's plan of the job."""
        return JobPlan(**(dict(self) | {"runs": tuple(JobRun(**dict(run)) for run in self.runs)}))


class PlanDocument(Part):
    """A plan as gpuplan writes it: what to rent, what serves which requests, what it costs and how sure that is."""

    model_config = ConfigDict(title="gpuplan Plan")

    schema_version: Literal["1"] = Field(description="Version of this format.")
    kind: Literal["Plan"] = Field(description="Tells a plan from a request.")
    name: str = Field("", description="Name of the request.")
    status: PlanStatus = Field(
        description="optimal: proven within the asked gap; feasible: verified, but a limit stopped the proof;"
        " infeasible: no plan exists, see `conflicts`; unknown: a limit was reached before any plan was found."
    )
    cost_usd_per_hour: NonNegative | None = Field(description="Price of everything rented; null if there is no plan.")
    cost_usd_per_month: NonNegative | None = Field(None, description="`cost_usd_per_hour` x 730 hours.")
    usd_per_million_output_tokens: NonNegative | None = Field(
        None, description="Cost per million generated tokens at the planned rate; null if token counts are not known."
    )
    bound_usd_per_hour: NonNegative | None = Field(
        description="No plan can cost less: proven. With a `proof`, no plan whose replicas are no fuller than that"
        " says."
    )
    gap: NonNegative | None = Field(description="(cost - bound) / cost; 0 = proven optimal.")
    savings_vs_best_single: float | None = Field(
        None, description="1 - cost / cost of the best baseline, as a fraction; null if no single GPU type suffices."
    )
    rate_rps: NonNegative = Field(0.0, description="Requests per second over all services, without headroom.")
    output_tokens_per_s: NonNegative | None = Field(None, description="Generated tokens per second over all services.")
    power_w: NonNegative | None = Field(None, description="Peak power of all replicas in watts.")
    solver: SolverDocument = Field(description="Which solver said so.")
    allocation: list[AllocationDocument] = Field(default_factory=list, description="Replicas by service and option.")
    rentals: list[RentalDocument] = Field(default_factory=list, description="What to rent, by offer.")
    routing: list[RouteDocument] = Field(default_factory=list, description="Routing weights by bucket of requests.")
    baselines: list[BaselineDocument] = Field(default_factory=list, description="Plans with one GPU type each.")
    binding: list[str] = Field(default_factory=list, description="Limits that hold the cost up.")
    conflicts: list[ConflictDocument] = Field(
        default_factory=list, description="Requirements that exclude each other; filled if infeasible."
    )
    warnings: list[WarningDocument] = Field(
        default_factory=list, description="What to know before relying on the plan."
    )
    assumptions: list[str] = Field(default_factory=list, description="What was taken for granted, in words.")
    inputs: dict[str, Any] = Field(
        default_factory=dict, description="Hashes and dates of everything read, and the request itself."
    )
    unserved: list[UnservedDocument] = Field(
        default_factory=list,
        description="What the limits do not hold, where the request allows shedding; `rate_rps`, `output_tokens_per_s`"
        " and `routing` then count only what is served.",
    )
    objectives: list[ObjectiveValueDocument] = Field(
        default_factory=list,
        description="What was minimised, one after the other; empty for a plan of the least cost. `gap` is then the"
        " largest of theirs, and `bound_usd_per_hour` is null.",
    )
    change_usd_per_hour: NonNegative | None = Field(
        None,
        description="What starting and stopping replicas costs, spread over the plan's horizon; not in"
        " `cost_usd_per_hour`; null where changes have no price.",
    )
    rollout: list[RolloutStepDocument] = Field(
        default_factory=list, description="Steps from the plan given with `--current` to this one, in order."
    )

    schedule: list[PeriodDocument] = Field(
        default_factory=list,
        description="Period by period, if the request has a horizon. Then counts in `allocation` and `rentals` are the"
        " most of any period, and costs, rates, utilisations and routing weights are means over the horizon.",
    )
    commitments: list[CommitmentDocument] = Field(
        default_factory=list, description="What to reserve, if the request has a horizon."
    )
    egress_gb_per_hour: NonNegative | None = Field(
        None,
        description="Prompts and answers of users who are served from another region; null = the request does not say"
        " where they are.",
    )
    egress_usd_per_hour: NonNegative | None = Field(
        None, description="What that traffic costs, not in `cost_usd_per_hour`."
    )
    redundancy: list[RedundancyPriceDocument] = Field(
        default_factory=list, description="The price of each loss that the fleet is to survive."
    )
    mean_power_w: NonNegative | None = Field(
        None, description="Mean draw of all replicas at their load, with each site's PUE; null = not known."
    )
    carbon_kg_per_hour: NonNegative | None = Field(
        None, description="CO2e that this emits, of the places where that is known; null = nowhere."
    )
    carbon_unknown_w: NonNegative | None = Field(
        None, description="The part of `mean_power_w` of which the emissions are not known."
    )
    energy_usd_per_hour: NonNegative | None = Field(
        None,
        description="Electricity and emissions at the prices that the request states, not in `cost_usd_per_hour`; null"
        " where it states none.",
    )

    robustness: RobustnessDocument | None = Field(
        None, description="The price of the scenarios that the request wants to survive; null where it has none."
    )

    proof: ProofDocument | None = Field(
        None, description="The simulation that the plan holds its SLOs in; null where it was not simulated."
    )

    jobs: list[JobPlanDocument] = Field(
        default_factory=list,
        description="Work with a deadline. It is not in `rate_rps`, `routing` or the utilisation of a service's"
        " replicas; the tokens that it generates are in `output_tokens_per_s`.",
    )

    adapters: list[AdapterPlanDocument] = Field(
        default_factory=list,
        description="Services whose requests are for adapters: which adapter is where. The key is not there without"
        " any. Buckets of such a service are one size of requests of one group of like adapters: `row` is the group,"
        " `column` the size.",
    )

    scale_to_zero: list[ScalingChoiceDocument] = Field(
        default_factory=list,
        description="Services that were compared with replicas that are given back while nobody asks. Those with"
        " `is_applied` are not served by the fleet, and not in `cost_usd_per_hour`. The key is not there without any.",
    )

    fleets_without: list[FleetWithoutDocument] = Field(
        default_factory=list,
        description="What was compared to decide which services to give back, all always on first. The key is not there"
        " where nothing was decided.",
    )
    given_back_usd_per_hour: NonNegative | None = Field(
        None, description="Expected cost of the services that are given back; only there where any is. Derived."
    )
    with_given_back_usd_per_hour: NonNegative | None = Field(
        None, description="Fleet and what is given back together; only there where anything is. Derived."
    )
    with_given_back_usd_per_month: NonNegative | None = Field(None, description="The same for 730 hours. Derived.")

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> "PlanDocument":
        known = {(row.service, row.option) for row in self.allocation}
        for route in self.routing:
            for option, weight in (*route.weights.items(), *route.decode_weights.items()):
                if weight > 0 and (route.service, option) not in known:
                    raise InputError(
                        f"Requests of {route.service!r} are routed to {option!r}, which `allocation` does not have.",
                        hint="Keys of `weights` are the `option` of an allocation of the same service.",
                    )
        return self

    def to_plan(self) -> Plan:
        """Return the domain's plan; the derived fields are dropped."""
        plain = dict(self)
        for name in ("schema_version", "kind", *DERIVED, *DERIVED_OF_GIVEN_BACK):
            del plain[name]
        parts: dict[str, Any] = {
            "solver": SolverInfo(**dict(self.solver)),
            "allocation": tuple(Allocation(**dict(row)) for row in self.allocation),
            "rentals": tuple(Rental(**dict(row)) for row in self.rentals),
            "routing": tuple(Route(**dict(row)) for row in self.routing),
            "baselines": tuple(Baseline(**dict(row)) for row in self.baselines),
            "conflicts": tuple(Conflict(**dict(row)) for row in self.conflicts),
            "objectives": tuple(ObjectiveValue(**dict(row)) for row in self.objectives),
            "unserved": tuple(Unserved(**dict(row)) for row in self.unserved),
            "warnings": tuple(Warning_(**dict(row)) for row in self.warnings),
            "rollout": tuple(RolloutStep(**dict(row)) for row in self.rollout),
            "schedule": tuple(period.to_period() for period in self.schedule),
            "commitments": tuple(Commitment(**dict(row)) for row in self.commitments),
            "redundancy": tuple(RedundancyPrice(**dict(row)) for row in self.redundancy),
            "jobs": tuple(job.to_job_plan() for job in self.jobs),
            "adapters": tuple(item.to_adapter_plan() for item in self.adapters),
            "scale_to_zero": tuple(item.to_choice() for item in self.scale_to_zero),
            "fleets_without": tuple(item.to_fleet() for item in self.fleets_without),
            "binding": tuple(self.binding),
            "assumptions": tuple(self.assumptions),
            "robustness": self.robustness and self.robustness.to_robustness(),
            "proof": self.proof and self.proof.to_proof(),
        }
        return Plan(**(plain | parts))


def read_plan(path: Path | str) -> Plan:
    """Return the plan in the file `path`, JSON or YAML.

    Raises
    ------
    InputError: if it cannot be read, is no plan, or breaks the schema; names the field.
    UnsupportedFormatError: if its `schema_version` is none that this gpuplan reads.
    """
    return plan_from_document(load_document(Path(path), max_bytes=MAX_PLAN_BYTES))


def plan_from_document(document: Document) -> Plan:
    """Return the plan in a parsed document; raises as `read_plan`."""
    _check_kind(document)
    try:
        model = PlanDocument.model_validate(document.data)
    except ValidationError as error:
        raise validation_error(error, PlanDocument, document) from error
    return model.to_plan()


def plan_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of plan.json."""
    schema = PlanDocument.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _check_kind(document: Document) -> None:
    data = document.data
    if not isinstance(data, dict):
        raise InputError(
            "This is not a plan.", hint="`gpuplan plan REQUEST -o plan.json` writes one.", where=document.where()
        )
    kind = data.get("kind")
    if kind != KIND:
        found = f"Its kind is {kind!r}." if kind else "It has no `kind`."
        hint = f"{found} `gpuplan plan REQUEST -o plan.json` makes a plan of a request."
        raise InputError("This is not a plan.", hint=hint, where=document.where("kind"))
    version = data.get("schema_version")
    if version not in SUPPORTED_VERSIONS:
        supported = ", ".join(f'"{known}"' for known in SUPPORTED_VERSIONS)
        raise UnsupportedFormatError(
            f"A plan of schema_version {version!r} cannot be read.",
            hint=f"Supported: {supported}. Make the plan again with this gpuplan, or use the one that wrote it.",
            where=document.where("schema_version"),
        )
