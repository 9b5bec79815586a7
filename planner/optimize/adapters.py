"""`solve` where requests are for adapters: a programme over groups, and then a place for every adapter.

The bound is that of the programme over groups, which no placement of whole adapters can beat
(`planner.domain.adapter_groups`); the plan is what was placed, so its gap has in it what whole adapters cost. Where
requests have sizes the bound comes first (`adapter_bound`), and then fleets with room to spare at prices above it
(`roomy`), in which adapters look for homes (`homes`).
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
    HostedAdapter,
    PlanStatus,
)
from planner.domain.provenance import Warning_
from planner.errors import InputError, SolverLiedError
from planner.optimize.adapter_bound import Proof, Whole
from planner.optimize.arrays import fleet_arrays, replicas_per_instance
from planner.optimize.assemble import assemble, empty_plan, relative_gap
from planner.optimize.coarser import (
    Coarser,
    at_its_cheapest,
    has_sizes,
    in_full,
    is_exact,
    on_one_route,
    restated,
    with_kin,
)
from planner.optimize.homes import best_slots
from planner.optimize.hosts import DUST, ServiceOptions
from planner.optimize.naming import option_keys
from planner.optimize.placement import place, place_at_home
from planner.optimize.plan_check import verify_plan
from planner.optimize.prune import prune
from planner.optimize.roomy import roomiest
from planner.optimize.search import SearchResult, clean_bound, search
from planner.optimize.settings import Clock
from planner.optimize.spread import cheapest
from planner.optimize.termination import Termination
from planner.optimize.unserved import unserved_conflicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
FEW_SIZES = 6
"""Classes of sizes of each kin, for the search of a fleet."""
FEW_GROUPS = 40
"""Of a service, for that search."""
BY_RATE = 3
"""Kin that groups served alike are in that search: what busy adapters need and what many idle ones do, apart."""
FIRST_RAISE = 0.022
"""Above the bound: the first price at which a fleet is looked for."""
FIRST_ROUGH_RAISE = 0.05
CLOSE_RAISES = 0.004
"""Prices that differ by less are not told apart."""
SMALL = 60
"""Groups times options."""
CLOSE_ROUGH_RAISES = 0.015
MOST_RAISE = 1.0
"""From there on fleets are searched by larger loads instead."""
BOUND_FRACTION = 0.2
"""Of the time limit, for each of the two relaxations that prove a bound."""
FLEETS_FRACTION = 0.55
"""Of the time limit, until no more fleets are looked for."""
EACH_FLEET_FRACTION = 0.15
ONE_ROUTE_FRACTION = 0.1
"""Of the time limit, for a search of plans with one route for all sizes, where these may be cheaper."""


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


def solve_with_adapters(
    problem: FleetProblem, settings: SolverSettings, assignment: Assignment, *, is_rough: bool = False
) -> Plan:
    """Return the cheapest verified plan that is found, in which every adapter has its places; or why there is none.

    Parameters
    ----------
    is_rough : for what a plan is compared with: within about a percent of the cheapest price at which homes are found,
        and a linear bound.

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
    clock = Clock(settings)
    if has_sizes(problem) or not is_exact(problem):
        result, best, seconds = _with_sizes(problem, clock, assignment, is_rough=is_rough)
    else:
        whole = Coarser(problem=problem, made_of={id(option): option for option in problem.options})
        result, best, seconds = _searched(problem, whole, clock, assignment, is_rough=is_rough)
    if best is None and result.fleet is None:
        return empty_plan(result, settings)
    if best is None:
        nothing = replace(result, fleet=None, seconds=seconds, termination=Termination.TIME_LIMIT)
        cost = 0.0 if result.fleet is None else result.fleet.cost_usd_per_hour
        return replace(empty_plan(nothing, settings), warnings=(_not_placed(cost),))
    bound = clean_bound(result.bound_usd_per_hour, best.placed.fleet)
    plan = replace(
        best.plan,
        bound_usd_per_hour=bound,
        gap=relative_gap(best.plan.cost_usd_per_hour, bound),
        solver=replace(best.plan.solver, seconds=seconds),
        assumptions=(UNSETTLED,),
    )
    is_proven = result.termination is Termination.OPTIMAL and _is_within(plan, settings)
    return replace(plan, status=PlanStatus.OPTIMAL if is_proven else PlanStatus.FEASIBLE)


