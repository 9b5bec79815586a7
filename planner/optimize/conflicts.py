"""Why a request has no plan: which limit stands in the way, and by how little it would have to give.

For each limit alone:  minimise  s  subject to the model with  usage <= bound + s  for this limit and all others kept.
Where no single one is enough, the least sum of relative excesses over all limits together is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Conflict
from planner.domain.problem import Resource
from planner.optimize.arrays import fleet_arrays
from planner.optimize.coarser import with_kin
from planner.optimize.job_conflicts import job_conflicts
from planner.optimize.model import Objective, build_model
from planner.optimize.periods import rented
from planner.optimize.prune import prune
from planner.optimize.rows.limits import all_limits, limit_usage
from planner.optimize.rule_conflicts import conflicts_together, rule_conflicts
from planner.optimize.search import run, search, settle
from planner.optimize.settings import Assignment, Clock
from planner.optimize.termination import Termination
from planner.optimize.unserved import unserved_conflicts
from planner.optimize.verify import verify
from planner.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from planner.domain.problem import FleetProblem, Horizon, Limit
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray
    from planner.optimize.settings import SolverSettings

MAX_SINGLE_LIMITS = 40
"""Limits that are relaxed one at a time; with more, those that the joint relaxation needs come first."""
ROUGH_GAP = 0.5
"""Close enough where all that matters is whether there is a plan."""
FEW_SIZES = 4
"""Classes of sizes of requests for adapters that are told apart here, for each kin."""
ADAPTERS_GAP = 0.02
"""Relative to the excess, where whole adapters have yet to be placed."""
LARGEST_GAP = 1e-4
"""Relative to the excess: below one instance in thousands, and below a cent in a hundred dollars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relaxed:
    """Limits' use in the least relaxation found, shape (limits,); None in `usage` if there is none."""

    usage: FloatArray | None
    is_proven: bool


def find_conflicts(
    problem: FleetProblem, *, settings: SolverSettings, assignment: Assignment | None = None
) -> tuple[Conflict, ...]:
    """Return what makes `problem` infeasible, and for each limit the smallest relaxation of it alone that helps.

    Buckets that nothing can serve come alone: no limit matters before they are served. An empty result means that the
    problem is feasible, or that the time limit was reached before a way out was found.

    Raises
    ------
    InputError, SolverError: as `solve`.
    """
    chosen = assignment or Assignment.fractional()
    unserved = unserved_conflicts(problem)
    if unserved:
        return unserved
    gap = min(settings.relative_gap, LARGEST_GAP)
    if problem.tenancies:
        problem, gap = with_kin(problem, sizes=FEW_SIZES).problem, max(settings.relative_gap, ADAPTERS_GAP)
    fleet = fleet_arrays(prune(problem), chosen)
    clock = Clock(replace(settings, relative_gap=gap))
    found, is_feasible = _limit_conflicts(fleet, clock)
    if is_feasible:
        return found
    found += tuple(job_conflicts(problem, fleet, chosen, clock.settings))
    if fleet.rules:
        alone = tuple(conflict for conflict in found if conflict.relaxed is not None)
        alone += tuple(rule_conflicts(fleet, clock.settings))
        found = alone or found or tuple(conflicts_together(fleet, clock.settings()))
    return found + tuple(_horizon_conflicts(problem, chosen, clock))


def _limit_conflicts(fleet: FleetArrays, clock: Clock) -> tuple[tuple[Conflict, ...], bool]:
    """Return the conflicts of limits, each alone or all together, and whether there is a plan that keeps them all."""
    limits = all_limits(fleet)
    if not limits:
        return (), False
    joint = _relax(fleet, np.ones(len(limits), dtype=np.bool_), clock)
    if joint.usage is None:
        return (), False
    exceeded = [index for index, limit in enumerate(limits) if _exceeds(limit, joint.usage[index])]
    if not exceeded:
        return (), True
    alone = {index: _relax(fleet, _only(index, len(limits)), clock) for index in _order(exceeded, len(limits))}
    single = tuple(
        _conflict(limits[index], float(relaxed.usage[index]), is_proven=relaxed.is_proven)
        for index, relaxed in alone.items()
        if relaxed.usage is not None and _exceeds(limits[index], relaxed.usage[index])
    )
    return single or _together(limits, exceeded, joint), False


def _horizon_conflicts(problem: FleetProblem, assignment: Assignment, clock: Clock) -> Iterator[Conflict]:
    """Yield the start-up time and the lease, if a shorter one of it alone makes a plan possible."""
    if problem.horizon is None:
        return
    for name, words in (("start_up_s", "start-up"), ("minimum_lease_s", "minimum lease")):
        longest = _longest(problem, problem.horizon, name, assignment, clock)
        if longest is None:
            continue
        now = getattr(problem.horizon, name)
        yield Conflict(
            requirement=f"{words} of {format_duration(now)}",
            explanation="Limits are full while machines that are no longer needed are still rented.",
            current=now,
            relaxed=longest,
            unit="s",
            suggestion=f"{words} {format_duration(now)} -> {format_duration(longest) if longest else 'none'}",
        )


def _longest(problem: FleetProblem, horizon: Horizon, name: str, assignment: Assignment, clock: Clock) -> float | None:
    """Return the longest value, in whole periods below the one asked, with which a plan exists; None if none does."""

    def works(n_periods: int) -> bool:
        length_s = n_periods * horizon.step_s
        shorter = (
            replace(horizon, start_up_s=length_s)
            if name == "start_up_s"
            else replace(horizon, minimum_lease_s=length_s)
        )
        changed = replace(problem, horizon=shorter)
        settings = replace(clock.settings(), relative_gap=ROUGH_GAP)
        return search(fleet_arrays(prune(changed), assignment), settings).fleet is not None

    high = math.ceil(getattr(horizon, name) / horizon.step_s - 1e-9)
    if high == 0 or not works(0):
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low * horizon.step_s


