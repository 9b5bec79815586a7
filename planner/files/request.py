"""The PlanRequest: what the user asks. Field descriptions here are the single source for docs and JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from planner.domain.hardware import Market
from planner.domain.problem import Measure
from planner.errors import InputError
from planner.files.schema import Count, DurationS, Fraction, PowerW, RateRps, Strict, Usd, UsdPerHour
from planner.files.slo import SloField
from planner.units import parse_duration_s

DEFAULT_HEADROOM_FRACTION = 0.10
"""Capacity kept above the planned rate; Mélange (arXiv 2404.14527) suggests over-provisioning by about 10%."""

DEFAULT_MAX_PRICE_AGE = "180d"
"""Half a year: cloud GPU prices have been cut once or twice a year since 2023."""


def _as_list(value: Any) -> Any:  # noqa: ANN401 - whatever the document holds
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


Precision = Literal["bf16", "fp16", "fp8", "int8", "int4", "nvfp4", "mxfp4"]
Degree = Annotated[int, Field(ge=1, le=64, strict=True)]


class Engine(Strict):
    """The serving engine and the settings of it that change throughput."""

    name: str = Field(
        default="vllm",
        description="vllm, sglang, tensorrt-llm, lmdeploy, tgi or s-lora, or one that profiles.files measured; "
        "measured profiles are used only where they match it.",
    )
    version: str = Field(default="", description="Engine version, for the record.")
    max_num_seqs: int = Field(default=256, ge=1, description="Most sequences in one batch (vLLM's --max-num-seqs).")
    max_num_batched_tokens: int = Field(
        default=8192, ge=1, description="Token budget of one step (vLLM's --max-num-batched-tokens)."
    )


class Parallelism(Strict):
    """How one replica may be spread over the GPUs of one instance; all given degrees compete."""

    tp: Annotated[list[Degree], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default=[1, 2, 4, 8], description="Tensor-parallel degrees to consider."
    )
    pp: Annotated[list[Degree], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default=[1], description="Pipeline-parallel degrees to consider."
    )


class Columns(Strict):
    """Names of the columns of a generic CSV or Parquet trace."""

    arrival: str | None = Field(
        default=None,
        description="Arrival time: a date and time, or a number with its unit: 'ts:ms', or a column called arrival_s.",
    )
    input: str = Field(description="Prompt tokens.")
    output: str = Field(description="Generated tokens.")


class Grid(Strict):
    """How requests are put into size buckets."""

    kind: Literal["melange", "adaptive", "edges"] = Field(
        default="melange", description="Mélange's 10 x 6 ranges, ranges fitted to the trace, or your own edges."
    )
    rows: int = Field(default=10, ge=1, le=100, description="Input ranges of the adaptive grid.")
    columns: int = Field(default=6, ge=1, le=100, description="Output ranges of the adaptive grid.")
    input_edges: list[int] | None = Field(default=None, description="Upper edges in tokens, ascending (kind: edges).")
    output_edges: list[int] | None = Field(default=None, description="Upper edges in tokens, ascending (kind: edges).")

    @model_validator(mode="after")
    def _edges_go_with_their_kind(self) -> Grid:
        has_edges = self.input_edges is not None and self.output_edges is not None
        if (self.kind == "edges") != has_edges:
            raise InputError("input_edges and output_edges belong to kind: edges, both of them.")
        return self


class Constant(Strict):
    """Requests that are all of one size."""

    input_tokens: float = Field(gt=0, description="Prompt tokens of every request.")
    output_tokens: float = Field(gt=0, description="Generated tokens of every request.")


class Workload(Strict):
    """What is asked of a service. Exactly one of trace, histogram and constant."""

    trace: str | None = Field(
        default=None, description="A trace file, format detected by content; or bundled:NAME for one that ships."
    )
    histogram: str | None = Field(default=None, description="A file with request sizes and their counts or shares.")
    constant: Constant | None = Field(default=None, description="All requests of one size.")
    format: str | None = Field(default=None, description="Trace format, where detection by content fails.")
    columns: Columns | None = Field(default=None, description="Column names of a generic CSV or Parquet trace.")
    skip_bad_rows: bool = Field(default=False, description="Drop and count malformed rows instead of stopping.")
    rate: RateRps | None = Field(
        default=None, description="Mean rate to plan for; the trace is rescaled to it. Needed without a trace."
    )
    peak: str | None = Field(
        default=None,
        description="Plan for a busy window, not the mean: 'p99 of 1m', 'max of 10s'.",
        examples=["p99 of 1m", "max of 10s"],
    )
    by_hour: str | None = Field(
        default=None,
        description="How the rate changes over the horizon: a CSV with the columns hour and rate_rps, or hour and"
        " factor (of the rate); or bundled:NAME for one that ships. Default: the trace's own rates.",
        examples=["demand.csv", "bundled:servegen_m_large"],
    )
    grid: Grid = Field(default=Grid(), description="How requests are put into size buckets.")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Workload:
        sources = [name for name in ("trace", "histogram", "constant") if getattr(self, name) is not None]
        if len(sources) != 1:
            found = " and ".join(sources) or "none"
            raise InputError(f"A workload needs exactly one of trace, histogram and constant; found {found}.")
        if sources != ["trace"] and self.rate is None and self.by_hour is None:
            raise InputError(
                f"A workload from a {sources[0]} says nothing of time: give its rate.", hint="rate: 30 req/s"
            )
        if sources != ["trace"] and self.peak is not None:
            raise InputError("peak needs a trace with arrival times.", hint="Raise the rate instead.")
        return self


class MaxShare(Strict):
    """The largest part of a service's requests that any one of these may serve."""

    provider: Fraction | None = Field(default=None, le=1.0, description="Any one provider.")
    region: Fraction | None = Field(default=None, le=1.0, description="Any one region of a provider.")
    offer: Fraction | None = Field(default=None, le=1.0, description="Any one offer.")
    gpu: Fraction | None = Field(default=None, le=1.0, description="Any one GPU type.")


