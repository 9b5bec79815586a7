"""The same problem with one route for all sizes of an adapter's requests: fewer buckets, and never the cheaper plan.

A plan of this problem is one of the other: every size goes where all of them go. It is what the search over sizes is
held against where it does not prove its plan, so that routing by size never makes a plan dearer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.arrays import fleet_arrays
from planner.optimize.hosts import ServiceOptions
from planner.optimize.placement import placed_fleet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Bucket, Demand
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.placement import Placed, Placement
    from planner.optimize.settings import Assignment


def has_sizes(problem: FleetProblem) -> bool:
    """Return whether the requests of any adapter come in several sizes."""
    demands = {demand.service: demand for demand in problem.demands}
    return any(
        len(demands[tenancy.service].buckets) > len({bucket.group for bucket in demands[tenancy.service].buckets})
        for tenancy in problem.tenancies
    )


def one_route(problem: FleetProblem) -> tuple[FleetProblem, Mapping[int, ServingOption]]:
    """Return the problem with one bucket for each group of adapters, and by the id of an option what it was made of.

    With the part p[s] of a group's requests in size s, a replica serves 1 / sum_s p[s] / X[s] of them.
    """
    adapted = {tenancy.service for tenancy in problem.tenancies}
    demands = {demand.service: demand for demand in problem.demands}
    groups = {service: _by_group(demands[service]) for service in adapted}
    made: dict[int, ServingOption] = {}
    options = []
    for option in problem.options:
        merged = option
        if option.service in adapted:
            demand, rates = demands[option.service], option.throughput_rps
            mixed = np.array([_mixed(demand, indices, rates) for indices in groups[option.service].values()])
            merged = replace(option, throughput_rps=mixed, provenance=(), limiting=())
        made[id(merged)] = option
        options.append(merged)
    fewer = tuple(
        replace(demand, buckets=tuple(_whole(demand, indices) for indices in groups[demand.service].values()))
        if demand.service in adapted
        else demand
        for demand in problem.demands
    )
    return replace(problem, demands=fewer, options=tuple(options)), made


def _by_group(demand: Demand) -> Mapping[int | None, list[int]]:
    found: dict[int | None, list[int]] = defaultdict(list)
    for index, bucket in enumerate(demand.buckets):
        found[bucket.group].append(index)
    return found


def _mixed(demand: Demand, indices: list[int], rates: FloatArray) -> float:
    """Return what a replica serves of some buckets in their mix; 0 where it cannot serve one of them."""
    if not np.all(rates[indices] > 0):
        return 0.0
    asked = np.array([demand.buckets[index].rate_rps for index in indices])
    return float(asked.sum() / (asked / rates[indices]).sum())


def _whole(demand: Demand, indices: list[int]) -> Bucket:
    first = demand.buckets[indices[0]]
    return replace(first, column=0, rate_rps=sum(demand.buckets[index].rate_rps for index in indices))


def with_sizes(
    problem: FleetProblem,
    assignment: Assignment,
    fleet: FleetArrays,
    placed: Placed,
    made: Mapping[int, ServingOption],
) -> tuple[FleetArrays, Placed]:
    """Return a placement of the problem with one route, as one of the whole `problem`, and its arrays."""
    originals = [made[id(option)] for option in fleet.options]
    whole = fleet_arrays(replace(problem, options=tuple(originals)), assignment)
    index_of = {id(option): index for index, option in enumerate(whole.options)}
    place_of = np.array([index_of[id(option)] for option in originals], dtype=np.int64)
    replicas = np.zeros(len(whole.options), dtype=np.int64)
    replicas[place_of] = placed.fleet.replicas
    instances = np.zeros(len(whole.pool_offer), dtype=np.int64)
    instances[whole.option_pool[place_of]] = placed.fleet.instances[fleet.option_pool]
    shares = {
        (fleet.buckets[bucket], int(place_of[option])): share
        for bucket, option, share in zip(
            fleet.pair_bucket.tolist(), fleet.pair_option.tolist(), placed.fleet.shares.tolist(), strict=True
        )
    }
    of_others = [
        shares.get((whole.buckets[bucket], option), 0.0)
        for bucket, option in zip(whole.pair_bucket.tolist(), whole.pair_option.tolist(), strict=True)
    ]
    chosen = replace(placed.fleet, replicas=replicas, instances=instances, shares=np.array(of_others))
    services = {tenancy.service: ServiceOptions(whole, tenancy) for tenancy in problem.tenancies}
    placements = [_spread(placement, services[placement.service], place_of) for placement in placed.placements]
    return whole, placed_fleet(problem, whole, chosen, placements)


def _spread(placement: Placement, service: ServiceOptions, place_of: IntArray) -> Placement:
    """Return the placement with what every replica serves of an adapter in the mix of its sizes."""
    part = service.parts
    hosts = tuple(
        replace(
            host,
            option=int(place_of[host.option]),
            rates={name: rates.sum() * part[service.tenants[name].group] for name, rates in host.rates.items()},
            loads=dict(host.loads),
        )
        for host in placement.hosts
    )
    return replace(placement, hosts=hosts)
