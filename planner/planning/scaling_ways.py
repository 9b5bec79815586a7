"""What all comparisons with replicas that are given back share: the plan's own fleet, and who is cheapest."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.scaling import ScaledService, ScalingWay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from planner.domain.plan import Plan

HOUR_S = 3600.0
SEED = 0
NO_PROVISION = (
    "Rented machines that are given back are not compared: scale_to_zero.provision does not say how long one takes to"
    " be there."
)
LEARNT, CLOUDS = "learnt", "as the cloud keeps it"


def always_on(plan: Plan, service: str) -> ScaledService:
    """Return what the plan's own fleet costs for one service; it holds the objectives, as far as the plan says.

    An infeasible plan has none, which meets nothing.
    """
    mine = [row for row in plan.allocation if row.service == service]
    return ScaledService(
        way=ScalingWay.ALWAYS_ON,
        rule="",
        offer="",
        gpu=", ".join(sorted({row.gpu for row in mine})),
        gpus_per_replica=max((row.gpus_per_replica for row in mine), default=1),
        keep_alive_s=None,
        cost_usd_per_hour=math.fsum(row.cost_usd_per_hour for row in mine),
        missed_usd_per_hour=0.0,
        is_met=plan.cost_usd_per_hour is not None,
        attainment=None,
        ttft_p50_s=None,
        ttft_p99_s=None,
        cold_fraction=None,
        mean_replicas=float(sum(row.replicas for row in mine)),
    )


def chosen(ways: Sequence[ScaledService]) -> int:
    """Return the position of the cheapest way that meets the objectives, misses at their price; the first of these.

    It is 0, always on, where none does.
    """
    met = [index for index, way in enumerate(ways) if way.is_met]
    return min(met, key=lambda index: (ways[index].total_usd_per_hour, index), default=0)


def best_given_back(ways: Sequence[ScaledService]) -> int:
    """Return the position of the cheapest way that gives back and holds the objectives; 0 if there is none."""
    always_on, *others = ways
    return chosen([replace(always_on, is_met=False), *others])


def dated(as_of: date | None) -> str | None:
    """Return the date of a price as plan.json has it."""
    return None if as_of is None else as_of.isoformat()
