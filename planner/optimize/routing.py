"""Given the replicas, which share of each bucket goes where: the routing weights of the plan.

    minimise  t    subject to    sum_j x[b, j] = 1,    sum_b load[b, j] x[b, j] <= t n[j],    x >= 0,
    and the caps on shares, handovers and network rates, if there are any

The most loaded option is as little loaded as possible. The solution is a vertex, so few buckets are split. Where
serving a bucket here or there costs something (energy, carbon), the least of that comes first, with t <= 1.
Work with a deadline is laid out before (`planner.optimize.work`); the requests then leave it the room that it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.periods import pairs_of, period_of, slice_of
from planner.optimize.rows.disaggregation import define_handovers, evened_out, handed_over, transfer_load
from planner.optimize.rows.shares import SHARE_TOLERANCE, share_caps_hold, share_rows
from planner.optimize.settings import SolverSettings
from planner.optimize.verify import PLAN_TOLERANCE

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray

LP_TOLERANCE = 1e-10
"""HiGHS' smallest; its solutions of these small linear programmes are then exact to about 1e-14."""
LP_TIME_LIMIT_S = 60.0
"""The linear programme takes milliseconds; the limit only keeps a broken solver from hanging."""
ROW_TOLERANCE = 1e-6
"""Relative, of rows that shares must keep: what solvers accept."""
DUST = 1e-12
"""Shares below this are rounding noise and become 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareWishes:
    """What shares must keep and what they should have little of, beside serving everything."""

    cost: FloatArray | None = None
    """Of a whole bucket served, shape (pairs,); None = nothing but even loads."""
    rows: tuple[tuple[FloatArray, float], ...] = ()
    """Coefficients of shape (pairs,) and the most that their sum may be."""

    def hold(self, shares: FloatArray) -> bool:
        """Return whether `shares` keep every row."""
        return all(float(row @ shares) <= most + ROW_TOLERANCE * _size(row, most) for row, most in self.rows)

    def of_period(self, pairs: slice) -> ShareWishes:
        """Return the wishes of one period alone; rows are for all periods together."""
        return ShareWishes(cost=None if self.cost is None else self.cost[pairs])


def _size(row: FloatArray, most: float) -> float:
    """Return what a tolerance of a row is relative to."""
    return max(abs(most), float(np.abs(row).max(initial=0.0)))


NO_WISHES = ShareWishes()


def balanced_shares(
    fleet: FleetArrays,
    replicas: IntArray,
    assigned: FloatArray,
    wishes: ShareWishes = NO_WISHES,
    *,
    busy: FloatArray | None = None,
) -> FloatArray | None:
    """Return shares (shape (pairs,)) that these replicas serve, least utilisation first; None if there are none.

    Parameters
    ----------
    replicas : n, shape (options,).
    assigned : the search's shares; used as they are where buckets are sliced, and as a fallback.
    wishes : what the shares must keep, and what comes before an even load.
    busy : replicas that work with a deadline keeps busy, shape (options,); None = there is none.
    """
    if fleet.is_sliced:
        exact = exact_slices(fleet, assigned)
        return exact if holds(fleet, replicas, exact, busy=busy) and wishes.hold(exact) else None
    # Other shares would send requests to where their adapters are not.
    solved = None if fleet.has_adapters else _solve(fleet, replicas, wishes, busy)
    # What a solver's tolerance leaves where nothing runs belongs to the others.
    for shares in (solved, np.where(replicas[fleet.pair_option] > 0, assigned, 0.0)):
        if shares is not None:
            clean = _normalised(fleet, shares)
            if holds(fleet, replicas, clean, busy=busy) and wishes.hold(clean):
                return clean
    return None


def exact_slices(fleet: FleetArrays, assigned: FloatArray) -> FloatArray:
    """Return shares as whole numbers of slices."""
    return np.asarray(np.round(assigned * fleet.units_per_bucket) / fleet.units_per_bucket, dtype=np.float64)


def option_load(fleet: FleetArrays, shares: FloatArray) -> FloatArray:
    """Return the replicas at the utilisation cap that each option's share, or its KV caches, keep busy."""
    busy = np.bincount(fleet.pair_option, weights=fleet.pair_load * shares, minlength=len(fleet.options))
    return np.maximum(busy.astype(np.float64), transfer_load(fleet, shares))


