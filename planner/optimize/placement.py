"""From shares of groups to whole adapters: which replica holds which, and what of its requests it serves.

The programme over groups says how many replicas of each option there are and what part of every group and size each
option serves. Here every adapter gets its places, one or several, so that no replica has more adapters than slots nor
more load than it can serve. What does not fit, since adapters are whole and replicas are single, gets replicas of its
own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import ShareCap
from planner.optimize.adapter_search import placing_aim
from planner.optimize.energy import running_usd_per_hour
from planner.optimize.homes import find_homes
from planner.optimize.hosts import DUST, FULL, Host, Item, Prices, ServiceOptions
from planner.optimize.rows.changes import change_usd_per_hour
from planner.optimize.rows.minimums import kept_instances
from planner.optimize.rows.packing import instances_needed
from planner.optimize.search import Fleet, exact_cost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray

WORTH_SPLITTING = 0.25
"""Of a replica: an adapter that keeps less of it busy in one size goes to one option with it as a whole."""
SAVING = 1e-9
"""USD/h: less is none."""
SWEEP_EVERY = 16
"""Adapters without a place that are looked at before replicas that are full are left out."""
MOST_REFUSED = 64
"""Replicas that nothing else can stand in for until no more are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All replicas of one service with adapters."""

    service: str
    hosts: tuple[Host, ...]
    added_replicas: int
    """More than the programme has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A fleet in which every adapter has its places."""

    fleet: Fleet
    placements: tuple[Placement, ...]


def place(problem: FleetProblem, fleet: FleetArrays, chosen: Fleet, *, is_kept: bool = False) -> Placed:
    """Return `chosen` with every adapter on replicas, with more replicas where they are needed.

    Limits on the fleet are not looked at: whoever asks must check the result.

    Parameters
    ----------
    is_kept : leave the replicas that `chosen` has and that are in use as they are, whatever would cost less.
    """
    replicas = chosen.replicas.copy()
    placements = []
    aim = placing_aim(problem, fleet)
    for tenancy in sorted(problem.tenancies, key=lambda each: each.service):
        service = ServiceOptions(fleet, tenancy)
        marks = _marks(problem, service)
        placement = _placed(service, chosen, Prices(fleet, replicas, aim), marks, is_kept=is_kept)
        placements.append(placement)
        counts = np.bincount([host.option for host in placement.hosts], minlength=len(fleet.options))
        mine = np.array([option.service == tenancy.service for option in fleet.options], dtype=np.bool_)
        replicas = np.where(mine, counts, replicas)
    return placed_fleet(problem, fleet, chosen, placements)


def place_at_home(problem: FleetProblem, fleet: FleetArrays, chosen: Fleet) -> Placed | None:
    """Return `chosen` with every adapter at home on its replicas; None where one would be too full."""
    placements = []
    for tenancy in sorted(problem.tenancies, key=lambda each: each.service):
        homes = find_homes(ServiceOptions(fleet, tenancy), chosen.replicas)
        if homes.hosts is None:
            return None
        used = tuple(host for host in homes.hosts if host.rates)
        placements.append(Placement(service=tenancy.service, hosts=used, added_replicas=0))
    return placed_fleet(problem, fleet, chosen, placements)


def placed_fleet(problem: FleetProblem, fleet: FleetArrays, chosen: Fleet, placements: Sequence[Placement]) -> Placed:
    """Return the fleet with these replicas of services with adapters, and those of `chosen` for all others."""
    replicas, shares = chosen.replicas.copy(), chosen.shares.copy()
    by_service = {placement.service: placement for placement in placements}
    for tenancy in problem.tenancies:
        placement = by_service[tenancy.service]
        counts = np.bincount([host.option for host in placement.hosts], minlength=len(fleet.options))
        mine = np.array([option.service == tenancy.service for option in fleet.options], dtype=np.bool_)
        replicas = np.where(mine, counts, replicas)
        _set_shares(shares, ServiceOptions(fleet, tenancy), placement)
    needed = instances_needed(fleet, replicas)
    instances = kept_instances(fleet, np.maximum(chosen.instances, needed), needed)
    return Placed(
        fleet=Fleet(
            replicas=replicas,
            instances=instances,
            shares=shares,
            cost_usd_per_hour=exact_cost(fleet, instances),
            change_usd_per_hour=change_usd_per_hour(fleet, replicas),
            running_usd_per_hour=running_usd_per_hour(fleet, replicas, shares),
        ),
        placements=tuple(placements),
    )


def _marks(problem: FleetProblem, service: ServiceOptions) -> dict[int, tuple[str, ...]]:
    """Return for every option the groups of offers whose part of the requests is capped; no adapter leaves its own."""
    mine = service.tenancy.service
    caps = [rule for rule in problem.rules if isinstance(rule, ShareCap) and rule.service in {None, mine}]

    def mark(option: int) -> tuple[str, ...]:
        offer = service.fleet.options[option].offer
        return tuple(rule.facet.of(offer) if rule.scope.covers(offer) else "" for rule in caps)

    return {option: mark(option) for option in service.options}


def _placed(
    service: ServiceOptions,
    chosen: Fleet,
    prices: Prices,
    marks: Mapping[int, tuple[str, ...]],
    *,
    is_kept: bool,
) -> Placement:
    """Return the replicas of a service, filled option by option, then with what is left over."""
    left: dict[tuple[str, ...], list[Item]] = {}
    hosts: list[Host] = []
    is_capped = any(any(mark) for mark in marks.values())
    worth_splitting = 0.0 if is_capped else WORTH_SPLITTING
    for option, items in sorted(_by_option(service, chosen, worth_splitting).items()):
        own = [service.host(option) for _ in range(int(chosen.replicas[option]))]
        still_open = list(own)
        for item in _hottest_first(items, service, option):
            rest = service.put(item, _first_to_try(still_open, item, service))
            if rest is not None:
                left.setdefault(marks[option], []).append(rest)
            if own[0].slots == 1:
                while still_open and still_open[-1].rates:
                    still_open.pop()
        hosts += own
    n_planned = len(hosts)
    for mark, items in left.items():
        _give_places(service, hosts, items, prices, options=[o for o in service.options if marks[o] == mark])
    hosts = [host for host in hosts if host.rates] if is_kept else _improved(service, hosts, prices, marks)
    return Placement(service=service.tenancy.service, hosts=tuple(hosts), added_replicas=max(0, len(hosts) - n_planned))


def _improved(
    service: ServiceOptions, hosts: Sequence[Host], prices: Prices, marks: Mapping[int, tuple[str, ...]]
) -> list[Host]:
    """Return fewer or cheaper replicas that hold the same; none of its adapters leaves an option's own `marks`."""
    kept = [
        host
        for mark in dict.fromkeys(marks.values())
        for host in _without_needless(service, [host for host in hosts if marks[host.option] == mark])
    ]
    prices.take(*((host.option, -1) for host in hosts), *((host.option, 1) for host in kept))
    return [
        _cheaper(service, host, prices, [o for o in service.options if marks[o] == marks[host.option]]) for host in kept
    ]


