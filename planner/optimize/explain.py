"""What each limit costs, and what a GPU type would: answers by solving again with one thing changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.domain.problem import Minimum, Resource, Scope
from planner.optimize.adapters import solve_with_adapters
from planner.optimize.arrays import fleet_arrays
from planner.optimize.energy import running_usd_per_hour
from planner.optimize.model import build_model
from planner.optimize.naming import bucket_name, option_keys
from planner.optimize.prune import prune
from planner.optimize.rollout import unavoidable_change
from planner.optimize.rows.changes import change_usd_per_hour
from planner.optimize.rows.limits import availability_limits
from planner.optimize.rules import rule_text, without_rule
from planner.optimize.search import exact_cost, run, search
from planner.optimize.settings import Assignment, Clock
from planner.optimize.spread import cheapest
from planner.optimize.termination import Termination
from planner.optimize.verify import verify
from planner.units import format_usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.optimize.settings import SolverSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPrice:
    """What it would cost to have at least one replica on a GPU type."""

    gpu: str
    extra_usd_per_hour: float | None
    """Above the plan's cost; 0 if the plan has it or could have it for nothing; None if it cannot be had at all."""
    sentence: str


def price_of_limits(
    problem: FleetProblem, plan: Plan, settings: SolverSettings, *, assignment: Assignment | None = None
) -> Mapping[str, float]:
    """Return for each limit the USD/h that the plan would cost less without it, everything else kept.

    All limits of the request are tried, since whole instances can make a limit cost something although it is not full;
    of the offers' own availabilities those that are full, and only those that cost something are returned.
    """
    if plan.cost_usd_per_hour is None:
        return {}
    chosen = assignment or assignment_of(plan)
    prices = {
        limit.name: _saving(
            replace(problem, limits=tuple(other for other in problem.limits if other is not limit)),
            plan,
            settings,
            chosen,
        )
        for limit in problem.limits
    }
    for rule in problem.rules:
        prices[rule_text(rule)] = _saving(without_rule(problem, rule), plan, settings, chosen)
    offers = {option.offer.name: option.offer for option in problem.options}
    for limit in availability_limits(tuple(offers.values())):
        if limit.name in plan.binding and limit.scope.offer is not None:
            saving = _saving(_without_availability(problem, limit.scope.offer), plan, settings, chosen)
            if saving > settings.relative_gap * plan.cost_usd_per_hour:
                prices[limit.name] = saving
    return prices


def price_of_jobs(
    problem: FleetProblem, plan: Plan, settings: SolverSettings, *, assignment: Assignment | None = None
) -> Mapping[str, float]:
    """Return for each job the USD/h that the plan would cost less without it, everything else kept.

    All of them share one time limit; a job is left out where it ends before the price is proven, and all are where the
    cost is not what was minimised.
    """
    if plan.cost_usd_per_hour is None or problem.goal is not None:
        return {}
    clock = Clock(settings)
    prices: dict[str, float] = {}
    for job in problem.jobs:
        if clock.is_over:
            break
        rest = prune(without_job(problem, job.name))
        result = search(fleet_arrays(rest, assignment or assignment_of(plan)), clock.settings())
        if result.fleet is not None and result.termination is Termination.OPTIMAL:
            prices[job.name] = max(0.0, total_usd_per_hour(problem, plan) - result.fleet.total_usd_per_hour)
    return prices


def without_job(problem: FleetProblem, name: str) -> FleetProblem:
    """Return `problem` without the job `name` and the options that only it has."""
    options = (
        replace(option, job_rates={job: rate for job, rate in option.job_rates.items() if job != name})
        for option in problem.options
        if option.service != name
    )
    return replace(problem, options=tuple(options), jobs=tuple(job for job in problem.jobs if job.name != name))


def assignment_of(plan: Plan) -> Assignment:
    """Return the assignment that a plan was made with, as its inputs tell; fractional where they do not."""
    slices = plan.inputs.get("slice_factor")
    return Assignment.fractional() if slices is None else Assignment.sliced(int(slices))


def _saving(problem: FleetProblem, plan: Plan, settings: SolverSettings, assignment: Assignment) -> float:
    if problem.tenancies:
        other = solve_with_adapters(replace(problem, goal=None), settings, assignment)
        is_none = other.cost_usd_per_hour is None
        return 0.0 if is_none else max(0.0, total_usd_per_hour(problem, plan) - total_usd_per_hour(problem, other))
    found = cheapest(problem, settings, assignment)[1].fleet
    if found is None or plan.cost_usd_per_hour is None:
        return 0.0
    return max(0.0, total_usd_per_hour(problem, plan) - found.total_usd_per_hour)


def total_usd_per_hour(problem: FleetProblem, plan: Plan) -> float:
    """Return what the plan's search minimised: its cost, its priced energy and egress, its changes but for those
    that no plan avoids.
    """
    change = 0.0 if plan.change_usd_per_hour is None else plan.change_usd_per_hour - unavoidable_change(problem)
    beside = (plan.energy_usd_per_hour or 0.0) + (plan.egress_usd_per_hour or 0.0)
    return (plan.cost_usd_per_hour or 0.0) + change + beside


def _without_availability(problem: FleetProblem, name: str) -> FleetProblem:
    options = (
        replace(option, offer=replace(option.offer, available=None)) if option.offer.listing == name else option
        for option in problem.options
    )
    return replace(problem, options=tuple(options))