def _with_sizes(
    problem: FleetProblem, clock: Clock, assignment: Assignment, *, is_rough: bool
) -> tuple[SearchResult, _Candidate | None, float]:
    """Return a search's result with the bound of all plans, the cheapest candidate, and the seconds that all took.

    A fleet is searched with few classes of sizes, each routed as a whole: its plans are plans. The bound is that of the
    programme with all sizes apart.
    """
    proof = Proof(with_kin(at_its_cheapest(problem)).problem, assignment)
    proof.relax(Whole.NOTHING, clock.settings())
    if not (is_rough or math.isinf(proof.total_usd_per_hour)):
        proof.relax(Whole.INSTANCES, _part(clock, BOUND_FRACTION))
    result = SearchResult(
        fleet=None,
        bound_usd_per_hour=proof.total_usd_per_hour,
        termination=Termination.INFEASIBLE if math.isinf(proof.total_usd_per_hour) else Termination.TIME_LIMIT,
        seconds=0.0,
        solver=clock.asked.solver,
        version="",
    )
    if result.termination is Termination.INFEASIBLE:
        return result, None, proof.seconds
    is_rough = is_rough or proof.is_interrupted
    few = with_kin(problem, sizes=FEW_SIZES, by_rate=BY_RATE, most_groups=FEW_GROUPS)
    best, seconds = _within_prices(problem, few, proof, clock, assignment, is_rough=is_rough)
    if best is None:
        result, best, more = _searched(
            problem, few, Clock(_part(clock, FLEETS_FRACTION)), assignment, is_rough=is_rough
        )
        seconds += more
    one = on_one_route(problem)
    if has_sizes(problem) and not is_rough and not fleet_arrays(one.problem, assignment).unserved:
        together = Proof(one.problem, assignment)
        together.relax(Whole.NOTHING, _part(clock, ONE_ROUTE_FRACTION))
        seconds += together.seconds
        if best is None or together.total_usd_per_hour < best.placed.fleet.total_usd_per_hour:
            limited = Clock(_part(clock, ONE_ROUTE_FRACTION))
            result, other, more = _searched(problem, one, limited, assignment, is_rough=is_rough)
            best, seconds = _better(best, other), seconds + more
    known = math.inf if best is None else best.placed.fleet.total_usd_per_hour
    if not is_rough:
        proof.relax(Whole.REPLICAS, _part(clock, BOUND_FRACTION), known_usd_per_hour=known)
    seconds += proof.seconds
    if best is None:
        is_none = math.isinf(proof.total_usd_per_hour)
        termination = Termination.INFEASIBLE if is_none else Termination.TIME_LIMIT
        return replace(result, bound_usd_per_hour=proof.total_usd_per_hour, termination=termination), None, seconds
    bound = clean_bound(proof.total_usd_per_hour, best.placed.fleet)
    return replace(result, bound_usd_per_hour=bound, termination=Termination.OPTIMAL), best, seconds


def _is_sharing(problem: FleetProblem) -> bool:
    """Return whether any option holds several adapters."""
    return any(option.slots is not None and option.slots.count > 1 for option in problem.options)


def _is_small(problem: FleetProblem) -> bool:
    """Return whether fleets are searched by larger loads too: of few groups and options that takes no time."""
    n_groups = sum(len({tenant.group for tenant in tenancy.tenants}) for tenancy in problem.tenancies)
    return n_groups * len(problem.options) <= SMALL


