"""Part of the independent check of a plan: its rules, from the plan's own rentals, replicas and routing weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.domain.adapters import Isolation
from planner.domain.disaggregation import Role
from planner.domain.problem import Minimum, Redundancy, Resource, Scenario, ShareCap, VarietyLimit
from planner.errors import SolverLiedError
from planner.optimize.loss_check import check_losses
from planner.optimize.robust_check import check_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import Offer
    from planner.domain.plan import Plan
    from planner.domain.problem import ChangeCost, FleetProblem, ServingOption

TOLERANCE = 1e-6
"""Relative, of a minimum or of a service's requests: what solvers accept."""


def check_rules(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if `plan` keeps every rule of `problem`, and says what its changes cost.

    Of a schedule only variety and changes are judged here: what else must hold, does so in every period
    (`check_period_rules`).

    Raises
    ------
    SolverLiedError: naming the rule that does not hold.
    """
    for rule in problem.rules:
        if isinstance(rule, VarietyLimit):
            _check_variety(rule, _rented(plan, by_key))
    if problem.horizon is None:
        check_period_rules(problem, plan, by_key)
    _check_change(problem, plan, by_key)


def check_period_rules(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if `plan`, a steady state or one period of a schedule, keeps its minima, shares and survives losses.

    Raises
    ------
    SolverLiedError: naming the rule that does not hold.
    """
    asked = _served(problem, plan)
    for rule in problem.rules:
        if isinstance(rule, Minimum):
            _check_minimum(rule, _rented(plan, by_key))
        elif isinstance(rule, Redundancy):
            check_losses(rule, asked, plan, by_key)
        elif isinstance(rule, Scenario):
            check_scenario(rule, problem, plan, by_key)
        elif isinstance(rule, ShareCap):
            _check_share(rule, plan, by_key)


def _served(problem: FleetProblem, plan: Plan) -> FleetProblem:
    """Return `problem` with the rates that `plan` does not call unserved."""
    left = {(item.service, item.row, item.column): item.rate_rps for item in plan.unserved}
    if not left:
        return problem
    demands = (
        replace(
            demand,
            buckets=tuple(
                replace(b, rate_rps=max(b.rate_rps - left.get((demand.service, b.row, b.column), 0.0), 0.0))
                for b in demand.buckets
            ),
        )
        for demand in problem.demands
    )
    return replace(problem, demands=tuple(demands))


def _rented(plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> list[tuple[Offer, int]]:
    offers = {option.offer.name: option.offer for option in by_key.values()}
    return [(offers[rental.offer], rental.instances) for rental in plan.rentals if rental.instances > 0]


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")


def _check_variety(rule: VarietyLimit, rented: list[tuple[Offer, int]]) -> None:
    found = {rule.facet.of(offer) for offer, _ in rented}
    if len(found) > rule.bound:
        _fail(f"at most {rule.bound} {rule.name} are allowed, and it has {', '.join(sorted(found))}")


def _check_minimum(rule: Minimum, rented: list[tuple[Offer, int]]) -> None:
    total = 0.0
    for offer, count in rented:
        if rule.scope.covers(offer):
            total += count * (offer.gpus_per_instance if rule.resource is Resource.GPUS else 1)
    if total < rule.bound - TOLERANCE * max(rule.bound, 1.0):
        _fail(f"{rule.name} is {rule.bound:g}, and the plan has {total:g}")


def _check_share(rule: ShareCap, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    totals: dict[str, float] = defaultdict(float)
    parts: dict[tuple[str, str, Role], float] = defaultdict(float)  # prompts and answers each for themselves
    for route in plan.routing:
        if rule.service not in {None, route.service}:
            continue
        totals[route.service] += route.rate_rps
        for key, weight in (*route.weights.items(), *route.decode_weights.items()):
            offer, role = by_key[route.service, key].offer, by_key[route.service, key].role
            for stage in (Role.PREFILL, Role.DECODE):
                if rule.scope.covers(offer) and role in {Role.BOTH, stage}:
                    parts[route.service, rule.facet.of(offer), stage] += route.rate_rps * weight
    for (service, group, _), rate in parts.items():
        if rate > (rule.bound + 2 * TOLERANCE) * totals[service]:
            _fail(f"{group} serves {rate / totals[service]:.6f} of {service}, and the {rule.name} is {rule.bound:g}")


def _kept(change: ChangeCost, plan: Plan, place: tuple[str, str], option: ServingOption, replicas: int) -> int:
    """Return how many replicas of an option stay: with an adapter in their weights, those of the same adapter."""
    if option.slots is None or option.slots.isolation is not Isolation.DEDICATED:
        return min(replicas, change.replicas_of(option))
    held = change.merged_replicas_of(option)
    wanted = Counter(
        hosted.adapter
        for item in plan.adapters
        for replica in item.placement
        for hosted in replica.adapters
        if (item.service, replica.option) == place
    )
    return sum(min(count, held[name]) for name, count in wanted.items())


def _check_change(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """What starts and what stops, counted replica by replica."""
    change = problem.change
    if change is None:
        return
    planned = {(item.service, item.option): item.replicas for item in plan.allocation}
    kept = sum(_kept(change, plan, place, by_key[place], replicas) for place, replicas in planned.items())
    started = sum(planned.values()) - kept
    stopped = sum(item.replicas for item in change.running) - kept
    cost = (started * change.start_usd + stopped * change.stop_usd) / change.horizon_hours
    if abs(cost - (plan.change_usd_per_hour or 0.0)) > 1e-9 * max(cost, 1.0):
        _fail(f"its changes cost {cost!r} USD/h, and it says {plan.change_usd_per_hour!r}")
    steps = {"start": 0, "stop": 0, "route": 0}
    for step in plan.rollout:
        steps[step.action] += step.replicas
    if (steps["start"], steps["stop"]) != (started, stopped):
        _fail(f"its rollout starts {steps['start']} and stops {steps['stop']} replicas, not {started} and {stopped}")
    order = ["start", "route", "stop"]
    ranks = [order.index(step.action) for step in plan.rollout]
    if ranks != sorted(ranks):
        _fail("its rollout stops something before everything has started")