def _give_places(
    service: ServiceOptions, hosts: list[Host], left: Sequence[Item], prices: Prices, *, options: Sequence[int]
) -> None:
    """Give what is left a place on those of `hosts` that are replicas of `options`, and on more of these."""
    allowed = set(options)
    while left:
        unplaced: list[Item] = []
        still_open: Sequence[Host] = ()
        for number, item in enumerate(sorted(left, key=lambda each: (-each.rate_rps, each.tenant.name))):
            if number % SWEEP_EVERY == 0:
                still_open = _open([host for host in hosts if host.option in allowed])
            rest = service.put(item, still_open)
            if rest is not None:
                unplaced.append(rest)
        left = unplaced
        if left:
            best = _best_for(service, left, prices, options)
            # Half of what they need at least, so that thousands are looked at a few times; what stays empty goes again.
            more = max(_needed(service, left, best) // 2, 1)
            prices.take((best, more))
            hosts += [service.host(best) for _ in range(more)]


def _open(hosts: Sequence[Host]) -> list[Host]:
    """Return replicas for several adapters, and a few empty ones of each option for one: thousands are full with it."""
    found, taken = [], Counter[int]()
    for host in hosts:
        if host.slots == 1:
            if host.rates or taken[host.option] >= 2 * SWEEP_EVERY:
                continue
            taken[host.option] += 1
        found.append(host)
    return found


def _without_needless(service: ServiceOptions, hosts: Sequence[Host]) -> list[Host]:
    """Return `hosts` without those whose adapters find room on the others, the dearest for their load first."""
    kept = [host for host in hosts if host.rates]
    refused: set[int] = set()
    while len(refused) < MOST_REFUSED:
        left = [index for index in range(len(kept)) if id(kept[index]) not in refused]
        if not left:
            break
        index = min(left, key=lambda i: (-service.price(kept[i].option) / kept[i].load, kept[i].option, i))
        host, others = kept[index], kept[:index] + kept[index + 1 :]
        if not _has_room(host, others):
            refused.add(id(host))
            continue
        trial = [other.copy() for other in others]
        ranked = sorted(service.items(host), key=lambda item: (-item.rate_rps, item.tenant.name))
        if all(service.put(item, trial) is None for item in ranked):
            refused = {id(new) for new, old in zip(trial, others, strict=True) if id(old) in refused}
            kept = trial
        else:
            refused.add(id(host))
    return kept


def _has_room(host: Host, others: Sequence[Host]) -> bool:
    """Return whether `others` could have room for the adapters of `host`, were they as fast for them as the fastest."""
    slots = sum(other.slots - len(other.rates) for other in others)
    there = {name for other in others for name in other.rates}
    return len(host.rates.keys() - there) <= slots and any(FULL - other.load > DUST for other in others)


def _cheaper(service: ServiceOptions, host: Host, prices: Prices, options: Sequence[int]) -> Host:
    """Return a replica of the one of `options` that holds what `host` holds and lets the fleet cost least."""
    items = service.items(host)

    def moved(option: int) -> Host | None:
        other = service.host(option)
        if len(items) > other.slots:
            return None
        for item in items:
            load = service.load(item, option)
            if load > other.room(item.tenant.name) or not service.can_serve(item, option):
                return None
            other.add(item.tenant.name, item.rates, load)
        return other

    saved = prices.swaps(host.option, service.options)
    for option in sorted(options, key=lambda option: (saved[option], option)):
        if saved[option] >= -SAVING:
            break
        found = moved(option)
        if found is not None:
            prices.take((host.option, -1), (option, 1))
            return found
    return host


def _first_to_try(hosts: Sequence[Host], item: Item, service: ServiceOptions) -> Sequence[Host]:
    """Return the replicas of one option that an adapter may go to: of empty ones for one, as many as it needs."""
    if not hosts or hosts[0].slots > 1:
        return hosts
    load = service.load(item, hosts[0].option)
    return hosts[-max(int(np.ceil(load / FULL)), 1) :]


def _hottest_first(items: Sequence[Item], service: ServiceOptions, option: int) -> list[Item]:
    """Return what an option serves, the largest load first."""
    return sorted(items, key=lambda item: (-service.load(item, option), item.tenant.name))


def _by_option(service: ServiceOptions, chosen: Fleet, worth_splitting: float) -> Mapping[int, list[Item]]:
    """Return which adapters each option serves, near to its shares of their groups and sizes; few are split.

    Where any part is worth splitting the shares are kept.
    """
    found: dict[int, list[Item]] = {}
    for group, members in sorted(service.members.items()):
        buckets = service.buckets[group]
        quotas: list[dict[int, float]] = []
        for bucket in buckets:
            total = service.fleet.buckets[bucket][1].rate_rps
            quotas.append(
                {
                    option: total * float(chosen.shares[pair])
                    for option, pair in sorted(service.pairs[bucket].items())
                    if chosen.shares[pair] > DUST and chosen.replicas[option] > 0
                }
            )
        for tenant in members:
            rates = tenant.rate_rps * service.parts[group]
            parts: dict[int, FloatArray] = {}
            for size in np.argsort(-rates, kind="stable").tolist():
                unit = {option: float(service.unit(group, option)[size]) for option in quotas[size]}
                split = _split(float(rates[size]), quotas[size], unit, parts, worth_splitting)
                for option, rate in split.items():
                    parts.setdefault(option, np.zeros(len(buckets)))[size] = rate
                    quotas[size][option] -= rate
            for option, part in parts.items():
                found.setdefault(option, []).append(Item(tenant=tenant, rates=part))
    return found


def _split(
    rate: float,
    quota: Mapping[int, float],
    unit: Mapping[int, float],
    parts: Mapping[int, FloatArray],
    worth_splitting: float,
) -> Mapping[int, float]:
    """Return the req/s of one size of an adapter that each option serves: all on one with enough of its quota left.

    One that has another size of the adapter already comes first, then the one with most of its quota left.
    """
    ranked = sorted(quota, key=lambda option: (-quota[option], option))
    held = [option for option in ranked if option in parts and quota[option] >= rate]
    first = (held or ranked)[0]
    load = rate * unit[first]
    if quota[first] >= rate or load < worth_splitting or len(ranked) == 1:
        return {first: rate}
    found: dict[int, float] = {}
    left = rate
    for option in ranked:
        part = min(left, max(quota[option], 0.0))
        if part > DUST * rate:
            found[option] = part
            left -= part
    found[first] = found.get(first, 0.0) + left
    return found


def _best_for(service: ServiceOptions, left: Sequence[Item], prices: Prices, options: Sequence[int]) -> int:
    """Return the one of `options` whose replicas hold what is left at the least price, were there no other."""

    def cost(option: int) -> tuple[float, float, int]:
        served = sum(float(service.servable(item, option).sum() / item.rates.sum()) for item in left)
        if served <= 0:
            return (np.inf, np.inf, option)
        needed = _needed(service, left, option)
        return (prices.change((option, needed)) / served, service.price(option), option)

    return min(options, key=cost)


def _needed(service: ServiceOptions, left: Sequence[Item], option: int) -> int:
    """Return how many replicas of `option` at least hold what it can serve of what is left, by load and by slots."""
    slots = service.host(option)
    loads = [service.load(item, option) for item in left if service.servable(item, option).any()]
    copies = sum(max(1.0, np.ceil(load / slots.largest_load - DUST)) for load in loads)
    needed = np.ceil(max(sum(loads), copies / slots.slots) - DUST)
    return int(max(needed, 1.0))


def _set_shares(shares: FloatArray, service: ServiceOptions, placement: Placement) -> None:
    """Write the shares of the service's groups and sizes that its replicas serve."""
    served: dict[tuple[int, int], FloatArray] = {}
    for host in placement.hosts:
        for name, rates in host.rates.items():
            key = (service.tenants[name].group, host.option)
            served[key] = served[key] + rates if key in served else rates
    for group, buckets in service.buckets.items():
        total = np.sum([rates for (at, _), rates in served.items() if at == group], axis=0)
        for position, bucket in enumerate(buckets):
            for option, pair in service.pairs[bucket].items():
                here = served.get((group, option))
                shares[pair] = 0.0 if here is None else here[position] / total[position]
