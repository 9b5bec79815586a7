"""The best plan with each single GPU type, and what mixing saves against the best of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.domain.plan import Baseline, PlanStatus
from planner.optimize.adapters import solve_with_adapters
from planner.optimize.arrays import fleet_arrays
from planner.optimize.naming import bucket_name
from planner.optimize.rows.limits import availability_limits
from planner.optimize.rules import rule_text
from planner.optimize.settings import Clock
from planner.optimize.spread import cheapest
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.settings import Assignment, SolverSettings

_LACKING_NAMED = 2
NOT_SOLVED = "not solved within the time limit"


def single_gpu_baselines(
    problem: FleetProblem, *, settings: SolverSettings, assignment: Assignment
) -> tuple[Baseline, ...]:
    """Return the best plan with each GPU type alone, by name; where there is none, with the reason.

    One GPU type may still be rented as several instance types, and serve with several configurations. All of them
    share one time limit; those that look cheapest come first, since the best one is what a plan is compared with.
    """
    clock = Clock(settings)
    alone = {
        gpu: replace(problem, options=tuple(option for option in problem.options if option.offer.gpu == gpu))
        for gpu in sorted({option.offer.gpu for option in problem.options})
    }
    arrays = {  # jobs belong to periods; without them one steady state says what cannot be served
        gpu: fleet_arrays(part if part.jobs else replace(part, horizon=None), assignment) for gpu, part in alone.items()
    }
    order = sorted(alone, key=lambda gpu: (_least_cost(arrays[gpu]), gpu))
    found = {gpu: _baseline(gpu, alone[gpu], arrays[gpu], clock, assignment) for gpu in order}
    return tuple(found[gpu] for gpu in alone)


def _least_cost(fleet: FleetArrays) -> float:
    """Return what a fleet costs at least: every bucket where it is cheapest, on shares of replicas."""
    prices = np.array([float(replica_price(option.offer, option.gpus_per_replica)) for option in fleet.options])
    cheapest = np.full(len(fleet.buckets), np.inf)
    np.minimum.at(cheapest, fleet.pair_bucket, fleet.pair_load * prices[fleet.pair_option])
    return float(cheapest.sum())


def savings_vs_best_single(plan: Plan, baselines: Iterable[Baseline]) -> float | None:
    """Return 1 - (plan's cost / the cheapest single-GPU plan's cost); None where one of them is missing.

    Against the BEST single type: any mix looks good beside the worst one.
    """
    costs = [item.cost_usd_per_hour for item in baselines if item.feasible and item.cost_usd_per_hour is not None]
    if plan.cost_usd_per_hour is None or not costs or min(costs) <= 0:
        return None
    return 1 - plan.cost_usd_per_hour / min(costs)


def _baseline(gpu: str, alone: FleetProblem, fleet: FleetArrays, clock: Clock, assignment: Assignment) -> Baseline:
    lacking = [*(bucket_name(*bucket) for bucket in fleet.unserved), *(f"the job {job.name}" for job in fleet.undone)]
    if lacking:
        lacking = list(dict.fromkeys(lacking))  # in every period alike
        names = "; ".join(lacking[:_LACKING_NAMED])
        more = len(lacking) - _LACKING_NAMED
        return _infeasible(gpu, f"cannot serve {names}" + (f" and {more} more" if more > 0 else ""))
    if clock.is_over:
        return _infeasible(gpu, NOT_SOLVED)
    if alone.tenancies:
        return _with_adapters(gpu, alone, clock, assignment)
    result = cheapest(alone, clock.settings(), assignment)[1]
    if result.fleet is None:
        if result.termination is Termination.INFEASIBLE:
            return _infeasible(gpu, f"the limits leave too little of it: {_limit_names(alone)}")
        return _infeasible(gpu, NOT_SOLVED)
    return Baseline(
        offer=gpu,
        replicas=int(result.fleet.replicas.reshape(_n_periods(alone), -1).sum(axis=1).max()),
        cost_usd_per_hour=result.fleet.cost_usd_per_hour,
        feasible=True,
        bound_usd_per_hour=result.bound_usd_per_hour,
    )


def _with_adapters(gpu: str, alone: FleetProblem, clock: Clock, assignment: Assignment) -> Baseline:
    plan = solve_with_adapters(replace(alone, goal=None), clock.settings(), assignment, is_rough=True)
    if plan.cost_usd_per_hour is None:
        is_proven = plan.status is PlanStatus.INFEASIBLE
        return _infeasible(
            gpu, f"the limits leave too little of it: {_limit_names(alone)}" if is_proven else NOT_SOLVED
        )
    return Baseline(
        offer=gpu,
        replicas=sum(row.replicas for row in plan.allocation),
        cost_usd_per_hour=plan.cost_usd_per_hour,
        feasible=True,
        bound_usd_per_hour=plan.bound_usd_per_hour,
    )


def _n_periods(problem: FleetProblem) -> int:
    return 1 if problem.horizon is None else problem.horizon.n_periods


def _limit_names(problem: FleetProblem) -> str:
    offers = {option.offer.name: option.offer for option in problem.options}
    limits = [limit for limit in problem.limits if any(limit.scope.covers(offer) for offer in offers.values())]
    names = [limit.name for limit in (*limits, *availability_limits(tuple(offers.values())))]
    names += [rule_text(rule) for rule in problem.rules]
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _infeasible(gpu: str, reason: str) -> Baseline:
    return Baseline(offer=gpu, replicas=0, cost_usd_per_hour=None, feasible=False, reason=reason)
