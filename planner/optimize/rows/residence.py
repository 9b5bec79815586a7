"""A request for an adapter is served where the adapter is, and a replica holds so many adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.milp import always

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


INTEGER_UP_TO = 3
"""Adapters of a group whose copies are counted in whole numbers."""
MOST_INTEGERS = 300
"""Copies of groups of kin that are whole numbers; where there would be more, none are."""


def define_residence(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray) -> IntArray:
    """Hold every adapter somewhere, and no more of them than there are slots.

    A bucket (c, s) is the requests of size s of kin c: groups g of like adapters whose requests every option serves
    alike, count[g] of them with the total rate R[g] and the highest rate h[g]. z[g, j] is the part of a group's
    requests that option j serves, of whatever size, and v[g, j] are its copies there, all adapters' together, each able
    to have the part f[j] of a replica (1; less where adapters take turns):

        sum_j z[g, j] = 1                                        all of a group's requests are served
        sum_(g of c) R[g] z[g, j] = sum_s rate[c, s] x[c, s, j]  what groups have on an option is what it serves
        R[g] / h[g] z[g, j] <= v[g, j]                           no copy serves more than the busiest is asked for
        R[g] least[c, j] / f[j] z[g, j] <= v[g, j]               nor more than its part of a replica, were all requests
                                                                 of the size that takes the least of it
        x[c, s, j] <= sum_(g of c) h[g] / R[c] v[g, j]           of no size more than those with a copy are asked for
        sum_j v[g, j] >= count[g]                                every adapter is somewhere
        sum_g v[g, j] <= slots[j] n[j]                           for every option of a service with adapters

    Where a group is its own kin, the shares say what z would, size by size:

        R[g] / h[g] x[g, s, j] <= v[g, j] for every s,          sum_s load[g, s, j] / f[j] x[g, s, j] <= v[g, j]

    `planner.domain.adapter_groups.group_adapters` proves that every placement of the adapters themselves gives a
    solution of these rows, and that v stay whole numbers. They are integers here only for groups of at most
    `INTEGER_UP_TO` adapters: of many copies, a part of one matters little.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).

    Returns the columns v, shape (pairs of a group and an option that serves any of its sizes,).
    """
    if not fleet.has_adapters:
        return np.zeros(0, dtype=np.int64)
    slots = [chosen.slots for chosen in fleet.options]
    largest = np.array([1.0 if each is None else each.largest_load for each in slots])
    served = _served(fleet)
    # Pairs of a kin and an option, and then of each of its groups and the option.
    groups_of = [np.flatnonzero(fleet.group_kin == kin) for kin in served.kin.tolist()]
    place = np.repeat(np.arange(len(served.kin)), [len(groups) for groups in groups_of])
    group, option = np.concatenate(groups_of), served.option[place]
    # A place may hold a second copy of an adapter, on another replica: there is no upper limit by pair.
    is_alone = np.bincount(fleet.group_kin)[fleet.group_kin[group]] == 1
    is_few = fleet.group_adapters[group] <= INTEGER_UP_TO
    if np.count_nonzero(is_few & ~is_alone) > MOST_INTEGERS:
        is_few &= is_alone
    v = builder.add_columns("copies", len(group), is_integer=is_few, label=lambda i: f"{group[i]},{option[i]}")
    for define, members in ((_define_alone, is_alone), (_define_kin, ~is_alone)):
        if np.any(members):
            copies = _Copies(
                place=place[members], group=group[members], v=v[members], largest_load=largest[option[members]]
            )
            define(builder, fleet, x, served, copies)
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
        values=np.concatenate([np.ones(len(v)), -room[options]]),
        upper=np.zeros(len(options)),
        label=always("slots"),
    )
    return v


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """The pairs of a kin of adapters and an option that serves any of its requests."""

    kin: IntArray
    option: IntArray
    pairs: IntArray
    """Eligible pairs of buckets of kin, in the fleet's order."""
    place: IntArray
    """Shape (pairs of buckets of kin,): the pair of kin and option that each is of."""
    part: FloatArray
    """Shape (pairs of buckets of kin,): the part of the kin's requests that are in the bucket."""


