"""`solve` where requests are for adapters: a programme over groups, and then a place for every adapter.

The bound is that of the programme over groups, which no placement of whole adapters can beat
(`planner.domain.adapter_groups`); the plan is what was placed, so its gap has in it what whole adapters cost.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.costs import usd_per_month
from planner.domain.plan import (
    AdapterAlternative,
    AdapterHost,
    AdapterPlan,
    AdapterReplica,
    AdapterShare,
    AdapterWay,
    HostedAdapter,
    PlanStatus,
)
from planner.domain.provenance import Warning_
from planner.errors import InputError, SolverLiedError
from planner.optimize.adapter_kept import where_they_are
from planner.optimize.adapter_search import (
    GroupSearch,
    is_better,
    is_within,
    proven,
    reached_by,
    search_again,
    search_groups,
    with_real_changes,
)
from planner.optimize.arrays import fleet_arrays, replicas_per_instance
from planner.optimize.assemble import assemble, empty_plan
from planner.optimize.coarser import Coarser, has_sizes, on_its_offers, on_one_route, restated, with_kin
from planner.optimize.hosts import DUST
from planner.optimize.naming import option_keys
from planner.optimize.placement import place
from planner.optimize.plan_check import verify_plan
from planner.optimize.settings import Clock
from planner.optimize.termination import Termination
from planner.optimize.unserved import unserved_conflicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.adapters import Tenancy
    from planner.domain.plan import Allocation, Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.workload import Demand
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.placement import Placed, Placement
    from planner.optimize.search import Fleet
    from planner.optimize.settings import Assignment, SolverSettings

MARGINS = (0.01, 0.03, 0.08)
"""By how much larger all loads are made, one after the other, where what was placed is not what was found."""
SEARCH_AGAIN_FRACTION = 0.15
"""Of the time limit, for each search with larger loads."""
ONE_ROUTE_FRACTION = 0.25
"""Of the time limit, for plans with one route for all sizes, before those over sizes are searched."""


NOT_PLACED = "W413"
UNSETTLED = (
    "Other fleets may cost the same and come first in the documented order (adapters are placed on its replicas); this "
    "is the one that is found every time."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    plan: Plan
    placed: Placed
    fleet: FleetArrays
    """That `placed` belongs to."""
    is_within: bool
    """Whether it is as good as was asked for."""
    values: tuple[float, ...]
    """Of the objectives, one after the other; the cost with what stands beside it where there are none."""


def solve_with_adapters(problem: FleetProblem, settings: SolverSettings, assignment: Assignment) -> Plan:
    """Return the cheapest verified plan that is found, in which every adapter has its places; or why there is none.

    Raises
    ------
    InputError: for buckets in slices.
    SolverError: if the solver fails or returns what does not satisfy the model.
    """
    if assignment.slice_factor is not None:
        raise InputError(
            "Adapters are whole already, and buckets of them are not cut into slices.",
            hint="Leave --assignment sliced out.",
        )
    clock, seconds = Clock(settings), 0.0
    one: _Candidate | None = None
    coarser = Coarser(problem=problem, made_of={id(option): option for option in problem.options})
    if has_sizes(problem):
        coarser = with_kin(problem)
        limit_s = ONE_ROUTE_FRACTION * settings.time_limit_s
        one, seconds = _on_one_route(problem, Clock(replace(settings, time_limit_s=limit_s)), assignment)
    first, best, more = _searched(problem, coarser, Clock(clock.settings()), assignment, one=one)
    result = first.result
    seconds += more
    if result.fleet is None and result.termination is Termination.INFEASIBLE:
        return empty_plan(result, settings)
    if best is None and result.fleet is None:
        return empty_plan(result, settings)
    if best is None:
        nothing = replace(result, fleet=None, seconds=seconds, termination=Termination.TIME_LIMIT)
        cost = 0.0 if result.fleet is None else result.fleet.cost_usd_per_hour
        return replace(empty_plan(nothing, settings), warnings=(_not_placed(cost),))
    best = _where_they_are(problem, best, first, settings)
    plan = replace(
        best.plan, solver=replace(best.plan.solver, seconds=seconds), assumptions=tuple(_assumptions(problem))
    )
    if plan.status is PlanStatus.OPTIMAL and not best.is_within:
        plan = replace(plan, status=PlanStatus.FEASIBLE)
    return plan


def _where_they_are(
    problem: FleetProblem, best: _Candidate, first: GroupSearch, settings: SolverSettings
) -> _Candidate:
    """Return `best` with its adapters where they are today, where its fleet is today's and that is as good."""
    placed = where_they_are(problem, best.fleet, best.placed)
    if placed is None:
        return best
    try:
        kept = _candidate(problem, best.fleet, first, placed, settings)
    except SolverLiedError:
        return best  # today's places do not serve what is asked now
    return best if kept is None or is_better(problem, best.values, than=kept.values) else kept


