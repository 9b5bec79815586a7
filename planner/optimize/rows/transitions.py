"""Periods: instances are started, kept for a lease, and committed for the whole horizon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def define_instances(builder: MilpBuilder, fleet: FleetArrays, *, upper: FloatArray, cost: FloatArray) -> IntArray:
    """m[p,t] instances; of committed offers  m[p,t] = m[p]  for all t, one variable.

    Parameters
    ----------
    upper, cost : of each pool in each period, shape (pools,).

    Returns the column of every pool, shape (pools,).
    """
    first = np.arange(len(fleet.pool_offer))
    if fleet.n_periods > 1:
        per_period = len(first) // fleet.n_periods
        first = np.where(fleet.pool_is_committed, first % per_period, first)
    distinct, column = np.unique(first, return_inverse=True)
    highest = np.zeros(len(distinct))
    np.maximum.at(highest, column, upper)
    columns = builder.add_columns(
        "m",
        len(distinct),
        upper=highest,
        cost=np.bincount(column, weights=cost, minlength=len(distinct)),
        is_integer=True,
        label=lambda i: fleet.offers[int(fleet.pool_offer[distinct[i]])].name,
    )
    return columns[column]


def needs_starts(fleet: FleetArrays) -> bool:
    """Return whether it matters when instances are started: a start-up takes time, or a lease has to be kept."""
    horizon = fleet.horizon
    return (
        horizon is not None
        and fleet.n_periods > 1
        and (horizon.start_up_s > 0 or horizon.lease_periods > 1)
        and bool(np.any(~fleet.pool_is_committed))
    )


def define_starts(builder: MilpBuilder, fleet: FleetArrays, m: IntArray, *, cost: FloatArray) -> IntArray:
    """For every pool p that is not committed and every period t:  m[p,t] - m[p,t-1] <= up[p,t],  up >= 0.

    Before the first period is the last one. What is started for period t is rented ahead of it, for the start-up time.

    Parameters
    ----------
    m : columns of instances, shape (pools,).
    cost : of a start, shape (pools,).

    Returns the columns of up, shape (pools,); -1 where capacity is committed.
    """
    pools = np.flatnonzero(~fleet.pool_is_committed)
    up = np.full(len(m), -1, dtype=np.int64)
    up[pools] = builder.add_columns(
        "up", len(pools), cost=cost[pools], label=lambda i: fleet.offers[int(fleet.pool_offer[pools[i]])].name
    )
    before = (pools - len(m) // fleet.n_periods) % len(m)
    rows = np.arange(len(pools))
    builder.add_rows(
        "start",
        rows=np.concatenate([rows, rows, rows]),
        columns=np.concatenate([m[pools], m[before], up[pools]]),
        values=np.repeat([1.0, -1.0, -1.0], len(pools)),
        upper=np.zeros(len(pools)),
    )
    return up


def define_lease(builder: MilpBuilder, fleet: FleetArrays, m: IntArray, up: IntArray) -> IntArray:
    """For every pool p that is not committed and every period t:  sum_{k=0..W-1} up[p,t-k] <= m[p,t].

    What was started in the last W periods is still there. Instances are alike and the oldest go first, so that this is
    exact (Rajan and Takriti, Minimum up/down polytopes of the unit commitment problem, 2005, for one machine).

    m, up : columns of instances and of starts, shape (pools,); up is -1 where capacity is committed.
    """
    pools = np.flatnonzero(up >= 0)
    lease = fleet.horizon.lease_periods if fleet.horizon is not None else 1
    per_period = len(m) // fleet.n_periods
    rows = np.arange(len(pools))
    started = [up[(pools - k * per_period) % len(m)] for k in range(lease)]
    return builder.add_rows(
        "lease",
        rows=np.tile(rows, lease + 1),
        columns=np.concatenate([*started, m[pools]]),
        values=np.concatenate([np.ones(lease * len(pools)), -np.ones(len(pools))]),
        upper=np.zeros(len(pools)),
    )
