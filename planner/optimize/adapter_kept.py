"""Adapters where they are today: a placement that moves nobody, where the fleet that was found is today's.

Of many places that cost the same the search finds one; today's may be as good, and moving adapters helps nobody.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.hosts import DUST, FULL, Item, ServiceOptions
from planner.optimize.placement import Placed, Placement, placed_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.problem import ChangeCost, FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.hosts import Host
    from planner.optimize.milp import FloatArray

    Holding = Mapping[str, tuple[float, ...]]


def where_they_are(problem: FleetProblem, fleet: FleetArrays, found: Placed) -> Placed | None:
    """Return `found` with the adapters of each service where they are today, if its replicas are today's.

    None if that is so of no service. Limits are not looked at: whoever asks must check the result.
    """
    if problem.change is None:
        return None
    kept, placements = False, []
    tenancies = {tenancy.service: tenancy for tenancy in problem.tenancies}
    for placement in found.placements:
        hosts = _hosts_today(ServiceOptions(fleet, tenancies[placement.service]), placement, problem.change)
        kept = kept or hosts is not None
        placements.append(
            placement
            if hosts is None
            else Placement(service=placement.service, hosts=hosts, added_replicas=placement.added_replicas)
        )
    return placed_fleet(problem, fleet, found.fleet, placements) if kept else None


def _hosts_today(service: ServiceOptions, placement: Placement, change: ChangeCost) -> tuple[Host, ...] | None:
    """Return today's replicas with what is asked of their adapters now; None if they are others, or not enough."""
    counts = Counter(host.option for host in placement.hosts)
    running = [each for each in change.running if each.service == service.tenancy.service]
    today: list[tuple[int, Holding]] = []
    for option, count in sorted(counts.items()):
        mine = [each for each in running if each.is_of(service.fleet.options[option])]
        holdings = [holding for each in mine for holding in each.holds]
        if len(holdings) != count or sum(each.replicas for each in mine) != count:
            return None
        today += [(option, holding) for holding in holdings]
    if sum(each.replicas for each in running) != len(today):
        return None
    return _filled(service, today)


def _filled(service: ServiceOptions, today: list[tuple[int, Holding]]) -> tuple[Host, ...] | None:
    """Return replicas with every adapter in today's parts; None if that does not fit any more."""
    hosts = [service.host(option) for option, _ in today]
    at: dict[str, list[tuple[Host, tuple[float, ...]]]] = defaultdict(list)
    for host, (_, holding) in zip(hosts, today, strict=True):
        for name, rates in holding.items():
            at[name].append((host, rates))
    for tenant in service.tenancy.tenants:
        item = service.item(tenant)
        if tenant.name not in at:
            return None  # whoever is new needs a place that the search looks for
        for host, part in _parts(at[tenant.name], len(item.rates)):
            mine = Item(tenant=tenant, rates=item.rates * part)
            if not service.can_serve(mine, host.option):
                return None
            load = service.load(mine, host.option)
            if load > host.room(tenant.name) + DUST:
                return None
            host.add(tenant.name, mine.rates, load)
    if any(not host.rates or host.load > FULL for host in hosts):
        return None
    return tuple(hosts)


def _parts(places: list[tuple[Host, tuple[float, ...]]], n_sizes: int) -> Iterator[tuple[Host, FloatArray]]:
    """Yield each replica that holds an adapter with the part of each size of its requests that it serves."""
    if all(len(rates) == n_sizes for _, rates in places):
        each = np.array([rates for _, rates in places])
        totals = each.sum(axis=0)
        if (totals > 0).all():
            yield from ((host, part) for (host, _), part in zip(places, each / totals, strict=True) if part.any())
            return
    sums = np.array([sum(rates) for _, rates in places])
    for (host, _), part in zip(places, sums / sums.sum(), strict=True):
        if part > 0:
            yield host, np.full(n_sizes, part)
