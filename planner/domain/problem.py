"""The planning problem: demands, the options that could serve them, and limits. What `optimize` solves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from planner.domain.hardware import EngineConfig, Offer
    from planner.domain.provenance import Provenance
    from planner.domain.workload import Demand
    from planner.units import WattsPerReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOption:
    """A column of the problem: one service served by replicas of one engine configuration on one offer."""

    service: str
    offer: Offer
    gpus_per_replica: int
    throughput_rps: NDArray[np.float64]
    """Largest steady rate that ONE replica serves within the SLO; shape (buckets of the service,); 0 = it cannot."""
    config: EngineConfig | None = None
    """None where only a throughput table is known (Mélange's form)."""
    power_w: WattsPerReplica | None = None
    """Peak power of one replica."""
    provenance: tuple[Provenance, ...] = ()
    """Of each bucket's throughput, same order; or one for all of them."""
    limiting: tuple[str, ...] = ()
    """What bounds each bucket's throughput in words ("ttft p99", "kv memory", "does not fit"); empty = not known."""


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
            (self.offer, offer.name),
        )
        return all(wanted is None or wanted == have for wanted, have in pairs)


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