def holds(fleet: FleetArrays, replicas: IntArray, shares: FloatArray, *, busy: FloatArray | None = None) -> bool:
    """Return whether replicas serve what is to be served, none overfull, within 1e-9, and caps on shares are kept."""
    if np.any(replicas[fleet.pair_option[shares > 0]] < 1):
        return False  # whatever its load
    if busy is not None:
        # Work shares GPUs with requests; the network that carries KV caches has nothing to do with it.
        requests = np.bincount(fleet.pair_option, weights=fleet.request_load * shares, minlength=len(fleet.options))
        beside = busy + requests
        if np.any(beside[busy > 0] > replicas[busy > 0] * (1 + PLAN_TOLERANCE)):
            return False
    covering = np.where(fleet.pair_covers, shares, 0.0)
    served = np.bincount(fleet.pair_bucket, weights=covering, minlength=len(fleet.buckets))
    return bool(
        np.all(np.abs(served - fleet.served_shares) <= PLAN_TOLERANCE)
        and np.all(option_load(fleet, shares) <= replicas * (1 + PLAN_TOLERANCE))
        and handed_over(fleet, shares, PLAN_TOLERANCE)
        and share_caps_hold(fleet, shares)
    )


def _solve(fleet: FleetArrays, replicas: IntArray, wishes: ShareWishes, busy: FloatArray | None) -> FloatArray | None:
    """Return the shares of the linear programme, or None if these replicas cannot serve everything at any load.

    Where no row joins them, periods have nothing to do with each other here: each has a programme of its own.
    """
    if fleet.horizon is None or wishes.rows:
        return _solve_steady(fleet, replicas, wishes, busy)
    shares = np.zeros(len(fleet.pair_bucket))
    n_options = len(fleet.options) // fleet.n_periods
    for period in range(fleet.n_periods):
        alone = period_of(fleet, period)
        part = wishes.of_period(pairs_of(fleet, period))
        mine = slice_of(period, n_options)
        taken = None if busy is None else busy[mine]
        found = _solve_steady(alone, replicas[mine], part, taken) if alone.buckets else np.zeros(0)
        if found is None:
            return None
        shares[pairs_of(fleet, period)] = found
    return shares


def _solve_steady(
    fleet: FleetArrays, replicas: IntArray, wishes: ShareWishes, busy: FloatArray | None
) -> FloatArray | None:
    live = np.flatnonzero(replicas[fleet.pair_option] > 0)
    asked = np.flatnonzero(fleet.served_shares > 0)
    if not np.all(np.isin(asked, fleet.pair_bucket[live])):
        return None
    scale = 0.0 if wishes.cost is None else float(np.abs(wishes.cost[live]).max(initial=0.0))
    rows = wishes.rows
    if wishes.cost is not None and scale > 0:
        cheapest = _solve_live(fleet, replicas, live, cost=wishes.cost[live] / scale, rows=rows, busy=busy)
        if cheapest is None:
            return None
        # What it costs is kept while the loads are made even.
        rows = (*rows, (wishes.cost, float(wishes.cost @ cheapest) + DUST * scale))
    even = _solve_live(fleet, replicas, live, cost=None, rows=rows, busy=busy)
    return cheapest if even is None and scale > 0 else even


