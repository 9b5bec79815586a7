"""The front of two objectives: plans of which none is better in one without being worse in the other.

With the two single optima as its ends, each point between them is, for a bound e on the second objective,

    min  first, then second     subject to     second <= e

(the epsilon-constraint method: it also finds the points that no weighted sum would).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.domain.problem import EnergyBudget, Goal, Limit, Measure, Resource
from planner.errors import InputError
from planner.optimize.egress import is_priced
from planner.optimize.energy import ENERGY_MEASURES
from planner.optimize.solving import solve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.settings import Assignment, SolverSettings

SAME = 1e-6
"""Relative: values this close are equal, as far as solvers keep limits."""
MEASURE_LIMITS = {
    Measure.COST: (Resource.USD_PER_HOUR, 1.0),
    Measure.POWER: (Resource.WATTS, 1000.0),
    Measure.GPUS: (Resource.GPUS, 1.0),
}
"""How a bound on a measure is said as a limit: the resource, and how much of it one unit of the measure is. Energy and
carbon have budgets instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One verified plan of the front, and what it comes to."""

    values: Mapping[Measure, float | None]
    """Of every measure in its unit; None = not known."""
    plan: Plan


def plan_values(plan: Plan) -> dict[Measure, float | None]:
    """Return what a plan comes to in every measure, in its unit; None where that is not known."""
    return {
        Measure.COST: _paid(plan),
        Measure.POWER: None if plan.power_w is None else plan.power_w / 1000,
        Measure.GPUS: sum(rental.gpus_per_instance * rental.instances for rental in plan.rentals),
        Measure.ENERGY: None if plan.mean_power_w is None else plan.mean_power_w / 1000,
        Measure.CARBON: None if plan.carbon_unknown_w else plan.carbon_kg_per_hour,
    }


def _paid(plan: Plan) -> float | None:
    """Return what is rented and what priced electricity, emissions and egress cost, in USD/h."""
    if plan.cost_usd_per_hour is None:
        return None
    return plan.cost_usd_per_hour + (plan.energy_usd_per_hour or 0.0) + (plan.egress_usd_per_hour or 0.0)


def pareto_front(
    problem: FleetProblem,
    measures: tuple[Measure, Measure],
    *,
    n_points: int,
    settings: SolverSettings,
    assignment: Assignment,
) -> tuple[FrontPoint, ...]:
    """Return at most `n_points` plans, the first measure ascending; empty if there is no plan at all.

    Raises
    ------
    InputError: if the measures are the same, fewer than two points are asked for, or there are several periods or
        a price of changes.
    """
    if measures[0] is measures[1]:
        raise InputError(f"A front needs two measures; both are {measures[0]}.", hint="Use e.g. cost,power.")
    if n_points < 2:
        raise InputError(f"A front has at least two points, not {n_points}.", hint="Use --points 8.")
    _check_front(problem)
    first, second = measures
    has_prices = is_priced(problem.egress) or (problem.energy is not None and problem.energy.is_priced)
    if second is Measure.COST and has_prices:
        # A budget bounds what is rented alone, so the cost is the one that is minimised under bounds on the other.
        swapped = pareto_front(problem, (second, first), n_points=n_points, settings=settings, assignment=assignment)
        return tuple(reversed(swapped))
    ends = [
        solve(replace(problem, goal=_goal(*order)), settings=settings, assignment=assignment)
        for order in ((first, second), (second, first))
    ]
    if any(plan.cost_usd_per_hour is None for plan in ends):
        return ()
    between = (
        solve(_bounded(problem, first, second, bound), settings=settings, assignment=assignment)
        for bound in _bounds(_value(ends[1], second), _value(ends[0], second), n_points - 2)
    )
    plans = [ends[0], *(plan for plan in between if plan.cost_usd_per_hour is not None), ends[1]]
    return _undominated(plans, first, second)


def _check_front(problem: FleetProblem) -> None:
    """Refuse what a bound on an objective cannot be said as a limit of: means over periods, and prices of changes."""
    if problem.horizon is not None or (problem.change is not None and problem.change.is_priced):
        raise InputError(
            "A front is of steady states, with changes left aside.",
            hint="Leave horizon and constraints.change_cost out, or give `objective` a list or weights.",
        )


def _goal(first: Measure, second: Measure) -> Goal:
    return Goal(stages=({first: 1.0}, {second: 1.0}))


def _bounds(least: float, most: float, count: int) -> Iterator[float]:
    """Yield evenly spaced bounds strictly between the ends, loosest first; none where the ends are the same."""
    if most - least > SAME * max(most, 1.0):
        for index in range(count):
            yield most - (most - least) * (index + 1) / (count + 1)


def _bounded(problem: FleetProblem, first: Measure, second: Measure, bound: float) -> FleetProblem:
    if second in ENERGY_MEASURES:
        budget = EnergyBudget(name=f"{second} of the front", measure=second, bound=bound)
        return replace(problem, goal=_goal(first, second), rules=(*problem.rules, budget))
    resource, factor = MEASURE_LIMITS[second]
    limit = Limit(name=f"{second} of the front", resource=resource, bound=bound * factor)
    return replace(problem, goal=_goal(first, second), limits=(*problem.limits, limit))


def _value(plan: Plan, measure: Measure) -> float:
    return plan_values(plan)[measure] or 0.0


def _undominated(plans: Sequence[Plan], first: Measure, second: Measure) -> tuple[FrontPoint, ...]:
    """Return the plans that no other is as good as in both measures, the first measure ascending."""
    ranked = sorted(plans, key=lambda plan: (_value(plan, first), _value(plan, second)))
    kept: list[Plan] = []
    for plan in ranked:
        best = min((_value(other, second) for other in kept), default=float("inf"))
        if _value(plan, second) < best - SAME * max(abs(best), 1.0) or not kept:
            kept.append(plan)
    return tuple(FrontPoint(values=plan_values(plan), plan=plan) for plan in kept)
