"""The part of plan.json's schema that compares a service with replicas that are given back."""

from __future__ import annotations

from pydantic import Field, model_validator

from planner.domain.scaling import Doubt, FleetWithout, ScaledService, ScalingChoice, ScalingWay
from planner.errors import InputError
from planner.files.parts import Count, Fraction, NonNegative, Part


class ScaledServiceDocument(Part):
    """One way to keep a service."""

    way: ScalingWay = Field(
        description="always-on: the plan's own fleet; scale-to-zero: rented machines that are given back; pay-per-use:"
        " containers of a serverless cloud; serverless and shared-backbone: processes of adapters, with weights of"
        " their own or on one copy of them."
    )
    rule: str = Field(description="How long an idle replica is kept: learnt, 60 s, 10 min, as the cloud keeps it.")
    offer: str = Field(description="What is rented; empty for the plan's own fleet.")
    gpu: str = Field(description="GPU type.")
    gpus_per_replica: Count = Field(description="GPUs that a replica has.")
    keep_alive_s: NonNegative | None = Field(description="null = for good, or for each adapter its own.")
    cost_usd_per_hour: NonNegative = Field(description="Paid on average over the judged half of the trace.")
    missed_usd_per_hour: NonNegative = Field(description="Worth of the requests that missed an objective.")
    is_met: bool = Field(description="Whether every objective holds, cold starts in the percentiles.")
    attainment: Fraction | None = Field(description="Part of the requests within all bounds; null = not replayed.")
    ttft_p50_s: NonNegative | None = Field(description="Median time to the first token; null = not replayed.")
    ttft_p99_s: NonNegative | None = Field(description="99th percentile of it.")
    cold_fraction: Fraction | None = Field(description="Part of the requests that waited for a start.")
    mean_replicas: NonNegative | None = Field(description="Replicas held on average; machines where adapters share.")
    price_as_of: str | None = Field(
        None, description="Date of the offer's price; null = not known, or the plan's own fleet."
    )
    learnt_usd_per_hour: NonNegative | None = Field(
        None, description="Cost on the half that it was learnt on, misses at their price; null = not played there."
    )
    is_safe: bool | None = Field(
        None, description="Whether every objective held there with room for chance; null = not played there."
    )
    keep_alive_by_adapter_s: dict[str, NonNegative] = Field(
        default_factory=dict,
        description="Adapter -> how long its idle process is kept, where that was learnt for each.",
    )
    most_replicas: Count | None = Field(None, description="Held at a time, as `mean_replicas`; null = not replayed.")
    precision: str = Field("", description="Number format of the weights; empty for the plan's own fleet.")
    tensor_parallel: Count = Field(1, description="Tensor-parallel degree of a replica.")
    pipeline_parallel: Count = Field(1, description="Pipeline-parallel degree of a replica.")
    doubts: list[Doubt] = Field(
        default_factory=list,
        description="What is not known of the offer. region: where it runs, and the request names regions; price:"
        " whether CPU and memory are billed on top.",
    )
    is_barred: bool = Field(
        False,
        description="Whether it is only compared, for its doubts: `scale_to_zero.clouds` does not name its cloud.",
    )


class ScalingChoiceDocument(Part):
    """The ways to keep one service."""

    service: str = Field(description="Its name.")
    chosen: Count = Field(
        description="Position in `ways` of the one that the service is kept in: that of the plan, or where it is only"
        " compared the cheapest on the half that was learnt from, misses at their price, of those that held the"
        " objectives there with room for chance and that the judged half does not speak against.",
    )
    ways: list[ScaledServiceDocument] = Field(min_length=1, description="The plan's own fleet first.")
    requests: Count = Field(description="Requests in the judged half of the trace.")
    judged_s: NonNegative = Field(description="How long that half is.")
    vetoed: list[Count] = Field(
        default_factory=list,
        description="Positions of ways that went before the chosen one, and that missed an objective in the judged"
        " half, or where it is only compared cost more than always on there.",
    )
    notes: list[str] = Field(default_factory=list, description="What was not compared, and why.")
    objectives: list[str] = Field(
        default_factory=list, description='What has to hold over all requests, as "ttft p50 <= 3 s".'
    )
    is_applied: bool = Field(
        False, description="Whether the plan gives the service back as chosen; its fleet does not serve it then."
    )

    @model_validator(mode="after")
    def _a_way_is_chosen(self) -> ScalingChoiceDocument:
        for name, position in [("chosen", self.chosen), *(("vetoed", position) for position in self.vetoed)]:
            if position >= len(self.ways):
                raise InputError(f"{name} is {position}, and there are {len(self.ways)} ways.")
        if self.is_applied and self.ways[self.chosen].way is ScalingWay.ALWAYS_ON:
            raise InputError(f"{self.service} is given back, and the way that is chosen is always on.")
        return self

    def to_choice(self) -> ScalingChoice:
        """Return the domain's form."""
        ways = tuple(ScaledService(**(dict(way) | {"doubts": tuple(way.doubts)})) for way in self.ways)
        tuples = {name: tuple(getattr(self, name)) for name in ("vetoed", "notes", "objectives")}
        return ScalingChoice(**(dict(self) | {"ways": ways} | tuples))


class FleetWithoutDocument(Part):
    """What it comes to in all if some services are given back."""

    given_back: list[str] = Field(description="Services; empty = all are always on.")
    fleet_usd_per_hour: NonNegative | None = Field(
        description="Cost of the cheapest fleet found for the others, with that of changes; null = none was found."
    )
    given_back_usd_per_hour: NonNegative = Field(description="Expected cost of what is given back.")
    missed_usd_per_hour: NonNegative = Field(description="Worth of the requests that miss an objective there.")
    learnt_usd_per_hour: NonNegative = Field(
        description="Cost of what is given back on the halves that it was learnt on, misses at their price: sets are"
        " ranked by it and the fleet."
    )
    fleet_missed_usd_per_hour: NonNegative = Field(
        0.0,
        description="Worth of the requests that miss an objective in the fleet's own replay, of services with"
        " `scale_to_zero`; 0 without a replay.",
    )
    is_replayed: bool = Field(
        False, description="Whether the fleet was replayed; else its price rests on throughput alone."
    )
    reason: str = Field("", description="Why it was not taken, where the totals do not say it.")

    def to_fleet(self) -> FleetWithout:
        """Return the domain's form."""
        return FleetWithout(**(dict(self) | {"given_back": tuple(self.given_back)}))
