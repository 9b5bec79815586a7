"""How many replicas of one kind alone hold a service, by simulation: how full they may be in a fleet of their own.

Throughput says what a kind would cost alone without bursts. In that order kinds are tried: of the first the smallest
fleet that holds is searched for; of each other one the largest that costs less, and only if that holds a smaller one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.proof import ProofStep
from planner.optimize.fleets import chosen_fleet, kind_of
from planner.planning.proving.descent import additions, options_by_name, replicas_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from planner.domain.plan import Plan
    from planner.domain.problem import ServingOption
    from planner.planning.proving.search import ProofSearch

MAX_KINDS = 10
PRECISION = 0.03
MOST_TIMES = 64
"""A fleet of one kind that misses with so many times what its throughput asks for is given up."""


def learn_alone(search: ProofSearch, base: Plan) -> None:
    """Set the caps of the most promising kinds of every service to what they keep alone.

    base : a plan whose replicas serve the other services meanwhile.
    """
    options = options_by_name(search.question.problem)
    for demand in search.question.problem.demands:
        _learn_service(search, base, demand.service, options)


def _learn_service(
    search: ProofSearch, base: Plan, service: str, options: Mapping[tuple[str, str], ServingOption]
) -> None:
    others = {name: count for name, count in replicas_of(base).items() if name[0] != service}
    ranked = [
        (load / per_instance * price, name, load, per_instance, price)
        for name, per_instance, price in additions(options, service)
        for load in [_load(search, options[name])]
        if load is not None
    ]
    ranked.sort()
    least, n_known = math.inf, 0
    for by_throughput, name, load, per_instance, price in ranked:
        if search.clock.is_over or n_known >= MAX_KINDS or by_throughput > least:
            return

        def holds(instances: int, name: tuple[str, str] = name, per_instance: int = per_instance) -> bool | None:
            return _holds(search, base, {**others, name: instances * per_instance}, service)

        most = None if math.isinf(least) else math.ceil(least / price - 1e-9) - 1
        found = smallest(holds, first=max(1, math.ceil(load / per_instance)), most=most)
        if found is None:
            continue
        n_known += 1
        instances, is_held = found
        search.caps[kind_of(options[name])] = load / (instances * per_instance)
        if is_held:
            least = min(least, instances * price)


def smallest(holds: Callable[[int], bool | None], *, first: int, most: int | None) -> tuple[int, bool] | None:
    """Return the smallest count that holds, to 3%, and true; or the largest that was tried and false.

    None where limits leave no count that holds: that says nothing of the kind.

    Parameters
    ----------
    holds : whether a count does; None where it is not allowed.
    first : where to begin.
    most : the largest count of interest; None = any.

    Examples
    --------
    >>> smallest(lambda n: n >= 5, first=2, most=None), smallest(lambda n: n >= 5, first=2, most=4)
    ((5, True), (4, False))
    """
    low, high = 0, first if most is None else most
    if high < first:
        return None
    while not (held := holds(high)):
        if held is None:
            return None
        if most is not None or high >= MOST_TIMES * first:
            return high, False
        low, high = high, high * 2
    while high - low > max(1, PRECISION * high):
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high, True


def _load(search: ProofSearch, option: ServingOption) -> float | None:
    """Return how many replicas of `option` all of its service's requests keep busy; None if it cannot serve some."""
    problem = search.question.problem
    demand = next(demand for demand in problem.demands if demand.service == option.service)
    if not (option.throughput_rps > 0).all():
        return None
    rates = np.array([bucket.rate_rps for bucket in demand.buckets])
    return float((rates / option.throughput_rps).sum()) * (1 + problem.headroom_fraction)


def _holds(search: ProofSearch, base: Plan, replicas: dict[tuple[str, str], int], service: str) -> bool | None:
    """Return whether a fleet holds `service`; None if the limits do not allow it."""
    found = chosen_fleet(
        search.question.problem, base, replicas, settings=search.settings, assignment=search.assignment
    )
    if found is None or not search.is_allowed(found):
        return None
    return service not in search.attempt(found.plan, found.problem, step=ProofStep.ALONE).verdict.missed
