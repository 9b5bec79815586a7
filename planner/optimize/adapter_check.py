"""Part of the independent check of a plan: where its adapters are, from the plan's own placement.

Every adapter's requests are added up over the replicas that the plan names; each replica's slots, memory and load are
counted from the adapters that it is said to hold, and none of them shares more than it may. Nothing of the programme
over groups is looked at.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.costs import usd_per_month
from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.adapters import AdapterSlots, Tenancy
    from planner.domain.plan import AdapterPlan, AdapterReplica, HostedAdapter, Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand

    Options = Mapping[tuple[str, str], ServingOption]

TOLERANCE = 1e-9
"""Relative, for rates, loads and bytes."""
COST_TOLERANCE = 1e-6
"""Relative, for money: what the plan's own sums are held to."""


def check_adapters(problem: FleetProblem, plan: Plan, by_key: Options) -> None:
    """Return if every adapter's requests are served, on replicas that have the slots, the memory and the time for it.

    Raises
    ------
    SolverLiedError: naming the adapter or the replica that does not hold.
    """
    stated = {item.service: item for item in plan.adapters}
    demands = {demand.service: demand for demand in problem.demands}
    tenancies = {tenancy.service: tenancy for tenancy in problem.tenancies}
    if len(stated) != len(plan.adapters) or set(stated) != set(tenancies):
        _fail(f"it places the adapters of {sorted(stated)}, and the request has those of {sorted(tenancies)}")
    for service, item in stated.items():
        asked = _Asked(tenancies[service], demands[service])
        _check_rates(item, asked)
        for number, replica in enumerate(item.placement):
            option = by_key.get((service, replica.option))
            if option is None or option.slots is None:
                _fail(f"adapters of {service} are on {replica.option}, which cannot hold any")
            else:
                _check_replica(problem, replica, option, asked, name=f"replica {number} of {service}")
        _check_counts(plan, item, by_key)
        _check_routes(plan, item, asked)
        _check_costs(plan, item)


class _Asked:
    """What is asked of every adapter of a service, bucket by bucket."""

    def __init__(self, tenancy: Tenancy, demand: Demand) -> None:
        self.service = tenancy.service
        self.idle = tenancy.idle
        self.demand = demand
        self.tenants = {tenant.name: tenant for tenant in tenancy.tenants}
        self.buckets: dict[int | None, list[int]] = defaultdict(list)
        """Positions of a group's buckets in the demand, in order."""
        for index, bucket in enumerate(demand.buckets):
            self.buckets[bucket.group].append(index)

    def rates(self, name: str) -> Mapping[int, float]:
        """Return the req/s of an adapter in each bucket of its group: its rate in the group's sizes."""
        tenant = self.tenants[name]
        found = {index: self.demand.buckets[index].rate_rps for index in self.buckets[tenant.group]}
        total = sum(found.values())
        return {index: tenant.rate_rps * rate / total for index, rate in found.items()}

    def served(self, hosted: HostedAdapter) -> Mapping[int, float]:
        """Return what a replica says that it serves of an adapter in each bucket of its group."""
        indices = self.buckets[self.tenants[hosted.adapter].group]
        rates = hosted.by_size_rps or (hosted.rate_rps,)
        if len(rates) != len(indices):
            _fail(f"{hosted.adapter} is served in {len(rates)} sizes, and asked for in {len(indices)}")
        return dict(zip(indices, rates, strict=True))


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")


def _check_rates(item: AdapterPlan, asked: _Asked) -> None:
    """What the replicas serve of an adapter is what is asked of it, size by size; nobody else is served."""
    held = {hosted.adapter for replica in item.placement for hosted in replica.adapters}
    if held != set(asked.tenants):
        odd = sorted(held ^ set(asked.tenants))
        _fail(f"{len(odd)} adapters of {item.service} are not where requests for them are ({odd[0]})")
    served: dict[str, dict[int, float]] = {name: defaultdict(float) for name in held}
    for replica in item.placement:
        for hosted in replica.adapters:
            rates = asked.served(hosted)
            if not 0 < hosted.rate_rps < math.inf or not all(0 <= rate < math.inf for rate in rates.values()):
                _fail(f"{hosted.adapter} is where nothing is served of it, or no number says how much")
            if abs(sum(rates.values()) - hosted.rate_rps) > TOLERANCE * hosted.rate_rps:
                _fail(f"the sizes of {hosted.adapter} add up to {sum(rates.values())!r}, not to {hosted.rate_rps!r}")
            for index, rate in rates.items():
                served[hosted.adapter][index] += rate
    for name, sizes in served.items():
        for index, rate in asked.rates(name).items():
            if abs(sizes[index] - rate) > TOLERANCE * rate:
                _fail(f"{sizes[index]!r} req/s of {name} are served in bucket {index}, and {rate!r} asked")


