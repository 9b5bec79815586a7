"""What is told of ways to serve many adapters: what each costs, and how its requests fare."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.pay_per_use import BillingRule, PayPerUse
    from planner.planning.function_plans import Trial
    from planner.planning.keep_alive_rules import RuleTable
    from planner.simulate.functions.records import FunctionReplay
    from planner.simulate.steps import Floats

HOUR_S = 3600.0


class Way(StrEnum):
    """How adapters are served."""

    DEDICATED = "dedicated"
    """A process and a copy of the weights for each, always on."""
    POOL = "pool"
    """Engines that serve all adapters, always on."""
    SERVERLESS = "serverless"
    """A process and a copy of the weights for each while it is asked for, and 60 s longer."""
    KEPT = "kept"
    """The same, each kept for as long as was learnt from its own requests."""
    SHARED = "shared"
    """A process for each on shared weights: loaded ahead and kept as was learnt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What GPUs cost."""

    usd_per_gpu_hour: float
    """Of a whole GPU with its host, by the second."""
    usd_per_used_gpu_s: float | None = None
    """What a serverless cloud bills for each second of a whole GPU's memory, by the part that is held; None = whole
    GPUs are rented for the ways that give them back, too."""

    offer: PayPerUse | None = None
    """What a container with a whole GPU costs; the ways that give GPUs back then hold such containers, one for each
    process or for each copy of the shared weights. What is always on is rented at `usd_per_gpu_hour` all the same."""
    rule: BillingRule | None = None
    """How the time of a rented machine that is given back is counted; None = by the second."""
    usd_per_miss: float = 0.0
    """What a request that misses its objectives is worth; it is added to what is paid."""

    def __post_init__(self) -> None:
        """Refuse prices that are none."""
        for price in (self.usd_per_gpu_hour, self.usd_per_used_gpu_s or 0.0, self.usd_per_miss):
            if not 0 <= price < math.inf:
                msg = f"prices must be at least 0 and finite, not {price!r}"
                raise ValueError(msg)
        if self.offer is not None and self.usd_per_used_gpu_s is not None:
            msg = "a serverless cloud bills whole GPUs or parts of them, not both"
            raise ValueError(msg)

    @property
    def usd_per_rented_s(self) -> float:
        """What a second of a GPU that is given back costs while it idles: whole, or all of its memory."""
        if self.offer is not None:
            return self.offer.usd_per_container_s if self.offer.bills_idle else 0.0
        return self.usd_per_used_gpu_s if self.usd_per_used_gpu_s is not None else self.usd_per_gpu_hour / HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What always-on machines have loaded before anybody asks, all of them the same."""

    machines: tuple[int, ...]
    gpu: tuple[int, ...]
    """Adapters in GPU memory: with a process that is ready, or in a slot of the engine."""
    host: tuple[int, ...]
    """In host memory only: with a container and its libraries, or as a copy that the engine has."""
    n_spares: int = 0
    """Containers on each machine for whoever comes next."""


def ready_on(
    machines: Sequence[int], warm: Sequence[tuple[int, int]], in_host: Sequence[tuple[int, int]], *, n_spares: int = 0
) -> tuple[Ready, ...]:
    """Return what each of `machines` has, from pairs of an adapter and its machine."""
    gpu, host = defaultdict(list), defaultdict(list)
    for function, machine in warm:
        gpu[machine].append(function)
    for function, machine in in_host:
        host[machine].append(function)
    return tuple(
        Ready(machines=(machine,), gpu=tuple(gpu[machine]), host=tuple(host[machine]), n_spares=n_spares)
        for machine in machines
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOutcome:
    """One way on the second half of the requests."""

    way: Way
    n_always_on: int
    most_gpus: int
    """Held at a time."""
    gpu_s: float
    """Seconds of GPUs that are paid; of parts of them where a serverless cloud bills."""
    cost_usd: float
    """What is paid for GPUs."""
    miss_usd: float
    """What the requests are worth that missed their bounds, at `Prices.usd_per_miss`."""
    ttft_p50_s: float
    ttft_p99_s: float
    e2e_p50_s: float
    attainment: float
    """Part of the requests that met their bounds."""
    least_attainment: float
    """Of the adapters with at least 20 requests, the one that fares worst; NaN without any."""
    cold_fraction: float
    """Part that waited for a start, or for an adapter to be loaded into a slot."""
    busy_fraction: float
    """Of the GPU seconds held, those in which something ran."""
    learnt: Mapping[str, float]
    """What it decided on the first half, by name."""
    keep_alive_s: Floats | None
    """How long each adapter's idle process stays, shape (adapters,); None where none is given back by itself."""
    ready: tuple[Ready, ...]
    """What is loaded ahead; machines that are rented later begin with nothing."""
    replay: FunctionReplay
    excess: float = 0.0
    """By how much means are beyond their bounds, as a part of these."""
    trial: Trial | None = None
    """How it fared where it was learnt; None where nothing is given back."""

    @property
    def total_usd(self) -> float:
        """What is paid, and what the misses are worth."""
        return self.cost_usd + self.miss_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All ways on the same requests."""

    ways: tuple[WayOutcome, ...]
    rules: RuleTable
    """What rules to keep an idle process cost, each adapter by itself."""
    n_requests: int
    """In the half that is judged."""
    duration_s: float
    target_fraction: float
    cautions: tuple[str, ...]

    def of(self, way: Way) -> WayOutcome:
        """Return the outcome of one way."""
        return next(outcome for outcome in self.ways if outcome.way is way)

    def meets(self, outcome: WayOutcome) -> bool:
        """Return whether enough requests met their bounds, and means are within theirs."""
        return outcome.attainment >= self.target_fraction and outcome.excess == 0.0

    @property
    def cheapest(self) -> WayOutcome | None:
        """The cheapest way that meets the objectives, misses at their price; None if none does."""
        return min((each for each in self.ways if self.meets(each)), key=lambda each: each.total_usd, default=None)

    def usd_per_1000(self, outcome: WayOutcome) -> float:
        """Return the cost of a thousand requests."""
        return 1000.0 * outcome.cost_usd / self.n_requests
