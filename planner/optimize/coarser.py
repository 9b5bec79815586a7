"""Problems with adapters in fewer buckets, and their plans as plans of the whole problem.

Kin are groups of adapters that every option serves alike, in the same mix of sizes: what their requests take of a
replica depends on the size alone, so one bucket for each size stands for all of them. Which of the groups is where
stays in the programme, as the part of each group's requests that every option serves: `rows.residence`.

One route is the problem in which all sizes of an adapter's requests go together. Its plans are plans of the whole
problem; the search over sizes is held against it for a part of the time, where it could be cheaper, so that routing by
size seldom makes a plan dearer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.arrays import fleet_arrays
from planner.optimize.hosts import ServiceOptions
from planner.optimize.placement import placed_fleet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.adapters import Tenancy
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Bucket, Demand
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.placement import Placed, Placement
    from planner.optimize.search import Fleet
    from planner.optimize.settings import Assignment

MIX_TOLERANCE = 1e-12
"""Parts of a group's requests in a size that differ by less are rounding."""

MOST_BUCKETS = 40
"""Classes of sizes of all kin of a service, where sizes go together."""
MOST_KIN = 6
"""Of a service, where the busiest of kin are apart from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coarser:
    """A problem with fewer buckets."""

    problem: FleetProblem
    made_of: Mapping[int, ServingOption]
    """By the id of an option of `problem`: the option of the whole problem that it was made of."""
    class_of: Mapping[tuple[str, int], IntArray] = field(default_factory=dict)
    """By service and group of the whole problem: which size of `problem` each size is part of, where that is less."""


def at_its_cheapest(problem: FleetProblem) -> FleetProblem:
    """Return the problem in which all requests of a bucket are as cheap as the cheapest: no plan costs less than there.

    In a plan let the adapter a of group g send the part x[a, s, j] of its requests of size s to option j, and let the
    bucket C stand for sizes s of group g. With the rates r[a, s], and R[C] for all of them together,

        X[C, j] = sum_(a, s of C) r[a, s] x[a, s, j] / R[C]

    are shares of buckets that sum to 1, and of any adapter no larger than the largest of its sizes, so that the rows of
    residence hold for them where they hold for x. What they keep busy is no more than in the plan if the bucket's
    throughput is no less than that of any adapter's size in it: sum r x / speed[a, s, j] >= R[C] X[C, j] / max speed.
    """
    options = (
        option if option.loose_rps is None else replace(option, throughput_rps=option.loose_rps, loose_rps=None)
        for option in problem.options
    )
    return replace(problem, options=tuple(options))


def is_exact(problem: FleetProblem) -> bool:
    """Return whether no bucket stands for requests that differ."""
    return all(option.loose_rps is None for option in problem.options)


def has_sizes(problem: FleetProblem) -> bool:
    """Return whether the requests of any adapter come in several sizes."""
    demands = {demand.service: demand for demand in problem.demands}
    return any(
        len(demands[tenancy.service].buckets) > len({bucket.group for bucket in demands[tenancy.service].buckets})
        for tenancy in problem.tenancies
    )


def with_kin(
    problem: FleetProblem, *, sizes: int | None = None, by_rate: int = 1, most_groups: int | None = None
) -> Coarser:
    """Return the problem with one bucket for each size of the requests of groups that are served alike.

    Parameters
    ----------
    sizes : classes of sizes that go together at most, of each kin; None = none do.
    by_rate : kin that groups served alike are, the busiest apart from the least busy ones.
    most_groups : of a service, those of kin whose rates are nearest going together. Such a problem bounds nothing.
    """
    made: dict[int, ServingOption] = {}
    demands = {demand.service: demand for demand in problem.demands}
    options = {demand.service: [] for demand in problem.demands}  # type: dict[str, list[ServingOption]]
    class_of: dict[tuple[str, int], IntArray] = {}
    tenancies = []
    for option in problem.options:
        options.setdefault(option.service, []).append(option)
    for tenancy in problem.tenancies:
        demand = demands[tenancy.service]
        groups = _by_group(demand)
        kin: dict[tuple[object, ...], list[int | None]] = defaultdict(list)
        for group, indices in groups.items():
            kin[_likeness(demand, indices, options[tenancy.service])].append(group)
        kin = _by_rate(kin, tenancy, max(min(by_rate, MOST_KIN // len(kin)), 1))
        first_of = {group: groups_alike[0] for groups_alike in kin.values() for group in groups_alike}
        joined = {} if most_groups is None else _joined(kin, tenancy, max(most_groups // len(kin), 1))
        merged_buckets: list[Bucket] = []
        members: list[list[int]] = []
        for alike in kin.values():
            indices = groups[alike[0]]
            most = len(indices) if sizes is None else max(min(sizes, MOST_BUCKETS // len(kin)), 1)
            classes = alike_sizes(demand, indices, options[tenancy.service], most)
            for group in alike:
                class_of[tenancy.service, group or 0] = classes
            for number in range(int(classes.max()) + 1):
                mine = [indices[at] for at in np.flatnonzero(classes == number).tolist()]
                at = [groups[group][position] for group in alike for position in np.flatnonzero(classes == number)]
                rate = sum(demand.buckets[index].rate_rps for index in at)
                merged_buckets.append(replace(demand.buckets[mine[0]], column=number, rate_rps=rate))
                members.append(mine)
        demands[tenancy.service] = replace(demand, buckets=tuple(merged_buckets))
        merged = []
        for option in options[tenancy.service]:
            rates = np.array([_mixed(demand, mine, option.throughput_rps) for mine in members])
            fewer = replace(option, throughput_rps=rates, provenance=(), limiting=(), loose_rps=None)
            made[id(fewer)] = option
            merged.append(fewer)
        options[tenancy.service] = merged
        tenants = tuple(
            replace(tenant, group=first_of[tenant.group] or 0, kin_group=joined.get(tenant.group, tenant.group))
            for tenant in tenancy.tenants
        )
        tenancies.append(replace(tenancy, tenants=tenants))
    every = [option for mine in options.values() for option in mine]
    return Coarser(
        problem=replace(problem, demands=tuple(demands.values()), options=tuple(every), tenancies=tuple(tenancies)),
        made_of={id(option): made.get(id(option), option) for option in every},
        class_of=class_of,
    )


def _by_rate(
    kin: Mapping[tuple[object, ...], list[int | None]], tenancy: Tenancy, parts: int
) -> dict[tuple[object, ...], list[int | None]]:
    """Return kin in so many parts of about as many groups, by the rate of a group's busiest adapter."""
    if parts == 1:
        return dict(kin)
    found: dict[tuple[object, ...], list[int | None]] = {}
    for key, groups in kin.items():
        for number, part in enumerate(_in_parts(groups, tenancy, parts)):
            found[*key, number] = part
    return found