MOVED = (
    "Adapters that go to a replica that stays are loaded into it while it serves; that costs nothing here. One that is "
    "full gives up another adapter first: where adapters are in both plans says which."
)


def _assumptions(problem: FleetProblem) -> Iterator[str]:
    """Yield what a plan with adapters takes for granted of the search and of changes."""
    yield UNSETTLED
    if problem.change is not None:
        yield MOVED


def _on_one_route(problem: FleetProblem, clock: Clock, assignment: Assignment) -> tuple[_Candidate | None, float]:
    """Return the cheapest plan in which all sizes of an adapter go together, and the seconds that its search took."""
    one = on_one_route(problem)
    if fleet_arrays(one.problem, assignment).unserved:
        return None, 0.0
    _, best, seconds = _searched(problem, one, clock, assignment, one=None)
    return best, seconds


def _searched(
    problem: FleetProblem, coarser: Coarser, clock: Clock, assignment: Assignment, *, one: _Candidate | None
) -> tuple[GroupSearch, _Candidate | None, float]:
    """Return the search of a problem with fewer buckets, the best candidate for the whole one, and the seconds.

    Where what was placed is not what was found, the search is repeated with larger loads.

    Parameters
    ----------
    one : a candidate that is known already; its bound becomes this search's.
    """
    fleet, first = search_groups(coarser.problem, clock.settings(), assignment)
    settings = clock.asked
    best = None if one is None else _candidate(problem, one.fleet, first, one.placed, settings)
    seconds, found, larger = first.result.seconds, first.result, 0.0
    for margin in (*MARGINS, None):
        if found.fleet is None or (best is not None and best.is_within):
            break
        for placed in _placements(coarser.problem, fleet, found.fleet):
            whole, restored = restated(problem, assignment, fleet, placed, coarser.made_of)
            best = _better(problem, best, _candidate(problem, whole, first, restored, settings))
        if has_sizes(coarser.problem) and not (clock.is_over or (best is not None and best.is_within)):
            joint = on_its_offers(problem, assignment, fleet, found.fleet, coarser.made_of)
            again = search_again(problem, joint, _again(clock), margin=larger).result
            seconds += again.seconds
            if again.fleet is not None:
                for placed in _placements(problem, joint, again.fleet):
                    best = _better(problem, best, _candidate(problem, joint, first, placed, settings))
        if margin is None or clock.is_over or first.result.termination is Termination.INTERRUPTED:
            break
        if best is not None and best.is_within:
            break
        found, larger = search_again(problem, fleet, _again(clock), margin=margin).result, margin
        seconds += found.seconds
    return first, best, seconds


def _placements(problem: FleetProblem, fleet: FleetArrays, found: Fleet) -> Iterator[Placed]:
    """Yield `found` with every adapter placed as cheaply as can be; where more than rent decides, as it is too."""
    yield place(problem, fleet, found)
    if _is_limited(problem) or (problem.change is not None and problem.change.is_priced):
        yield place(problem, fleet, found, is_kept=True)


def _is_limited(problem: FleetProblem) -> bool:
    """Return whether anything may forbid what is placed, although groups of adapters may be there."""
    has_stock = any(option.offer.available is not None for option in problem.options)
    return bool(problem.limits or problem.rules) or has_stock


def _again(clock: Clock) -> SolverSettings:
    """Return the settings of one more search."""
    limit_s = min(clock.settings().time_limit_s, SEARCH_AGAIN_FRACTION * clock.asked.time_limit_s)
    return replace(clock.asked, time_limit_s=limit_s)


def _not_placed(cost_usd_per_hour: float) -> Warning_:
    return Warning_(
        code=NOT_PLACED,
        message=f"Groups of adapters fit the limits at {cost_usd_per_hour:.2f} USD/h, and no place was found in them "
        "for every whole adapter.",
        observed=cost_usd_per_hour,
    )


def _better(problem: FleetProblem, best: _Candidate | None, other: _Candidate | None) -> _Candidate | None:
    if best is None or other is None:
        return other if best is None else best
    return other if is_better(problem, other.values, than=best.values) else best