def _part(clock: Clock, fraction: float) -> SolverSettings:
    """Return the settings with what is left of the time, and at most so much of the whole."""
    limit_s = min(clock.settings().time_limit_s, fraction * clock.asked.time_limit_s)
    return replace(clock.asked, time_limit_s=limit_s)


def _within_prices(
    problem: FleetProblem, few: Coarser, proof: Proof, clock: Clock, assignment: Assignment, *, is_rough: bool
) -> tuple[_Candidate | None, float]:
    """Return the cheapest plan whose fleet has room for all adapters at one price or another, and the seconds.

    Prices are raised above the bound until adapters find their places, and then lowered half-way to where they did not.
    """
    fleet = fleet_arrays(prune(few.problem), assignment)
    base = proof.total_usd_per_hour
    if base <= 0 or not _share(fleet):
        return None, 0.0
    limit = Clock(_part(clock, FLEETS_FRACTION))
    best: _Candidate | None = None
    seconds, refused, held = 0.0, 0.0, math.inf
    raised, close = (FIRST_ROUGH_RAISE, CLOSE_ROUGH_RAISES) if is_rough else (FIRST_RAISE, CLOSE_RAISES)
    while not limit.is_over and raised <= MOST_RAISE:
        found = roomiest(fleet, base * (1 + raised), _part(limit, EACH_FLEET_FRACTION))
        seconds += found.seconds
        candidate = _at_home(problem, (fleet, few), found, clock.asked, assignment)
        best = _better(best, candidate)
        if candidate is None or best is None:
            refused = raised
        else:
            held = min(raised, best.placed.fleet.total_usd_per_hour / base - 1)
        if found.termination is Termination.INTERRUPTED or held - refused <= close:
            break
        raised = (refused + held) / 2 if best is not None else 2 * refused
    return best, seconds


def _share(fleet: FleetArrays) -> bool:
    """Return whether any two adapters can share a replica; else there are no homes to look for."""
    return any(option.slots is not None and option.slots.count > 1 for option in fleet.options)


def _at_home(
    problem: FleetProblem,
    searched: tuple[FleetArrays, Coarser],
    found: SearchResult,
    settings: SolverSettings,
    assignment: Assignment,
) -> _Candidate | None:
    """Return the plan of a fleet with places for all adapters, all sizes of their requests apart; None without.

    searched : the arrays that the fleet was found in, and the problem that they are of.
    """
    fleet, few = searched
    if found.fleet is None or not _share(fleet):
        return None
    chosen = _with_better_slots(few.problem, fleet, found.fleet)
    # Rules count what is rented and does not serve, too.
    whole, chosen, _ = in_full(problem, assignment, fleet, chosen, few, is_used_only=not problem.rules)
    placed = place_at_home(problem, whole, chosen)
    return None if placed is None else _candidate(problem, whole, found, placed, settings)


def _with_better_slots(problem: FleetProblem, fleet: FleetArrays, chosen: Fleet) -> Fleet:
    """Return the fleet with as many replicas on the same instances, with slots that leave most room."""
    replicas = chosen.replicas
    for tenancy in problem.tenancies:
        replicas = best_slots(ServiceOptions(fleet, tenancy), replicas)
    return replace(chosen, replicas=replicas)


def _searched(
    problem: FleetProblem, coarser: Coarser, clock: Clock, assignment: Assignment, *, is_rough: bool
) -> tuple[SearchResult, _Candidate | None, float]:
    """Return the search of a problem with fewer buckets, the cheapest candidate for the whole one, and the seconds.

    Where what was placed is not what was found, the search is repeated with larger loads.
    """
    fleet, result = cheapest(coarser.problem, clock.settings(), assignment)
    settings = clock.asked
    best: _Candidate | None = None
    seconds, found = result.seconds, result
    for margin in (*MARGINS, None):
        if found.fleet is None:
            break
        # The bound is for the loads that are asked for, not for larger ones.
        known = replace(found, bound_usd_per_hour=result.bound_usd_per_hour, termination=result.termination)
        candidate = _at_home(problem, (fleet, coarser), known, settings, assignment)
        if candidate is None:
            placed = place(coarser.problem, fleet, found.fleet)
            whole, restored = restated(problem, assignment, fleet, placed, coarser)
            candidate = _candidate(problem, whole, known, restored, settings)
        best = _better(best, candidate)
        if margin is None or clock.is_over or result.termination is Termination.INTERRUPTED:
            break
        if best is not None and (is_rough or _is_within(best.plan, settings)):
            break
        found = search(fleet.with_margin(margin), _again(clock))
        seconds += found.seconds
    return result, best, seconds


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


