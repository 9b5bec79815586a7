"""Given the replicas, when and where work with a deadline is done: the linear programme that lays jobs out.

    minimise  sum_{k,j,t} (periods since k's release) y[k, j, t]    subject to the rows of `rows.deferrable` and, for
    the requests beside the work, coverage and capacity

Work is done as early as the replicas allow, so that its finish says when it can be done. The shares x only show that
requests and work fit together; `planner.optimize.routing` then balances them around the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.routing import (
    DUST,
    LP_TIME_LIMIT_S,
    LP_TOLERANCE,
    NO_WISHES,
    add_handovers,
    add_share_caps,
    balanced_shares,
    exact_slices,
)
from planner.optimize.settings import SolverSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.routing import ShareWishes


def shares_and_work(
    fleet: FleetArrays, replicas: IntArray, assigned: FloatArray, wishes: ShareWishes = NO_WISHES
) -> tuple[FloatArray, FloatArray] | None:
    """Return shares (shape (pairs,)) and work (shape (work pairs,)) that these replicas hold; None if there are none.

    Parameters
    ----------
    assigned : the search's shares; used as they are where buckets are sliced.
    wishes : what the shares must keep, and what comes before an even load.
    """
    if not fleet.jobs:
        shares = balanced_shares(fleet, replicas, assigned, wishes)
        return None if shares is None else (shares, np.zeros(0))
    work = laid_out(fleet, replicas, assigned, wishes)
    if work is None:
        return None
    shares = balanced_shares(fleet, replicas, assigned, wishes, busy=fleet.work.busy(work, len(fleet.options)))
    return None if shares is None else (shares, work)


def laid_out(
    fleet: FleetArrays, replicas: IntArray, assigned: FloatArray, wishes: ShareWishes = NO_WISHES
) -> FloatArray | None:
    """Return the part of its job that each pair does, each job's sum 1, shape (work pairs,); None if not all fits.

    Where shares have a price, the least of that comes before an early end.
    """
    if not fleet.jobs:
        return np.zeros(0)
    pairs = fleet.work
    live = np.flatnonzero(replicas[pairs.option] > 0)
    if len(np.unique(pairs.job[live])) < len(fleet.jobs):
        return None
    is_priced = wishes.cost is not None and bool(np.any(wishes.cost != 0)) and not fleet.is_sliced
    part = _Part(fleet=fleet, replicas=replicas, assigned=assigned, live=live, has_all=is_priced or bool(wishes.rows))
    rows = () if fleet.is_sliced else wishes.rows
    if is_priced and wishes.cost is not None:
        cheapest = _solved(part, wishes.cost, rows)
        if cheapest is None:
            return None
        scale = float(np.abs(wishes.cost).max())
        rows = (*rows, (wishes.cost / scale, float(wishes.cost @ cheapest.shares) / scale + LP_TOLERANCE))
    found = _solved(part, None, rows)
    if found is None:
        return None
    work = np.zeros(pairs.size)
    work[live] = np.where(found.work > DUST, found.work, 0.0)
    total = np.bincount(pairs.job, weights=work, minlength=len(fleet.jobs))
    return np.asarray(work / total[pairs.job], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What a layout starts from."""

    fleet: FleetArrays
    replicas: IntArray
    assigned: FloatArray
    live: IntArray
    """Work pairs whose option has replicas."""
    has_all: bool
    """Whether requests of all services matter, not only of those whose replicas can do work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """A solution: shares of shape (pairs,), zero where they do not matter, and work of shape (live work pairs,)."""

    shares: FloatArray
    work: FloatArray


def _solved(part: _Part, share_cost: FloatArray | None, kept: Sequence[tuple[FloatArray, float]]) -> _Layout | None:
    """Return the layout of least `share_cost`, or the earliest one where that is None; None if nothing fits."""
    fleet, pairs, live = part.fleet, part.fleet.work, part.live
    builder = MilpBuilder()
    y = builder.add_columns("work", len(live), upper=1.0, cost=pairs.order[live] if share_cost is None else 0.0)
    ones = np.ones(len(fleet.jobs))
    builder.add_rows("work done", rows=pairs.job[live], columns=y, values=1.0, lower=ones, upper=ones)
    is_host = np.ones(len(fleet.options), dtype=np.bool_) if part.has_all else _hosts(fleet, live)
    room, x, shared = _requests(builder, part, is_host, share_cost)
    builder.add_rows(
        "beside requests",
        rows=np.concatenate([pairs.option[live], fleet.pair_option[shared]]),
        columns=np.concatenate([y, x]),
        values=np.concatenate([pairs.load[live], fleet.request_load[shared]]),
        upper=np.where(np.bincount(pairs.option[live], minlength=len(room)) > 0, room, np.inf),
    )
    for coefficients, most in kept:
        builder.add_rows(
            "kept", rows=np.zeros(len(x), dtype=np.int64), columns=x, values=coefficients[shared], upper=[most]
        )
    settings = SolverSettings(solver="highs", time_limit_s=LP_TIME_LIMIT_S, feasibility_tolerance=LP_TOLERANCE)
    raw = solve_milp(builder.freeze(), settings)
    if raw.values is None:
        return None
    shares = np.zeros(len(fleet.pair_bucket))
    shares[shared] = raw.values[x]
    return _Layout(shares=shares, work=raw.values[y])


def _hosts(fleet: FleetArrays, live: IntArray) -> NDArray[np.bool_]:
    """Return which options belong to a service whose replicas do a job's work, shape (options,)."""
    services = {fleet.options[j].service for j in np.unique(fleet.work.option[live]).tolist()}
    return np.array([option.service in services for option in fleet.options], dtype=np.bool_)


def _requests(
    builder: MilpBuilder, part: _Part, is_host: NDArray[np.bool_], cost: FloatArray | None
) -> tuple[FloatArray, IntArray, IntArray]:
    """Return each option's room (shape (options,)), the columns of shares beside work, and the pairs that they are of.

    Sliced shares stay as they are and only take room; others are free, within coverage and capacity.
    """
    fleet, replicas = part.fleet, part.replicas
    room = replicas.astype(np.float64)
    if fleet.is_sliced:
        taken = fleet.request_load * exact_slices(fleet, part.assigned)
        room = room - np.bincount(fleet.pair_option, weights=taken, minlength=len(room))
        none = np.zeros(0, dtype=np.int64)
        return np.maximum(room, 0.0), none, none
    shared = np.flatnonzero(is_host[fleet.pair_option] & (replicas[fleet.pair_option] > 0))
    x = builder.add_columns("x", len(shared), upper=1.0, cost=0.0 if cost is None else cost[shared])
    covers = fleet.pair_covers[shared]
    buckets, rows = np.unique(fleet.pair_bucket[shared[covers]], return_inverse=True)
    whole = np.ones(len(buckets))
    builder.add_rows("coverage", rows=rows, columns=x[covers], values=1.0, lower=whole, upper=whole)
    builder.add_rows("capacity", rows=fleet.pair_option[shared], columns=x, values=fleet.pair_load[shared], upper=room)
    position = np.full(len(fleet.pair_bucket), -1, dtype=np.int64)
    position[shared] = x
    add_handovers(builder, fleet, replicas, position)
    add_share_caps(builder, fleet, position)
    return room, x, shared
