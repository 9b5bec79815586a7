"""The small programmes: one service at given prices, and a few services together with everything else held still."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.parts import least_by
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

    Its optimum is the service's term of the Lagrangian bound (without padding). Nothing but the price tells options
    apart that serve alike, so the cheapest of each class stands for it; and a class that another one beats in price
    and in every load is left out.
    """
    price = part.class_price(prices[part.options])
    kept = _unbeaten(part.classes, price)
    order = np.lexsort((prices[part.options], part.option_class))
    first = order[np.searchsorted(part.option_class[order], kept)]
    is_kept = np.zeros(len(price), dtype=np.bool_)
    is_kept[kept] = True
    pairs = np.flatnonzero(is_kept[part.classes.pair_option])
    builder = MilpBuilder()
    x = builder.add_columns("x", len(pairs), upper=1.0)
    n = builder.add_columns(
        "n", len(kept), upper=_upper(part.classes, padding)[kept], cost=price[kept], is_integer=True
    )
    _serve(builder, part.classes, x=x, n=n, pairs=pairs, n_class=kept, padding=padding)
    return Programme(milp=builder.freeze(), options=part.options[first], n=n)


def _unbeaten(classes: FleetArrays, price: FloatArray) -> IntArray:
    """Return the classes than which none costs no more and serves every bucket at no larger a load."""
    load = np.full((len(classes.options), len(classes.buckets)), np.inf)
    load[classes.pair_option, classes.pair_bucket] = classes.pair_load
    kept: list[int] = []
    for index in np.lexsort((load.sum(axis=1), price)).tolist():
        if not any(np.all(load[other] <= load[index]) for other in kept):
            kept.append(index)
    return np.array(sorted(kept), dtype=np.int64)


def _upper(classes: FleetArrays, padding: float) -> FloatArray:
    return classes.replicas_upper + 1 if padding else classes.replicas_upper


def _serve(
    builder: MilpBuilder,
    classes: FleetArrays,
    *,
    x: IntArray,
    n: IntArray,
    pairs: IntArray,
    n_class: IntArray,
    padding: float,
) -> None:
    """Coverage and capacity of one service over a choice of its pairs, and of options whose classes are `n_class`."""
    ones = np.ones(len(classes.buckets))
    builder.add_rows("coverage", rows=classes.pair_bucket[pairs], columns=x, values=1.0, lower=ones, upper=ones)
    used, row_of_n = np.unique(n_class, return_inverse=True)
    builder.add_rows(
        "capacity",
        rows=np.concatenate([np.searchsorted(used, classes.pair_option[pairs]), row_of_n]),
        columns=np.concatenate([x, n]),
        values=np.concatenate([classes.pair_load[pairs] * (1 + padding), -np.ones(len(n))]),
        upper=np.zeros(len(used)),
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
        n_class = part.option_class[options]
        n = builder.add_columns(
            "n", len(options), upper=_upper(part.classes, PADDING)[n_class], cost=n_toll[chosen], is_integer=True
        )
        _serve(builder, part.classes, x=x, n=n, pairs=pairs, n_class=n_class, padding=PADDING)
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
    """Return the service's pairs over the classes of `options`: each bucket's cheapest, and all of those in use."""
    classes, mine = part.classes, part.option_class[options]
    price = least_by(mine, prices.replica_price[part.options[options]], len(classes.options))
    is_used = part.by_class(replicas[part.options])[classes.pair_option] > 0
    is_free = np.isfinite(price)[classes.pair_option]
    free = np.flatnonzero(is_free)
    cost = classes.pair_load[free] * price[classes.pair_option[free]]
    kept = is_free & is_used
    kept[free[cheapest_first(cost, classes.pair_bucket[free], PAIRS_KEPT)]] = True
    return np.flatnonzero(kept)
