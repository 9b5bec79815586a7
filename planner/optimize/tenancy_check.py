"""What a problem with adapters must be, and what adapters cannot be planned together with."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from planner.domain.problem import InstanceLoss, ReplicaLoss, Scenario, Survival
from planner.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.domain.adapters import Tenancy
    from planner.domain.problem import FleetProblem
    from planner.domain.workload import Demand

TOLERANCE = 1e-9
"""Relative, of sums of rates."""
BY_PERIOD = "Plan each period's rates in a request of its own, from the one before with --current."
APART = "Leave it out, and plan the same adapters once for each place that must do without the others."
HEADROOM = "Leave it out, and raise constraints.headroom."


def check_tenancies(problem: FleetProblem) -> None:
    """Refuse adapters that contradict the demand or the options, and what is not planned together with them.

    Raises
    ------
    InputError: naming the first thing that is wrong.
    """
    demands = {demand.service: demand for demand in problem.demands}
    named = [tenancy.service for tenancy in problem.tenancies]
    if len(set(named)) != len(named) or not set(named) <= set(demands):
        raise InputError(f"There are adapters of {named}, and demand for {list(demands)}.")
    for option in problem.options:
        if (option.slots is not None) != (option.service in named):
            raise InputError(
                f"The option of {option.service} on {option.offer.name} and its service do not agree on adapters."
            )
    if not problem.tenancies:
        return
    for what, instead in _not_combined(problem):
        raise InputError(f"Adapters are not planned together with {what}.", hint=instead)
    for tenancy in problem.tenancies:
        _check_rates(tenancy, demands[tenancy.service])


def _check_rates(tenancy: Tenancy, demand: Demand) -> None:
    names = [tenant.name for tenant in tenancy.tenants]
    if len(set(names)) != len(names):
        raise InputError(f"Two adapters of {tenancy.service} have the same name.", hint="Give each its own.")
    asked: dict[int | None, float] = defaultdict(float)
    for bucket in demand.buckets:
        asked[bucket.group] += bucket.rate_rps
    for group, total in asked.items():
        rates = [tenant.rate_rps for tenant in tenancy.members(group)]
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise InputError(f"Group {group} of {tenancy.service} has an adapter without requests, or none at all.")
        if abs(sum(rates) - total) > TOLERANCE * total:
            raise InputError(
                f"The adapters of group {group} of {tenancy.service} have {sum(rates)!r} req/s, and the group"
                f" {total!r}."
            )
    if any(tenant.group not in asked for tenant in tenancy.tenants):
        raise InputError(f"An adapter of {tenancy.service} is in no group of its demand.")


def _not_combined(problem: FleetProblem) -> Iterator[tuple[str, str]]:
    """Yield what the problem has that placing whole adapters does not keep and why, and what to do instead."""
    if problem.horizon is not None:
        yield "a horizon: where adapters are would have to change from period to period", BY_PERIOD
    if problem.shed is not None:
        yield "constraints.shed: which adapter would be left unserved?", "Raise the limits, or list fewer adapters."
    if problem.jobs:
        yield "deferrable work: what an adapter's replica has left is not modelled", "Plan the work apart."
    if any(option.handover is not None for option in problem.options):
        yield "disaggregation: what adapters cost a prefill replica is not modelled", "Leave disaggregate out."
    for rule in problem.rules:
        if isinstance(rule, Survival):
            yield f"{rule.name}: what is lost could hold the only copy of an adapter", APART
        if isinstance(rule, InstanceLoss | ReplicaLoss):
            yield f"{rule.name}: what is lost could hold the only copy of an adapter", HEADROOM
        if isinstance(rule, Scenario):
            yield f"the scenario {rule.name}: what is asked of each adapter in it is not known", HEADROOM
