"""No replica gets more than it can serve within its objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


def define_capacity(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray) -> IntArray:
    """For every option j:  sum_b lam[b] (1 + rho) / (U X[j, b]) x[b, j] <= n[j].

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).
    """
    n_options = len(fleet.options)
    return builder.add_rows(
        "capacity",
        rows=np.concatenate([fleet.pair_option, np.arange(n_options)]),
        columns=np.concatenate([x, n]),
        values=np.concatenate([fleet.pair_load / fleet.units_per_bucket, -np.ones(n_options)]),
        upper=np.zeros(n_options),
        label=lambda j: f"{fleet.options[j].service} on {fleet.options[j].offer.name}",
    )
