"""A fleet that someone chose, made a plan: routed, priced and checked like any other.

The replicas are given; the routing is the one that fills the fullest option least. Utilisation caps rise as far as that
fleet needs: whether it holds its objectives so full is for a simulation to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import InputError, SolverLiedError
from planner.optimize.arrays import fleet_arrays
from planner.optimize.assemble import assemble
from planner.optimize.naming import option_keys
from planner.optimize.plan_check import verify_plan
from planner.optimize.routing import balanced_shares, option_load
from planner.optimize.rows.minimums import kept_instances
from planner.optimize.rows.packing import instances_needed
from planner.optimize.search import Fleet, SearchResult, exact_cost
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from planner.domain.hardware import EngineConfig
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.settings import Assignment, SolverSettings

    OptionsByName = Mapping[tuple[str, str], ServingOption]
    """By service and option key."""

FULLEST = 8.0
"""Times the caps: a fleet that would have to be fuller than this is not looked at."""

OptionKind = tuple[str, str, int, "EngineConfig | None", str]
"""Service, GPU, its number, engine configuration and role, or what adapters share on it: what decides how full a
replica may be. How many adapters it has room for is not told apart: that is in its throughput."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenFleet:
    """A given fleet as a plan, and the problem that it is a plan of."""

    plan: Plan
    problem: FleetProblem
    """With caps as high as the plan needs."""


def kind_of(option: ServingOption) -> OptionKind:
    """Return what `option` has in common with those that serve as it does on other offers."""
    use = option.role.value if option.slots is None else option.slots.isolation.value
    return (option.service, option.offer.gpu, option.gpus_per_replica, option.config, use)


def with_caps(problem: FleetProblem, caps: Mapping[OptionKind, float], others: Mapping[str, float]) -> FleetProblem:
    """Return `problem` with utilisation caps by kind of option; of kinds that are not named, by service."""
    options = tuple(
        replace(option, utilization_cap=caps.get(kind_of(option), others.get(option.service, 1.0)))
        for option in problem.options
    )
    return replace(problem, options=options)


def fullness(
    problem: FleetProblem, replicas: Mapping[tuple[str, str], int], options: OptionsByName, assignment: Assignment
) -> float | None:
    """Return the load of the fullest option as a multiple of its cap; None if these replicas cannot serve everything.

    Parameters
    ----------
    replicas : by service and option key; options : the problem's, by the same.
    """
    routed = _routed(problem, {id(options[name]): count for name, count in replicas.items()}, (), assignment)
    return None if routed is None else float(routed.load_per_replica.max(initial=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routed:
    """A fleet with its shares."""

    options: tuple[ServingOption, ...]
    fleet: FleetArrays
    replicas: IntArray
    shares: FloatArray
    load_per_replica: FloatArray
    """At the caps, shape (options,)."""


def _routed(
    problem: FleetProblem, count: Mapping[int, int], idle_offers: Collection[str], assignment: Assignment
) -> _Routed | None:
    """Return the fleet with so many replicas of each option, by its id; None if they cannot serve everything."""
    mine = tuple(
        option for option in problem.options if count.get(id(option), 0) > 0 or option.offer.name in idle_offers
    )
    try:
        fleet = fleet_arrays(replace(problem, options=mine), assignment)
    except InputError:
        return None  # a rule names what this fleet has nothing of
    n = np.array([count.get(id(option), 0) for option in fleet.options], dtype=np.int64)
    roomy = replace(fleet, pair_load=fleet.pair_load / FULLEST)
    shares = balanced_shares(roomy, n, np.zeros(len(fleet.pair_bucket)))
    if shares is None:
        return None
    load = np.where(n > 0, option_load(fleet, shares) / np.maximum(n, 1), 0.0)
    return _Routed(options=mine, fleet=fleet, replicas=n, shares=shares, load_per_replica=load)


def chosen_fleet(
    problem: FleetProblem,
    base: Plan,
    replicas: Mapping[tuple[str, str], int],
    *,
    settings: SolverSettings,
    assignment: Assignment,
) -> ChosenFleet | None:
    """Return the plan that runs `replicas` of each option; None if it cannot serve everything or breaks a rule.

    Parameters
    ----------
    problem : with one steady state, requests served whole and nothing to minimise but the cost of what is rented.
    base : a plan of the same problem: what it rents for a minimum alone stays.
    replicas : by service and option key, as in `Plan.allocation`.
    """
    names = zip((option.service for option in problem.options), option_keys(problem.options), strict=True)
    count = {id(option): replicas.get(name, 0) for option, name in zip(problem.options, names, strict=True)}
    kept = {rental.offer: rental.instances for rental in base.rentals}
    routed = _routed(problem, count, set(kept) - {item.offer for item in base.allocation}, assignment)
    if routed is None:
        return None
    rise: dict[OptionKind, float] = {}
    for option, part in zip(routed.fleet.options, routed.load_per_replica.tolist(), strict=True):
        rise[kind_of(option)] = max(rise.get(kind_of(option), 1.0), part)
    raised = {
        id(option): replace(option, utilization_cap=option.utilization_cap * rise[kind_of(option)])
        if kind_of(option) in rise
        else option
        for option in problem.options
    }
    whole = replace(problem, options=tuple(raised[id(option)] for option in problem.options))
    now = fleet_arrays(replace(whole, options=tuple(raised[id(option)] for option in routed.options)), assignment)
    holding = instances_needed(now, routed.replicas)
    rented = np.array([kept.get(now.offers[offer].name, 0) for offer in now.pool_offer.tolist()], dtype=np.int64)
    instances = kept_instances(now, np.maximum(holding, rented), holding)
    chosen = Fleet(
        replicas=routed.replicas,
        instances=instances,
        shares=routed.shares,
        cost_usd_per_hour=exact_cost(now, instances),
    )
    result = SearchResult(
        fleet=chosen,
        bound_usd_per_hour=None,
        termination=Termination(base.solver.termination),
        seconds=base.solver.seconds,
        solver=base.solver.name,
        version=base.solver.version,
    )
    plan = assemble(whole, now, chosen, result, settings=settings)
    try:
        verify_plan(whole, plan)
    except SolverLiedError:
        return None  # a limit or a rule does not allow this fleet
    return ChosenFleet(plan=plan, problem=whole)
