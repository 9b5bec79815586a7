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

    A bucket (g, s) is the requests of size s of a group g of like adapters: count[g] of them, with the total rate R[g]
    and the highest rate h[g], whose requests have the same sizes. v[g, j] are their copies on replicas of option j, all
    adapters' together, each able to have the part f[j] of a replica (1; less where adapters take turns):

        R[g] / h[g] x[g, s, j] <= v[g, j]               no copy serves more of a size than the busiest adapter is asked
        sum_s load[g, s, j] / f[j] x[g, s, j] <= v[g, j]    nor more of all sizes than its part of a replica
        sum_j v[g, j] >= count[g]                       every adapter is somewhere
        sum_g v[g, j] <= slots[j] n[j]                  for every option of a service with adapters

    `planner.domain.adapter_groups.group_adapters` proves that every placement of the adapters themselves gives a
    solution of these rows, and that v stay whole numbers. They are integers here only for groups of at most
    `INTEGER_UP_TO` adapters: of many copies, a part of one matters little.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).

    Returns the columns v, shape (pairs of a group and an option that serves any of its sizes,).
    """
    if not fleet.has_adapters:
        return np.zeros(0, dtype=np.int64)
    pairs = np.flatnonzero(fleet.bucket_group[fleet.pair_bucket] >= 0)
    n_options = len(fleet.options)
    key = fleet.bucket_group[fleet.pair_bucket[pairs]] * n_options + fleet.pair_option[pairs]
    keys, place, n_sizes = np.unique(key, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    group, option = keys // n_options, keys % n_options
    # A place may hold a second copy of an adapter, on another replica: there is no upper limit by pair.
    is_few = fleet.group_adapters[group] <= INTEGER_UP_TO
    v = builder.add_columns("copies", len(keys), is_integer=is_few, label=lambda i: f"{group[i]},{option[i]}")
    slots = [chosen.slots for chosen in fleet.options]
    largest = np.array([1.0 if each is None else each.largest_load for each in slots])
    loads = fleet.pair_load[pairs] / largest[option[place]]
    own = np.arange(len(pairs))
    builder.add_rows(
        "residence",
        rows=np.concatenate([own, own]),
        columns=np.concatenate([x[pairs], v[place]]),
        values=np.concatenate(
            [np.maximum(fleet.group_residents[group[place]], loads) / fleet.units_per_bucket, -np.ones(len(pairs))]
        ),
        upper=np.zeros(len(pairs)),
        label=lambda i: f"{fleet.pair_bucket[pairs[i]]},{fleet.pair_option[pairs[i]]}",
    )
    mixed = np.flatnonzero(n_sizes > 1)  # of one size alone the row above says it
    row_of = np.full(len(keys), -1, dtype=np.int64)
    row_of[mixed] = np.arange(len(mixed))
    inside = np.flatnonzero(row_of[place] >= 0)
    builder.add_rows(
        "residence load",
        rows=np.concatenate([row_of[place[inside]], np.arange(len(mixed))]),
        columns=np.concatenate([x[pairs[inside]], v[mixed]]),
        values=np.concatenate([loads[inside] / fleet.units_per_bucket, -np.ones(len(mixed))]),
        upper=np.zeros(len(mixed)),
        label=lambda i: f"{group[mixed[i]]},{option[mixed[i]]}",
    )
    builder.add_rows(
        "resident",
        rows=group,
        columns=v,
        values=1.0,
        lower=fleet.group_adapters.astype(np.float64),
        label=lambda i: f"group {i}",
    )
    options, row = np.unique(option, return_inverse=True)
    room = np.array([0.0 if each is None else float(each.count) for each in slots])
    builder.add_rows(
        "slots",
        rows=np.concatenate([row.reshape(-1), np.arange(len(options))]),
        columns=np.concatenate([v, n[options]]),
        values=np.concatenate([np.ones(len(keys)), -room[options]]),
        upper=np.zeros(len(options)),
        label=always("slots"),
    )
    return v
