"""What is told of ways to serve many adapters: what each costs, and how its requests fare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.simulate.functions.records import FunctionReplay


class Way(StrEnum):
    """How adapters are served."""

    DEDICATED = "dedicated"
    """A process and a copy of the weights for each, always on."""
    POOL = "pool"
    """Engines that serve all adapters, always on."""
    SERVERLESS = "serverless"
    """A process and a copy of the weights for each while it is asked for, and 60 s longer."""
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

    def __post_init__(self) -> None:
        """Refuse prices that are none."""
        for price in (self.usd_per_gpu_hour, self.usd_per_used_gpu_s or 0.0):
            if not 0 <= price < math.inf:
                msg = f"prices must be at least 0 and finite, not {price!r}"
                raise ValueError(msg)


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
    replay: FunctionReplay


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All ways on the same requests."""

    ways: tuple[WayOutcome, ...]
    n_requests: int
    """In the half that is judged."""
    duration_s: float
    target_fraction: float
    cautions: tuple[str, ...]

    def of(self, way: Way) -> WayOutcome:
        """Return the outcome of one way."""
        return next(outcome for outcome in self.ways if outcome.way is way)

    def meets(self, outcome: WayOutcome) -> bool:
        """Return whether enough requests met their bounds."""
        return outcome.attainment >= self.target_fraction

    @property
    def cheapest(self) -> WayOutcome | None:
        """The cheapest way that meets the objectives; None if none does."""
        return min((each for each in self.ways if self.meets(each)), key=lambda each: each.cost_usd, default=None)

    def usd_per_1000(self, outcome: WayOutcome) -> float:
        """Return the cost of a thousand requests."""
        return 1000.0 * outcome.cost_usd / self.n_requests
