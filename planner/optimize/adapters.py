"""`solve` where requests are for adapters: a programme over groups, and then a place for every adapter.

The bound is that of the programme over groups, which no placement of whole adapters can beat
(`planner.domain.adapter_groups`); the plan is what was placed, so its gap has in it what whole adapters cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.plan import (
    PlanStatus,
)
from planner.domain.problem import ShareCap
from planner.domain.provenance import Warning_
from planner.errors import InputError, SolverLiedError
from planner.optimize.adapter_bound import Proof, Whole
from planner.optimize.adapter_check import check_adapters
from planner.optimize.adapter_kept import where_they_are
from planner.optimize.adapter_plans import adapter_plans
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
from planner.optimize.arrays import fleet_arrays
from planner.optimize.assemble import assemble, empty_plan
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
from planner.optimize.egress import is_priced as is_egress_priced
from planner.optimize.energy import counts_energy
from planner.optimize.homes import best_slots
from planner.optimize.hosts import ServiceOptions
from planner.optimize.naming import option_keys
from planner.optimize.placement import place, place_at_home
from planner.optimize.plan_check import verify_plan
from planner.optimize.prune import prune
from planner.optimize.roomy import roomiest
from planner.optimize.search import SearchResult, clean_bound
from planner.optimize.settings import Clock
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.placement import Placed
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
KIN_ONE_ROUTE_FRACTION = 0.25
"""The same where all sizes are apart in the search."""


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
    chosen: Fleet
    """What was placed, with the changes that its adapters come to."""
    is_within: bool
    """Whether it is as good as was asked for."""
    values: tuple[float, ...]
    """Of the objectives, one after the other; the cost with what stands beside it where there are none."""


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
    is_whole = not has_sizes(problem) and is_exact(problem)
    if is_whole:
        coarser = Coarser(problem=problem, made_of={id(option): option for option in problem.options})
        first, best, seconds = _searched(problem, coarser, clock, assignment, is_rough=is_rough)
        if _is_of_rent(problem) and not (is_rough or (best is not None and best.is_within)):
            # Slots may be too few where loads are not too large: a dearer fleet with more room is another one.
            other, more = _within_prices(problem, coarser, first, clock, assignment, is_rough=False)
            best, seconds = _better(problem, best, other), seconds + more
    elif _is_of_rent(problem):
        first, best, seconds = _with_sizes(problem, clock, assignment, is_rough=is_rough)
    else:
        first, best, seconds = _with_kin(problem, clock, assignment, is_rough=is_rough)
    result = first.result
    if best is None and (result.termination is Termination.INFEASIBLE or (result.fleet is None and clock.is_over)):
        return empty_plan(result, settings)
    if best is None and result.termination is not Termination.INTERRUPTED:
        ended = Termination.TIME_LIMIT if clock.is_over else Termination.OTHER_LIMIT
        nothing = replace(result, fleet=None, seconds=seconds, termination=ended)
        return replace(empty_plan(nothing, settings), warnings=(_not_placed(first),))
    if best is None:
        return empty_plan(replace(result, fleet=None, seconds=seconds), settings)
    best = _where_they_are(problem, best, first, settings)
    # What was found may have been judged by the bounds of another search, which are not those of all plans.
    reached = reached_by(problem, best.fleet, best.chosen, first)
    plan = replace(
        proven(problem, best.chosen, replace(best.plan, objectives=reached), first),
        solver=replace(best.plan.solver, seconds=seconds),
        assumptions=tuple(_assumptions(problem)),
    )
    is_proven = result.termination is Termination.OPTIMAL and is_within(
        problem, best.chosen, plan, first, settings.relative_gap
    )
    return replace(plan, status=PlanStatus.OPTIMAL if is_proven else PlanStatus.FEASIBLE)


def _is_of_rent(problem: FleetProblem) -> bool:
    """Return whether rent alone decides: nothing beside it has a price or a cap that depends on who serves what."""
    is_priced = problem.change is not None and problem.change.is_priced
    has_caps = any(isinstance(rule, ShareCap) for rule in problem.rules)
    counts_more = counts_energy(problem) or is_egress_priced(problem.egress)
    return not (problem.goal or counts_more or is_priced or has_caps)


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


def _with_sizes(
    problem: FleetProblem, clock: Clock, assignment: Assignment, *, is_rough: bool
) -> tuple[GroupSearch, _Candidate | None, float]:
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
        return GroupSearch(result=result), None, proof.seconds
    is_rough = is_rough or proof.is_interrupted
    few = with_kin(problem, sizes=FEW_SIZES, by_rate=BY_RATE, most_groups=FEW_GROUPS)
    best, seconds = _within_prices(problem, few, GroupSearch(result=result), clock, assignment, is_rough=is_rough)
    if best is None:
        limited = Clock(_part(clock, FLEETS_FRACTION))
        _, best, more = _searched(problem, few, limited, assignment, is_rough=is_rough)
        seconds += more
    one = on_one_route(problem)
    if has_sizes(problem) and not is_rough and not fleet_arrays(one.problem, assignment).unserved:
        together = Proof(one.problem, assignment)
        together.relax(Whole.NOTHING, _part(clock, ONE_ROUTE_FRACTION))
        seconds += together.seconds
        if best is None or together.total_usd_per_hour < best.placed.fleet.total_usd_per_hour:
            limited = Clock(_part(clock, ONE_ROUTE_FRACTION))
            _, other, more = _searched(problem, one, limited, assignment, is_rough=is_rough)
            best, seconds = _better(problem, best, other), seconds + more
    known = math.inf if best is None else best.placed.fleet.total_usd_per_hour
    if not is_rough:
        proof.relax(Whole.REPLICAS, _part(clock, BOUND_FRACTION), known_usd_per_hour=known)
    seconds += proof.seconds
    bound = proof.total_usd_per_hour
    if best is None:
        stopped = Termination.INTERRUPTED if proof.is_interrupted else Termination.TIME_LIMIT
        termination = Termination.INFEASIBLE if math.isinf(bound) else stopped
        return GroupSearch(result=replace(result, bound_usd_per_hour=bound, termination=termination)), None, seconds
    proved = replace(result, bound_usd_per_hour=clean_bound(bound, best.chosen), termination=Termination.OPTIMAL)
    return GroupSearch(result=proved), best, seconds


def _with_kin(
    problem: FleetProblem, clock: Clock, assignment: Assignment, *, is_rough: bool
) -> tuple[GroupSearch, _Candidate | None, float]:
    """Return the search over kin with all sizes apart, the best candidate, and the seconds; whatever is minimised.

    Its bound is that of plans with all sizes apart. Where sizes or objectives were put together it serves their mean or
    the strictest of them, so that nothing is proven of what is minimised instead of the cost, and of the cost what a
    linear programme says of the cheapest; nothing where egress has a price, since the cheapest have fewer tokens, too.
    """
    one = on_one_route(problem)
    best: _Candidate | None = None
    seconds = 0.0
    if has_sizes(problem) and not is_rough and not fleet_arrays(one.problem, assignment).unserved:
        _, best, seconds = _searched(
            problem, one, Clock(_part(clock, KIN_ONE_ROUTE_FRACTION)), assignment, is_rough=is_rough
        )
    first, other, more = _searched(
        problem, with_kin(problem), Clock(clock.settings()), assignment, is_rough=is_rough, known=best
    )
    best, seconds = _better(problem, best, other), seconds + more
    if is_exact(problem):
        return first, best, seconds
    proof = Proof(with_kin(at_its_cheapest(problem)).problem, assignment)
    proof.relax(Whole.NOTHING, clock.settings())
    seconds += proof.seconds
    if math.isinf(proof.total_usd_per_hour):
        return GroupSearch(result=replace(first.result, fleet=None, termination=Termination.INFEASIBLE)), best, seconds
    if first.result.termination is Termination.INFEASIBLE:  # but not what tells apart what was put together
        first = GroupSearch(result=replace(first.result, termination=Termination.OTHER_LIMIT), aimed=first.aimed)
    has_none = problem.goal is not None or is_egress_priced(problem.egress)
    return first.with_bound(None if has_none else proof.total_usd_per_hour), best, seconds


def _part(clock: Clock, fraction: float) -> SolverSettings:
    """Return the settings with what is left of the time, and at most so much of the whole."""
    limit_s = min(clock.settings().time_limit_s, fraction * clock.asked.time_limit_s)
    return replace(clock.asked, time_limit_s=limit_s)


def _within_prices(
    problem: FleetProblem, few: Coarser, first: GroupSearch, clock: Clock, assignment: Assignment, *, is_rough: bool
) -> tuple[_Candidate | None, float]:
    """Return the cheapest plan whose fleet has room for all adapters at one price or another, and the seconds.

    Prices are raised above the bound of the `first` search until adapters find their places, and then lowered half-way
    to where they did not.
    """
    fleet = fleet_arrays(prune(few.problem), assignment)
    base = first.total_bound or 0.0
    if base <= 0 or not _share(fleet):
        return None, 0.0
    limit = Clock(_part(clock, FLEETS_FRACTION))
    search = _Search(problem=problem, coarser=few, fleet=fleet, settings=clock.asked, assignment=assignment)
    best: _Candidate | None = None
    seconds, refused, held = 0.0, 0.0, math.inf
    raised, close = (FIRST_ROUGH_RAISE, CLOSE_ROUGH_RAISES) if is_rough else (FIRST_RAISE, CLOSE_RAISES)
    while not limit.is_over and raised <= MOST_RAISE:
        found = roomiest(fleet, base * (1 + raised), _part(limit, EACH_FLEET_FRACTION))
        seconds += found.seconds
        candidate = _at_home(search, found.fleet, GroupSearch(result=found))
        best = _better(problem, best, candidate)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """A problem, and the one with fewer buckets that is searched in its place."""

    problem: FleetProblem
    coarser: Coarser
    fleet: FleetArrays
    """Of the coarser one."""
    settings: SolverSettings
    assignment: Assignment


def _at_home(search: _Search, found: Fleet | None, first: GroupSearch) -> _Candidate | None:
    """Return the plan of a fleet with places for all adapters, all sizes of their requests apart; None without.

    first : the search whose bounds the plan has.
    """
    problem, fleet, few = search.problem, search.fleet, search.coarser
    if found is None or not _share(fleet):
        return None
    chosen = _with_better_slots(few.problem, fleet, found)
    # Rules count what is rented and does not serve, too.
    whole, chosen, _ = in_full(problem, search.assignment, fleet, chosen, few, is_used_only=not problem.rules)
    placed = place_at_home(problem, whole, chosen)
    return None if placed is None else _candidate(problem, whole, first, placed, search.settings)


def _with_better_slots(problem: FleetProblem, fleet: FleetArrays, chosen: Fleet) -> Fleet:
    """Return the fleet with as many replicas on the same instances, with slots that leave most room."""
    replicas = chosen.replicas
    for tenancy in problem.tenancies:
        replicas = best_slots(ServiceOptions(fleet, tenancy), replicas)
    return replace(chosen, replicas=replicas)


def _searched(
    problem: FleetProblem,
    coarser: Coarser,
    clock: Clock,
    assignment: Assignment,
    *,
    is_rough: bool,
    known: _Candidate | None = None,
) -> tuple[GroupSearch, _Candidate | None, float]:
    """Return the search of a problem with fewer buckets, the best candidate for the whole one, and the seconds.

    Where what was placed is not what was found, the search is repeated with larger loads.

    Parameters
    ----------
    known : a candidate that there is already; it is judged by this search's bounds.
    """
    fleet, first = search_groups(coarser.problem, clock.settings(), assignment)
    settings = clock.asked
    search = _Search(problem=problem, coarser=coarser, fleet=fleet, settings=settings, assignment=assignment)
    best = None if known is None else _candidate(problem, known.fleet, first, known.placed, settings)
    seconds, found = first.result.seconds, first.result
    for margin in (*MARGINS, None):
        if found.fleet is None or (best is not None and best.is_within):
            break
        for candidate in _candidates(search, found.fleet, first):
            best = _better(problem, best, candidate)
        if margin is None or clock.is_over or first.result.termination is Termination.INTERRUPTED:
            break
        if best is not None and (is_rough or best.is_within):
            break
        found = search_again(problem, fleet, _again(clock), margin=margin).result
        seconds += found.seconds
    return first, best, seconds


def _candidates(search: _Search, found: Fleet, first: GroupSearch) -> Iterator[_Candidate | None]:
    """Yield plans of a fleet over fewer buckets: at home where rent decides, else placed by its shares."""
    at_home = None
    if _is_of_rent(search.problem):
        at_home = _at_home(search, found, first)
        yield at_home
    if at_home is None:
        for placed in _placements(search.coarser.problem, search.fleet, found):
            whole, restored = restated(search.problem, search.assignment, search.fleet, placed, search.coarser)
            yield _candidate(search.problem, whole, first, restored, search.settings)


def _placements(problem: FleetProblem, fleet: FleetArrays, found: Fleet) -> Iterator[Placed]:
    """Yield `found` with every adapter placed as cheaply as can be; where more than rent decides, as it is too."""
    yield place(problem, fleet, found)
    if _is_limited(problem) or not _is_of_rent(problem):
        yield place(problem, fleet, found, is_kept=True)


def _is_limited(problem: FleetProblem) -> bool:
    """Return whether anything may forbid what is placed, although groups of adapters may be there."""
    has_stock = any(option.offer.available is not None for option in problem.options)
    return bool(problem.limits or problem.rules) or has_stock


def _again(clock: Clock) -> SolverSettings:
    """Return the settings of one more search."""
    limit_s = min(clock.settings().time_limit_s, SEARCH_AGAIN_FRACTION * clock.asked.time_limit_s)
    return replace(clock.asked, time_limit_s=limit_s)


def _not_placed(first: GroupSearch) -> Warning_:
    fleet, bound = first.result.fleet, first.total_bound or 0.0
    cost = bound if fleet is None else fleet.cost_usd_per_hour
    fits = "Parts of adapters" if fleet is None else "Groups of adapters"
    return Warning_(
        code=NOT_PLACED,
        message=f"{fits} fit the limits at {cost:.2f} USD/h, and no place was found in them for every whole adapter.",
        observed=cost,
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
        if not _is_limited(problem):
            raise
        keys = option_keys(problem.options)
        check_adapters(problem, plan, {(o.service, key): o for o, key in zip(problem.options, keys, strict=True)})
        return None  # adapters are where they may be; what limits forbid is not looked at while they are placed
    return _Candidate(
        plan=plan,
        placed=placed,
        fleet=fleet,
        chosen=chosen,
        is_within=is_within(problem, chosen, plan, first, settings.relative_gap),
        values=tuple(item.value for item in reached) or (chosen.total_usd_per_hour,),
    )
