"""Replicas fit into whole rented instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.problem_check import offer_gpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


def define_packing(builder: MilpBuilder, fleet: FleetArrays, n: IntArray, m: IntArray) -> IntArray:
    """For every pool p and every replica size g in it:  sum_{j in p: g[j] >= g} g[j] n[j] <= floor(G / g) g m[p].

    The sizes of a pool form a divisible chain (each divides the next larger one), and then these rows say exactly that
    the replicas pack into m[p] instances of G GPUs. Necessary: replicas of g GPUs or more take a multiple of g GPUs of
    an instance, at most floor(G / g) g. Sufficient: place them largest first, wherever they fit. When one of size g
    finds no room, every instance holds floor(G / g) g GPUs of replicas at least as large, against the row for g.
    A row whose right side equals that of the next smaller size follows from it and is left out.

    n : columns of replicas, shape (options,).
    m : columns of instances, shape (pools,).
    """
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    names: list[str] = []
    for row in packing_rows(fleet):
        rows += [len(names)] * (len(row.members) + 1)
        columns += [*(int(n[option]) for option in row.members), int(m[row.pool])]
        values += [*(float(fleet.option_gpus[option]) for option in row.members), -float(row.usable_gpus)]
        names.append(f"{fleet.offers[int(fleet.pool_offer[row.pool])].name}, replicas of {row.size} GPUs or more")
    return builder.add_rows(
        "packing", rows=rows, columns=columns, values=values, upper=np.zeros(len(names)), label=lambda i: names[i]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingRow:
    """One packing row: the options that count, and the GPUs of an instance that their replicas can use."""

    pool: int
    size: int
    members: list[int]
    usable_gpus: int


def packing_rows(fleet: FleetArrays) -> Iterator[PackingRow]:
    """Yield the rows of `define_packing`, pool by pool."""
    members: list[list[int]] = [[] for _ in fleet.pool_offer]
    for option, pool in enumerate(fleet.option_pool.tolist()):
        members[pool].append(option)
    for pool, mine in enumerate(members):
        gpus = offer_gpus(fleet.offers[int(fleet.pool_offer[pool])])
        usable_before = 0
        for size in sorted({int(fleet.option_gpus[option]) for option in mine}):
            usable = gpus // size * size
            if usable != usable_before:
                larger = [option for option in mine if fleet.option_gpus[option] >= size]
                yield PackingRow(pool=pool, size=size, members=larger, usable_gpus=usable)
            usable_before = usable


def instances_needed(fleet: FleetArrays, replicas: IntArray) -> IntArray:
    """Return the fewest instances per pool that hold `replicas`, shape (pools,)."""
    needed = np.zeros(len(fleet.pool_offer), dtype=np.int64)
    for row in packing_rows(fleet):
        gpus = int(fleet.option_gpus[row.members] @ replicas[row.members])
        needed[row.pool] = max(needed[row.pool], -(-gpus // row.usable_gpus))
    return needed
