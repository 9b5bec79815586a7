"""The `proof` of plan.json: field for field the dataclasses of `planner.domain.proof`."""

from typing import Any

from pydantic import Field

from planner.domain.proof import (
    AdapterProof,
    LateAdapter,
    PeriodMiss,
    Proof,
    ProofEnd,
    ProofRound,
    ProofStep,
    RoundService,
    ServiceProof,
    SimulatedSlo,
    UtilizationCap,
)
from planner.files.parts import Count, Fraction, NonNegative, Part, Positive


class SimulatedSloDocument(Part):
    """One objective of one service, simulated."""

    service: str = Field(description="The service that the objective is of.")
    metric: str = Field(description="ttft, tpot or e2e.")
    statistic: str = Field(description="mean, or a percentile: p99.")
    bound_s: Positive = Field(description="What the statistic must not exceed, in seconds.")
    simulated_s: NonNegative | None = Field(description="What it came to; null where requests were never answered.")
    attainment: Fraction = Field(description="Part of the requests that are within the bound.")
    attainment_low: Fraction = Field(description="Lower end of its 95% interval, by batch means.")
    met: bool = Field(description="Whether the value itself is within the bound.")
    sure: bool = Field(description="Whether the whole 95% interval says the same.")


class RoundServiceDocument(Part):
    """How one service fared in one round."""

    service: str = Field(description="Name of the service.")
    factor: Positive = Field(description="What all of its learned utilisation caps were multiplied by.")
    worst: str = Field(description="Its objective nearest to being missed, e.g. `ttft p99`.")
    bound_s: Positive = Field(description="The bound of that objective in seconds.")
    simulated_s: NonNegative | None = Field(description="What it came to; null where requests were never answered.")
    attainment: Fraction = Field(description="Part of the requests within that bound.")
    met: bool = Field(description="Whether the value is within the bound.")
    sure: bool = Field(description="Whether the whole 95% interval says the same.")
    late_adapters: Count = Field(
        0, description="Adapters that surely miss an objective by themselves; a fleet with any does not hold."
    )


class ProofRoundDocument(Part):
    """One fleet that was simulated."""

    step: ProofStep = Field(
        description="alone: one kind of replicas for a service; plan: of a search with the caps of its round; remove:"
        " the best fleet without an instance; swap: the best fleet with cheaper instances in the place of others;"
        " balance: the fleet before it, with other routing weights."
    )
    cost_usd_per_hour: NonNegative = Field(description="What that fleet costs.")
    holds: bool = Field(description="Whether all objectives hold, with confidence where that can be had.")
    services: list[RoundServiceDocument] = Field(description="How each service fared.")

    def to_round(self) -> ProofRound:
        """Return the domain's round."""
        return ProofRound(**(dict(self) | {"services": tuple(RoundService(**dict(row)) for row in self.services)}))


class UtilizationCapDocument(Part):
    """How full replicas of one kind may be: of one GPU and engine configuration, on whatever offer."""

    service: str = Field(description="The service that they serve.")
    option: str = Field(description="One option of that kind, as `option` of an allocation.")
    utilization_cap: Positive = Field(
        description="Largest load per replica, headroom included; 1 = the throughput under the SLO, bucket by bucket."
    )


class ServiceProofDocument(Part):
    """What was replayed of one service, and what it says of the headroom that it needs."""

    service: str = Field(description="Name of the service.")
    traffic: str = Field(description="The trace that was replayed, or what arrivals were drawn from.")
    rate_rps: NonNegative = Field(description="Mean rate of the replay.")
    requests: Count = Field(description="Requests that count, those after the fleet has filled.")
    other_cap: Positive = Field(description="Utilisation cap of the kinds of replicas that `caps` does not name.")
    knee: NonNegative | None = Field(
        description="Largest multiple of the planned rate at which the plan holds, to 2%; null = not looked for."
    )


class PeriodMissDocument(Part):
    """A period of a schedule in which a service by itself misses an objective that it keeps over all of them."""

    period: Count = Field(description="Number of the period, counted from 0.")
    service: str = Field(description="Name of the service.")


class LateAdapterDocument(Part):
    """An adapter that by itself surely misses an objective."""

    adapter: str = Field(description="Its name.")
    requests: Count = Field(description="Requests for it that count.")
    attainment: Fraction = Field(description="Part of these that are within every bound.")


class AdapterProofDocument(Part):
    """How the adapters of a service fared one by one."""

    service: str = Field(description="Name of the service.")
    asked: Count = Field(description="Adapters that were asked for in the replay.")
    met: Count = Field(description="Of these, adapters whose own requests keep every objective by their values.")
    late: list[LateAdapterDocument] = Field(
        default_factory=list,
        description="Adapters that surely miss an objective (95% confidence in all of them together), the worst first;"
        " none where the plan holds.",
    )

    def to_adapters(self) -> AdapterProof:
        """Return the domain's."""
        return AdapterProof(**(dict(self) | {"late": tuple(LateAdapter(**dict(row)) for row in self.late)}))


class ProofDocument(Part):
    """Whether the plan holds its objectives request by request, and how it was found."""

    holds: bool = Field(description="Whether every objective holds in the replay.")
    sure: bool = Field(
        description="Whether all hold with 95% confidence; false also where the replay is too short for that."
    )
    ended: ProofEnd = Field(
        description="held: nothing cheaper that was tried holds; missed: no plan was found that holds; time-limit and"
        " interrupted: the plan is the best one until then."
    )
    load: Positive = Field(description="What the planned rates were multiplied by: 1 + headroom.")
    seed: Count = Field(description="Seed of the replays.")
    requests: Count = Field(description="Requests of one replay, all services.")
    fleets: Count = Field(description="Different fleets that were simulated.")
    unproven_usd_per_hour: NonNegative = Field(
        description="What the plan costs whose SLOs enter through throughput alone."
    )
    extra_usd_per_hour: float = Field(description="What this plan costs more; negative where there was room to spare.")
    bound_of: str = Field(description="What plans `bound_usd_per_hour` is a bound of.")
    slos: list[SimulatedSloDocument] = Field(description="Every objective, simulated.")
    services: list[ServiceProofDocument] = Field(description="What was replayed.")
    caps: list[UtilizationCapDocument] = Field(description="How full each kind of replica may be.")
    rounds: list[ProofRoundDocument] = Field(description="The fleets in the order in which they were simulated.")
    removals: Count = Field(
        0, description="Fleets without one instance of one of its options; each was replayed, and misses."
    )
    missed_periods: list[PeriodMissDocument] = Field(
        default_factory=list,
        description="Periods of a schedule that by themselves miss an objective; objectives are of all periods"
        " together.",
    )
    adapters: list[AdapterProofDocument] = Field(
        default_factory=list,
        description="Of services with adapters: how many of them were asked for, and keep every objective by"
        " themselves.",
    )
    notes: list[str] = Field(default_factory=list, description="What was replayed of the plan, and what was not.")

    def to_proof(self) -> Proof:
        """Return the domain's proof."""
        parts: dict[str, Any] = {
            "slos": tuple(SimulatedSlo(**dict(row)) for row in self.slos),
            "services": tuple(ServiceProof(**dict(row)) for row in self.services),
            "caps": tuple(UtilizationCap(**dict(row)) for row in self.caps),
            "rounds": tuple(row.to_round() for row in self.rounds),
            "notes": tuple(self.notes),
            "adapters": tuple(row.to_adapters() for row in self.adapters),
            "missed_periods": tuple(PeriodMiss(**dict(row)) for row in self.missed_periods),
        }
        return Proof(**(dict(self) | parts))
