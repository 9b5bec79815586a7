"""How far a service-level objective must be loosened before a plan exists, and before one at a fair price."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from planner.domain.plan import Conflict
from planner.optimize import Assignment, SolverSettings, solve
from planner.optimize.unserved import unserved_positions
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.domain.problem import FleetProblem
    from planner.domain.workload import Demand
    from planner.planning.question import Question, Relaxation

LONGEST_BOUND_S = 3600.0
"""An objective that would have to be looser than this is not what stands in the way."""
LARGEST_FACTOR = 1e6
"""Objectives that would all have to be looser than this are not what stands in the way."""
LARGEST_NETWORK_FACTOR = 1e3
"""Networks that would have to be faster by more than this are not what stands in the way."""
RELATIVE_STEP = 0.02
"""Bounds are found to 2%, and rounded up."""
ROUGH_GAP = 0.05
"""Close enough to tell whether there is a plan, and about what it costs."""
FAIR_COST_FACTOR = 1.5
"""At the edge of what is possible replicas serve next to nothing, so a plan may need thousands. A fair bound is one
whose plan costs at most this many times what it would without the objective."""


def slo_conflicts(question: Question, *, settings: SolverSettings, assignment: Assignment) -> tuple[Conflict, ...]:
    """Return, for each objective of an infeasible question, the smallest loosening of it alone that gives a plan.

    Where none of them alone is enough, the smallest factor by which all of them together must be loosened.
    """
    rough = replace(settings, relative_gap=ROUGH_GAP)
    found = [_conflict(relaxation, rough, assignment) for relaxation in question.relaxations]
    alone = tuple(conflict for conflict in found if conflict is not None)
    if alone or question.problem_with_all_bounds is None:
        return alone
    together = _together(question.problem_with_all_bounds, rough, assignment)
    return () if together is None else (together,)


def disaggregation_conflicts(
    question: Question, *, settings: SolverSettings, assignment: Assignment
) -> tuple[Conflict, ...]:
    """Return the conflicts with prefill apart from decode: serving whole requests, or faster networks, gives a plan."""
    ways = question.disaggregation
    if ways is None:
        return ()
    rough = replace(settings, relative_gap=ROUGH_GAP)
    found: list[Conflict] = []
    if ways.problem_with_whole is not None:
        problem = ways.problem_with_whole()
        cost = _cost_function(lambda _: problem, rough, assignment)(1.0)
        if cost is not None:
            change = "; ".join(f"{name}: disaggregate only -> allowed" for name in ways.only)
            found.append(
                Conflict(
                    requirement="; ".join(f"{name}: disaggregate only" for name in ways.only),
                    explanation="No plan serves all prompts and answers on replicas of their own.",
                    suggestion=change + _price(cost),
                )
            )
    cost_at = _cost_function(ways.problem_with_network, rough, assignment)
    if cost_at(LARGEST_NETWORK_FACTOR) is not None and cost_at(1.0) is None:
        factor = _smallest(lambda factor: cost_at(factor) is not None, 1.0, LARGEST_NETWORK_FACTOR)
        found.append(
            Conflict(
                requirement="network for KV caches",
                explanation="KV caches take too long to pass from prefill to decode replicas.",
                current=1.0,
                relaxed=factor,
                unit="times the network rate",
                suggestion=f"engine.kv_transfer x {factor:g}{_price(cost_at(factor))}",
            )
        )
    return tuple(found)


def _conflict(relaxation: Relaxation, settings: SolverSettings, assignment: Assignment) -> Conflict | None:
    cost_at = _cost_function(relaxation.problem_with_bound, settings, assignment)
    slo, longest = relaxation.slo, max(LONGEST_BOUND_S, relaxation.slo.bound_s)
    cheapest = cost_at(longest)
    if cheapest is None:
        return None
    most = FAIR_COST_FACTOR * cheapest
    edge_s = _smallest(lambda bound_s: cost_at(bound_s) is not None, slo.bound_s, longest)
    fair_s = _smallest(lambda bound_s: (cost_at(bound_s) or math.inf) <= most, edge_s, longest)
    edge, fair = (f"{format_duration(bound_s)}{_price(cost_at(bound_s))}" for bound_s in (edge_s, fair_s))
    change = f"{relaxation.service}: {slo.metric} {slo.statistic} {format_duration(slo.bound_s)} -> {edge}"
    return Conflict(
        requirement=f"{relaxation.service}: {slo}",
        explanation="No plan meets this objective together with everything else that was asked.",
        current=slo.bound_s,
        relaxed=edge_s,
        unit="s",
        suggestion=change if fair == edge else f"{change}, or {fair}",
    )


def _together(
    problem_at: Callable[[float], FleetProblem], settings: SolverSettings, assignment: Assignment
) -> Conflict | None:
    cost_at = _cost_function(problem_at, settings, assignment)
    if cost_at(LARGEST_FACTOR) is None:
        return None
    factor = _smallest(lambda factor: cost_at(factor) is not None, 1.0, LARGEST_FACTOR)
    return Conflict(
        requirement="all objectives together",
        explanation="No plan meets them, and loosening one of them alone is not enough.",
        current=1.0,
        relaxed=factor,
        unit="times every bound",
        suggestion=f"every objective's bound x {factor:g}{_price(cost_at(factor))}",
    )


def _price(usd_per_hour: float | None) -> str:
    if usd_per_hour is None:
        return ""
    return f" (then about {usd_per_hour:,.{2 if usd_per_hour < 100 else 0}f} USD/h)"


def _cost_function(
    problem_at: Callable[[float], FleetProblem], settings: SolverSettings, assignment: Assignment
) -> Callable[[float], float | None]:
    @cache
    def cost_at(change: float) -> float | None:
        """Return about what a plan costs in USD/h with this bound or factor; None if there is none."""
        problem = problem_at(change)
        if not all(_is_served(problem, demand) for demand in problem.demands):
            return None
        return solve(problem, settings=settings, assignment=assignment).cost_usd_per_hour

    return cost_at


def _is_served(problem: FleetProblem, demand: Demand) -> bool:
    """Return whether every bucket of `demand` has an option that can serve it; far cheaper than a solve."""
    return not unserved_positions(demand, problem)


def _smallest(works: Callable[[float], bool], low: float, high: float) -> float:
    """Return the smallest value that works, to 2% and rounded up to 3 digits; `high` is known to work."""
    if works(low):
        return low
    while high / low > 1.0 + RELATIVE_STEP:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if works(middle) else (middle, high)
    return _round_up(high)


def _round_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return round(math.ceil(value / step) * step, 12)