def _only(index: int, size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=np.bool_)
    mask[index] = True
    return mask


def _order(exceeded: list[int], n_limits: int) -> list[int]:
    """Return the limits to relax alone, at most 40: those of the joint relaxation have precedence."""
    others = [index for index in range(n_limits) if index not in set(exceeded)]
    return sorted([*exceeded, *others][:MAX_SINGLE_LIMITS])


def _relax(fleet: FleetArrays, free: NDArray[np.bool_], clock: Clock) -> _Relaxed:
    """Return the limits' use in the fleet that exceeds the `free` ones least, relative to their size."""
    limits = all_limits(fleet)
    scale = np.array([max(limit.bound, 1.0) for limit in limits])
    model = build_model(
        fleet,
        Objective(per_replica=np.zeros(len(fleet.options)), per_instance=np.zeros(len(fleet.pool_offer))),
        slack_cost=1.0 / scale,
        slack_upper=np.where(free, np.inf, 0.0),
    )
    milp = model.freeze()
    raw = run(milp, clock.settings())
    if raw.values is None:
        return _Relaxed(usage=None, is_proven=raw.termination is Termination.INFEASIBLE)
    verified = verify(milp, raw.values, stated_objective=raw.objective)
    found = settle(
        fleet,
        replicas=verified.values[model.n].round().astype(np.int64),
        instances=verified.values[model.m].round().astype(np.int64),
        assigned=verified.values[model.x] / fleet.units_per_bucket,
    )
    if found is None:
        return _Relaxed(usage=None, is_proven=False)
    held = rented(fleet, found.instances)
    usage = [float(limit_usage(limit, fleet, found.replicas, held).max()) for limit in limits]
    return _Relaxed(usage=np.array(usage), is_proven=raw.termination is Termination.OPTIMAL)


def _exceeds(limit: Limit, usage: float) -> bool:
    return usage > limit.bound + 1e-6 * max(limit.bound, 1.0)


def _conflict(limit: Limit, usage: float, *, is_proven: bool) -> Conflict:
    relaxed = round_up(limit.resource, usage)
    least = "" if is_proven else " (the time limit was reached: less may do)"
    return Conflict(
        requirement=requirement(limit),
        explanation=f"No plan keeps this limit together with all others; alone it would have to be raised{least}.",
        current=limit.bound,
        relaxed=relaxed,
        unit=_UNITS[limit.resource],
        suggestion=change(limit, relaxed),
    )


def _together(limits: tuple[Limit, ...], exceeded: list[int], joint: _Relaxed) -> tuple[Conflict, ...]:
    """Return one conflict per limit of the joint relaxation; none of them alone helps."""
    if joint.usage is None:
        return ()
    changes = {index: change(limits[index], round_up(limits[index].resource, joint.usage[index])) for index in exceeded}
    return tuple(
        Conflict(
            requirement=requirement(limits[index]),
            explanation="No plan keeps this limit, and raising it alone is not enough.",
            current=limits[index].bound,
            relaxed=None,
            unit=_UNITS[limits[index].resource],
            suggestion="all of: " + "; ".join(changes.values()),
        )
        for index in exceeded
    )


_UNITS = {
    Resource.INSTANCES: "instances",
    Resource.GPUS: "GPUs",
    Resource.VCPUS: "vCPUs",
    Resource.USD_PER_HOUR: "USD/h",
    Resource.WATTS: "W",
}


def requirement(limit: Limit) -> str:
    """Return a limit in words: "budget <= 20 USD/h"."""
    return f"{limit.name} <= {format_amount(limit.resource, limit.bound)}"


def round_up(resource: Resource, usage: float) -> float:
    """Return the smallest bound that a person would write and that allows `usage`: whole things, watts, and cents.

    Examples
    --------
    >>> round_up(Resource.USD_PER_HOUR, 27.3911), round_up(Resource.INSTANCES, 4.0), round_up(Resource.WATTS, 6100.2)
    (27.4, 4.0, 6101.0)
    """
    step = 0.01 if resource is Resource.USD_PER_HOUR else 1.0
    return round(math.ceil(usage / step - 1e-6) * step, 2)


def format_amount(resource: Resource, amount: float) -> str:
    """Return an amount of a resource with its unit, all digits that matter.

    Examples
    --------
    >>> format_amount(Resource.WATTS, 6123.0), format_amount(Resource.USD_PER_HOUR, 27.4)
    ('6.123 kW', '27.40 USD/h')
    """
    if resource is Resource.USD_PER_HOUR:
        return f"{amount:.2f} USD/h"
    if resource is Resource.WATTS:
        return f"{amount / 1000:.10g} kW" if amount >= 1000 else f"{amount:.10g} W"
    return f"{amount:.10g} {_UNITS[resource]}"


def change(limit: Limit, relaxed: float) -> str:
    """Return a relaxation in words: "available H100-80GB: 2 -> 4 instances"."""
    if limit.resource in {Resource.USD_PER_HOUR, Resource.WATTS}:
        before = format_amount(limit.resource, limit.bound)
        after = format_amount(limit.resource, relaxed)
        before_value, before_unit = before.rsplit(" ", 1)
        before = before_value if before_unit == after.rsplit(" ", 1)[1] else before
        return f"{limit.name} {before} -> {after}"
    return f"{limit.name}: {limit.bound:.10g} -> {format_amount(limit.resource, relaxed)}"
