"""Fleets spread over many groups (regions, zones, providers): few of them are searched, and a bound holds for all.

Under rules on groups no offer takes the place of another group's, and every loss has shares of its own, so that a
catalog of eighty regions makes a programme that no solver ends. But all that runs on an offer can move to a group of
which the plan has nothing yet, if an offer there can take its place: what is lost with that group is no more than was
lost with the old one, and its part of the requests is no larger. So there is a cheapest plan in which every offer comes
after used groups only: with the offers that at least K other groups can stand in for left out, only plans with more
than K groups are lost. These cost at least R(K), so that

    min(bound of the search over the rest, R(K))

is a bound for all plans. R(K) is the programme without the rules on groups, with at least K + 1 instances, and, where a
loss is to be survived, with a row that follows from it for any value v[k] >= 0 of a replica of class k:

    sum_j v[k(j)] n[j] - v[k(i)] [n[i] >= 1] >= f sum_b min_k lam[b] / (U X[k, b]) v[k]         for every option i

A group that is lost takes at least one replica of something that runs, and by duality no replicas of less value serve
f of the demand. v is the price of a replica. K is doubled until the plan is within the gap, or gets no better.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.domain.problem import Facet, Minimum, Resource, Scenario, Scope, ShareCap, Survival
from planner.optimize.alike import option_classes
from planner.optimize.arrays import fleet_arrays
from planner.optimize.model import build_model
from planner.optimize.prune import prune, stand_ins
from planner.optimize.search import clean_bound, run, search
from planner.optimize.settings import Clock
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.model import FleetModel
    from planner.optimize.search import SearchResult
    from planner.optimize.settings import Assignment, SolverSettings

FACETS = (Facet.REGION, Facet.ZONE, Facet.PROVIDER)
SPREAD_FROM_SHARES = 60_000
"""Eligible pairs of bucket and option, times one and the losses, from which few groups are searched."""
FIRST_GROUPS = 2
NEARLY_ALL = 0.7
"""Part of the offers from which all of them are searched."""
WORTH_MORE_GROUPS = 1e-3
"""Relative: twice as many groups that save less than this are the last ones."""


def cheapest(
    problem: FleetProblem, settings: SolverSettings, assignment: Assignment
) -> tuple[FleetArrays, SearchResult]:
    """Return the cheapest fleet that is found for `problem` within the limits, and the arrays that it belongs to.

    The bound holds for the whole problem.
    """
    pruned = prune(problem)
    facet = _facet(pruned, assignment)
    if facet is None:
        fleet = fleet_arrays(pruned, assignment)
        return fleet, search(fleet, settings)
    return _in_few_groups(pruned, facet, settings, assignment)


def _facet(problem: FleetProblem, assignment: Assignment) -> Facet | None:
    """Return the groups of which few are to be searched; None where the whole problem is."""
    others = (problem.horizon, problem.goal, problem.shed, assignment.slice_factor)
    is_other = problem.jobs or any(isinstance(rule, Scenario) for rule in problem.rules)
    is_apart = any(option.handover is not None for option in problem.options)
    if is_other or is_apart or any(other is not None for other in others):
        return None
    n_pairs = sum(int(np.count_nonzero(option.throughput_rps)) for option in problem.options)
    offers = {option.offer.name: option.offer for option in problem.options}
    for facet in FACETS:
        rules = _rules_on(problem, facet)
        n_groups = len({facet.of(offer) for offer in offers.values()})
        n_losses = n_groups if any(isinstance(rule, Survival) for rule in rules) else 0
        if rules and n_groups > FIRST_GROUPS and n_pairs * (1 + n_losses) >= SPREAD_FROM_SHARES:
            return facet
    return None


def _rules_on(problem: FleetProblem, facet: Facet) -> tuple[ShareCap | Survival, ...]:
    """Return the rules on all groups of `facet`; one on some of them can be hurt by what moves to another group."""
    return tuple(
        rule
        for rule in problem.rules
        if isinstance(rule, ShareCap | Survival) and rule.facet is facet and rule.scope == Scope()
    )


def _in_few_groups(
    problem: FleetProblem, facet: Facet, settings: SolverSettings, assignment: Assignment
) -> tuple[FleetArrays, SearchResult]:
    """Return the cheapest fleet over the offers that few groups can stand in for, more of them step by step."""
    clock = Clock(settings)
    on_groups = _rules_on(problem, facet)
    free = replace(problem, rules=tuple(rule for rule in problem.rules if rule not in on_groups))
    standing_in = stand_ins(free, facet)
    n_groups, best, seconds = FIRST_GROUPS, None, 0.0
    while True:
        kept = {name for name, count in standing_in.items() if count < n_groups}
        is_all = len(kept) > NEARLY_ALL * len(standing_in)
        options = tuple(option for option in problem.options if is_all or option.offer.name in kept)
        fleet = fleet_arrays(replace(problem, options=options), assignment)
        found = search(fleet, clock.settings() if is_all else _half(clock))
        seconds += found.seconds
        if is_all:
            if best is None or best[1].fleet is None or _cost(found) < _cost(best[1]):
                return fleet, replace(found, seconds=seconds)
            return best[0], replace(_with_bound(best[1], _total_bound(found), settings), seconds=seconds)
        outside = _least_outside(free, on_groups, n_groups, _half(clock), assignment)
        bound = None if outside is None else min(outside, _total_bound(found))
        before = np.inf if best is None else _cost(best[1])
        if best is None or _cost(found) <= before:
            best = (fleet, found)
        best = (best[0], replace(_with_bound(best[1], bound, settings), seconds=seconds))
        gains_nothing = np.isfinite(before) and before - _cost(best[1]) <= WORTH_MORE_GROUPS * before
        if best[1].termination is Termination.OPTIMAL or gains_nothing or clock.is_over:
            return best
        n_groups *= 2


def _half(clock: Clock) -> SolverSettings:
    """Return the settings with half of the time that is left, so that something is left for what follows."""
    settings = clock.settings()
    return replace(settings, time_limit_s=settings.time_limit_s / 2)


def _cost(found: SearchResult) -> float:
    return np.inf if found.fleet is None else found.fleet.total_usd_per_hour


def _total_bound(found: SearchResult) -> float:
    """Return the bound of what a search minimised: nothing is less than infinity where there is no plan at all."""
    if found.fleet is None:
        return np.inf if found.termination is Termination.INFEASIBLE else found.bound_usd_per_hour or 0.0
    return (found.bound_usd_per_hour or 0.0) + found.fleet.total_usd_per_hour - found.fleet.cost_usd_per_hour


def _with_bound(found: SearchResult, total_bound: float | None, settings: SolverSettings) -> SearchResult:
    """Return a search's result with a bound that holds for all groups, and whether that proves it."""
    if found.fleet is None:
        return replace(found, bound_usd_per_hour=None, termination=Termination.OTHER_LIMIT)
    bound = clean_bound(total_bound, found.fleet)
    is_proven = bound is not None and found.fleet.cost_usd_per_hour - bound <= (
        settings.relative_gap * found.fleet.total_usd_per_hour
    )
    stopped_by = found.termination if found.termination.is_limit else Termination.OTHER_LIMIT
    return replace(found, bound_usd_per_hour=bound, termination=Termination.OPTIMAL if is_proven else stopped_by)