def _candidate(
    problem: FleetProblem, fleet: FleetArrays, first: GroupSearch, placed: Placed, settings: SolverSettings
) -> _Candidate | None:
    """Return the verified plan of what was placed, with the bounds of the `first` search; None if limits forbid it."""
    plan = assemble(problem, fleet, placed.fleet, replace(first.result, fleet=placed.fleet), settings=settings)
    plan = replace(plan, adapters=tuple(adapter_plans(problem, fleet, placed, plan)))
    chosen, plan = with_real_changes(problem, placed.fleet, plan)
    reached = reached_by(problem, fleet, chosen, first)
    plan = proven(problem, chosen, replace(plan, objectives=reached), first)
    try:
        verify_plan(problem, plan)
    except SolverLiedError:
        if _is_limited(problem):
            return None  # placing whole adapters does not look at them
        raise
    return _Candidate(
        plan=plan,
        placed=placed,
        fleet=fleet,
        is_within=is_within(problem, chosen, plan, first, settings.relative_gap),
        values=tuple(item.value for item in reached) or (chosen.total_usd_per_hour,),
    )


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
    ways = {AdapterWay.DEDICATED: _dedicated(problem), AdapterWay.ONE_POOL: _one_pool(problem)}
    return tuple(_other_way(way, other, clock, assignment) for way, other in ways.items())


def with_alternatives(plan: Plan, ways: Sequence[OtherWay]) -> Plan:
    """Return `plan` with what other ways would cost: each service is told the cost of the whole plan."""
    found = tuple(way.told for way in ways)
    return replace(plan, adapters=tuple(replace(item, alternatives=found) for item in plan.adapters))


def _other_way(way: AdapterWay, problem: FleetProblem | None, clock: Clock, assignment: Assignment) -> OtherWay:
    def none(reason: str) -> OtherWay:
        told = AdapterAlternative(way=way, cost_usd_per_hour=None, bound_usd_per_hour=None, reason=reason)
        return OtherWay(told=told, problem=problem)

    if problem is None:
        return none("no replica that can be had holds more than one of these adapters")
    if clock.is_over:
        return none("not solved within the time limit")
    if fleet_arrays(problem, assignment).unserved:
        return none(unserved_conflicts(problem)[0].explanation)
    plan = solve_with_adapters(problem, clock.settings(), assignment)
    if plan.cost_usd_per_hour is None:
        is_proven = plan.status is PlanStatus.INFEASIBLE
        return none("the limits leave too little for it" if is_proven else "not solved within the time limit")
    told = AdapterAlternative(
        way=way, cost_usd_per_hour=plan.cost_usd_per_hour, bound_usd_per_hour=plan.bound_usd_per_hour
    )
    return OtherWay(told=told, problem=problem, plan=plan)


def _dedicated(problem: FleetProblem) -> FleetProblem:
    """Return the problem in which every adapter has replicas of its own."""
    options = (option for option in problem.options if option.slots is None or option.slots.count == 1)
    return replace(problem, options=tuple(options))


def _one_pool(problem: FleetProblem) -> FleetProblem | None:
    """Return the problem in which all adapters of a service that may share do so on replicas of one kind.

    The kind is the one whose whole instances cost least for load and slots together, the first of these. Adapters that
    share nothing keep replicas of their own. None where a service has none that hold several.
    """
    pressure = (1 + problem.headroom_fraction) / problem.utilization_cap
    kept: list[ServingOption] = [option for option in problem.options if option.slots is None]
    demands = {demand.service: demand for demand in problem.demands}
    for tenancy in problem.tenancies:
        demand = demands[tenancy.service]
        mine = [option for option in problem.options if option.service == tenancy.service]
        sharing = [option for option in mine if option.slots is not None and option.slots.count > 1]
        groups = {
            bucket.group
            for index, bucket in enumerate(demand.buckets)
            if any(option.throughput_rps[index] > 0 for option in sharing)
        }
        may_share = {index for index, bucket in enumerate(demand.buckets) if bucket.group in groups}
        able = [option for option in sharing if all(option.throughput_rps[bucket] > 0 for bucket in may_share)]
        if not able or not may_share:
            return None
        n_members = sum(len(tenancy.members(group)) for group in groups)
        prices = [_pool_price(option, demand, may_share, n_members, pressure) for option in able]
        best = able[prices.index(min(prices))]
        kept.append(best)
        for option in mine:
            if option.slots is not None and option.slots.count == 1:
                rates = option.throughput_rps.copy()
                rates[sorted(may_share)] = 0.0
                kept.append(replace(option, throughput_rps=rates))
    return replace(problem, options=tuple(kept))


def _pool_price(option: ServingOption, demand: Demand, buckets: set[int], n_adapters: int, pressure: float) -> float:
    """Return what whole instances of `option` for these buckets of so many adapters cost at least, in USD/h."""
    load = pressure * sum(demand.buckets[index].rate_rps / float(option.usable_rps[index]) for index in buckets)
    slots = 1 if option.slots is None else option.slots.count
    replicas = math.ceil(max(load, n_adapters / slots) - DUST)
    return float(option.offer.price_usd_per_hour) * math.ceil(replicas / replicas_per_instance(option))