def _solve_live(
    fleet: FleetArrays,
    replicas: IntArray,
    live: IntArray,
    *,
    cost: FloatArray | None,
    rows: tuple[tuple[FloatArray, float], ...],
    busy: FloatArray | None,
) -> FloatArray | None:
    """Return the shares of the `live` pairs that cost least, or with even loads where they cost nothing."""
    n_options = len(fleet.options)
    builder = MilpBuilder()
    x = builder.add_columns("x", len(live), upper=1.0, cost=0.0 if cost is None else cost)
    t = builder.add_columns("t", 1, upper=np.inf if cost is None else 1.0, cost=1.0 if cost is None else 0.0)
    whole = fleet.served_shares
    covers = fleet.pair_covers[live]
    builder.add_rows(
        "coverage", rows=fleet.pair_bucket[live[covers]], columns=x[covers], values=1.0, lower=whole, upper=whole
    )
    options = fleet.pair_option[live]
    builder.add_rows(
        "utilisation",
        rows=np.concatenate([options, np.arange(n_options)]),
        columns=np.concatenate([x, np.repeat(t, n_options)]),
        values=np.concatenate([fleet.pair_load[live] / replicas[options], -np.ones(n_options)]),
        upper=np.zeros(n_options),
    )
    position = np.full(len(fleet.pair_bucket), -1, dtype=np.int64)
    position[live] = x
    add_handovers(builder, fleet, replicas, position)
    add_share_caps(builder, fleet, position)
    if busy is not None and np.any(busy > 0):
        room = np.where(busy > 0, np.maximum(replicas - busy, 0.0), np.inf) + LP_TOLERANCE
        builder.add_rows(
            "beside work",
            rows=options,
            columns=x,
            values=fleet.pair_load[live] / (1 + fleet.headroom_fraction),
            upper=room,
        )
    for coefficients, most in rows:
        size = _size(coefficients, most) or 1.0
        builder.add_rows(
            "wish",
            rows=np.zeros(len(live), dtype=np.int64),
            columns=x,
            values=coefficients[live] / size,
            upper=[most / size + ROW_TOLERANCE / 2],
        )
    settings = SolverSettings(solver="highs", time_limit_s=LP_TIME_LIMIT_S, feasibility_tolerance=LP_TOLERANCE)
    raw = solve_milp(builder.freeze(), settings)
    if raw.values is None:
        return None
    shares = np.zeros(len(fleet.pair_bucket))
    shares[live] = raw.values[x]
    return shares


def add_handovers(builder: MilpBuilder, fleet: FleetArrays, replicas: IntArray, position: IntArray) -> None:
    """What the replicas that there are hand over is taken over, and their network carries it; `position`: columns."""
    if not fleet.is_disaggregated:
        return
    live = np.flatnonzero(position >= 0)
    define_handovers(builder, fleet, position, among=position >= 0)
    builder.add_rows(
        "transfer",
        rows=fleet.pair_option[live],
        columns=position[live],
        values=(fleet.pair_load * fleet.pair_transfer)[live],
        upper=replicas * (1 + PLAN_TOLERANCE / 2),
    )


def add_share_caps(builder: MilpBuilder, fleet: FleetArrays, position: IntArray) -> None:
    """Add the caps on shares; `position`: columns of the pairs, -1 where there is none."""
    for row in share_rows(fleet):
        mine = position[row.pairs] >= 0
        builder.add_rows(
            "share",
            rows=np.zeros(int(mine.sum()), dtype=np.int64),
            columns=position[row.pairs][mine],
            values=row.parts[mine],
            upper=[row.bound + SHARE_TOLERANCE / 2],
        )


def _normalised(fleet: FleetArrays, shares: FloatArray) -> FloatArray:
    """Return shares without dust, each bucket's summing to what is served of it, and as much decoded as handed over."""
    clean = np.where((shares > DUST) & (fleet.served_shares[fleet.pair_bucket] > 0), shares, 0.0)
    covering = np.where(fleet.pair_covers, clean, 0.0)
    total = np.bincount(fleet.pair_bucket, weights=covering, minlength=len(fleet.buckets))
    total[total == 0] = 1.0
    return evened_out(fleet, np.asarray(clean * (fleet.served_shares / total)[fleet.pair_bucket], dtype=np.float64))
