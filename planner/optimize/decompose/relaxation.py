"""The linear relaxation by columns, its prices, and a lower bound that is computed here and not believed.

A restricted programme has every n and m and a few x per bucket. Its duals price the rest: a pair (b, j) comes in where
load[b, j] w[j] < u[b]. An option that the restricted programme does not use leaves w[j] open; it is raised as far as
n[j]'s own cost allows, or nearly every pair would seem worth having. For any duals y,

    cost >= sum_r y[r] * (lower side of r if y[r] > 0, else upper side) + sum_i min(d[i] lower[i], d[i] upper[i]),

d = c - A'y, for every solution: the bound does not depend on how well the linear programme was solved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.decompose.parts import least_by, rows_of

if TYPE_CHECKING:
    from planner.optimize.decompose.budget import Budget
    from planner.optimize.decompose.parts import Cut
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.termination import Termination

FIRST_PAIRS = 4
"""Pairs per bucket in the first restricted programme: the cheapest per request."""
MORE_PAIRS = 3
"""Pairs per bucket that one round of pricing adds."""
MAX_ROUNDS = 60
CONVERGED = 1e-6
"""Relative distance of restricted programme and bound at which pricing stops."""
SHORTAGE_PRICE = 10.0
"""Times its dearest pair: what leaving a bucket unserved costs in the restricted programme, which is thus feasible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """The linear relaxation's solution and prices."""

    replicas: FloatArray
    """n, not whole, shape (options,)."""
    replica_price: FloatArray
    """w: what a replica costs with its part of an instance and of all limits, shape (options,)."""
    class_price: FloatArray
    """The least w of options that serve alike, shape (classes,)."""
    bucket_price: FloatArray
    """u: what serving a whole bucket costs at those prices, shape (buckets,)."""
    shared_duals: FloatArray
    """y of packing and limits, <= 0, shape (shared rows,)."""
    constant: float
    """The bound is  sum_b u[b] + constant: what the shared rows' sides are worth."""
    bound: float
    short: bool
    """Whether buckets stay unserved at any price: the limits leave too little."""
    live: np.ndarray
    """Pairs of the last restricted programme: where the next relaxation begins."""


def relax(
    cut: Cut, budget: Budget, *, live: np.ndarray | None = None, rounds: int = MAX_ROUNDS
) -> Relaxation | Termination:
    """Return the linear relaxation of the model, or why there is none in time.

    Parameters
    ----------
    live : pairs to begin with, shape (pairs,); default: the cheapest of each bucket.
    rounds : of pricing; with few, the solution may not be the cheapest, and its bound is one all the same.
    """
    live = _first_pairs(cut) if live is None else live.copy()
    best: Relaxation | None = None
    for _ in range(rounds):
        restricted, columns, shortage = _restricted(cut, live)
        raw = budget.heard(solve_milp(restricted, replace(budget.settings(), solver="highs", presolve=False)))
        if raw.values is None or raw.row_duals is None:
            return best or raw.termination
        values = np.zeros(cut.milp.n_columns)
        values[columns] = raw.values[: len(columns)]
        found = _priced(cut, raw.row_duals, values, live=live, short=bool(np.any(raw.values[shortage] > CONVERGED)))
        if best is None or found.bound >= best.bound or best.short:
            best = found
        missing = _worth_having(cut, live, raw.row_duals, found)
        is_close = raw.objective is not None and raw.objective - best.bound <= CONVERGED * abs(raw.objective)
        if not len(missing) or (is_close and not found.short):
            return best
        live[missing] = True
    return best if best is not None else raw.termination


def repriced(cut: Cut, prices: Relaxation, shared_duals: FloatArray) -> Relaxation:
    """Return the relaxation's prices and bound for other duals of the shared rows; its solution stays."""
    duals = np.zeros(cut.milp.n_rows)
    duals[np.concatenate([rows_of(cut.milp, "packing"), rows_of(cut.milp, "limit")])] = shared_duals
    values = np.zeros(cut.milp.n_columns)
    values[cut.merged.n] = prices.replicas
    return _priced(cut, duals, values, live=prices.live, short=prices.short)


