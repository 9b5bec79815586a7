"""What each loss that a fleet survives costs: the plan against the cheapest one that need not survive it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.plan import PlanStatus, RedundancyPrice
from planner.domain.problem import Redundancy
from planner.optimize.explain import total_usd_per_hour
from planner.optimize.rules import rule_text
from planner.optimize.settings import Clock
from planner.optimize.spread import cheapest
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.search import SearchResult
    from planner.optimize.settings import Assignment, SolverSettings

ALL_TOGETHER = "all of these together"
DUST = 1e-9
"""Relative: costs this close are equal."""


def redundancy_prices(
    problem: FleetProblem, plan: Plan, *, settings: SolverSettings, assignment: Assignment
) -> tuple[RedundancyPrice, ...]:
    """Return what each rule of redundancy costs in `plan`, everything else kept, and all of them where there are more.

    One search for each, within one time limit. A search that is stopped has a plan that may not be the cheapest one
    without the rule, so that the difference is a lower bound if `plan` is optimal, and proven in neither direction
    where it is not. Rules can overlap: where either of two asks for the same spare replica, each costs nothing beside
    the other one. Plans with another objective than the cost have no prices.
    """
    rules = [rule for rule in problem.rules if isinstance(rule, Redundancy) and rule.bound > 0]
    if plan.cost_usd_per_hour is None or problem.goal is not None or plan.unserved:
        return ()
    clock = Clock(settings)
    asked = [(rule_text(rule), [rule]) for rule in rules]
    if len(rules) > 1:
        asked.append((ALL_TOGETHER, rules))
    total = total_usd_per_hour(problem, plan)
    return tuple(
        _price(name, cheapest(_without(problem, some), clock.settings(), assignment)[1], total, plan.status)
        for name, some in asked
    )


def _without(problem: FleetProblem, rules: list[Redundancy]) -> FleetProblem:
    return replace(problem, rules=tuple(rule for rule in problem.rules if rule not in rules))


def _price(name: str, found: SearchResult, total_usd_per_hour: float, status: PlanStatus) -> RedundancyPrice:
    """Return the price of what `found` was searched without, in a plan of `status` that costs `total_usd_per_hour`."""
    if found.fleet is None:
        return RedundancyPrice(
            requirement=name, cost_without_usd_per_hour=None, extra_usd_per_hour=None, is_proven=False
        )
    extra = total_usd_per_hour - found.fleet.total_usd_per_hour
    return RedundancyPrice(
        requirement=name,
        cost_without_usd_per_hour=found.fleet.cost_usd_per_hour,
        extra_usd_per_hour=extra if extra > DUST * max(total_usd_per_hour, 1.0) else 0.0,
        is_proven=status is PlanStatus.OPTIMAL and found.termination is Termination.OPTIMAL,
    )