class SpotShare(Strict):
    """How much of a service may depend on spot capacity."""

    max: Fraction = Field(le=1.0, description="Largest part of a service's requests that spot capacity may serve.")


class Service(Strict):
    """One model that serves one kind of traffic under its objectives."""

    name: str = Field(min_length=1, description="Your name for it.")
    model: str = Field(
        min_length=1, description="A name in the model library (`gpuplan models list`), or the path of a config.json."
    )
    precision: Annotated[list[Precision], BeforeValidator(_as_list), Field(min_length=1)] | None = Field(
        default=None,
        description="Number formats of the weights that compete; default: the one the model is published in.",
    )
    engine: Engine = Field(default=Engine(), description="The serving engine.")
    parallelism: Parallelism = Field(default=Parallelism(), description="How a replica may be spread over GPUs.")
    workload: Workload = Field(description="What is asked of it.")
    slo: list[SloField] = Field(min_length=1, description="Service-level objectives; all must hold.")
    priority: int = Field(
        default=1,
        ge=1,
        le=100,
        strict=True,
        description="1 = most important; with constraints.shed: allowed, larger numbers lose requests first.",
    )
    max_share: MaxShare | None = Field(
        default=None, description="Spread of this service, where it differs from the fleet's."
    )
    spot_share: SpotShare | None = Field(
        default=None, description="Spot share of this service, where it differs from the fleet's."
    )


class GpuChoice(Strict):
    """Which GPU types may be used."""

    include: list[str] | None = Field(default=None, description="Only these; default: all.")
    exclude: list[str] = Field(default=[], description="Never these.")


class Owned(Strict):
    """GPUs that you have, priced as you account for them."""

    gpu: str = Field(description="GPU name (`gpuplan catalog list`).")
    count: int = Field(ge=1, description="GPUs.")
    gpus_per_instance: int = Field(default=8, ge=1, description="GPUs per machine; a replica stays within one.")
    region: str = Field(default="owned", description="Your name for the place; power limits refer to it.")
    price: UsdPerHour = Field(description="Per GPU and hour, e.g. depreciation and power; 0 USD/h if it is sunk.")
    must_use: bool = Field(default=False, description="They are paid for in any case: count all of them in the plan.")

    @model_validator(mode="after")
    def _whole_machines(self) -> Owned:
        if self.count % self.gpus_per_instance:
            raise InputError(
                f"{self.count} GPUs are not whole machines of {self.gpus_per_instance}.", hint="Set gpus_per_instance."
            )
        return self