def price_of_gpu(
    problem: FleetProblem,
    plan: Plan,
    gpu: str,
    settings: SolverSettings,
    *,
    assignment: Assignment | None = None,
) -> GpuPrice:
    """Return what the plan would cost more with at least one replica on `gpu`, and why that is so in a sentence."""
    obstacle = _obstacle(problem, plan, gpu)
    if obstacle:
        return GpuPrice(gpu=gpu, extra_usd_per_hour=None, sentence=obstacle)
    if any(item.gpu == gpu for item in plan.allocation):
        return GpuPrice(gpu=gpu, extra_usd_per_hour=0.0, sentence=f"{gpu} is in the plan.")
    cost = _cost_with(problem, gpu, settings, assignment or assignment_of(plan))
    if cost is None or plan.cost_usd_per_hour is None:
        return GpuPrice(gpu=gpu, extra_usd_per_hour=None, sentence=f"No fleet with {gpu} keeps the limits.")
    extra = max(0.0, cost - total_usd_per_hour(problem, plan))
    if extra <= settings.relative_gap * plan.cost_usd_per_hour:
        return GpuPrice(gpu=gpu, extra_usd_per_hour=extra, sentence=f"A fleet with {gpu} costs the same.")
    share = f", {extra / plan.cost_usd_per_hour:.1%} more" if plan.cost_usd_per_hour else ""
    comparison = _comparison(problem, plan, gpu)
    sentence = f"The cheapest fleet with {gpu} costs {format_usd(extra)} USD/h more{share}.{comparison}"
    return GpuPrice(gpu=gpu, extra_usd_per_hour=extra, sentence=sentence)


def _obstacle(problem: FleetProblem, plan: Plan, gpu: str) -> str:
    """Return why no fleet with `gpu` need be looked for; empty if one must."""
    mine = [option for option in problem.options if option.offer.gpu == gpu]
    if not mine:
        return f"No offer of the request has {gpu}."
    if not any(np.any(option.throughput_rps > 0) for option in mine):
        return f"{gpu} cannot serve any of the requests within their objectives{_why(mine)}."
    return "" if plan.cost_usd_per_hour is not None else "There is no plan to compare with."


def _why(options: list[ServingOption]) -> str:
    reasons = Counter(reason for option in options for reason in option.limiting if reason)
    return f" ({', '.join(reason for reason, _ in reasons.most_common(2))})" if reasons else ""


def _cost_with(problem: FleetProblem, gpu: str, settings: SolverSettings, assignment: Assignment) -> float | None:
    """Return the cost of the cheapest fleet with  sum_{j on gpu} n[j] >= 1;  None if there is none.

    With adapters it is the cheapest plan with an instance of the GPU, used or not, that is found.
    """
    if problem.tenancies:
        one = Minimum(name=f"one with {gpu}", resource=Resource.INSTANCES, bound=1.0, scope=Scope(gpu=gpu))
        found = solve_with_adapters(replace(problem, rules=(*problem.rules, one)), settings, assignment)
        return None if found.cost_usd_per_hour is None else total_usd_per_hour(problem, found)
    fleet = fleet_arrays(prune(problem, keep_apart=gpu), assignment)
    # An idle replica counts as well: n may be 1 where demand alone would never need one.
    model = build_model(replace(fleet, replicas_upper=np.maximum(fleet.replicas_upper, 1.0)))
    wanted = [j for j, option in enumerate(fleet.options) if option.offer.gpu == gpu]
    model.builder.add_rows(
        "wanted", rows=np.zeros(len(wanted), dtype=np.int64), columns=model.n[wanted], values=1.0, lower=[1.0]
    )
    milp = model.freeze()
    raw = run(milp, settings)
    if raw.values is None:
        return None
    verified = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound)
    replicas, instances = (verified.values[columns].round().astype(np.int64) for columns in (model.n, model.m))
    shares = verified.values[model.x] / fleet.units_per_bucket
    beside = change_usd_per_hour(fleet, replicas) + running_usd_per_hour(fleet, replicas, shares)
    return exact_cost(fleet, instances) + beside


def _comparison(problem: FleetProblem, plan: Plan, gpu: str) -> str:
    """Return how dear a request is on `gpu` where it does best, against what serves it in the plan."""
    keys = option_keys(problem.options)
    options = {(option.service, key): option for option, key in zip(problem.options, keys, strict=True)}
    index = {
        (demand.service, bucket.row, bucket.column): position
        for demand in problem.demands
        for position, bucket in enumerate(demand.buckets)
    }
    best: tuple[float, str] | None = None
    for route in plan.routing:
        at = index[route.service, route.row, route.column]
        shares = (*route.weights.items(), *route.decode_weights.items())
        now = sum(weight * _usd_per_request(options[route.service, key], at) for key, weight in shares)
        there = min(
            (
                _usd_per_request(option, at)
                for option in problem.options
                if option.service == route.service
                and option.offer.gpu == gpu
                and option.throughput_rps[at] > 0
                and option.handover is None
            ),
            default=np.inf,
        )
        if now > 0 and (best is None or there / now < best[0]):
            bucket = next(demand for demand in problem.demands if demand.service == route.service).buckets[at]
            best = (there / now, bucket_name(route.service, bucket))
    if best is None or not np.isfinite(best[0]):
        return ""
    if best[0] >= 1:
        return f" Even where it does best ({best[1]}) a request costs {best[0]:.2f} times as much on it."
    return f" It is cheaper per request for some ({best[1]}: {best[0]:.2f} times), but not by a whole replica's worth."


def _usd_per_request(option: ServingOption, bucket: int) -> float:
    """Return the price of a full replica per request it serves: price share / (3600 s x req/s)."""
    price = float(replica_price(option.offer, option.gpus_per_replica))
    return price / (SECONDS_PER_HOUR * float(option.usable_rps[bucket]))


SECONDS_PER_HOUR = 3600.0
