"""The best plan with each single GPU type, and what mixing saves against the best of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.plan import Baseline
from planner.optimize.arrays import fleet_arrays
from planner.optimize.naming import bucket_name
from planner.optimize.prune import prune
from planner.optimize.rows.limits import availability_limits
from planner.optimize.search import search
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.optimize.settings import Assignment, SolverSettings

_BUCKETS_NAMED = 2


def single_gpu_baselines(
    problem: FleetProblem, *, settings: SolverSettings, assignment: Assignment
) -> tuple[Baseline, ...]:
    """Return the best plan with each GPU type alone, by name; where there is none, with the reason.

    One GPU type may still be rented as several instance types, and serve with several configurations.
    """
    gpus = sorted({option.offer.gpu for option in problem.options})
    return tuple(_baseline(gpu, problem, settings, assignment) for gpu in gpus)


def savings_vs_best_single(plan: Plan, baselines: Iterable[Baseline]) -> float | None:
    """Return 1 - (plan's cost / the cheapest single-GPU plan's cost); None where one of them is missing.

    Against the BEST single type: any mix looks good beside the worst one.
    """
    costs = [item.cost_usd_per_hour for item in baselines if item.feasible and item.cost_usd_per_hour is not None]
    if plan.cost_usd_per_hour is None or not costs or min(costs) <= 0:
        return None
    return 1 - plan.cost_usd_per_hour / min(costs)


def _baseline(gpu: str, problem: FleetProblem, settings: SolverSettings, assignment: Assignment) -> Baseline:
    alone = replace(problem, options=tuple(option for option in problem.options if option.offer.gpu == gpu))
    fleet = fleet_arrays(alone, assignment)
    if fleet.unserved:
        names = "; ".join(bucket_name(*bucket) for bucket in fleet.unserved[:_BUCKETS_NAMED])
        more = len(fleet.unserved) - _BUCKETS_NAMED
        return _infeasible(gpu, f"cannot serve {names}" + (f" and {more} more" if more > 0 else ""))
    result = search(fleet_arrays(prune(alone), assignment), settings)
    if result.fleet is None:
        if result.termination is Termination.INFEASIBLE:
            return _infeasible(gpu, f"the limits leave too little of it: {_limit_names(alone)}")
        return _infeasible(gpu, f"no plan found: {result.termination.value}")
    return Baseline(
        offer=gpu,
        replicas=int(result.fleet.replicas.sum()),
        cost_usd_per_hour=result.fleet.cost_usd_per_hour,
        feasible=True,
        bound_usd_per_hour=result.bound_usd_per_hour,
    )


def _limit_names(problem: FleetProblem) -> str:
    offers = {option.offer.name: option.offer for option in problem.options}
    limits = [limit for limit in problem.limits if any(limit.scope.covers(offer) for offer in offers.values())]
    names = [limit.name for limit in (*limits, *availability_limits(tuple(offers.values())))]
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _infeasible(gpu: str, reason: str) -> Baseline:
    return Baseline(offer=gpu, replicas=0, cost_usd_per_hour=None, feasible=False, reason=reason)
