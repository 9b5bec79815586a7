"""What a plan says of adapters: which of them are where, the room that they have, and what each costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from planner.domain.costs import usd_per_month
from planner.domain.plan import (
    AdapterHost,
    AdapterPlan,
    AdapterReplica,
    AdapterShare,
    HostedAdapter,
)
from planner.optimize.naming import option_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.adapters import Tenancy
    from planner.domain.plan import Allocation, Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.placement import Placed, Placement


def adapter_plans(problem: FleetProblem, fleet: FleetArrays, placed: Placed, plan: Plan) -> Iterator[AdapterPlan]:
    """Yield which adapters of each service are where, and what each costs, in the order of the problem."""
    names = dict(zip(map(id, problem.options), option_keys(problem.options), strict=True))
    keys = [names[id(option)] for option in fleet.options]
    placements = {placement.service: placement for placement in placed.placements}
    for tenancy in problem.tenancies:
        mine = {row.option: row for row in plan.allocation if row.service == tenancy.service}
        yield _adapter_plan(problem, fleet, tenancy, placements[tenancy.service], keys=keys, allocation=mine)


def _adapter_plan(
    problem: FleetProblem,
    fleet: FleetArrays,
    tenancy: Tenancy,
    placement: Placement,
    *,
    keys: list[str],
    allocation: Mapping[str, Allocation],
) -> AdapterPlan:
    pressure = (1 + problem.headroom_fraction) / problem.utilization_cap
    hosts = sorted(placement.hosts, key=lambda host: (keys[host.option], min(host.rates)))
    paid: dict[str, float] = defaultdict(float)
    copies: Counter[str] = Counter()
    replicas = []
    for host in hosts:
        option, row = fleet.options[host.option], allocation[keys[host.option]]
        price = row.cost_usd_per_hour / row.replicas
        total = sum(host.loads.values())
        for name, load in host.loads.items():
            paid[name] += usd_per_month(price * load / total) or 0.0
            copies[name] += 1
        replicas.append(
            AdapterReplica(
                option=keys[host.option],
                utilization=host.load * option.utilization_cap / pressure,
                adapters=tuple(
                    HostedAdapter(
                        adapter=name,
                        rate_rps=float(rates.sum()),
                        by_size_rps=tuple(rates.tolist()) if len(rates) > 1 else (),
                    )
                    for name, rates in sorted(host.rates.items(), key=lambda pair: (-pair[1].sum(), pair[0]))
                ),
            )
        )
    demand = next(demand for demand in problem.demands if demand.service == tenancy.service)
    return AdapterPlan(
        service=tenancy.service,
        adapters=len(tenancy.tenants),
        idle=tenancy.idle,
        groups=len({bucket.group for bucket in demand.buckets}),
        added_replicas=placement.added_replicas,
        hosts=tuple(_hosts(fleet, placement, keys)),
        placement=tuple(replicas),
        shares=tuple(
            AdapterShare(
                adapter=tenant.name,
                rate_rps=tenant.rate_rps,
                replicas=copies[tenant.name],
                usd_per_month=paid[tenant.name],
                group=tenant.group,
            )
            for tenant in tenancy.tenants
        ),
    )


def _hosts(fleet: FleetArrays, placement: Placement, keys: list[str]) -> Iterator[AdapterHost]:
    counts = Counter(host.option for host in placement.hosts)
    for option in sorted(counts, key=lambda j: keys[j]):
        slots = fleet.options[option].slots
        if slots is not None:
            yield AdapterHost(
                option=keys[option],
                isolation=slots.isolation,
                slots=slots.count,
                slot_bytes=slots.bytes_each,
                replicas=counts[option],
                rank=slots.rank,
                engine_flags=slots.engine_flags,
            )