def _joined(
    kin: Mapping[tuple[object, ...], list[int | None]], tenancy: Tenancy, parts: int
) -> Mapping[int | None, int]:
    """Return for every group the first of those that it goes with, so many of each kin."""
    every = (part for groups in kin.values() for part in _in_parts(groups, tenancy, parts))
    return {group: part[0] or 0 for part in every for group in part}


def _in_parts(groups: Sequence[int | None], tenancy: Tenancy, parts: int) -> list[list[int | None]]:
    """Return groups in parts of about as many, by the rate of a group's busiest adapter."""
    highest: dict[int | None, float] = defaultdict(float)
    for tenant in tenancy.tenants:
        highest[tenant.group] = max(highest[tenant.group], tenant.rate_rps)
    ranked = sorted(groups, key=lambda group: (-highest[group], group or 0))
    split = np.array_split(np.arange(len(ranked)), min(parts, len(ranked)))
    return [[ranked[at] for at in part.tolist()] for part in split]


def alike_sizes(demand: Demand, indices: Sequence[int], options: Sequence[ServingOption], most: int) -> IntArray:
    """Return the class of every size, shape (sizes,): at most `most`, more only where others serve them.

    What a size costs on one option relative to others decides where it goes. So sizes are alike if their loads on all
    options are in proportion, and such ones lose nothing by going together. Classes are put together two by two, those
    first for which load(A) load(B) / (load(A) + load(B)) |profile(A) - profile(B)|^2 is least (Ward's), a profile being
    the logarithms of the loads less their mean.
    """
    if len(indices) <= most:
        return np.arange(len(indices))
    speeds = np.unique(np.array([option.throughput_rps[list(indices)] for option in options]), axis=0).T
    able = speeds > 0
    logs = np.where(able, -np.log(np.where(able, speeds, 1.0)), 0.0)
    counts = np.maximum(able.sum(axis=1), 1)
    means = logs.sum(axis=1) / counts
    profiles = np.where(able, logs - means[:, None], 0.0)
    weights = np.exp(means) * np.array([demand.buckets[index].rate_rps for index in indices])
    classes = [[at] for at in range(len(indices))]
    while len(classes) > most:
        distance = ((profiles[:, None, :] - profiles[None, :, :]) ** 2).sum(axis=2)
        loss = distance * weights[:, None] * weights[None, :] / (weights[:, None] + weights[None, :])
        is_other = np.any(able[:, None, :] != able[None, :, :], axis=2)
        loss[is_other | ~np.tri(len(classes), k=-1, dtype=np.bool_).T] = np.inf
        first, second = np.unravel_index(int(np.argmin(loss)), loss.shape)
        if not np.isfinite(loss[first, second]):
            break
        total = weights[first] + weights[second]
        profiles[first] = (profiles[first] * weights[first] + profiles[second] * weights[second]) / total
        weights[first] = total
        classes[first] += classes.pop(second)
        profiles, able = np.delete(profiles, second, axis=0), np.delete(able, second, axis=0)
        weights = np.delete(weights, second)
    found = np.zeros(len(indices), dtype=np.int64)
    for number, members in enumerate(sorted(classes, key=min)):
        found[members] = number
    return found


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
            merged = replace(option, throughput_rps=mixed, provenance=(), limiting=(), loose_rps=None)
        made[id(merged)] = option
        options.append(merged)
    fewer = tuple(
        replace(demand, buckets=tuple(_whole(demand, indices) for indices in groups[demand.service].values()))
        if demand.service in adapted
        else demand
        for demand in problem.demands
    )
    class_of = {
        (service, group or 0): np.zeros(len(indices), dtype=np.int64)
        for service, mine in groups.items()
        for group, indices in mine.items()
    }
    return Coarser(problem=replace(problem, demands=fewer, options=tuple(options)), made_of=made, class_of=class_of)


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