class CommitmentOffer(Strict):
    """A discount for paying all along; exactly one of gpu and offer."""

    gpu: str | None = Field(default=None, description="On all on-demand offers of this GPU.")
    offer: str | None = Field(default=None, description="On this on-demand offer alone.")
    term: Literal["1y", "3y"] = Field(default="1y", description="How long it binds.")
    discount: Fraction = Field(
        lt=1.0, description="Off the on-demand price; prices of reserved capacity are yours to state."
    )
    max_instances: Count | None = Field(default=None, description="Most instances of each offer that can be reserved.")

    @model_validator(mode="after")
    def _one_subject(self) -> CommitmentOffer:
        if (self.gpu is None) == (self.offer is None):
            raise InputError("A commitment needs exactly one of gpu and offer.", hint="gpu: H100-80GB")
        return self


class CatalogChoice(Strict):
    """What may be rented."""

    bundled: bool = Field(default=True, description="Use the offers that ship with gpuplan.")
    providers: list[str] | None = Field(default=None, description="Only these clouds; default: all.")
    regions: list[str] | None = Field(default=None, description="Only these regions; default: all.")
    gpus: GpuChoice = Field(default=GpuChoice(), description="Only, or never, these GPU types.")
    markets: list[Market] = Field(
        default=[Market.ON_DEMAND, Market.OWNED], min_length=1, description="Markets to buy on."
    )
    max_price_age: DurationS = Field(
        default=parse_duration_s(DEFAULT_MAX_PRICE_AGE),
        description="Older prices are warned of, and refused with --strict.",
        json_schema_extra={"default": DEFAULT_MAX_PRICE_AGE},
    )
    files: list[str] = Field(default=[], description="Your own offers: gpuplan, gpuhunt or SkyPilot CSV, or YAML.")
    owned: list[Owned] = Field(default=[], description="GPUs that you have.")
    spot_availability: Fraction = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Part of the time that a spot replica runs, reclaims and restarts taken off: so much of its"
        " capacity counts.",
        json_schema_extra={"default": "100%"},
    )
    commitments: list[CommitmentOffer] = Field(
        default=[], description="Discounts for reserving capacity: 1y or 3y offers beside the on-demand ones."
    )


class ProfileChoice(Strict):
    """Where throughput comes from."""

    prefer: Literal["measured", "estimated"] = Field(
        default="measured",
        description="measured: measurements where they match, estimates elsewhere; estimated: only those.",
    )
    files: list[str] = Field(default=[], description="Your own measurements, in the CSV form of profiles/.")


class Quota(Strict):
    """At most so much of one resource in a scope; exactly one of gpus, vcpus and instances."""

    provider: str | None = Field(default=None, description="Cloud; default: any.")
    region: str | None = Field(default=None, description="Region; default: any.")
    gpu: str | None = Field(default=None, description="GPU type; default: any.")
    market: Market | None = Field(default=None, description="Market; default: any.")
    offer: str | None = Field(default=None, description="One offer by its name; default: any.")
    gpus: Count | None = Field(default=None, description="Most GPUs.")
    vcpus: Count | None = Field(default=None, description="Most vCPUs.")
    instances: Count | None = Field(default=None, description="Most instances.")

    @model_validator(mode="after")
    def _one_resource(self) -> Quota:
        if sum(value is not None for value in (self.gpus, self.vcpus, self.instances)) != 1:
            raise InputError("A quota needs exactly one of gpus, vcpus and instances.")
        return self


class Minimum(Strict):
    """At least so much is rented in a scope, used or not; exactly one of gpus and instances."""

    provider: str | None = Field(default=None, description="Cloud; default: any.")
    region: str | None = Field(default=None, description="Region; default: any.")
    gpu: str | None = Field(default=None, description="GPU type; default: any.")
    market: Market | None = Field(default=None, description="Market; default: any.")
    offer: str | None = Field(default=None, description="One offer by its name; default: any.")
    gpus: Count | None = Field(default=None, description="Fewest GPUs.")
    instances: Count | None = Field(default=None, description="Fewest instances.")

    @model_validator(mode="after")
    def _one_resource(self) -> Minimum:
        if sum(value is not None for value in (self.gpus, self.instances)) != 1:
            raise InputError("A minimum needs exactly one of gpus and instances.")
        return self


