"""Searches over groups of adapters, and what they prove of a fleet in which every adapter has its places.

A search minimises the cost with what stands beside it (priced energy, egress, changes), or one objective after the
other. Its bound is of the programme over groups, so of every placement of whole adapters too. Of objectives that follow
others it is so among fleets that keep these as the search does; where placing adapters costs some of an earlier one,
nothing is said of those after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import Measure
from planner.optimize.arrays import fleet_arrays
from planner.optimize.assemble import relative_gap
from planner.optimize.goals import goal_gap, objective_value, search_goal, stage_objective, stages_of, with_what_is_gone
from planner.optimize.model import Objective, cost_objective
from planner.optimize.naming import option_keys
from planner.optimize.prune import prune
from planner.optimize.rollout import change_cost, rollout, unavoidable_change
from planner.optimize.rows.changes import change_usd_per_hour
from planner.optimize.search import clean_bound, search
from planner.optimize.spread import cheapest

if TYPE_CHECKING:
    from planner.domain.plan import ObjectiveValue, Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.goals import GoalResult
    from planner.optimize.search import Fleet, SearchResult
    from planner.optimize.settings import Assignment, SolverSettings

LATER_STAGE = 1e-3
"""What an objective weighs against the one before it while adapters are given places, each in its largest unit."""
SAME_VALUE = 1e-9
"""Relative: objectives this close are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSearch:
    """A search over groups of adapters."""

    result: SearchResult
    aimed: GoalResult | None = None
    """Of objectives other than the cost."""

    @property
    def total_bound(self) -> float | None:
        """What no fleet's cost, with what stands beside it, is below; None where nothing is proven of the cost."""
        bound, fleet = self.result.bound_usd_per_hour, self.result.fleet
        return bound if bound is None or fleet is None else bound + fleet.beside_usd_per_hour

    def with_bound(self, total_usd_per_hour: float | None) -> GroupSearch:
        """Return the same with another bound of the cost, nothing standing beside it, and none of other objectives."""
        fleet, aimed = self.result.fleet, self.aimed
        beside = 0.0 if fleet is None else fleet.beside_usd_per_hour
        bound = None if total_usd_per_hour is None else total_usd_per_hour - beside
        if aimed is not None:
            aimed = replace(aimed, reached=tuple(replace(item, bound=None) for item in aimed.reached))
        return GroupSearch(result=replace(self.result, bound_usd_per_hour=bound), aimed=aimed)


def search_groups(
    problem: FleetProblem, settings: SolverSettings, assignment: Assignment
) -> tuple[FleetArrays, GroupSearch]:
    """Return the best fleet over groups for `problem`, and the arrays that it belongs to."""
    if problem.goal is None:
        fleet, result = cheapest(problem, settings, assignment)
        return fleet, GroupSearch(result=result)
    fleet = fleet_arrays(prune(problem), assignment)
    return fleet, search_again(problem, fleet, settings)


def search_again(
    problem: FleetProblem, fleet: FleetArrays, settings: SolverSettings, *, margin: float = 0.0
) -> GroupSearch:
    """Return the best fleet over groups of what `fleet` has, all loads being larger by the fraction `margin`."""
    larger = fleet.with_margin(margin)
    if problem.goal is None:
        return GroupSearch(result=search(larger, settings))
    aimed = search_goal(larger, problem.goal, settings)
    return GroupSearch(result=aimed.result, aimed=aimed)


def with_real_changes(problem: FleetProblem, placed: Fleet, plan: Plan) -> tuple[Fleet, Plan]:
    """Return a placed fleet and its plan with the changes that its adapters come to.

    Where a replica has an adapter in its weights, it is not any other adapter's: more changes than replicas tell.
    """
    change = problem.change
    if change is None:
        return placed, plan
    keys = option_keys(problem.options)
    options = {(option.service, key): option for option, key in zip(problem.options, keys, strict=True)}
    cost = change_cost(change, plan.allocation, options, plan.adapters)
    steps = rollout(change, plan.allocation, plan.rentals, options, plan.adapters)
    stated = replace(plan, change_usd_per_hour=cost if change.is_priced else None, rollout=steps)
    return replace(placed, change_usd_per_hour=cost - unavoidable_change(problem)), stated


def reached_by(
    problem: FleetProblem, fleet: FleetArrays, placed: Fleet, first: GroupSearch
) -> tuple[ObjectiveValue, ...]:
    """Return what a placed fleet comes to in every objective, with what the `first` search proved of each."""
    if problem.goal is None or first.aimed is None:
        return ()
    found: list[ObjectiveValue] = []
    holds = True
    for stage, item, (_, most) in zip(stages_of(problem.goal), first.aimed.reached, first.aimed.kept, strict=False):
        value = objective_value(stage_objective(stage, fleet), fleet, placed)
        more = placed.change_usd_per_hour - change_usd_per_hour(fleet, placed.replicas)
        value += stage.get(Measure.COST, 0.0) * more
        bound = None if item.bound is None or not holds else min(item.bound, value)
        found.append(replace(item, value=value, bound=bound))
        holds = holds and value <= most
    return with_what_is_gone(problem, found)


def proven(problem: FleetProblem, placed: Fleet, plan: Plan, first: GroupSearch) -> Plan:
    """Return the `plan` of a placed fleet with the bound that the `first` search has for it, and its gap.

    Objectives must be in the plan already.
    """
    if problem.goal is not None:
        return replace(plan, bound_usd_per_hour=None, gap=goal_gap(plan.objectives))
    bound = None if first.total_bound is None else clean_bound(first.total_bound, placed)
    return replace(plan, bound_usd_per_hour=bound, gap=relative_gap(plan.cost_usd_per_hour, bound))


def is_within(problem: FleetProblem, placed: Fleet, plan: Plan, first: GroupSearch, gap: float) -> bool:
    """Return whether a placed fleet is as good as was asked for."""
    if problem.goal is not None:
        return plan.gap is not None and plan.gap <= gap + SAME_VALUE
    if first.total_bound is None:
        return False
    total = placed.total_usd_per_hour
    return total - first.total_bound <= (gap + SAME_VALUE) * max(total, SAME_VALUE)


def is_better(problem: FleetProblem, values: tuple[float, ...], than: tuple[float, ...]) -> bool:
    """Return whether `values` of the objectives, the cost where there is no goal, are better ones."""
    within = 0.0 if problem.goal is None else problem.goal.within
    for index, (mine, other) in enumerate(zip(values, than, strict=True)):
        is_last = index == len(values) - 1
        allowed = min(mine, other) * (1 + (0.0 if is_last else within + SAME_VALUE))
        if max(mine, other) > allowed:
            return mine < other
    return False


def placing_aim(problem: FleetProblem, fleet: FleetArrays) -> Objective:
    """Return what a replica and an instance come to while adapters are given places: the cost, or all objectives."""
    if problem.goal is None:
        return cost_objective(fleet)
    per_replica, per_instance = np.zeros(len(fleet.options)), np.zeros(len(fleet.pool_offer))
    weight = 1.0
    for stage in stages_of(problem.goal):
        aim = stage_objective(stage, fleet)
        unit = max(float(part.max(initial=0.0)) for part in (aim.per_replica, aim.per_instance)) or 1.0
        per_replica = per_replica + weight / unit * aim.per_replica
        per_instance = per_instance + weight / unit * aim.per_instance
        weight *= LATER_STAGE
    return Objective(per_replica=per_replica, per_instance=per_instance)
