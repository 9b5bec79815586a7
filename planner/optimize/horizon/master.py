"""The programme without shares: replicas, instances and starts of all periods, and cuts in the place of the shares.

What is left of a horizon's programme is its rows without shares as they stand (packing, limits, starts, leases, ...);
coverage and capacity come back as cuts (`needs`). Any choice of cuts is a relaxation, so its optimum is a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.milp import Milp, MilpBuilder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.horizon.cuts import Cuts
    from planner.optimize.milp import IntArray
    from planner.optimize.model import FleetModel

SHARE_ROWS = frozenset({"coverage", "capacity", "presence"})
"""What cuts stand for. Presence follows from capacity, replicas being whole."""
COLUMNS = frozenset({"x", "n", "m", "up"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """Columns and rows without shares, of all periods or of some."""

    milp: Milp
    whole_columns: IntArray
    """Where its columns stand in the whole programme."""
    periods: IntArray
    """Which periods it has, shape (its periods,)."""
    n: IntArray
    """Columns of replicas, shape (its periods, options of a period)."""
    m: IntArray
    """Columns of instances, shape (its periods, pools of a period)."""
    up: IntArray
    """Columns of starts, shaped as `m`; -1 where there are none."""
    column_period: IntArray
    """Period of every column; -1 for what is committed over all of them."""


def can_be_projected(model: FleetModel, milp: Milp) -> bool:
    """Return whether shares are only in the rows that cuts stand for, and every other column is one known here."""
    fleet = model.fleet
    if fleet.horizon is None or fleet.is_sliced or fleet.keeps_spares or fleet.energy is not None or fleet.jobs:
        return False
    if not {block.name for block in milp.col_blocks if block.size} <= COLUMNS:
        return False
    is_share = _is_share(model, milp)
    own = np.zeros(milp.n_rows, dtype=np.bool_)
    own[_share_rows(milp)] = True
    touched = milp.row_of_entry[is_share[milp.columns]]
    is_free = np.all(milp.cost[is_share] == 0) and np.all(milp.cost[model.n] == 0)
    return bool(np.all(own[touched]) and is_free and np.all(milp.col_lower == 0) and _is_plain_service(model, milp))


def _is_plain_service(model: FleetModel, milp: Milp) -> bool:
    """Return whether coverage and capacity are the rows that the cuts come from, entry by entry."""
    fleet = model.fleet
    n_options = len(fleet.options)
    expected = {
        "coverage": (fleet.pair_bucket, model.x, np.ones(len(model.x))),
        "capacity": (
            np.concatenate([fleet.pair_option, np.arange(n_options)]),
            np.concatenate([model.x, model.n]),
            np.concatenate([fleet.pair_load, -np.ones(n_options)]),
        ),
    }
    for name, (rows, columns, values) in expected.items():
        block = next(block for block in milp.row_blocks if block.name == name)
        inside = slice(int(milp.row_starts[block.start]), int(milp.row_starts[block.start + block.size]))
        order = np.lexsort((columns, rows))
        if name == "coverage" and not np.all(milp.row_lower[block.start : block.start + block.size] == 1):
            return False
        if inside.stop - inside.start != len(rows) or not (
            np.array_equal(milp.columns[inside], columns[order]) and np.array_equal(milp.values[inside], values[order])
        ):
            return False
    return True


def master_of(model: FleetModel, milp: Milp) -> Master:
    """Return the programme without its shares, for which `can_be_projected` holds."""
    fleet = model.fleet
    kept_columns = np.flatnonzero(~_is_share(model, milp))
    kept_rows = np.setdiff1d(np.arange(milp.n_rows), _share_rows(milp))
    part = submatrix(milp, kept_rows, kept_columns)
    position = np.full(milp.n_columns, -1, dtype=np.int64)
    position[kept_columns] = np.arange(len(kept_columns))
    shape = (fleet.n_periods, -1)
    n, m = position[model.n].reshape(shape), position[model.m].reshape(shape)
    up = np.full(m.shape, -1, dtype=np.int64)
    if model.up is not None:
        up = np.where(model.up >= 0, position[model.up], -1).reshape(shape)
    column_period = np.full(part.n_columns, -1, dtype=np.int64)
    for block in (n, m, up):
        period = np.broadcast_to(np.arange(fleet.n_periods)[:, None], block.shape)
        column_period[block[block >= 0]] = period[block >= 0]
    column_period[m[:, fleet.pool_is_committed[: m.shape[1]]]] = -1
    # No more is started than there is, so that every column has an end, and every dual a bound to prove.
    upper = part.col_upper.copy()
    upper[up[up >= 0]] = upper[m[up >= 0]]
    return Master(
        milp=replace(part, col_upper=upper),
        whole_columns=kept_columns,
        periods=np.arange(fleet.n_periods),
        n=n,
        m=m,
        up=up,
        column_period=column_period,
    )


def sampled(master: Master, periods: IntArray) -> Master:
    """Return some periods without what joins them but commitments: to find cuts with, not for its optimum.

    Costs of a period count for all the periods that it stands for.
    """
    milp = master.milp
    kept = np.isin(master.column_period, periods) | (master.column_period < 0)
    is_start = np.zeros(milp.n_columns, dtype=np.bool_)
    is_start[master.up[master.up >= 0]] = True
    beyond = np.zeros(milp.n_rows, dtype=np.bool_)
    beyond[milp.row_of_entry[~kept[milp.columns] & ~is_start[milp.columns]]] = True
    columns = np.flatnonzero(kept & ~is_start)
    touched = np.zeros(milp.n_rows, dtype=np.bool_)
    touched[milp.row_of_entry[(kept & ~is_start)[milp.columns]]] = True
    part = submatrix(milp, np.flatnonzero(touched & ~beyond), columns)
    position = np.full(milp.n_columns, -1, dtype=np.int64)
    position[columns] = np.arange(len(columns))
    weight = len(master.periods) / len(periods)
    column_period = master.column_period[columns]
    return Master(
        milp=replace(part, cost=np.where(column_period < 0, part.cost, part.cost * weight)),
        whole_columns=master.whole_columns[columns],
        periods=periods,
        n=position[master.n[periods]],
        m=position[master.m[periods]],
        up=np.full_like(master.up[periods], -1),
        column_period=column_period,
    )


def submatrix(milp: Milp, rows: IntArray, columns: IntArray) -> Milp:
    """Return the programme with these rows and columns alone; all its variables as they are."""
    row = np.full(milp.n_rows, -1, dtype=np.int64)
    row[rows] = np.arange(len(rows))
    column = np.full(milp.n_columns, -1, dtype=np.int64)
    column[columns] = np.arange(len(columns))
    entry_row, entry_column = row[milp.row_of_entry], column[milp.columns]
    inside = (entry_row >= 0) & (entry_column >= 0)
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    starts[1:] = np.cumsum(np.bincount(entry_row[inside], minlength=len(rows)))
    return Milp(
        cost=milp.cost[columns],
        row_starts=starts,
        columns=entry_column[inside],
        values=milp.values[inside],
        row_lower=milp.row_lower[rows],
        row_upper=milp.row_upper[rows],
        col_lower=milp.col_lower[columns],
        col_upper=milp.col_upper[columns],
        is_integer=milp.is_integer[columns],
    )


def relaxation(master: Master, cuts: Sequence[Cuts]) -> Milp:
    """Return the linear relaxation of `master` with the cuts that are active in its periods."""
    milp = master.milp
    builder = MilpBuilder()
    builder.add_columns("master", milp.n_columns, lower=milp.col_lower, upper=milp.col_upper, cost=milp.cost)
    builder.add_rows(
        "master",
        rows=milp.row_of_entry,
        columns=milp.columns,
        values=milp.values,
        lower=milp.row_lower,
        upper=milp.row_upper,
    )
    for each in cuts:
        cut, at = np.nonzero(each.active[:, master.periods])
        columns = master.n[at][:, each.need.options]
        builder.add_rows(
            "cut",
            rows=np.repeat(np.arange(len(cut)), columns.shape[1]),
            columns=columns.ravel(),
            values=each.prices[cut].ravel(),
            lower=each.need.scale[master.periods[at]] * each.required[cut],
        )
    return builder.freeze()


def _is_share(model: FleetModel, milp: Milp) -> np.ndarray:
    found = np.zeros(milp.n_columns, dtype=np.bool_)
    found[model.x] = True
    return found


def _share_rows(milp: Milp) -> IntArray:
    found = [np.arange(block.start, block.start + block.size) for block in milp.row_blocks if block.name in SHARE_ROWS]
    return np.concatenate([*found, np.zeros(0, dtype=np.int64)])