class ChangeCost(Strict):
    """What it costs to leave the fleet that runs today (`current`, or `--current`), spread over the horizon."""

    start: Usd = Field(default=0.0, description="Per replica started.", json_schema_extra={"default": "0 USD"})
    stop: Usd = Field(default=0.0, description="Per replica stopped.", json_schema_extra={"default": "0 USD"})
    horizon: DurationS = Field(description="How long the plan is going to hold.")


Groups = Annotated[int, Field(ge=1, strict=True)]

WHOLE_FLEET = "fleet"
"""The site that a power limit without a region stands for."""

PowerBySite = Annotated[
    dict[str, PowerW],
    BeforeValidator(lambda value: value if isinstance(value, dict) else {WHOLE_FLEET: value}),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "examples": ["40kW"]},
                {"type": "object", "additionalProperties": {"type": "string", "examples": ["40kW"]}},
            ]
        }
    ),
]


class Constraints(Strict):
    """Limits on the whole fleet."""

    budget: UsdPerHour | None = Field(default=None, description="Most dollars per hour.")
    power: PowerBySite = Field(
        default={}, description="Most peak power: of the whole fleet, or by region ({dc1: 40kW})."
    )
    available: dict[str, Count] = Field(
        default={}, description="Most GPUs of a type, over all offers ({H100-80GB: 8})."
    )
    quotas: list[Quota] = Field(default=[], description="Limits by provider, region, GPU type or market.")
    minimum: list[Minimum] = Field(default=[], description="What is rented in any case, by scope.")
    max_gpu_types: Groups | None = Field(default=None, description="Most different GPU types.")
    max_providers: Groups | None = Field(default=None, description="Most different providers.")
    max_offers: Groups | None = Field(default=None, description="Most different offers.")
    max_share: MaxShare | None = Field(
        default=None, description="Spread: the largest part of each service's requests in one place."
    )
    spot_share: SpotShare | None = Field(default=None, description="Most of each service that spot may serve.")
    survive: list[Literal["provider", "region", "spot-pool"]] = Field(
        default=[],
        description="After the loss of any one of these (spot-pool: one spot offer) what is left still serves all"
        " requests, without headroom.",
    )
    change_cost: ChangeCost | None = Field(default=None, description="Price of changes to the fleet that runs today.")
    headroom: Fraction = Field(
        default=DEFAULT_HEADROOM_FRACTION,
        le=10.0,
        json_schema_extra={"default": f"{DEFAULT_HEADROOM_FRACTION:.0%}"},
        description="Capacity kept free above the planned rate.",
    )
    shed: Literal["never", "allowed"] = Field(
        default="never",
        description="What to do where limits cannot hold all demand: never = there is no plan; allowed = leave as few"
        " requests as possible unserved, those of the least important services first, and say which.",
    )


_MEASURES = [measure.value for measure in Measure]
_OBJECTIVE_HINT = "Write e.g. power, {cost: 1, power: 0.05} or [gpus, cost]."


def parse_minimise(value: Any) -> tuple[dict[Measure, float], ...]:  # noqa: ANN401 - whatever the document holds
    """Return what to minimise, one objective after the other: a measure, weights of measures, or a list of measures.

    Raises
    ------
    InputError: if it is none of these.

    Examples
    --------
    >>> parse_minimise("power") == ({Measure.POWER: 1.0},)
    True
    >>> [list(stage.values()) for stage in parse_minimise({"cost": 1, "power": 0.05})]
    [[1.0, 0.05]]
    """
    if isinstance(value, dict) and value:
        return ({_measure(name): _weight(name, weight) for name, weight in value.items()},)
    if isinstance(value, list) and value:
        return tuple({measure: 1.0} for measure in dict.fromkeys(map(_measure, value)))
    return ({_measure(value): 1.0},)


def _measure(name: object) -> Measure:
    if name not in _MEASURES:
        raise InputError(f"{name!r} is not a measure; there are {', '.join(_MEASURES)}.", hint=_OBJECTIVE_HINT)
    return Measure(str(name))


def _weight(name: object, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise InputError(f"The weight of {name} must be a number above zero, not {weight!r}.", hint=_OBJECTIVE_HINT)
    return float(weight)


Minimise = Annotated[
    tuple[dict[Measure, float], ...],
    BeforeValidator(parse_minimise),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": _MEASURES},
                {
                    "type": "object",
                    "propertyNames": {"enum": _MEASURES},
                    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                    "minProperties": 1,
                },
                {"type": "array", "items": {"enum": _MEASURES}, "minItems": 1},
            ]
        }
    ),
]


