"""Problems with adapters in fewer buckets, and their plans as plans of the whole problem.

Kin are groups of adapters that every option serves alike, in the same mix of sizes: what their requests take of a
replica depends on the size alone, so one bucket for each size stands for all of them. Which of the groups is where
stays in the programme, as the part of each group's requests that every option serves: `rows.residence`.

One route is the problem in which all sizes of an adapter's requests go together. Its plans are plans of the whole
problem; it is what the search over sizes is held against where it does not prove its plan, so that routing by size
never makes a plan dearer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.arrays import fleet_arrays
from planner.optimize.hosts import ServiceOptions
from planner.optimize.placement import placed_fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Bucket, Demand
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.placement import Placed, Placement
    from planner.optimize.search import Fleet
    from planner.optimize.settings import Assignment

MIX_TOLERANCE = 1e-12
"""Parts of a group's requests in a size that differ by less are rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coarser:
    """A problem with fewer buckets."""

    problem: FleetProblem
    made_of: Mapping[int, ServingOption]
    """By the id of an option of `problem`: the option of the whole problem that it was made of."""


def has_sizes(problem: FleetProblem) -> bool:
    """Return whether the requests of any adapter come in several sizes."""
    demands = {demand.service: demand for demand in problem.demands}
    return any(
        len(demands[tenancy.service].buckets) > len({bucket.group for bucket in demands[tenancy.service].buckets})
        for tenancy in problem.tenancies
    )


def with_kin(problem: FleetProblem) -> Coarser:
    """Return the problem with one bucket for each size of the requests of groups that are served alike."""
    made: dict[int, ServingOption] = {}
    demands = {demand.service: demand for demand in problem.demands}
    options = {demand.service: [] for demand in problem.demands}  # type: dict[str, list[ServingOption]]
    tenancies = []
    for option in problem.options:
        options.setdefault(option.service, []).append(option)
    for tenancy in problem.tenancies:
        demand = demands[tenancy.service]
        groups = _by_group(demand)
        kin: dict[tuple[object, ...], list[int | None]] = defaultdict(list)
        for group, indices in groups.items():
            kin[_likeness(demand, indices, options[tenancy.service])].append(group)
        first_of = {group: groups_alike[0] for groups_alike in kin.values() for group in groups_alike}
        kept = [index for alike in kin.values() for index in groups[alike[0]]]
        rates: dict[int, float] = {}
        for alike in kin.values():
            for members in zip(*(groups[group] for group in alike), strict=True):
                rates[members[0]] = sum(demand.buckets[index].rate_rps for index in members)
        demands[tenancy.service] = replace(
            demand, buckets=tuple(replace(demand.buckets[index], rate_rps=rates[index]) for index in kept)
        )
        merged = []
        for option in options[tenancy.service]:
            fewer = replace(option, throughput_rps=option.throughput_rps[kept], provenance=(), limiting=())
            made[id(fewer)] = option
            merged.append(fewer)
        options[tenancy.service] = merged
        tenants = tuple(
            replace(tenant, group=first_of[tenant.group] or 0, kin_group=tenant.group) for tenant in tenancy.tenants
        )
        tenancies.append(replace(tenancy, tenants=tenants))
    every = [option for mine in options.values() for option in mine]
    return Coarser(
        problem=replace(problem, demands=tuple(demands.values()), options=tuple(every), tenancies=tuple(tenancies)),
        made_of={id(option): made.get(id(option), option) for option in every},
    )


def _likeness(demand: Demand, indices: Sequence[int], options: Sequence[ServingOption]) -> tuple[object, ...]:
    """Return what two groups have in common if they are kin: their mix of sizes, and how fast they are served."""
    rates = np.array([demand.buckets[index].rate_rps for index in indices])
    mix = np.round(rates / rates.sum() / MIX_TOLERANCE).astype(np.int64)
    tokens = tuple((demand.buckets[index].input_tokens, demand.buckets[index].output_tokens) for index in indices)
    return (mix.tobytes(), tokens, *(option.throughput_rps[list(indices)].tobytes() for option in options))


def on_one_route(problem: FleetProblem) -> Coarser:
    """Return the problem with one bucket for each group of adapters.

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
    return Coarser(problem=replace(problem, demands=fewer, options=tuple(options)), made_of=made)


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
    members = [demand.buckets[index] for index in indices]
    total = sum(member.rate_rps for member in members)

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        rates = [member.rate_rps for member in members]
        return None if len(known) < len(values) else sum(r * v for r, v in zip(rates, known, strict=True)) / total

    return replace(
        members[0],
        column=0,
        rate_rps=total,
        input_tokens=mean([member.input_tokens for member in members]),
        output_tokens=mean([member.output_tokens for member in members]),
    )


def on_its_offers(
    problem: FleetProblem,
    assignment: Assignment,
    fleet: FleetArrays,
    found: Fleet,
    made_of: Mapping[int, ServingOption],
) -> FleetArrays:
    """Return the arrays of the whole problem with the options on those offers alone that `found` rents.

    A fleet that was found for kin knows how many replicas their sizes need, and less of who must have a slot for what:
    on its offers the programme over all groups and sizes is small.
    """
    rented = {int(offer) for offer in fleet.pool_offer[found.instances > 0].tolist()}
    here = [option for option, offer in zip(fleet.options, fleet.option_offer.tolist(), strict=True) if offer in rented]
    return fleet_arrays(replace(problem, options=tuple(made_of[id(option)] for option in here)), assignment)


def _places(whole: FleetArrays, originals: Sequence[ServingOption]) -> IntArray:
    """Return where in the arrays each of the options is."""
    index_of = {id(option): index for index, option in enumerate(whole.options)}
    return np.array([index_of[id(option)] for option in originals], dtype=np.int64)


def restated(
    problem: FleetProblem,
    assignment: Assignment,
    fleet: FleetArrays,
    placed: Placed,
    made_of: Mapping[int, ServingOption],
) -> tuple[FleetArrays, Placed]:
    """Return a placement of a problem with fewer buckets, whose arrays are `fleet`, as one of the whole `problem`."""
    originals = [made_of[id(option)] for option in fleet.options]
    whole = fleet_arrays(replace(problem, options=tuple(originals)), assignment)
    place_of = _places(whole, originals)
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
    of_others = [  # those of services with adapters follow from their placement
        shares.get((whole.buckets[bucket], option), 0.0)
        for bucket, option in zip(whole.pair_bucket.tolist(), whole.pair_option.tolist(), strict=True)
    ]
    chosen = replace(placed.fleet, replicas=replicas, instances=instances, shares=np.array(of_others))
    services = {tenancy.service: ServiceOptions(whole, tenancy) for tenancy in problem.tenancies}
    placements = [_spread(placement, services[placement.service], place_of) for placement in placed.placements]
    return whole, placed_fleet(problem, whole, chosen, placements)


def _spread(placement: Placement, service: ServiceOptions, place_of: IntArray) -> Placement:
    """Return the placement by the whole problem's options; one route's rates in the mix of the adapter's sizes."""

    def sizes(name: str, rates: FloatArray) -> FloatArray:
        part = service.parts[service.tenants[name].group]
        return rates if len(rates) == len(part) else rates.sum() * part

    hosts = tuple(
        replace(
            host,
            option=int(place_of[host.option]),
            rates={name: sizes(name, rates) for name, rates in host.rates.items()},
            loads=dict(host.loads),
        )
        for host in placement.hosts
    )
    return replace(placement, hosts=hosts)
