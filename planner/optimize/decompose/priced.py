"""Every service on its own at the relaxation's prices: a better bound than the linear one, and where to begin.

    bound = constant + sum_s min {sum_j w[j] n[j] : service s served, n whole}

is the Lagrangian bound with the shared rows priced: every term is at least the linear programme's part of it, and what
rounding costs a service is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverLiedError
from planner.optimize.backends import solve_milp
from planner.optimize.decompose.programmes import PADDING, Programme, priced_service
from planner.optimize.decompose.workers import solve_all
from planner.optimize.routing import balanced_shares
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.decompose.budget import Budget
    from planner.optimize.decompose.parts import Cut, Part
    from planner.optimize.decompose.relaxation import Relaxation
    from planner.optimize.milp import FloatArray
    from planner.optimize.settings import SolverSettings

NODE_LIMIT = 200
"""Branch-and-bound nodes per service and refinement; a count, not a clock, so that runs repeat."""
SERVICE_TIME_S = 20.0
"""A service that takes longer keeps what it has; only reached on machines far slower than those of the benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What is known of one service at the prices."""

    bound: float
    cost: float
    """Of `replicas` at the prices; inf where there are none."""
    replicas: FloatArray | None
    """Shape (options of the service,)."""


def linear_terms(cut: Cut, prices: Relaxation) -> list[Priced]:
    """Return what the linear relaxation knows of every service."""
    return [
        Priced(bound=float(prices.bucket_price[part.buckets].sum()), cost=np.inf, replicas=None) for part in cut.parts
    ]


def price_services(
    cut: Cut, prices: Relaxation, known: list[Priced], which: Sequence[int], *, gap: float, nodes: int, budget: Budget
) -> list[Priced]:
    """Return `known` with the services `which` solved to a relative `gap`; those that time leaves out as they were."""

    def work(index: int) -> Priced:
        settings = replace(
            budget.settings(),
            relative_gap=gap,
            node_limit=nodes,
            time_limit_s=min(budget.left_s, SERVICE_TIME_S),
        )
        return _price(cut.parts[index], prices, known[index], settings)

    found = list(known)
    for index, result in zip(which, solve_all(work, which, budget), strict=True):
        if result is not None:
            found[index] = result
    return found


def total_bound(prices: Relaxation, known: Sequence[Priced]) -> float:
    """Return the bound of the whole fleet that the services' terms prove."""
    return max(prices.bound, prices.constant + float(sum(item.bound for item in known)))


def _price(part: Part, prices: Relaxation, known: Priced, settings: SolverSettings) -> Priced:
    programme = priced_service(part, prices.replica_price)
    start = None
    if known.replicas is not None:
        start = np.full(programme.milp.n_columns, np.nan)
        start[programme.n] = known.replicas[np.searchsorted(part.options, programme.options)]
    milp = replace(programme.milp, start=start)
    raw = solve_milp(milp, settings)
    bound = known.bound if raw.bound is None else max(known.bound, raw.bound)
    if raw.values is None or raw.termination.is_failure:
        return known
    try:
        values = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound).values
    except SolverLiedError:  # neither its plan nor its bound is to be trusted; the linear ones stand
        return known
    replicas = _replicas(part, programme, values)
    if (
        balanced_shares(part.classes, part.by_class(replicas).round().astype(np.int64), np.zeros(len(part.pairs)))
        is None
    ):
        padded = priced_service(part, prices.replica_price, padding=PADDING)
        raw = solve_milp(padded.milp, settings)
        if raw.values is None:
            return replace(known, bound=bound)
        replicas = _replicas(part, padded, np.round(raw.values))
    cost = float(prices.replica_price[part.options] @ replicas)
    if known.replicas is not None and known.cost <= cost:
        return replace(known, bound=min(bound, known.cost))
    return Priced(bound=min(bound, cost), cost=cost, replicas=replicas)


def _replicas(part: Part, programme: Programme, values: FloatArray) -> FloatArray:
    """Return the replicas of the service's options, shape (options of the service,)."""
    replicas = np.zeros(len(part.options))
    replicas[np.searchsorted(part.options, programme.options)] = values[programme.n]
    return replicas
