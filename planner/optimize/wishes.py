"""What the shares of a fleet must keep once its replicas are fixed: budgets, and objectives reached before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.optimize.energy import budget_rows, price_coefficients
from planner.optimize.routing import ShareWishes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.model import Objective


def share_wishes(
    fleet: FleetArrays,
    *,
    replicas: IntArray,
    instances: IntArray,
    aim: Objective | None = None,
    kept: Sequence[tuple[Objective, float]] = (),
) -> ShareWishes:
    """Return what shares are to be like with these replicas (shape (options,)) and instances (shape (pools,)).

    Parameters
    ----------
    aim : what shares should have little of; None = the price of energy, where it has one.
    kept : other objectives, each with the most that it may be.
    """
    prices = price_coefficients(fleet)
    own = None if prices is None else prices[1]
    cost = own if aim is None else aim.per_pair
    return ShareWishes(cost=cost, rows=tuple(_rows(fleet, replicas, instances, kept)))


def _rows(
    fleet: FleetArrays, replicas: IntArray, instances: IntArray, kept: Sequence[tuple[Objective, float]]
) -> Iterator[tuple[FloatArray, float]]:
    for row in budget_rows(fleet):
        yield row.per_pair, row.bound - float(row.per_replica @ replicas)
    for objective, most in kept:
        if objective.per_pair is not None:
            yield objective.per_pair, most - objective.without_shares(fleet, replicas, instances)
