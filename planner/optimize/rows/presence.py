"""A bucket with hardly any load still needs a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder

SMALL_LOAD = 1e-4
"""In replicas. Solvers take a load within their tolerance (1e-6 per row) for none; this leaves room for many rows."""


def define_presence(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray) -> None:
    """For every pair of bucket b and option j with a load of at most 1e-4:  x[b, j] <= n[j]  (<= k n[j] with k slices).

    It follows from capacity, n being integer, so it excludes no fleet; solvers only see it where capacity is within
    their tolerance. Absent where no load is that small.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).
    """
    small = np.flatnonzero(fleet.pair_load / fleet.units_per_bucket <= SMALL_LOAD)
    if not len(small):
        return
    rows = np.arange(len(small))
    builder.add_rows(
        "presence",
        rows=np.concatenate([rows, rows]),
        columns=np.concatenate([x[small], n[fleet.pair_option[small]]]),
        values=np.concatenate([np.ones(len(small)), np.full(len(small), -fleet.units_per_bucket)]),
        upper=np.zeros(len(small)),
        label=lambda i: f"{fleet.pair_bucket[small[i]]},{fleet.pair_option[small[i]]}",
    )
