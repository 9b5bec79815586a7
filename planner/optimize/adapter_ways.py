"""Other ways to serve a plan's adapters, planned alike: replicas of its own for each, and one pool."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.plan import (
    AdapterAlternative,
    AdapterWay,
    PlanStatus,
)
from planner.optimize.adapters import solve_with_adapters
from planner.optimize.arrays import fleet_arrays, replicas_per_instance
from planner.optimize.hosts import DUST
from planner.optimize.settings import Clock
from planner.optimize.unserved import unserved_conflicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.adapters import Tenancy
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand
    from planner.optimize.settings import Assignment, SolverSettings

MOST_POOLS = 5
"""Kinds of replicas that are tried for one pool, the cheapest first."""
NOT_SOLVED = "not solved within the time limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWay:
    """Another way to serve a plan's adapters."""

    told: AdapterAlternative
    problem: FleetProblem | None = None
    """In which there is no other way; None = there is none."""
    plan: Plan | None = None
    """The cheapest that was found; None without a cost."""


def other_ways(
    problem: FleetProblem, plan: Plan, settings: SolverSettings, assignment: Assignment
) -> tuple[OtherWay, ...]:
    """Return two other ways to serve the adapters of `plan`, planned alike; none where it has no adapters.

    All services with adapters are served the other way at once.
    """
    if plan.cost_usd_per_hour is None or not plan.adapters:
        return ()
    clock = Clock(settings)
    dedicated = _other_way(AdapterWay.DEDICATED, _dedicated(problem), clock, assignment)
    found = [_none(AdapterWay.ONE_POOL, "no replica that can be had holds several of these adapters, and all of them")]
    for pool in _one_pools(problem):
        found.append(_other_way(AdapterWay.ONE_POOL, pool, clock, assignment))
        if found[-1].plan is not None:
            break
    # Where none can be had, the reason is that of the cheapest.
    return (dedicated, found[-1] if found[-1].plan is not None else found[min(1, len(found) - 1)])


def with_alternatives(plan: Plan, ways: Sequence[OtherWay]) -> Plan:
    """Return `plan` with what other ways would cost: each service is told the cost of the whole plan."""
    found = tuple(way.told for way in ways)
    return replace(plan, adapters=tuple(replace(item, alternatives=found) for item in plan.adapters))


def _none(way: AdapterWay, reason: str, problem: FleetProblem | None = None) -> OtherWay:
    told = AdapterAlternative(way=way, cost_usd_per_hour=None, bound_usd_per_hour=None, reason=reason)
    return OtherWay(told=told, problem=problem)


def _other_way(way: AdapterWay, problem: FleetProblem, clock: Clock, assignment: Assignment) -> OtherWay:
    if clock.is_over:
        return _none(way, NOT_SOLVED, problem)
    if fleet_arrays(problem, assignment).unserved:
        return _none(way, unserved_conflicts(problem)[0].explanation, problem)
    plan = solve_with_adapters(problem, clock.settings(), assignment, is_rough=True)
    if plan.cost_usd_per_hour is None:
        is_proven = plan.status is PlanStatus.INFEASIBLE
        return _none(way, "the limits leave too little for it" if is_proven else NOT_SOLVED, problem)
    told = AdapterAlternative(
        way=way, cost_usd_per_hour=plan.cost_usd_per_hour, bound_usd_per_hour=plan.bound_usd_per_hour
    )
    return OtherWay(told=told, problem=problem, plan=plan)


def _dedicated(problem: FleetProblem) -> FleetProblem:
    """Return the problem in which every adapter has replicas of its own."""
    options = (option for option in problem.options if option.slots is None or option.slots.count == 1)
    return replace(problem, options=tuple(options))


def _one_pools(problem: FleetProblem) -> Iterator[FleetProblem]:
    """Yield problems in which all adapters of a service that share alike do so on replicas of one kind.

    The first has for each of them the kind whose whole instances cost least for load and slots together, the next ones
    those that follow: limits may leave too little of the first. Adapters that share nothing keep replicas of their own.
    None is yielded where a service has no replica that holds several.
    """
    kept = [option for option in problem.options if option.slots is None]
    ranked: list[list[ServingOption]] = []
    for tenancy in problem.tenancies:
        mine = [option for option in problem.options if option.service == tenancy.service]
        pools = list(_pools(problem, tenancy, mine))
        if not pools or not all(pools):
            return
        ranked += pools
        in_pools = [
            index
            for index in range(len(mine[0].throughput_rps))
            if any(option.throughput_rps[index] > 0 for pool in pools for option in pool)
        ]
        for option in mine:
            if option.slots is not None and option.slots.count == 1:
                rates = option.throughput_rps.copy()
                rates[in_pools] = 0.0
                kept.append(replace(option, throughput_rps=rates, loose_rps=None))
    for rank in range(min(MOST_POOLS, max(map(len, ranked), default=0))):
        yield replace(problem, options=(*kept, *(pool[min(rank, len(pool) - 1)] for pool in ranked)))


def _pools(problem: FleetProblem, tenancy: Tenancy, options: Sequence[ServingOption]) -> Iterator[list[ServingOption]]:
    """Yield for adapters that share in one way the kinds of replicas that can hold them all, the cheapest first."""
    pressure = (1 + problem.headroom_fraction) / problem.utilization_cap
    demand = next(demand for demand in problem.demands if demand.service == tenancy.service)
    for isolation in (Isolation.SHARED_PROCESS, Isolation.SHARED_BACKBONE):
        sharing = [
            option
            for option in options
            if option.slots is not None and option.slots.count > 1 and option.slots.isolation is isolation
        ]
        groups = {
            bucket.group
            for index, bucket in enumerate(demand.buckets)
            if any(option.throughput_rps[index] > 0 for option in sharing)
        }
        if not groups:
            continue
        buckets = {index for index, bucket in enumerate(demand.buckets) if bucket.group in groups}
        able = [option for option in sharing if all(option.throughput_rps[index] > 0 for index in buckets)]
        n_members = sum(len(tenancy.members(group)) for group in groups)
        prices = {id(option): _pool_price(option, demand, buckets, n_members, pressure) for option in able}
        yield sorted(able, key=lambda option: prices[id(option)])


def _pool_price(option: ServingOption, demand: Demand, buckets: set[int], n_adapters: int, pressure: float) -> float:
    """Return what whole instances of `option` for these buckets of so many adapters cost at least, in USD/h."""
    load = pressure * sum(demand.buckets[index].rate_rps / float(option.usable_rps[index]) for index in buckets)
    slots = 1 if option.slots is None else option.slots.count
    replicas = math.ceil(max(load, n_adapters / slots) - DUST)
    return float(option.offer.price_usd_per_hour) * math.ceil(replicas / replicas_per_instance(option))