class Objective(Strict):
    """What the plan should have least of. The cost breaks ties."""

    minimise: Minimise = Field(
        description="One measure; a weighted sum, {cost: 1, power: 0.05}, in USD/h, kW and GPUs; or a list of"
        " measures, minimised one after the other."
    )
    cost_cap: UsdPerHour | None = Field(default=None, description="Most that the plan may cost.")
    within: Fraction = Field(
        default=0.0,
        le=1.0,
        json_schema_extra={"default": "0%"},
        description="By how much an objective of a list may be missed for the sake of those after it.",
    )


def _name_alone(schema: dict[str, Any]) -> None:
    """Let the JSON Schema take the name of a measure in place of the mapping."""
    schema["anyOf"] = [{"enum": _MEASURES}, {"$ref": schema.pop("$ref")}]
    schema["default"] = Measure.COST.value


MAX_PERIODS = 2000
"""Twelve weeks by the hour; beyond it a typical week says as much."""


class HorizonChoice(Strict):
    """Periods of which each has its demand and its fleet. The horizon repeats: after the last comes the first."""

    periods: DurationS = Field(description="Length of the horizon: a day, a fortnight.", examples=["24h", "14d"])
    step: DurationS = Field(
        default=3600.0, description="Length of a period.", json_schema_extra={"default": "1h"}, examples=["1h", "15min"]
    )
    start_up: DurationS | None = Field(
        default=None, description="How long an instance is rented before it serves: provisioning, image, weights."
    )
    minimum_lease: DurationS | None = Field(
        default=None, description="How long an instance is kept at least once it serves, in whole periods."
    )

    @property
    def n_periods(self) -> int:
        """Number of periods."""
        return round(self.periods / self.step)

    @model_validator(mode="after")
    def _whole_periods(self) -> HorizonChoice:
        if abs(self.periods / self.step - self.n_periods) > 1e-6 or not 1 <= self.n_periods <= MAX_PERIODS:
            raise InputError(
                f"A horizon of {self.periods:g} s does not have 1 to {MAX_PERIODS} whole periods of {self.step:g} s.",
                hint="Write e.g. {periods: 24h, step: 1h}.",
            )
        for name, value in (("start_up", self.start_up), ("minimum_lease", self.minimum_lease)):
            if value is not None and value > self.periods:
                raise InputError(
                    f"{name} is longer than the horizon.", hint="Make the horizon longer, or this shorter."
                )
        return self


class PlanRequest(Strict):
    """A question to gpuplan: which GPUs serve these services under these objectives at the least cost?"""

    schema_version: Literal["1"] = Field(description="Version of this form.")
    kind: Literal["PlanRequest"] = Field(description="What this document is.")
    name: str = Field(default="", description="Your name for the plan.")
    services: list[Service] = Field(min_length=1, description="What the fleet must serve.")
    catalog: CatalogChoice = Field(default=CatalogChoice(), description="What may be rented.")
    profiles: ProfileChoice = Field(default=ProfileChoice(), description="Where throughput comes from.")
    constraints: Constraints = Field(default=Constraints(), description="Limits on the whole fleet.")
    objective: Annotated[
        Objective, BeforeValidator(lambda value: {"minimise": value} if isinstance(value, str) else value)
    ] = Field(
        default=Objective.model_construct(minimise=({Measure.COST: 1.0},)),
        description="What the plan should have least of: cost, power or gpus; or more, in a mapping.",
        json_schema_extra=_name_alone,
    )
    current: str | None = Field(
        default=None, description="The plan.json that runs today, for `rollout` and constraints.change_cost."
    )
    horizon: HorizonChoice | None = Field(
        default=None, description="Plan a schedule over periods instead of one steady state."
    )

    @model_validator(mode="after")
    def _hours_need_a_horizon(self) -> PlanRequest:
        named = [service.name for service in self.services if service.workload.by_hour is not None]
        if named and self.horizon is None:
            raise InputError(
                f"The demand of {named[0]!r} changes by the hour, and there is no horizon to plan over.",
                hint="Add horizon: {periods: 24h, step: 1h}.",
            )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> PlanRequest:
        names = [service.name for service in self.services]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"Two services are called {name!r}.", hint="Give each its own name.")
        return self
