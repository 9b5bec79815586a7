"""Work that can wait is done by its deadline, on replicas of its own or beside a service's requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.rows.presence import SMALL_LOAD

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def define_work(
    builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray, *, short_cost: FloatArray | None = None
) -> IntArray:
    """For every job k:  sum_{j,t in window} y[k, j, t] (+ short[k]) = 1,  and for every option j that can do any:

        sum_b lam[b] / (U X[j, b]) x[b, j] + sum_k D[k] / (eta[k, j] U R[k, j] dt[k]) y[k, j] <= n[j]

    With q = D y this is  q[k, j, t] <= eta (U n - Load) R dt:  requests come first, at their planned rate without the
    headroom, which is what the work may use until they need it. On replicas of the job's own there are no requests,
    and eta and U are 1. dt is the part of the period that lies in the job's window; jobs whose parts of one period do
    not overlap are planned as if they did. Pairs with hardly any load need a replica all the same:  y <= n.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).
    short_cost : price of a job that is not done at all, shape (jobs,): an elastic copy of the model; inf = all of it.

    Returns the columns of short, shape (jobs,); empty without `short_cost`.
    """
    work, size = fleet.work, fleet.work.size
    y = builder.add_columns(
        "work", size, upper=1.0, label=lambda i: f"{fleet.jobs[int(work.job[i])].name} on {int(work.option[i])}"
    )
    short = np.zeros(0, dtype=np.int64)
    if short_cost is not None:
        is_free = np.isfinite(short_cost)
        short = builder.add_columns(
            "short", len(fleet.jobs), upper=is_free.astype(np.float64), cost=np.where(is_free, short_cost, 0.0)
        )
    ones = np.ones(len(fleet.jobs))
    builder.add_rows(
        "work done",
        rows=np.concatenate([work.job, np.arange(len(short))]),
        columns=np.concatenate([y, short]),
        values=1.0,
        lower=ones,
        upper=ones,
        label=lambda k: fleet.jobs[k].name,
    )
    hosts = np.unique(work.option)
    row_of = np.full(len(fleet.options), -1, dtype=np.int64)
    row_of[hosts] = np.arange(len(hosts))
    beside = np.flatnonzero(row_of[fleet.pair_option] >= 0)
    builder.add_rows(
        "work beside requests",
        rows=np.concatenate([row_of[fleet.pair_option[beside]], row_of[work.option], np.arange(len(hosts))]),
        columns=np.concatenate([x[beside], y, n[hosts]]),
        values=np.concatenate([fleet.request_load[beside] / fleet.units_per_bucket, work.load, -np.ones(len(hosts))]),
        upper=np.zeros(len(hosts)),
        label=lambda i: f"{fleet.options[hosts[i]].service} on {fleet.options[hosts[i]].offer.name}",
    )
    small = np.flatnonzero(work.load <= SMALL_LOAD)
    rows = np.arange(len(small))
    builder.add_rows(
        "work presence",
        rows=np.concatenate([rows, rows]),
        columns=np.concatenate([y[small], n[work.option[small]]]),
        values=np.repeat([1.0, -1.0], len(small)),
        upper=np.zeros(len(small)),
    )
    return short
