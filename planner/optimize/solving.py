"""`solve`: a problem to a verified plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Conflict, Plan, PlanStatus, SolverInfo
from planner.errors import InputError, SolverError
from planner.optimize.adapters import solve_with_adapters
from planner.optimize.arrays import fleet_arrays
from planner.optimize.assemble import assemble, empty_plan
from planner.optimize.backends.registry import find_back_end
from planner.optimize.goals import check_goal, goal_gap, search_goal, values_reached, with_what_is_gone
from planner.optimize.naming import bucket_name
from planner.optimize.plan_check import verify_plan
from planner.optimize.prune import prune
from planner.optimize.shed import serve_most, unserved_buckets, unserved_warning
from planner.optimize.spread import cheapest
from planner.optimize.termination import Termination
from planner.optimize.tiebreak import Broken, break_ties
from planner.optimize.unserved import unserved_conflicts

if TYPE_CHECKING:
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.goals import GoalResult
    from planner.optimize.search import Fleet, SearchResult
    from planner.optimize.settings import Assignment, SolverSettings

MAX_REPLICAS = 1e7
"""More replicas than this are a slip in a rate's or a throughput's unit, and beyond what solvers count exactly."""


def solve(problem: FleetProblem, *, settings: SolverSettings, assignment: Assignment) -> Plan:
    """Return the cheapest fleet for `problem`, verified, with its routing weights; or why there is none.

    A bucket that no option can serve makes the plan infeasible and is named in its conflicts; what else stands in the
    way is found by `find_conflicts`, which searches again.

    Raises
    ------
    InputError: if the problem contradicts itself.
    SolverError: if the solver is missing, fails, or returns what does not satisfy the model.
    """
    find_back_end(settings.solver)
    check_goal(problem)
    whole = fleet_arrays(problem, assignment)
    if whole.unserved or whole.undone:
        return no_plan(settings, conflicts=unserved_conflicts(problem))
    _check_size(whole)
    if problem.tenancies:
        return solve_with_adapters(problem, settings, assignment)
    if problem.goal is None:
        aimed = None
        fleet, result = cheapest(problem, settings, assignment)
    else:
        fleet = fleet_arrays(prune(problem), assignment)
        aimed = search_goal(fleet, problem.goal, settings)
        result = aimed.result
    if result.fleet is None and problem.shed is not None:
        served = serve_most(problem, fleet_arrays(prune(problem), assignment), settings)
        if served is not None:
            return _partial_plan(problem, served, settings)
    if result.fleet is None:
        return empty_plan(result, settings)
    if aimed is not None:
        plan = _plan_of(problem, aimed, settings)
        verify_plan(problem, plan)
        return plan
    chosen = Broken(fleet=result.fleet)
    if result.termination is Termination.OPTIMAL:
        chosen = break_ties(fleet, result.fleet, settings)
    plan = assemble(problem, fleet, chosen.fleet, result, settings=settings, assumptions=chosen.assumptions)
    verify_plan(problem, plan)
    return plan


def _partial_plan(problem: FleetProblem, found: GoalResult, settings: SolverSettings) -> Plan:
    """Return the plan that serves what the limits hold, verified, with what it leaves unserved."""
    plan = _plan_of(problem, found, settings)
    unserved = unserved_buckets(problem, found.fleet)
    if unserved:
        plan = replace(plan, unserved=unserved, warnings=(*plan.warnings, unserved_warning(problem, unserved)))
    verify_plan(problem, plan)
    return plan


def _plan_of(problem: FleetProblem, found: GoalResult, settings: SolverSettings) -> Plan:
    """Return the plan of a search by objectives, not yet verified."""
    chosen = Broken(fleet=_found(found.result))
    if found.result.termination is Termination.OPTIMAL:
        chosen = break_ties(found.fleet, chosen.fleet, settings, kept=found.kept)
    plan = assemble(problem, found.fleet, chosen.fleet, found.result, settings=settings, assumptions=chosen.assumptions)
    if problem.goal is None:
        return plan
    reached = with_what_is_gone(problem, values_reached(found.reached, found.kept, found.fleet, chosen.fleet))
    return replace(plan, objectives=reached, gap=goal_gap(reached))


def _found(result: SearchResult) -> Fleet:
    if result.fleet is None:
        raise SolverError("The search ended without a fleet.", hint="Try another solver with --solver.")
    return result.fleet


def _check_size(fleet: FleetArrays) -> None:
    """Refuse demand that needs more replicas than any fleet has, however it is served."""
    least = np.full(len(fleet.buckets), np.inf)
    np.minimum.at(least, fleet.pair_bucket, fleet.pair_load)
    if least.sum() > MAX_REPLICAS:
        worst = int(np.argmax(least))
        raise InputError(
            f"{bucket_name(*fleet.buckets[worst])} alone needs {least[worst]:.3g} replicas where it is served best.",
            hint=f"Fleets of up to {MAX_REPLICAS:,.0f} replicas are planned; check the units of rate and throughput.",
        )


def no_plan(settings: SolverSettings, *, conflicts: tuple[Conflict, ...]) -> Plan:
    """Return the infeasible plan of a problem that no solver needs to see."""
    return Plan(
        status=PlanStatus.INFEASIBLE,
        cost_usd_per_hour=None,
        bound_usd_per_hour=None,
        gap=None,
        solver=SolverInfo(
            name=settings.solver,
            version="",
            seconds=0.0,
            termination=Termination.INFEASIBLE.value,
            seed=settings.seed,
            threads=settings.threads,
        ),
        conflicts=conflicts,
    )
