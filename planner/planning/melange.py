"""Mélange's config as a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import Market, Offer
from planner.domain.problem import FleetProblem, Limit, Resource, ServingOption
from planner.domain.provenance import Provenance, ProvenanceKind
from planner.domain.workload import Bucket, Demand
from planner.planning.question import Question
from planner.units import UsdPerInstanceHour, WattsPerReplica

if TYPE_CHECKING:
    from planner.files.melange import MelangeConfig, MelangeService

GIVEN = Provenance(kind=ProvenanceKind.GIVEN, source="tputs of the request")

ASSUMPTIONS = (
    "Throughputs are taken as given: they are assumed to be what one replica sustains within the SLO.",
    "A replica's load is the sum of its buckets' loads (rate / throughput), as in Mélange.",
    "No headroom is added; scale total_request_rate to plan with some.",
)


def melange_question(config: MelangeConfig) -> Question:
    """Return the question that a Mélange config asks: one offer and one replica size per GPU type."""
    demands = tuple(_demand(name, traffic) for name, traffic in config.demand_by_service.items())
    offers = {name: _offer(name, gpu.cost, gpu.available) for name, gpu in config.gpu_info.items()}
    options = tuple(
        ServingOption(
            service=demand.service,
            offer=offers[name],
            gpus_per_replica=1,
            throughput_rps=_throughput(config.tputs(name, gpu, demand.service), demand),
            power_w=None if gpu.power_w is None else WattsPerReplica(gpu.power_w),
            provenance=(GIVEN,),
        )
        for demand in demands
        for name, gpu in config.gpu_info.items()
    )
    problem = FleetProblem(demands=demands, options=options, limits=_limits(config))
    return Question(problem=problem, assumptions=ASSUMPTIONS, slice_factor=config.slice_factor)


def _demand(service: str, traffic: MelangeService) -> Demand:
    buckets = tuple(
        Bucket(row=row, column=column, rate_rps=share * traffic.total_request_rate)
        for row, shares in enumerate(traffic.workload_distribution)
        for column, share in enumerate(shares)
        if share > 0
    )
    return Demand(service=service, buckets=buckets, basis="total_request_rate of the request")


def _offer(name: str, cost: float, available: int | None) -> Offer:
    return Offer(
        name=name,
        provider="",
        instance_type=name,
        region="",
        market=Market.ON_DEMAND,
        gpu=name,
        gpus_per_instance=1,
        price_usd_per_hour=UsdPerInstanceHour(cost),
        available=available,
        source="cost of the request",
    )


def _throughput(tputs: list[list[float]], demand: Demand) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([tputs[bucket.row][bucket.column] for bucket in demand.buckets], dtype=np.float64)


def _limits(config: MelangeConfig) -> tuple[Limit, ...]:
    limits = []
    if config.budget_usd_per_hour is not None:
        limits.append(Limit(name="budget", resource=Resource.USD_PER_HOUR, bound=config.budget_usd_per_hour))
    if config.power_budget_w is not None:
        limits.append(Limit(name="power", resource=Resource.WATTS, bound=config.power_budget_w))
    return tuple(limits)