def _places(whole: FleetArrays, originals: Sequence[ServingOption]) -> IntArray:
    """Return where in the arrays each of the options is."""
    index_of = {id(option): index for index, option in enumerate(whole.options)}
    return np.array([index_of[id(option)] for option in originals], dtype=np.int64)


def in_full(
    problem: FleetProblem,
    assignment: Assignment,
    fleet: FleetArrays,
    chosen: Fleet,
    coarser: Coarser,
    *,
    is_used_only: bool = False,
) -> tuple[FleetArrays, Fleet, IntArray]:
    """Return the arrays of the whole `problem` and in them a fleet of a coarser one, whose arrays are `fleet`.

    Shares of services with adapters follow from their placement, and are 0 here. Last comes where in the arrays each
    option of `fleet` is, -1 = not there.

    Parameters
    ----------
    is_used_only : options without replicas are left out.
    """
    kept = np.flatnonzero(chosen.replicas > 0) if is_used_only else np.arange(len(fleet.options))
    originals = [coarser.made_of[id(fleet.options[option])] for option in kept.tolist()]
    whole = fleet_arrays(replace(problem, options=tuple(originals)), assignment)
    place_of = np.full(len(fleet.options), -1, dtype=np.int64)
    place_of[kept] = _places(whole, originals)
    replicas = np.zeros(len(whole.options), dtype=np.int64)
    replicas[place_of[kept]] = chosen.replicas[kept]
    instances = np.zeros(len(whole.pool_offer), dtype=np.int64)
    instances[whole.option_pool[place_of[kept]]] = chosen.instances[fleet.option_pool[kept]]
    adapted = {tenancy.service for tenancy in problem.tenancies}
    known = zip(fleet.pair_bucket.tolist(), fleet.pair_option.tolist(), chosen.shares.tolist(), strict=True)
    shares = {
        (fleet.buckets[bucket], int(place_of[option])): share
        for bucket, option, share in known
        if fleet.buckets[bucket][0] not in adapted
    }
    of_others = np.zeros(len(whole.pair_bucket))
    if shares:
        pairs = zip(whole.pair_bucket.tolist(), whole.pair_option.tolist(), strict=True)
        of_others = np.array([shares.get((whole.buckets[bucket], option), 0.0) for bucket, option in pairs])
    return whole, replace(chosen, replicas=replicas, instances=instances, shares=of_others), place_of


def restated(
    problem: FleetProblem, assignment: Assignment, fleet: FleetArrays, placed: Placed, coarser: Coarser
) -> tuple[FleetArrays, Placed]:
    """Return a placement of a problem with fewer buckets, whose arrays are `fleet`, as one of the whole `problem`."""
    whole, chosen, place_of = in_full(problem, assignment, fleet, placed.fleet, coarser)
    services = {tenancy.service: ServiceOptions(whole, tenancy) for tenancy in problem.tenancies}
    placements = [
        _spread(placement, services[placement.service], place_of, coarser.class_of) for placement in placed.placements
    ]
    return whole, placed_fleet(problem, whole, chosen, placements)


def _spread(
    placement: Placement, service: ServiceOptions, place_of: IntArray, class_of: Mapping[tuple[str, int], IntArray]
) -> Placement:
    """Return the placement by the whole problem's options and sizes; those of a class in the mix of the adapter's."""

    def sizes(name: str, rates: FloatArray) -> FloatArray:
        group = service.tenants[name].group
        part = service.parts[group]
        if len(rates) == len(part):
            return rates
        classes = class_of[placement.service, group]
        return np.asarray(rates[classes] * part / np.bincount(classes, weights=part)[classes], dtype=np.float64)

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
