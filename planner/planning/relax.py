"""How far a service-level objective must be loosened before a plan exists."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Conflict, PlanStatus
from planner.optimize import Assignment, SolverSettings, solve
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.problem import FleetProblem
    from planner.domain.workload import Demand
    from planner.planning.question import Question, Relaxation

LONGEST_BOUND_S = 3600.0
"""An objective that would have to be looser than this is not what stands in the way."""
RELATIVE_STEP = 0.02
"""The smallest sufficient bound is found to 2%, and rounded up to it."""
FEASIBILITY_GAP = 0.99
"""Any plan will do to know that there is one."""


def slo_conflicts(question: Question, *, settings: SolverSettings) -> tuple[Conflict, ...]:
    """Return, for each objective of an infeasible question, the smallest loosening of it alone that gives a plan."""
    return tuple(_conflicts(question, replace(settings, relative_gap=FEASIBILITY_GAP)))


def _conflicts(question: Question, settings: SolverSettings) -> Iterator[Conflict]:
    for relaxation in question.relaxations:
        bound_s = smallest_bound(relaxation, settings)
        if bound_s is None:
            continue
        slo = relaxation.slo
        change = f"{slo.metric} {slo.statistic} {format_duration(slo.bound_s)} -> {format_duration(bound_s)}"
        yield Conflict(
            requirement=f"{relaxation.service}: {slo}",
            explanation="No plan meets this objective together with everything else that was asked.",
            current=slo.bound_s,
            relaxed=bound_s,
            unit="s",
            suggestion=f"{relaxation.service}: {change}",
        )


def smallest_bound(relaxation: Relaxation, settings: SolverSettings) -> float | None:
    """Return the smallest bound in seconds (to 2%, rounded up to 3 digits) that gives a plan; None if none does."""

    def works(bound_s: float) -> bool:
        return _has_plan(relaxation.problem_with_bound(bound_s), settings)

    low, high = relaxation.slo.bound_s, max(LONGEST_BOUND_S, relaxation.slo.bound_s)
    if not works(high):
        return None
    while high / low > 1.0 + RELATIVE_STEP:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if works(middle) else (middle, high)
    return _round_up(high)


def _round_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / step) * step


def _has_plan(problem: FleetProblem, settings: SolverSettings) -> bool:
    if not all(_is_served(problem, service) for service in problem.demands):
        return False
    status = solve(problem, settings=settings, assignment=Assignment.fractional()).status
    return status in {PlanStatus.OPTIMAL, PlanStatus.FEASIBLE}


def _is_served(problem: FleetProblem, demand: Demand) -> bool:
    """Return whether every bucket of `demand` has an option that can serve it; far cheaper than a solve."""
    rates = [option.throughput_rps for option in problem.options if option.service == demand.service]
    return bool(rates) and bool((np.array(rates) > 0).any(axis=0).all())