def lower_bound(milp: Milp, duals: FloatArray) -> float:
    """Return the bound that `duals` prove, by the inequality above; -inf where a column without a bound has d < 0."""
    y = np.where((duals > 0) & np.isinf(milp.row_lower), 0.0, duals)
    y = np.where((y < 0) & np.isinf(milp.row_upper), 0.0, y)
    side = np.where(y > 0, milp.row_lower, milp.row_upper)
    reduced = milp.cost - np.bincount(
        milp.columns, weights=milp.values * y[milp.row_of_entry], minlength=milp.n_columns
    )
    end = np.where(reduced > 0, milp.col_lower, milp.col_upper)
    nonzero, priced = y != 0, reduced != 0
    return float(np.sum(y[nonzero] * side[nonzero]) + np.sum(reduced[priced] * end[priced]))


def cheapest_first(score: FloatArray, group: IntArray, count: int) -> IntArray:
    """Return the positions of the `count` lowest scores in each group.

    Examples
    --------
    >>> cheapest_first(np.array([3.0, 1.0, 2.0, 5.0]), np.array([0, 0, 0, 1]), 2).tolist()
    [1, 2, 3]
    """
    order = np.lexsort((score, group))
    ordered = group[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.asarray(order[rank < count], dtype=np.int64)


def _list_price(cut: Cut) -> FloatArray:
    """Return a replica's part of its instance's price, shape (options,)."""
    fleet = cut.fleet
    gpus = np.array([offer.gpus_per_instance for offer in fleet.offers])[fleet.option_offer]
    return np.asarray(cut.instance_cost[fleet.option_pool] * fleet.option_gpus / gpus, dtype=np.float64)


def _first_pairs(cut: Cut) -> np.ndarray:
    classes, fleet = cut.merged.classes, cut.fleet
    price = _list_price(cut)
    is_unlimited = np.array([offer.available is None for offer in fleet.offers])[fleet.option_offer]
    live = np.zeros(len(classes.pair_bucket), dtype=np.bool_)
    for prices, count in ((price, FIRST_PAIRS), (np.where(is_unlimited, price, np.inf), 1)):
        cost = classes.pair_load * _by_class(cut, prices)[classes.pair_option]
        known = np.flatnonzero(np.isfinite(cost))
        live[known[cheapest_first(cost[known], classes.pair_bucket[known], count)]] = True
    return live


def _by_class(cut: Cut, price: FloatArray) -> FloatArray:
    return least_by(cut.merged.option_class, price, len(cut.merged.classes.options))


def _restricted(cut: Cut, live: np.ndarray) -> tuple[Milp, IntArray, IntArray]:
    """Return the programme with the live x alone and a shortage per bucket, its columns in the whole, and shortages."""
    milp, classes = cut.milp, cut.merged.classes
    is_kept = np.ones(milp.n_columns, dtype=np.bool_)
    is_kept[cut.merged.x] = live
    columns = np.flatnonzero(is_kept)
    position = np.cumsum(is_kept) - 1
    entries = np.flatnonzero(is_kept[milp.columns])
    coverage = rows_of(milp, "coverage")
    shortage = len(columns) + np.arange(len(coverage))
    rows = np.concatenate([milp.row_of_entry[entries], coverage])
    order = np.argsort(rows, kind="stable")
    price = -_by_class(cut, -_list_price(cut))
    dearest = np.zeros(len(coverage))
    np.maximum.at(dearest, classes.pair_bucket, classes.pair_load * price[classes.pair_option])
    starts = np.zeros(milp.n_rows + 1, dtype=np.int64)
    starts[1:] = np.cumsum(np.bincount(rows, minlength=milp.n_rows))
    many = np.zeros(len(coverage))
    small = replace(
        milp,
        cost=np.concatenate([milp.cost[columns], SHORTAGE_PRICE * dearest + CONVERGED]),
        row_starts=starts,
        columns=np.concatenate([position[milp.columns[entries]], shortage])[order],
        values=np.concatenate([milp.values[entries], np.ones(len(coverage))])[order],
        col_lower=np.concatenate([milp.col_lower[columns], many]),
        col_upper=np.concatenate([milp.col_upper[columns], many + np.inf]),
        is_integer=np.zeros(len(columns) + len(coverage), dtype=np.bool_),
        col_blocks=(),
    )
    return small, columns, shortage


def _priced(cut: Cut, duals: FloatArray, values: FloatArray, *, live: np.ndarray, short: bool) -> Relaxation:
    """Return the relaxation with prices as high as the columns' own costs allow, and the bound that they prove."""
    milp, classes, shared = cut.milp, cut.merged.classes, cut.shared
    y = duals.copy()
    shared_rows = np.concatenate([rows_of(milp, "packing"), rows_of(milp, "limit")])
    inner = np.minimum(y[shared_rows], 0.0)
    inner = _raised(cut, inner)
    y[shared_rows] = inner
    size = len(cut.fleet.options)
    price = np.maximum(-np.bincount(shared.n_option, weights=shared.n_value * inner[shared.n_row], minlength=size), 0.0)
    class_price = _by_class(cut, price)
    y[rows_of(milp, "capacity")] = -class_price
    served = least_by(classes.pair_bucket, classes.pair_load * class_price[classes.pair_option], len(classes.buckets))
    y[rows_of(milp, "coverage")] = served
    bound = lower_bound(milp, y)
    return Relaxation(
        replicas=values[cut.merged.n],
        replica_price=price,
        class_price=class_price,
        bucket_price=served,
        shared_duals=inner,
        constant=bound - float(served.sum()),
        bound=max(bound, 0.0),
        short=short,
        live=live.copy(),
    )


def _raised(cut: Cut, duals: FloatArray) -> FloatArray:
    """Return packing duals changed so that every instance's price is spread over its replicas, no more and no less."""
    shared = cut.shared
    n_pools = len(cut.instance_cost)
    of_limit = shared.is_limit[shared.m_row]
    tolled = cut.instance_cost - np.bincount(
        shared.m_pool[of_limit],
        weights=shared.m_value[of_limit] * duals[shared.m_row[of_limit]],
        minlength=n_pools,
    )
    pool_of_row = np.full(len(duals), -1, dtype=np.int64)
    pool_of_row[shared.m_row[~of_limit]] = shared.m_pool[~of_limit]
    usable = np.zeros(len(duals))
    usable[shared.m_row[~of_limit]] = -shared.m_value[~of_limit]
    packing = np.flatnonzero(pool_of_row >= 0)
    pools = pool_of_row[packing]
    spread = np.bincount(pools, weights=-duals[packing] * usable[packing], minlength=n_pools)
    result = duals.copy()
    # Where the programme says how an instance's price splits over replica sizes, keep the proportions; else the row
    # of the smallest size, which counts all replicas, takes it all.
    scale = np.divide(tolled, spread, out=np.zeros(n_pools), where=spread > 0)
    result[packing] *= scale[pools]
    first = packing[np.unique(pools, return_index=True)[1]]
    empty = first[spread[pool_of_row[first]] <= 0]
    result[empty] = -tolled[pool_of_row[empty]] / usable[empty]
    return result


def _worth_having(cut: Cut, live: np.ndarray, duals: FloatArray, found: Relaxation) -> IntArray:
    classes = cut.merged.classes
    served = duals[rows_of(cut.milp, "coverage")]
    saving = classes.pair_load * found.class_price[classes.pair_option] - served[classes.pair_bucket]
    missing = np.flatnonzero(~live & (saving < -CONVERGED * 1e-3 * np.abs(served[classes.pair_bucket])))
    return missing[cheapest_first(saving[missing], classes.pair_bucket[missing], MORE_PAIRS)]
