"""Fleets next to a given one: without an instance, or with cheaper ones in its place."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.fleets import ChosenFleet, chosen_fleet, fullness, kind_of
from planner.optimize.naming import option_keys
from planner.optimize.packing_check import instances_needed
from planner.optimize.problem_check import offer_gpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.optimize.settings import Assignment, SolverSettings

Replicas = dict[tuple[str, str], int]
"""By service and option key."""

ROUGHLY = 1.3
"""A fleet whose capacity, roughly counted, is smaller by more than this is not looked at."""
MOST_FULL = 1.35
"""Times the caps: a cheaper fleet that would be fuller is not simulated."""


def can_descend(problem: FleetProblem, assignment: Assignment) -> bool:
    """Return whether fleets next to a plan serve everything, and can be routed and compared by their price alone."""
    is_priced = (
        (problem.change is not None and problem.change.is_priced)
        or (problem.energy is not None and problem.energy.is_priced)
        or (problem.egress is not None and problem.egress.usd_per_gb > 0)
    )
    is_other = problem.goal is not None or problem.horizon is not None or bool(problem.jobs) or problem.shed is not None
    # Fleets of given replicas are routed by groups, and would leave open where each adapter is.
    return not (is_priced or is_other or problem.tenancies) and assignment.slice_factor is None


def removals(
    problem: FleetProblem, plan: Plan, *, settings: SolverSettings, assignment: Assignment
) -> Iterator[ChosenFleet]:
    """Yield the plan without one instance of each of its offers, the dearest instance first."""
    options = options_by_name(problem)
    for replicas in _without_one(plan, options):
        found = chosen_fleet(problem, plan, replicas, settings=settings, assignment=assignment)
        if found is not None:
            yield found


def swaps(
    problem: FleetProblem, plan: Plan, *, settings: SolverSettings, assignment: Assignment
) -> Iterator[ChosenFleet]:
    """Yield cheaper plans with one or two instances replaced by as many: the least full and dear ones in turn."""
    options = options_by_name(problem)
    cost = plan.cost_usd_per_hour or 0.0
    size = {name: _capacity(option, problem) for name, option in options.items()}
    now = replicas_of(plan)
    has = {service: sum(size[name] * n for name, n in now.items() if name[0] == service) for service, _ in now}
    ranked: list[tuple[float, float, Replicas]] = []
    for replicas in _candidates(plan, options):
        price = _price(replicas, options)
        holds = {s: sum(size[name] * n for name, n in replicas.items() if name[0] == s) for s in has}
        if price >= cost or any(holds[s] * ROUGHLY < has[s] for s in has):
            continue
        full = fullness(problem, replicas, options, assignment)
        if full is not None and full <= MOST_FULL:
            ranked.append((round(full, 9), price, replicas))
    ranked.sort(key=lambda item: (*item[:2], sorted(item[2].items())))
    missed, is_turn = 0.0, False
    while ranked:
        # Whoever asks for another one says that the last one missed. Caps can be wrong about all cheap ones alike, so
        # every other one is dearer than half of the way from the dearest that missed to the plan.
        dearer = [index for index, item in enumerate(ranked) if item[1] > (missed + cost) / 2] if is_turn else []
        _, price, replicas = ranked.pop(dearer[0] if dearer else 0)
        found = chosen_fleet(problem, plan, replicas, settings=settings, assignment=assignment)
        if found is not None:
            missed, is_turn = max(missed, price), not is_turn
            yield found


def options_by_name(problem: FleetProblem) -> dict[tuple[str, str], ServingOption]:
    """Return the options by service and key."""
    return {
        (option.service, key): option for option, key in zip(problem.options, option_keys(problem.options), strict=True)
    }


def replicas_of(plan: Plan) -> Replicas:
    """Return what runs in `plan`."""
    return {(item.service, item.option): item.replicas for item in plan.allocation}


def _without_one(plan: Plan, options: Mapping[tuple[str, str], ServingOption]) -> Iterator[Replicas]:
    """Yield the replicas without as many of one option as free an instance, the dearest instance first."""
    now = replicas_of(plan)
    for name in sorted(now, key=lambda name: (-options[name].offer.price_usd_per_hour, name)):
        fewer = dict(now)
        instances = _instances(now, options)[options[name].offer.name]
        while fewer.get(name, 0) > 0:
            fewer[name] -= 1
            if _instances(fewer, options)[options[name].offer.name] < instances:
                left = {key: count for key, count in fewer.items() if count}
                if left:
                    yield left
                break


def _instances(replicas: Replicas, options: Mapping[tuple[str, str], ServingOption]) -> Counter[str]:
    sizes: dict[str, list[int]] = {}
    gpus: dict[str, int] = {}
    for name, count in replicas.items():
        offer = options[name].offer
        sizes.setdefault(offer.name, []).extend([options[name].gpus_per_replica] * count)
        gpus[offer.name] = offer_gpus(offer)
    return Counter({offer: instances_needed(found, gpus[offer]) for offer, found in sizes.items()})


def _price(replicas: Replicas, options: Mapping[tuple[str, str], ServingOption]) -> float:
    prices = {options[name].offer.name: float(options[name].offer.price_usd_per_hour) for name in replicas}
    return sum(prices[offer] * count for offer, count in _instances(replicas, options).items())


def _capacity(option: ServingOption, problem: FleetProblem) -> float:
    """Return what part of its service's demand one replica serves, each bucket alike; buckets it cannot serve as 0."""
    demand = next(demand for demand in problem.demands if demand.service == option.service)
    rates = np.array([bucket.rate_rps for bucket in demand.buckets])
    able = option.usable_rps > 0
    if not able.any():
        return 0.0
    served = rates[able].sum() / rates.sum()
    return float(served / (rates[able] / option.usable_rps[able]).sum())


