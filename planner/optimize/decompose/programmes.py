"""The small programmes: one service at given prices, and a few services together with everything else held still."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.relaxation import cheapest_first
from planner.optimize.milp import MilpBuilder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.decompose.parts import Cut, Part
    from planner.optimize.decompose.relaxation import Relaxation
    from planner.optimize.milp import FloatArray, IntArray, Milp

PADDING = 5e-6
"""Loads are counted this much larger, relative, where a fleet is looked for: solvers overfill replicas by 1e-6."""
PAIRS_KEPT = 12
"""Pairs per bucket, cheapest first, in a programme of several services; those of options in use come on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """A small programme and where the replicas stand in it."""

    milp: Milp
    options: IntArray
    """The whole fleet's options that are free in it."""
    n: IntArray
    """Their columns."""


def priced_service(part: Part, prices: FloatArray, *, padding: float = 0.0) -> Programme:
    """Return  min sum_j w[j] n[j]  over coverage and capacity of one service.

    Its optimum is the service's term of the Lagrangian bound (without padding).
    """
    builder = MilpBuilder()
    x = builder.add_columns("x", len(part.pairs), upper=1.0)
    n = builder.add_columns(
        "n",
        len(part.options),
        upper=_upper(part.fleet, padding),
        cost=prices[part.options],
        is_integer=True,
    )
    _serve(
        builder,
        part.fleet,
        x=x,
        n=n,
        pairs=np.arange(len(part.pairs)),
        options=np.arange(len(part.options)),
        padding=padding,
    )
    return Programme(milp=builder.freeze(), options=part.options, n=n)


def _upper(fleet: FleetArrays, padding: float) -> FloatArray:
    return fleet.replicas_upper + 1 if padding else fleet.replicas_upper