def _check_replica(
    problem: FleetProblem,
    replica: AdapterReplica,
    option: ServingOption,
    asked: _Asked,
    *,
    name: str,
) -> None:
    """A replica holds no more adapters than it has slots, each fits its slot, and all together leave it in time."""
    slots = option.slots
    names = [hosted.adapter for hosted in replica.adapters]
    if slots is None or len(names) > slots.count or len(set(names)) != len(names):
        _fail(f"{name} holds {len(names)} adapters on {replica.option}")
        return
    _check_memory(slots, name=name)
    load, usable_rps = 0.0, option.usable_rps.tolist()
    for hosted in replica.adapters:
        tenant = asked.tenants[hosted.adapter]
        if slots.isolation is not Isolation.DEDICATED and tenant.memory_bytes > slots.bytes_each * (1 + TOLERANCE):
            _fail(f"{hosted.adapter} takes {tenant.memory_bytes!r} bytes, and a slot has {slots.bytes_each!r}")
        if slots.isolation.strictness < tenant.isolation.strictness:
            _fail(f"{hosted.adapter} asks for {tenant.isolation}, and is on {name}, which is {slots.isolation}")
        part = 0.0
        for index, rate in asked.served(hosted).items():
            most = usable_rps[index]
            if rate > 0 and most <= 0:
                _fail(f"{name} cannot serve {hosted.adapter} in bucket {index}")
            part += rate / most if rate > 0 else 0.0
        if part * _pressure(problem) > slots.largest_load * (1 + TOLERANCE):
            _fail(f"{hosted.adapter} keeps {part!r} of {name} busy")
        load += part
    if load * _pressure(problem) > 1 + TOLERANCE:
        _fail(f"{name} has {load!r} replicas' work")
    mean = load * option.utilization_cap
    if not abs(mean - replica.utilization) <= COST_TOLERANCE:
        _fail(f"{name} is busy {mean!r} of the time, and it says {replica.utilization!r}")


def _check_memory(slots: AdapterSlots, *, name: str) -> None:
    """Weights, all slots, and every process's context, activations and caches fit what is usable of the GPUs.

    For s slots of m bytes and p processes with activations a, KV caches v and contexts c each, of which the first
    context is beside what is usable: W + s m + p (a + v) + (p - 1) c <= M.
    """
    if slots.beside is None:
        return
    beside, n_processes = slots.beside, slots.n_processes
    held = beside.weights + slots.count * slots.bytes_each + n_processes * (beside.activations + beside.kv)
    held += (n_processes - 1) * beside.context
    if held > beside.usable * (1 + TOLERANCE):
        _fail(f"{name} holds {held!r} bytes, and its GPUs have {beside.usable!r} for it")


def _pressure(problem: FleetProblem) -> float:
    return (1 + problem.headroom_fraction) / problem.utilization_cap


def _check_counts(plan: Plan, item: AdapterPlan, by_key: Options) -> None:
    """The placement has the replicas that the plan allocates, and says of each option what it has room for."""
    placed = Counter(replica.option for replica in item.placement)
    allocated = {row.option: row.replicas for row in plan.allocation if row.service == item.service}
    hosts = {host.option: host.replicas for host in item.hosts}
    if placed != allocated or hosts != allocated:
        _fail(f"it allocates {allocated} of {item.service}, has {hosts} hosts of adapters and fills {dict(placed)}")
    for host in item.hosts:
        slots = by_key[item.service, host.option].slots
        stated = (host.isolation, host.slots, host.slot_bytes)
        if slots is None or stated != (slots.isolation, slots.count, slots.bytes_each):
            _fail(f"it says {stated} of the slots of {host.option}, whose replicas have others")


def _check_routes(plan: Plan, item: AdapterPlan, asked: _Asked) -> None:
    """The routes of every group and size are what its adapters' replicas serve, and every adapter's group is told."""
    if any(share.group != asked.tenants[share.adapter].group for share in item.shares):
        _fail(f"it says another group of an adapter of {item.service}")
    if any(share.rate_rps != asked.tenants[share.adapter].rate_rps for share in item.shares):
        _fail(f"it says another rate of an adapter of {item.service}")
    if (item.adapters, item.idle) != (len(asked.tenants), asked.idle):
        _fail(
            f"it has {item.adapters} adapters of {item.service} and {len(item.idle)} idle ones, who are not those asked"
        )
    served: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for replica in item.placement:
        for hosted in replica.adapters:
            for index, rate in asked.served(hosted).items():
                served[index][replica.option] += rate
    routes = {(route.row, route.column): route for route in plan.routing if route.service == item.service}
    for index, bucket in enumerate(asked.demand.buckets):
        route = routes[bucket.row, bucket.column]
        if route.group != bucket.group:
            _fail(f"bucket {index} of {item.service} is group {bucket.group}'s, and it says {route.group}")
        weights = route.weights
        mine = {option: rate / bucket.rate_rps for option, rate in served[index].items()}
        if any(abs(weights.get(key, 0.0) - mine.get(key, 0.0)) > TOLERANCE for key in {*weights, *mine}):
            _fail(f"bucket {index} of {item.service} is routed by {dict(weights)}, and its adapters serve {mine}")


def _check_costs(plan: Plan, item: AdapterPlan) -> None:
    """What the adapters cost is what their replicas cost."""
    paid = sum(row.cost_usd_per_hour for row in plan.allocation if row.service == item.service)
    stated = sum(share.usd_per_month for share in item.shares)
    if abs(stated - (usd_per_month(paid) or 0.0)) > COST_TOLERANCE * max(stated, 1.0):
        _fail(f"the adapters of {item.service} cost {stated!r} USD/month together, and their replicas {paid!r} USD/h")
    if not all(0 <= share.usd_per_month < math.inf for share in item.shares):
        _fail(f"an adapter of {item.service} costs what no adapter can")
    copies = Counter(hosted.adapter for replica in item.placement for hosted in replica.adapters)
    if {share.adapter: share.replicas for share in item.shares} != copies:
        _fail(f"it miscounts the replicas that hold an adapter of {item.service}")
