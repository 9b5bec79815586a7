"""Whether a service that is rarely called should be given back in between. Field names as in plan.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class ScalingWay(StrEnum):
    """How a service is kept."""

    ALWAYS_ON = "always-on"
    """The fleet of the plan."""
    SCALE_TO_ZERO = "scale-to-zero"
    """On rented machines that are given back."""
    PAY_PER_USE = "pay-per-use"
    """In containers of a serverless cloud."""
    SERVERLESS = "serverless"
    """A process with weights of its own for each adapter."""
    SHARED = "shared-backbone"
    """A process for each adapter on one copy of the weights, loaded ahead as was learnt."""


class Doubt(StrEnum):
    """What is not known of an offer, and speaks against it."""

    REGION = "region"
    """Where it runs, while the request names regions."""
    PRICE = "price"
    """Whether its price is all that is billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledService:
    """One way to keep a service, and how the requests of the judged half of its trace fare."""

    way: ScalingWay
    rule: str
    """How long an idle replica is kept: "learnt", "60 s", "10 min", "as the cloud keeps it"; empty if always on."""
    offer: str
    """What is rented; empty for the plan's own fleet."""
    gpu: str
    gpus_per_replica: int
    keep_alive_s: float | None
    """None = for good, or for each adapter its own."""
    cost_usd_per_hour: float
    missed_usd_per_hour: float
    """What requests are worth that miss an objective, at the price that the request states."""
    is_met: bool
    """Whether every objective holds, cold starts in the percentiles."""
    attainment: float | None
    """Part of the requests within all bounds; None = not replayed."""
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    cold_fraction: float | None
    """Part of the requests that waited for a start."""
    mean_replicas: float | None
    """Held on average; machines where adapters share."""
    price_as_of: str | None = None
    """Date of the offer's price; None = the plan's own fleet, or not known."""
    learnt_usd_per_hour: float | None = None
    """What it cost on the half that it was learnt on, misses at their price; None = not played there."""
    is_safe: bool | None = None
    """Whether every objective held there with room for chance; None = not played there."""
    keep_alive_by_adapter_s: Mapping[str, float] = field(default_factory=dict)
    """How long each adapter's idle process is kept, where that was learnt for each."""
    most_replicas: int | None = None
    """Held at a time; machines where adapters share. None = not replayed."""
    precision: str = ""
    """Of the weights; empty for the plan's own fleet."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    doubts: tuple[Doubt, ...] = ()
    """What is not known of its offer."""
    is_barred: bool = False
    """Whether it is only compared, whatever it costs: for its doubts, since the request does not name its cloud."""

    @property
    def total_usd_per_hour(self) -> float:
        """What is paid, and what the misses are worth."""
        return self.cost_usd_per_hour + self.missed_usd_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingChoice:
    """The ways to keep one service, and which is chosen: by what was learnt, unless the judged half vetoes it."""

    service: str
    chosen: int
    """Position in `ways`."""
    ways: tuple[ScaledService, ...]
    requests: int
    """In the judged half."""
    judged_s: float
    vetoed: tuple[int, ...] = ()
    """Positions of the ways that were preferred to the chosen one, and that the judged half spoke against."""
    notes: tuple[str, ...] = ()
    """What was not compared, and why."""
    objectives: tuple[str, ...] = ()
    """What has to hold over all requests: "ttft p50 <= 3 s"."""
    is_applied: bool = False
    """Whether the plan gives the service back as chosen, so that its fleet does not serve it."""

    @property
    def way(self) -> ScaledService:
        """The chosen one."""
        return self.ways[self.chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetWithout:
    """What it comes to in all if some services are given back, and a fleet is planned for the others."""

    given_back: tuple[str, ...]
    """Services; empty = all are always on."""
    fleet_usd_per_hour: float | None
    """Of the cheapest fleet found for the others, with what its changes cost; None = none was found."""
    given_back_usd_per_hour: float
    """Expected, of the cheapest ways that hold the objectives of those that are given back."""
    missed_usd_per_hour: float
    """What the requests are worth that miss an objective there."""
    learnt_usd_per_hour: float
    """What is given back cost on the halves that it was learnt on, misses at their price: sets are ranked by that."""
    fleet_missed_usd_per_hour: float = 0.0
    """What the requests are worth that miss an objective in the fleet's own replay; 0 without one."""
    is_replayed: bool = False
    """Whether the fleet was replayed; else its price rests on throughput alone."""
    reason: str = ""
    """Why it was not taken although it may look cheapest; empty where the totals say it."""

    @property
    def total_usd_per_hour(self) -> float | None:
        """All of it where it was judged; None without a fleet."""
        if self.fleet_usd_per_hour is None:
            return None
        missed = self.fleet_missed_usd_per_hour + self.missed_usd_per_hour
        return self.fleet_usd_per_hour + self.given_back_usd_per_hour + missed

    @property
    def learnt_total_usd_per_hour(self) -> float | None:
        """All of it where it was learnt; None without a fleet."""
        if self.fleet_usd_per_hour is None:
            return None
        return self.fleet_usd_per_hour + self.fleet_missed_usd_per_hour + self.learnt_usd_per_hour
