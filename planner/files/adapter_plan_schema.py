"""The part of plan.json's schema that tells which adapters live where."""

from typing import Any

from pydantic import Field

from planner.domain.adapters import Isolation
from planner.domain.plan import (
    AdapterAlternative,
    AdapterHost,
    AdapterPlan,
    AdapterPreload,
    AdapterReplica,
    AdapterShare,
    AdapterWay,
    HostedAdapter,
    PreloadMethod,
    ReplicaTiers,
)
from planner.files.parts import Count, Fraction, NonNegative, Part


class HostedAdapterDocument(Part):
    """An adapter on a replica."""

    adapter: str = Field(description="Its name, which requests give.")
    rate_rps: NonNegative = Field(description="What this replica serves of its requests.")
    by_size_rps: list[NonNegative] = Field(
        default_factory=list,
        description="The same by size: of each bucket of its group, in the order of `routing`; empty where all sizes go"
        " together.",
    )


class ReplicaTiersDocument(Part):
    """What a replica has ready beside the adapters that it serves; all others of the service are on disk for it."""

    gpu: list[str] = Field(description="In slots that would be empty; what is asked for most first.")
    host: list[str] = Field(description="In host memory, and in no slot; what is asked for most first.")
    host_bytes: NonNegative = Field(
        description="Host memory of all its adapters: those in slots are there too, as engines keep them."
    )
    host_room_bytes: NonNegative = Field(description="Host memory that they may take together.")

    def to_tiers(self) -> ReplicaTiers:
        """Return the domain's form."""
        return ReplicaTiers(**(dict(self) | {"gpu": tuple(self.gpu), "host": tuple(self.host)}))


class AdapterReplicaDocument(Part):
    """One replica and the adapters that it holds."""

    option: str = Field(description="As `option` of the plan's `allocation`.")
    utilization: NonNegative = Field(description="Mean load without headroom, 0 to 1.")
    adapters: list[HostedAdapterDocument] = Field(description="In slots, with requests; the busiest first.")
    tiers: ReplicaTiersDocument | None = Field(None, description="What else it has ready; null = nobody chose.")

    def to_replica(self) -> AdapterReplica:
        """Return the domain's replica."""
        held = tuple(HostedAdapter(**(dict(item) | {"by_size_rps": tuple(item.by_size_rps)})) for item in self.adapters)
        tiers = None if self.tiers is None else self.tiers.to_tiers()
        return AdapterReplica(option=self.option, utilization=self.utilization, adapters=held, tiers=tiers)


class AdapterHostDocument(Part):
    """Replicas of one option, and the room that each has for adapters."""

    option: str = Field(description="As `option` of the plan's `allocation`.")
    isolation: Isolation = Field(
        description="What the adapters of a replica share; dedicated: it has one, merged into its weights."
    )
    slots: int = Field(ge=1, description="Adapters that a replica holds at once.")
    slot_bytes: NonNegative = Field(
        description="Memory that is set aside for each of them, over all GPUs of the replica; 0 = merged."
    )
    replicas: Count = Field(description="Replicas of this option.")
    rank: Count = Field(0, description="That a slot is made for; 0 = any, or not known.")
    engine_flags: str = Field("", description="How the engine is started for its adapters; empty = nothing to say.")
    held: Count = Field(
        0, description="Adapters that a replica may have in host memory, those in slots among them; 0 = nobody chose."
    )
    container_bytes: NonNegative = Field(
        0.0, description="Host memory of each beside its own: a process that waits; 0 = one engine holds them all."
    )
    host_wait_s: NonNegative | None = Field(
        None, description="Wait for the largest adapter that is in host memory only; null = there is never one."
    )
    disk_wait_s: NonNegative | None = Field(None, description="The same of one that is on disk only.")