def _least_outside(
    free: FleetProblem,
    on_groups: tuple[ShareCap | Survival, ...],
    n_groups: int,
    settings: SolverSettings,
    assignment: Assignment,
) -> float | None:
    """Return what plans with more than `n_groups` groups cost at least, R(K); None if the time ended before."""
    more = Minimum(name="instances", resource=Resource.INSTANCES, bound=float(n_groups + 1))
    fleet = fleet_arrays(prune(replace(free, rules=(*free.rules, more))), assignment)
    # Beside the one replica that a loss takes, an option still serves everything: more than that helps nobody.
    model = build_model(replace(fleet, replicas_upper=fleet.replicas_upper + 1))
    survived = max((rule.bound for rule in on_groups if isinstance(rule, Survival)), default=0.0)
    if survived > 0:
        _define_value_left(model, survived)
    raw = run(model.freeze(), settings)
    return np.inf if raw.termination is Termination.INFEASIBLE else raw.bound


def _define_value_left(model: FleetModel, survived: float) -> None:
    """Add the rows that follow from any loss's survival, the value of a replica being its price."""
    fleet, builder = model.fleet, model.builder
    classes = option_classes(fleet)
    price = np.array([float(replica_price(option.offer, option.gpus_per_replica)) for option in fleet.options])
    value = np.full(int(classes.max(initial=-1)) + 1, np.inf)
    np.minimum.at(value, classes, price)
    least = np.full(len(fleet.buckets), np.inf)
    load = fleet.pair_load / (1 + fleet.headroom_fraction)
    np.minimum.at(least, fleet.pair_bucket, load * value[classes[fleet.pair_option]])
    n_options = len(fleet.options)
    options = np.arange(n_options)
    some = builder.add_columns("some", n_options, upper=1.0, is_integer=True)
    total = builder.add_columns("value", 1)
    builder.add_rows(
        "some",
        rows=np.concatenate([options, options]),
        columns=np.concatenate([model.n, some]),
        values=np.concatenate([np.ones(n_options), -fleet.replicas_upper]),
        upper=np.zeros(n_options),
    )
    builder.add_rows(
        "value",
        rows=np.zeros(n_options + 1, dtype=np.int64),
        columns=np.concatenate([model.n, total]),
        values=np.concatenate([value[classes], [-1.0]]),
        lower=[0.0],
        upper=[0.0],
    )
    builder.add_rows(
        "value left",
        rows=np.concatenate([options, options]),
        columns=np.concatenate([np.repeat(total, n_options), some]),
        values=np.concatenate([np.ones(n_options), -value[classes]]),
        lower=np.full(n_options, survived * float(least.sum())),
    )
