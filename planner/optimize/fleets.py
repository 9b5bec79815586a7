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
from planner.optimize.verify import PLAN_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import EngineConfig
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.optimize.settings import Assignment, SolverSettings

FULLEST = 8.0
"""Times the caps: a fleet that would have to be fuller than this is not looked at."""

OptionKind = tuple[str, str, int, "EngineConfig | None", str]
"""Service, GPU, its number, engine configuration and role: what decides how full a replica may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenFleet:
    """A given fleet as a plan, and the problem that it is a plan of."""

    plan: Plan
    problem: FleetProblem
    """With caps as high as the plan needs."""
    fullness: float
    """Load of the fullest option as a multiple of its cap before."""


def kind_of(option: ServingOption) -> OptionKind:
    """Return what `option` has in common with those that serve as it does on other offers."""
    return (option.service, option.offer.gpu, option.gpus_per_replica, option.config, option.role.value)


def with_caps(problem: FleetProblem, caps: Mapping[OptionKind, float], others: Mapping[str, float]) -> FleetProblem:
    """Return `problem` with utilisation caps by kind of option; of kinds that are not named, by service."""
    options = tuple(
        replace(option, utilization_cap=caps.get(kind_of(option), others.get(option.service, 1.0)))
        for option in problem.options
    )
    return replace(problem, options=options)


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
    keys = option_keys(problem.options)
    names = list(zip((option.service for option in problem.options), keys, strict=True))
    kept = {rental.offer: rental.instances for rental in base.rentals}
    idle = set(kept) - {item.offer for item in base.allocation}
    mine = [
        option
        for option, name in zip(problem.options, names, strict=True)
        if replicas.get(name, 0) > 0 or option.offer.name in idle
    ]
    count = {id(option): replicas.get(name, 0) for option, name in zip(problem.options, names, strict=True)}
    alone = replace(problem, options=tuple(mine))
    try:
        fleet = fleet_arrays(alone, assignment)
    except InputError:
        return None  # a rule names what this fleet has nothing of
    n = np.array([count[id(option)] for option in fleet.options], dtype=np.int64)
    roomy = replace(fleet, pair_load=fleet.pair_load / FULLEST)
    shares = balanced_shares(roomy, n, np.zeros(len(fleet.pair_bucket)))
    if shares is None:
        return None
    load = option_load(fleet, shares)
    used = n > 0
    fullness = float((load[used] / n[used]).max(initial=0.0))
    needed = np.where(used, load / np.maximum(n, 1), 0.0)
    rise = {
        kind_of(option): max(1.0, float(part)) for option, part in zip(fleet.options, needed.tolist(), strict=True)
    }
    for option, part in zip(fleet.options, needed.tolist(), strict=True):
        rise[kind_of(option)] = max(rise[kind_of(option)], float(part))
    raised = {
        id(option): replace(option, utilization_cap=option.utilization_cap * rise.get(kind_of(option), 1.0))
        for option in problem.options
    }
    whole = replace(problem, options=tuple(raised[id(option)] for option in problem.options))
    now = fleet_arrays(replace(whole, options=tuple(raised[id(option)] for option in mine)), assignment)
    holding = instances_needed(now, n)
    rented = np.array([kept.get(now.offers[offer].name, 0) for offer in now.pool_offer.tolist()], dtype=np.int64)
    instances = kept_instances(now, np.maximum(holding, rented), holding)
    chosen = Fleet(replicas=n, instances=instances, shares=shares, cost_usd_per_hour=exact_cost(now, instances))
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
    return ChosenFleet(plan=plan, problem=whole, fullness=fullness * (1 - PLAN_TOLERANCE))
