"""A request for an adapter is served where the adapter is, and a replica holds so many adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.milp import always

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


INTEGER_UP_TO = 3
"""Adapters of a group whose copies are counted in whole numbers."""


def define_residence(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray) -> IntArray:
    """Hold every adapter somewhere, and no more of them than there are slots.

    A bucket g is the requests of a group of like adapters: count[g] of them, with the total rate R[g] and the highest
    rate h[g]. v[g, j] are its copies on replicas of option j, all adapters' together, each able to have the part f[j]
    of a replica (1; less where adapters take turns):

        R[g] / h[g] x[g, j] <= v[g, j]             for every pair: no copy serves more than the busiest adapter's rate
        load[g, j] / f[j] x[g, j] <= v[g, j]       nor more than its part of a replica
        sum_j v[g, j] >= count[g]                  every adapter is somewhere
        sum_g v[g, j] <= slots[j] n[j]             for every option of a service with adapters

    `planner.domain.adapter_groups.group_adapters` proves that every placement of the adapters themselves gives a
    solution of these rows, and that v stay whole numbers. They are integers here only for groups of at most
    `INTEGER_UP_TO` adapters: of many copies, a part of one matters little.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).

    Returns the columns v, shape (pairs of buckets with adapters,).
    """
    if not fleet.has_adapters:
        return np.zeros(0, dtype=np.int64)
    pairs = np.flatnonzero(fleet.bucket_adapters[fleet.pair_bucket])
    bucket, option = fleet.pair_bucket[pairs], fleet.pair_option[pairs]
    # A place may hold a second copy of an adapter, on another replica: there is no upper limit by pair.
    is_few = fleet.bucket_adapters[bucket] <= INTEGER_UP_TO
    v = builder.add_columns("copies", len(pairs), is_integer=is_few, label=lambda i: f"{bucket[i]},{option[i]}")
    own = np.arange(len(pairs))
    slots = [chosen.slots for chosen in fleet.options]
    largest = np.array([1.0 if each is None else each.largest_load for each in slots])
    copies = np.maximum(fleet.bucket_residents[bucket], fleet.pair_load[pairs] / largest[option])
    builder.add_rows(
        "residence",
        rows=np.concatenate([own, own]),
        columns=np.concatenate([x[pairs], v]),
        values=np.concatenate([copies / fleet.units_per_bucket, -np.ones(len(pairs))]),
        upper=np.zeros(len(pairs)),
        label=lambda i: f"{bucket[i]},{option[i]}",
    )
    buckets, row = np.unique(bucket, return_inverse=True)
    builder.add_rows(
        "resident",
        rows=row.reshape(-1),
        columns=v,
        values=1.0,
        lower=fleet.bucket_adapters[buckets].astype(np.float64),
        label=lambda i: f"{fleet.buckets[buckets[i]][0]} group {fleet.buckets[buckets[i]][1].row}",
    )
    options, row = np.unique(option, return_inverse=True)
    room = np.array([0.0 if each is None else float(each.count) for each in slots])
    builder.add_rows(
        "slots",
        rows=np.concatenate([row.reshape(-1), np.arange(len(options))]),
        columns=np.concatenate([v, n[options]]),
        values=np.concatenate([np.ones(len(pairs)), -room[options]]),
        upper=np.zeros(len(options)),
        label=always("slots"),
    )
    return v
