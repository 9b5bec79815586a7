"""Budgets of energy and carbon: what all replicas draw, or emit, on average over the horizon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.energy import budget_rows
from planner.optimize.milp import always

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


def define_energy_budgets(
    builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray, *, slack: dict[int, int] | None = None
) -> None:
    """For every budget G:  1/T sum_{j,t} w[j,t] PUE (P_idle n[j,t] + (P_busy - P_idle) L[j,t]) <= G (+ s).

    L[j] = sum_b lam[b] / X[j, b] x[b, j] is the load; w is 1 for energy, the intensity of the region in the period for
    carbon. Rows are divided by G, so that a solver's tolerance is the same part of every budget.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).
    slack : columns s by the rule's position: an elastic copy of the model.
    """
    slack = slack or {}
    for row in budget_rows(fleet):
        extra = [slack[row.position]] if row.position in slack else []
        size = row.bound if row.bound > 0 else 1.0
        columns = np.concatenate([n, x, np.array(extra, dtype=np.int64)])
        per_pair = row.per_pair / fleet.units_per_bucket
        builder.add_rows(
            "energy budget",
            rows=np.zeros(len(columns), dtype=np.int64),
            columns=columns,
            values=np.concatenate([row.per_replica, per_pair, -np.ones(len(extra))]) / size,
            upper=[row.bound / size],
            label=always(fleet.rules[row.position].name),
        )