def additions(
    options: Mapping[tuple[str, str], ServingOption], service: str
) -> list[tuple[tuple[str, str], int, float]]:
    """Return for each kind of replica its cheapest instance, full of it: the option, its replicas and the price."""
    best: dict[object, tuple[tuple[float, float, str], tuple[str, str], int]] = {}
    for name, option in options.items():
        if option.service != service or not (option.throughput_rps > 0).any():
            continue
        count = offer_gpus(option.offer) // option.gpus_per_replica
        price = float(option.offer.price_usd_per_hour)
        order = (price, price / count, name[1])
        if kind_of(option) not in best or order < best[kind_of(option)][0]:
            best[kind_of(option)] = (order, name, count)
    return [(name, count, order[0]) for order, name, count in sorted(best.values())]


def _candidates(plan: Plan, options: Mapping[tuple[str, str], ServingOption]) -> Iterator[Replicas]:
    """Yield the fleets with one or two instances less and one or two others more that cost less, each once."""
    cost = plan.cost_usd_per_hour or 0.0
    seen: set[tuple[tuple[tuple[str, str], int], ...]] = set()
    for service in dict.fromkeys(item.service for item in plan.allocation):
        fitting_kinds = additions(options, service)
        for fewer in _fewer(plan, options, service):
            room = cost - _price(fewer, options)
            fitting = [item for item in fitting_kinds if item[2] < room]
            for index, (name, count, price) in enumerate(fitting):
                others = [(other, n) for other, n, more in fitting[index:] if price + more < room]
                for extra in (None, *others):
                    more = dict(fewer)
                    more[name] = more.get(name, 0) + count
                    if extra is not None:
                        more[extra[0]] = more.get(extra[0], 0) + extra[1]
                    key = tuple(sorted(more.items()))
                    if key not in seen:
                        seen.add(key)
                        yield more


def _fewer(plan: Plan, options: Mapping[tuple[str, str], ServingOption], service: str) -> Iterator[Replicas]:
    """Yield the fleets without one, and without two, instances that serve `service`."""
    mine = {name for name in replicas_of(plan) if name[0] == service}
    for fewer in _without_instance(replicas_of(plan), options, mine):
        yield fewer
        yield from _without_instance(fewer, options, mine)


def _without_instance(
    now: Replicas, options: Mapping[tuple[str, str], ServingOption], among: set[tuple[str, str]]
) -> Iterator[Replicas]:
    for name in sorted(among & set(now)):
        count = max(1, offer_gpus(options[name].offer) // options[name].gpus_per_replica)
        left = dict(now)
        left[name] = max(0, left[name] - count)
        yield {key: number for key, number in left.items() if number}
