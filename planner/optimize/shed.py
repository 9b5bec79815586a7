"""What to leave unserved where the limits do not hold all demand, and the best fleet for the rest.

    for priority k = 1, 2, ...:  V[k] = min  sum_{b of priority k} lam[b] u[b]     with V[1] ... V[k - 1] kept
    then                                min  the cost, or one objective after the other, with all of V kept

over the model in which every bucket's shares and its unserved share u[b] sum to 1. With the replicas of each programme
u is made exact by linear programmes (`planner.optimize.partial`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import Unserved
from planner.domain.problem import Goal, Measure
from planner.domain.provenance import Warning_
from planner.errors import InputError
from planner.optimize.goals import GoalResult, search_goal
from planner.optimize.partial import Partial, nothing
from planner.optimize.search import clean_bound, run
from planner.optimize.termination import Termination
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.domain.problem import FleetProblem
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.settings import SolverSettings

UNSERVED = "W401"
KEPT = 1e-7
"""Relative to a priority's demand: how far above its least unserved rate a later programme may go; a solver's noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Levels:
    """The least that stays unserved of every priority, and how the programmes ended."""

    partial: Partial
    termination: Termination
    seconds: float


def serve_most(problem: FleetProblem, fleet: FleetArrays, settings: SolverSettings) -> GoalResult | None:
    """Return the fleet that leaves least unserved and is then best in the problem's objectives.

    None if a limit stopped the search before any.

    Raises
    ------
    InputError: if buckets are sliced: an unserved part is no whole number of slices.
    SolverError: if the solver fails or its answer does not satisfy the model.
    """
    if fleet.is_sliced:
        raise InputError(
            "Demand can only be shed where buckets may be split freely.",
            hint="Drop --assignment sliced, or constraints.shed.",
        )
    deadline = time.monotonic() + settings.time_limit_s
    levels = _settled_levels(Partial(fleet=fleet, levels=_levels(problem, fleet)), settings)
    if levels is None:
        return None
    left = replace(settings, time_limit_s=max(deadline - time.monotonic(), 0.0))
    found = search_goal(fleet, problem.goal or Goal(stages=({Measure.COST: 1.0},)), left, partial=levels.partial)
    result = replace(found.result, seconds=found.result.seconds + levels.seconds)
    if levels.termination is not Termination.OPTIMAL:
        result = replace(result, termination=levels.termination)
    if result.fleet is None:
        return None
    if problem.goal is None:
        is_proven = levels.termination is Termination.OPTIMAL
        bound = clean_bound(found.reached[0].bound if is_proven else None, result.fleet)
        return replace(found, result=replace(result, bound_usd_per_hour=bound), reached=(), kept=())
    return replace(found, result=result)


def _levels(problem: FleetProblem, fleet: FleetArrays) -> tuple[np.ndarray, ...]:
    """Return the buckets of each priority, most important first."""
    priority = {} if problem.shed is None else problem.shed.priority
    ranks = np.array([priority.get(service, 1) for service, _ in fleet.buckets], dtype=np.int64)
    return tuple(np.flatnonzero(ranks == rank) for rank in np.unique(ranks))


def _settled_levels(partial: Partial, settings: SolverSettings) -> _Levels | None:
    """Return the least unserved rate of every priority; what is known where a limit stops the search."""
    deadline = time.monotonic() + settings.time_limit_s
    seconds, ended = 0.0, Termination.OPTIMAL
    for level, mine in enumerate(partial.levels):
        model = partial.model(partial.fleet, nothing(partial.fleet), partial.level_weights(level))
        milp = model.freeze()
        raw = run(milp, replace(settings, time_limit_s=max(deadline - time.monotonic(), 0.0)))
        seconds += raw.seconds
        ended = raw.termination if ended is Termination.OPTIMAL else ended
        if raw.values is None:
            return None
        verified = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound)
        # Not the solver's own value: its tolerance may claim a little less than these replicas can serve.
        so_far = replace(partial, levels=partial.levels[: level + 1])
        exact = so_far.exact_unserved(verified)[mine]
        rates = partial.rates_rps[mine]
        most = float(rates @ exact) + KEPT * float(rates.sum())
        partial = replace(partial, least_rps=(*partial.least_rps, most))
    return _Levels(partial=partial, termination=ended, seconds=seconds)


def unserved_buckets(problem: FleetProblem, fleet: FleetArrays) -> tuple[Unserved, ...]:
    """Return what a fleet leaves unserved, in the order of the request; over a horizon the means of its periods."""
    return tuple(_unserved(problem, fleet))


def _unserved(problem: FleetProblem, fleet: FleetArrays) -> Iterator[Unserved]:
    if fleet.served is None:
        return
    priority = {} if problem.shed is None else problem.shed.priority
    asked: dict[tuple[str, int, int], float] = {}
    left: dict[tuple[str, int, int], float] = {}
    for (service, bucket), served in zip(fleet.buckets, fleet.served.tolist(), strict=True):
        key = (service, bucket.row, bucket.column)
        asked[key] = asked.get(key, 0.0) + bucket.rate_rps / fleet.n_periods
        left[key] = left.get(key, 0.0) + bucket.rate_rps * (1 - served) / fleet.n_periods
    for demand in problem.demands:
        for bucket in demand.buckets:
            key = (demand.service, bucket.row, bucket.column)
            if left.get(key, 0.0) > 0:
                yield Unserved(
                    service=demand.service,
                    input_tokens=bucket.input_range,
                    output_tokens=bucket.output_range,
                    row=bucket.row,
                    column=bucket.column,
                    rate_rps=float(left[key]),
                    fraction=min(float(left[key] / asked[key]), 1.0),
                    priority=priority.get(demand.service, 1),
                )


def unserved_warning(problem: FleetProblem, unserved: Sequence[Unserved]) -> Warning_:
    """Return the warning that names what each service lacks, least important first."""
    asked = {demand.service: demand.total_rate_rps * problem.mean_factor(demand.service) for demand in problem.demands}
    parts = []
    for service in sorted(asked):
        mine = [item for item in unserved if item.service == service]
        if mine:
            rate = sum(item.rate_rps for item in mine)
            text = f"{service} {rate:.4g} of {asked[service]:.4g} req/s (priority {mine[0].priority})"
            parts.append((-mine[0].priority, text))
    left = sum(item.rate_rps for item in unserved)
    services = "; ".join(text for _, text in sorted(parts))
    message = f"{left:.4g} of {sum(asked.values()):.4g} req/s are not served: {services}."
    return Warning_(code=UNSERVED, message=message, observed=left, threshold=0)