def _better(best: _Candidate | None, other: _Candidate | None) -> _Candidate | None:
    if best is None or other is None:
        return other if best is None else best
    costs = (best.plan.cost_usd_per_hour or 0.0, other.plan.cost_usd_per_hour or 0.0)
    return other if costs[1] < costs[0] else best


def _is_within(plan: Plan, settings: SolverSettings) -> bool:
    """Return whether the plan costs as little as was asked for."""
    return plan.gap is not None and plan.gap <= settings.relative_gap + 1e-9


def _candidate(
    problem: FleetProblem, fleet: FleetArrays, first: SearchResult, placed: Placed, settings: SolverSettings
) -> _Candidate | None:
    """Return the verified plan of what was placed, with the bound of the `first` search; None if limits forbid it."""
    # The programme's bound is for its own fleet; nothing stands beside the price of what is rented here.
    plan = assemble(problem, fleet, placed.fleet, replace(first, fleet=placed.fleet), settings=settings)
    plan = replace(plan, adapters=tuple(adapter_plans(problem, fleet, placed, plan)))
    plan = replace(plan, gap=relative_gap(plan.cost_usd_per_hour, plan.bound_usd_per_hour))
    try:
        verify_plan(problem, plan)
    except SolverLiedError:
        if problem.limits or problem.rules or any(option.offer.available is not None for option in problem.options):
            return None  # placing whole adapters does not look at them
        raise
    return _Candidate(plan=plan, placed=placed, fleet=fleet)


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
                engine_flags=slots.engine_flags,
            )


DEDICATED = "dedicated"
ONE_POOL = "one pool"


def with_alternatives(problem: FleetProblem, plan: Plan, settings: SolverSettings, assignment: Assignment) -> Plan:
    """Return `plan` with what the same adapters would cost in two other ways, planned alike.

    All services with adapters are served the other way at once, so each of them is told the cost of the whole plan.
    """
    if plan.cost_usd_per_hour is None or not plan.adapters:
        return plan
    clock = Clock(settings)
    ways = {DEDICATED: _dedicated(problem), ONE_POOL: _one_pool(problem)}
    found = tuple(_alternative(way, other, clock, assignment) for way, other in ways.items())
    adapters = tuple(replace(item, alternatives=found) for item in plan.adapters)
    return replace(plan, adapters=adapters)


def _alternative(way: str, problem: FleetProblem | None, clock: Clock, assignment: Assignment) -> AdapterAlternative:
    def none(reason: str) -> AdapterAlternative:
        return AdapterAlternative(way=way, cost_usd_per_hour=None, bound_usd_per_hour=None, reason=reason)

    if problem is None:
        return none("no replica that can be had holds more than one of these adapters")
    if clock.is_over:
        return none("not solved within the time limit")
    if fleet_arrays(problem, assignment).unserved:
        return none(unserved_conflicts(problem)[0].explanation)
    plan = solve_with_adapters(problem, clock.settings(), assignment, is_rough=True)
    if plan.cost_usd_per_hour is None:
        is_proven = plan.status is PlanStatus.INFEASIBLE
        return none("the limits leave too little for it" if is_proven else "not solved within the time limit")
    return AdapterAlternative(
        way=way, cost_usd_per_hour=plan.cost_usd_per_hour, bound_usd_per_hour=plan.bound_usd_per_hour
    )


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