def _served(fleet: FleetArrays) -> _Served:
    n_options = len(fleet.options)
    pairs = np.flatnonzero(fleet.bucket_kin[fleet.pair_bucket] >= 0)
    bucket = fleet.pair_bucket[pairs]
    keys, place = np.unique(fleet.bucket_kin[bucket] * n_options + fleet.pair_option[pairs], return_inverse=True)
    rates = np.array([asked.rate_rps for _, asked in fleet.buckets])
    of_kin = np.bincount(fleet.group_kin, weights=fleet.group_rate_rps)
    return _Served(
        kin=keys // n_options,
        option=keys % n_options,
        pairs=pairs,
        place=place.reshape(-1),
        part=rates[bucket] / of_kin[fleet.bucket_kin[bucket]],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copies:
    """Groups on options: which of `_Served` each is of, its group, and its column v."""

    place: IntArray
    group: IntArray
    v: IntArray
    largest_load: FloatArray
    """Part of a replica that one copy can have."""


def _define_alone(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, served: _Served, copies: _Copies) -> None:
    """Add the rows of groups that are their own kin: `copies` has one for each place."""
    row_of = np.full(len(served.kin), -1, dtype=np.int64)
    row_of[copies.place] = np.arange(len(copies.place))
    inside = np.flatnonzero(row_of[served.place] >= 0)
    row, pair = row_of[served.place[inside]], served.pairs[inside]
    each, own = np.arange(len(inside)), np.arange(len(copies.place))
    residents = fleet.group_residents[copies.group[row]]
    builder.add_rows(
        "residence",
        rows=np.concatenate([each, each]),
        columns=np.concatenate([x[pair], copies.v[row]]),
        values=np.concatenate([residents / fleet.units_per_bucket, -np.ones(len(inside))]),
        upper=np.zeros(len(inside)),
        label=always("adapters"),
    )
    loads = fleet.pair_load[pair] / copies.largest_load[row]
    builder.add_rows(
        "residence load",
        rows=np.concatenate([row, own]),
        columns=np.concatenate([x[pair], copies.v]),
        values=np.concatenate([loads / fleet.units_per_bucket, -np.ones(len(own))]),
        upper=np.zeros(len(own)),
        label=always("adapters"),
    )


def _define_kin(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, served: _Served, copies: _Copies) -> None:
    """Add the rows of groups that are served alike."""
    own = np.arange(len(copies.place))
    z = builder.add_columns("group parts", len(copies.place), upper=1.0)
    groups, row = np.unique(copies.group, return_inverse=True)
    # Not more than all; that kin are served says that it is no less.
    builder.add_rows(
        "group parts", rows=row.reshape(-1), columns=z, values=1.0, upper=np.ones(len(groups)), label=always("adapters")
    )
    places, row = np.unique(copies.place, return_inverse=True)
    row_of = np.full(len(served.kin), -1, dtype=np.int64)
    row_of[places] = np.arange(len(places))
    inside = np.flatnonzero(row_of[served.place] >= 0)
    of_kin = np.bincount(fleet.group_kin, weights=fleet.group_rate_rps)
    rates = fleet.group_rate_rps[copies.group]
    builder.add_rows(
        "kin",
        rows=np.concatenate([row.reshape(-1), row_of[served.place[inside]]]),
        columns=np.concatenate([z, x[served.pairs[inside]]]),
        values=np.concatenate(
            [rates / of_kin[fleet.group_kin[copies.group]], -served.part[inside] / fleet.units_per_bucket]
        ),
        lower=np.zeros(len(places)),
        upper=np.zeros(len(places)),
        label=always("adapters"),
    )
    sizes = np.bincount(served.place, minlength=len(served.kin))[places]
    if np.any(sizes > 1):  # of one size alone the parts above say it
        _define_sizes(builder, fleet, x, served, copies, places=places, row=row.reshape(-1), row_of=row_of)
    least = np.full(len(served.kin), np.inf)
    buckets = fleet.pair_bucket[served.pairs]
    asked = np.array([bucket.rate_rps for _, bucket in fleet.buckets])
    np.minimum.at(least, served.place, fleet.pair_load[served.pairs] / asked[buckets])
    loads = rates * least[copies.place] / copies.largest_load
    builder.add_rows(
        "residence",
        rows=np.concatenate([own, own]),
        columns=np.concatenate([z, copies.v]),
        values=np.concatenate([np.maximum(fleet.group_residents[copies.group], loads), -np.ones(len(own))]),
        upper=np.zeros(len(own)),
        label=always("adapters"),
    )


def _define_sizes(
    builder: MilpBuilder,
    fleet: FleetArrays,
    x: IntArray,
    served: _Served,
    copies: _Copies,
    *,
    places: IntArray,
    row: IntArray,
    row_of: IntArray,
) -> None:
    """Add the rows that hold every size of kin on an option to the requests of the adapters with a copy there."""
    of_kin = np.bincount(fleet.group_kin, weights=fleet.group_rate_rps)
    highest = fleet.group_rate_rps[copies.group] / fleet.group_residents[copies.group]
    w = builder.add_columns("held parts", len(places))
    builder.add_rows(
        "held parts",
        rows=np.concatenate([np.arange(len(places)), row]),
        columns=np.concatenate([w, copies.v]),
        values=np.concatenate([np.ones(len(places)), -highest / of_kin[fleet.group_kin[copies.group]]]),
        upper=np.zeros(len(places)),
        label=always("adapters"),
    )
    inside = np.flatnonzero(row_of[served.place] >= 0)
    each = np.arange(len(inside))
    builder.add_rows(
        "held sizes",
        rows=np.concatenate([each, each]),
        columns=np.concatenate([x[served.pairs[inside]], w[row_of[served.place[inside]]]]),
        values=np.concatenate([np.full(len(inside), 1.0 / fleet.units_per_bucket), -np.ones(len(inside))]),
        upper=np.zeros(len(inside)),
        label=always("adapters"),
    )
