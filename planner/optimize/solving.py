"""`solve`: a problem to a verified plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.plan import Conflict, Plan, PlanStatus, SolverInfo
from planner.optimize.arrays import fleet_arrays
from planner.optimize.assemble import assemble, plan_status, relative_gap, solver_info
from planner.optimize.backends.registry import find_back_end
from planner.optimize.plan_check import verify_plan
from planner.optimize.prune import prune
from planner.optimize.search import search
from planner.optimize.termination import Termination
from planner.optimize.tiebreak import Broken, break_ties
from planner.optimize.unserved import unserved_conflicts

if TYPE_CHECKING:
    from planner.domain.problem import FleetProblem
    from planner.optimize.settings import Assignment, SolverSettings


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
    whole = fleet_arrays(problem, assignment)
    if whole.unserved:
        return no_plan(settings, conflicts=unserved_conflicts(problem))
    pruned = prune(problem)
    fleet = fleet_arrays(pruned, assignment)
    result = search(fleet, settings)
    if result.fleet is None:
        return Plan(
            status=plan_status(result),
            cost_usd_per_hour=None,
            bound_usd_per_hour=result.bound_usd_per_hour if result.termination is not Termination.INFEASIBLE else None,
            gap=relative_gap(None, None),
            solver=solver_info(result, settings),
        )
    chosen = Broken(fleet=result.fleet)
    if result.termination is Termination.OPTIMAL:
        chosen = break_ties(fleet, result.fleet, settings)
    plan = assemble(problem, fleet, chosen.fleet, result, settings=settings, assumptions=chosen.assumptions)
    verify_plan(problem, plan)
    return plan


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