def _serve(
    builder: MilpBuilder,
    fleet: FleetArrays,
    *,
    x: IntArray,
    n: IntArray,
    pairs: IntArray,
    options: IntArray,
    padding: float,
) -> None:
    """Coverage and capacity of one service over a choice of its pairs and options."""
    ones = np.ones(len(fleet.buckets))
    builder.add_rows("coverage", rows=fleet.pair_bucket[pairs], columns=x, values=1.0, lower=ones, upper=ones)
    position = np.full(len(fleet.options), -1, dtype=np.int64)
    position[options] = np.arange(len(options))
    builder.add_rows(
        "capacity",
        rows=np.concatenate([position[fleet.pair_option[pairs]], np.arange(len(options))]),
        columns=np.concatenate([x, n]),
        values=np.concatenate([fleet.pair_load[pairs] * (1 + padding), -np.ones(len(options))]),
        upper=np.zeros(len(options)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Services to be solved together, and how the shared rows are to be seen meanwhile."""

    parts: Sequence[Part]
    is_free: np.ndarray
    """Which options may be used, shape (options,)."""
    upper: FloatArray
    """Sides of the shared rows."""
    slack_cost: FloatArray
    """Price of exceeding each by 1."""
    slack_upper: FloatArray
    tolls: FloatArray
    """What one unit of each shared row costs on top, >= 0: prices of limits while they are being repaired."""


def grouped(cut: Cut, prices: Relaxation, group: Group, replicas: FloatArray, instances: FloatArray) -> Programme:
    """Return the model with everything outside `group` held at `replicas` and `instances`.

    Packing and limits keep their rows where something free has an entry; what is held moves to their sides.
    """
    shared = cut.shared
    builder = MilpBuilder()
    is_mine = np.zeros(len(cut.fleet.options), dtype=np.bool_)
    column_of_n = np.full(len(cut.fleet.options), -1, dtype=np.int64)
    limit_toll = np.where(shared.is_limit, group.tolls, 0.0)
    n_toll = np.bincount(
        shared.n_option, weights=shared.n_value * limit_toll[shared.n_row], minlength=len(cut.fleet.options)
    )
    starts: list[tuple[IntArray, FloatArray]] = []
    for part in group.parts:
        options = np.flatnonzero(group.is_free[part.options])
        pairs = _kept_pairs(part, prices, options, replicas)
        x = builder.add_columns("x", len(pairs), upper=1.0)
        chosen = part.options[options]
        n = builder.add_columns(
            "n", len(options), upper=_upper(part.fleet, PADDING)[options], cost=n_toll[chosen], is_integer=True
        )
        _serve(builder, part.fleet, x=x, n=n, pairs=pairs, options=options, padding=PADDING)
        column_of_n[chosen] = n
        is_mine[part.options] = True
        starts.append((n, replicas[chosen]))
    pools = np.unique(cut.fleet.option_pool[column_of_n >= 0])
    m_toll = np.bincount(
        shared.m_pool, weights=shared.m_value * limit_toll[shared.m_row], minlength=len(cut.instance_cost)
    )
    m = builder.add_columns("m", len(pools), cost=(cut.instance_cost + m_toll)[pools], is_integer=True)
    column_of_m = np.full(len(cut.instance_cost), -1, dtype=np.int64)
    column_of_m[pools] = m
    held = shared.activity(np.where(is_mine, 0.0, replicas), np.where(column_of_m >= 0, 0.0, instances))
    _share(builder, cut, group, column_of_n=column_of_n, column_of_m=column_of_m, upper=group.upper - held)
    milp = builder.freeze()
    start = np.full(milp.n_columns, np.nan)
    for columns, values in starts:
        start[columns] = values
    start[m] = instances[pools]
    free = np.flatnonzero(column_of_n >= 0)
    return Programme(milp=replace(milp, start=start), options=free, n=column_of_n[free])


def _share(
    builder: MilpBuilder,
    cut: Cut,
    group: Group,
    *,
    column_of_n: IntArray,
    column_of_m: IntArray,
    upper: FloatArray,
) -> None:
    """Packing and limits over what is free."""
    shared = cut.shared
    of_n = np.flatnonzero(column_of_n[shared.n_option] >= 0)
    of_m = np.flatnonzero(column_of_m[shared.m_pool] >= 0)
    rows = np.unique(np.concatenate([shared.n_row[of_n], shared.m_row[of_m]]))
    rows = rows[np.isfinite(upper[rows])]
    position = np.full(len(upper), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    elastic = rows[group.slack_upper[rows] > 0]
    slack = builder.add_columns(
        "excess", len(elastic), upper=group.slack_upper[elastic], cost=group.slack_cost[elastic]
    )
    entry_rows = np.concatenate([position[shared.n_row[of_n]], position[shared.m_row[of_m]], position[elastic]])
    columns = np.concatenate([column_of_n[shared.n_option[of_n]], column_of_m[shared.m_pool[of_m]], slack])
    values = np.concatenate([shared.n_value[of_n], shared.m_value[of_m], -np.ones(len(elastic))])
    known = entry_rows >= 0
    builder.add_rows("shared", rows=entry_rows[known], columns=columns[known], values=values[known], upper=upper[rows])


def _kept_pairs(part: Part, prices: Relaxation, options: IntArray, replicas: FloatArray) -> IntArray:
    """Return the service's pairs over `options`: the cheapest of each bucket, and all of options in use."""
    fleet = part.fleet
    is_free = np.zeros(len(fleet.options), dtype=np.bool_)
    is_free[options] = True
    mine = np.flatnonzero(is_free[fleet.pair_option])
    cost = fleet.pair_load[mine] * prices.replica_price[part.options][fleet.pair_option[mine]]
    kept = np.zeros(len(fleet.pair_option), dtype=np.bool_)
    kept[mine[cheapest_first(cost, fleet.pair_bucket[mine], PAIRS_KEPT)]] = True
    kept |= is_free[fleet.pair_option] & (replicas[part.options][fleet.pair_option] > 0)
    return np.flatnonzero(kept)
