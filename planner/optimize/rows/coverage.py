"""Every request is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


def define_coverage(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, *, u: IntArray | None = None) -> IntArray:
    """For every bucket b:  sum_j x[b, j] (+ u[b]) = 1  (= k where buckets are cut into k slices).

    Decode options do not count: what they serve was prefilled elsewhere (`rows.disaggregation`). Where it is known that
    only a part of a bucket is served, that is what the shares sum to.

    x : columns of the eligible pairs, shape (pairs,); pairs with X[j, b] = 0 have none, which is eligibility.
    u : columns of unserved shares, shape (buckets,), where the request lets demand be shed.
    """
    left = np.zeros(0, dtype=np.int64) if u is None else u
    covers = fleet.pair_covers
    whole = fleet.units_per_bucket * fleet.served_shares
    return builder.add_rows(
        "coverage",
        rows=np.concatenate([fleet.pair_bucket[covers], np.arange(len(left))]),
        columns=np.concatenate([x[covers], left]),
        values=1.0,
        lower=whole,
        upper=whole,
        label=lambda b: f"{fleet.buckets[b][0]} {fleet.buckets[b][1].row},{fleet.buckets[b][1].column}",
    )