class AdapterPreloadDocument(Part):
    """How well it was chosen what is ready on the replicas of a service beside the adapters that they serve."""

    method: PreloadMethod = Field(
        description="integer-programme: to the solver's gap; value-per-byte: may be off by as much as the bound says."
    )
    saved_s_per_s: NonNegative = Field(description="Seconds of waiting that it saves in each second.")
    bound_s_per_s: NonNegative = Field(description="Nothing saves more.")
    on_disk: list[str] = Field(description="Adapters that no replica has in a slot or in host memory.")
    unfit: list[str] = Field(
        default_factory=list,
        description="Of these, adapters that no replica has room for: the engine would have to be started anew.",
    )
    disk_bytes: NonNegative = Field(0.0, description="Of all adapters of the service: each machine's disk has them.")

    def to_preload(self) -> AdapterPreload:
        """Return the domain's form."""
        return AdapterPreload(**(dict(self) | {"on_disk": tuple(self.on_disk), "unfit": tuple(self.unfit)}))


class AdapterShareDocument(Part):
    """What one adapter costs."""

    adapter: str = Field(description="Its name.")
    rate_rps: NonNegative = Field(description="What is asked of it.")
    replicas: Count = Field(description="Replicas that hold it.")
    usd_per_month: NonNegative = Field(description="Its part of what these replicas cost, by load.")
    group: Count = Field(0, description="Group of like adapters that it is in, as `routing` has it.")


class AdapterAlternativeDocument(Part):
    """What a way to serve the adapters costs, and how requests fare: planned alike, or replayed."""

    way: AdapterWay = Field(
        description="this plan; dedicated: replicas of its own for every adapter; one pool: replicas of one kind for"
        " all adapters that may share; serverless: a container of a cloud for each adapter while it is asked for; kept:"
        " each kept as long as was learnt; shared-backbone: processes on one copy of the weights, given back."
    )
    cost_usd_per_hour: NonNegative | None = Field(
        description="Of the cheapest whole plan found; null = none, or a limit came before any."
    )
    bound_usd_per_hour: NonNegative | None = Field(description="No plan of this way costs less; null = not known.")
    reason: str = Field("", description="Why there is no cost.")
    is_met: bool | None = Field(
        None, description="Whether every objective held in a replay; null = planned at mean rates, not replayed."
    )
    attainment: Fraction | None = Field(
        None, description="Part of the replayed requests within all bounds on percentiles; null = not known."
    )
    ttft_p50_s: NonNegative | None = Field(None, description="Median TTFT of the replay; null = not told.")
    ttft_p99_s: NonNegative | None = Field(None, description="99th percentile of it.")
    requests: Count = Field(0, description="Requests that were replayed and judged; 0 = not replayed.")
    offer: str = Field("", description="What is rented and given back; empty where replicas stay.")


class AdapterPlanDocument(Part):
    """Which adapters of a service live where."""

    service: str = Field(description="The service whose requests are for adapters.")
    adapters: Count = Field(description="Adapters with requests.")
    idle: list[str] = Field(description="Adapters without requests: no replica has any of its load from them.")
    groups: Count = Field(description="Groups of like adapters that the programme saw.")
    added_replicas: Count = Field(
        description="More replicas than the programme over groups has, because adapters are whole."
    )
    hosts: list[AdapterHostDocument] = Field(description="The options in use and their room for adapters.")
    placement: list[AdapterReplicaDocument] = Field(description="Every replica and what it holds.")
    shares: list[AdapterShareDocument] = Field(description="What each adapter costs, in the order of the request.")
    alternatives: list[AdapterAlternativeDocument] = Field(
        default_factory=list, description="All ways, this plan first; a cost is of the whole plan."
    )
    preload: AdapterPreloadDocument | None = Field(
        None, description="How what is ready beside it was chosen; null = it was not."
    )
    moved: list[str] | None = Field(
        None,
        description="Adapters that are on other replicas than in the plan that runs today (`--current`): replicas that"
        " stay load them. null = no such plan, or it has no adapters of the service.",
    )

    def to_adapter_plan(self) -> AdapterPlan:
        """Return the domain's form."""
        parts: dict[str, Any] = {
            "idle": tuple(self.idle),
            "hosts": tuple(AdapterHost(**dict(item)) for item in self.hosts),
            "placement": tuple(item.to_replica() for item in self.placement),
            "shares": tuple(AdapterShare(**dict(item)) for item in self.shares),
            "alternatives": tuple(AdapterAlternative(**dict(item)) for item in self.alternatives),
            "preload": None if self.preload is None else self.preload.to_preload(),
            "moved": None if self.moved is None else tuple(self.moved),
        }
        return AdapterPlan(**(dict(self) | parts))
