"""What a service needs of replicas: a polyhedron that a period's demand only scales, and the cuts that describe it.

With the loads L[j,b] of a service's buckets at one scale, and f[t] the scale of period t, replicas n serve the period
if and only if, for every v >= 0,

    sum_j v[j] n[j] >= f[t] R(v),     R(v) = sum_b min_j v[j] L[j,b].

That is the duality of linear programmes: v are prices of replicas, and R(v) is what the service costs at least at these
prices. A cut that was found in one period holds in all of them, its side scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.routing import LP_TIME_LIMIT_S, LP_TOLERANCE
from planner.optimize.settings import SolverSettings
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray

SAME_LOAD = 1e-9
"""Relative: loads of two periods that differ by no more are the same but for their scale."""
SMALL_PRICE = 1e-7
"""Of the dearest: prices below it are put to 0, so that no solver drops a coefficient that R counts."""
SHORTAGE = 1e3
"""Replicas that leaving a bucket unserved keeps busy in the programme of `most_loaded`, which is thus feasible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """How full given replicas are at best."""

    load: float
    """Of the fullest option; above 1 the replicas do not serve the demand."""
    prices: FloatArray
    """v of the cut that says so, shape (options,)."""
    shares: FloatArray
    """Of every eligible pair, shape (pairs,); zero where something stays unserved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One service: its loads, and their scale in every period."""

    options: IntArray
    """Positions among the options of one period."""
    pair_option: IntArray
    """Shape (pairs,): position in `options` of every eligible pair of one period."""
    pair_bucket: IntArray
    load: FloatArray
    """L, shape (options, buckets), infinite where an option cannot serve a bucket."""
    scale: FloatArray
    """f, shape (periods,); 0 where nothing is asked."""
    pairs: IntArray
    """Shape (active periods, pairs): where the pairs stand in the whole fleet's."""
    active: IntArray
    """Periods in which something is asked."""

    def required(self, prices: FloatArray) -> FloatArray:
        """Return R(v) of every row of `prices` (shape (cuts, options)), shape (cuts,)."""
        found = np.zeros(len(prices))
        for bucket in range(self.load.shape[1]):
            able = np.isfinite(self.load[:, bucket])
            found += (prices[:, able] * self.load[able, bucket]).min(axis=1)
        return found

    def most_loaded(self, replicas: FloatArray) -> Loaded:
        """Return the least load of the fullest option at scale 1, and the cut that proves it.

            minimise  z    subject to    sum_j x[b,j] >= 1,    sum_b L[j,b] x[b,j] <= z n[j],    x >= 0

        Options without replicas get the least price at which they would change nothing.
        """
        held = replicas > SMALL_PRICE * replicas.max(initial=0.0)
        live = np.flatnonzero(held[self.pair_option])
        used = np.flatnonzero(held)
        position = np.full(len(replicas), -1, dtype=np.int64)
        position[used] = np.arange(len(used))
        n_buckets = self.load.shape[1]
        builder = MilpBuilder()
        x = builder.add_columns("x", len(live))
        z = builder.add_columns("z", 1, cost=1.0)
        missing = builder.add_columns("missing", n_buckets, cost=SHORTAGE)
        options, buckets = self.pair_option[live], self.pair_bucket[live]
        coverage = builder.add_rows(
            "coverage",
            rows=np.concatenate([buckets, np.arange(n_buckets)]),
            columns=np.concatenate([x, missing]),
            values=1.0,
            lower=np.ones(n_buckets),
        )
        loaded = builder.add_rows(
            "load",
            rows=np.concatenate([position[options], np.arange(len(used))]),
            columns=np.concatenate([x, np.repeat(z, len(used))]),
            values=np.concatenate([self.load[options, buckets] / replicas[options], -np.ones(len(used))]),
            upper=np.zeros(len(used)),
        )
        settings = SolverSettings(time_limit_s=LP_TIME_LIMIT_S, feasibility_tolerance=LP_TOLERANCE)
        raw = solve_milp(builder.freeze(), settings)
        if raw.termination is Termination.INTERRUPTED:
            raise KeyboardInterrupt
        shares = np.zeros(len(self.pair_option))
        if raw.values is None or raw.row_duals is None or raw.objective is None:
            return Loaded(load=np.inf, prices=np.ones(len(replicas)), shares=shares)
        if not np.any(raw.values[missing] > SAME_LOAD):
            shares[live] = raw.values[x]
        worth = np.maximum(raw.row_duals[coverage], 0.0)
        prices = (worth / self.load).max(axis=1)
        prices[used] = np.maximum(-raw.row_duals[loaded], 0.0) / replicas[used]
        return Loaded(load=float(raw.objective), prices=clean_prices(prices), shares=shares)

    def cheapest(self, price: FloatArray, is_allowed: np.ndarray) -> FloatArray | None:
        """Return the replicas (not whole) that serve scale 1 for the least money; None where they cannot.

        Each bucket goes to the option where it costs least.

        price : of a replica, shape (options,).
        is_allowed : which options may be used, shape (options,).
        """
        cost = np.where(is_allowed[:, None], self.load * price[:, None], np.inf)
        best = cost.argmin(axis=0)
        buckets = np.arange(self.load.shape[1])
        if not np.all(np.isfinite(cost[best, buckets])):
            return None
        return np.bincount(best, weights=self.load[best, buckets], minlength=len(price)).astype(np.float64)


def clean_prices(prices: FloatArray) -> FloatArray:
    """Return prices of which the largest is 1, without those too small for a solver; zeros stay zeros."""
    most = prices.max(initial=0.0)
    scaled = prices / most if most > 0 else prices
    return np.where(scaled < SMALL_PRICE, 0.0, scaled)


def needs_of(fleet: FleetArrays) -> tuple[Need, ...] | None:
    """Return the needs of every service; None if the demand of one is not the same in all periods but for its scale."""
    n_options = len(fleet.options) // fleet.n_periods
    services = [option.service for option in fleet.options[:n_options]]
    found = []
    for service in sorted(set(services)):
        options = np.array([index for index, name in enumerate(services) if name == service], dtype=np.int64)
        need = _need(fleet, options, n_options)
        if need is None:
            return None
        found.append(need)
    return tuple(found)


def _need(fleet: FleetArrays, options: IntArray, n_options: int) -> Need | None:
    is_mine = np.zeros(n_options, dtype=np.bool_)
    is_mine[options] = True
    pairs = np.flatnonzero(is_mine[fleet.pair_option % n_options])
    period = fleet.pair_option[pairs] // n_options
    counts = np.bincount(period, minlength=fleet.n_periods)
    active = np.flatnonzero(counts)
    if not len(active) or len(set(counts[active].tolist())) > 1:
        return None
    table = pairs.reshape(len(active), -1)  # pairs are ordered by period
    option = fleet.pair_option[table] % n_options
    bucket = fleet.pair_bucket[table] - fleet.pair_bucket[table].min(axis=1, keepdims=True)
    load = fleet.pair_load[table]
    scale = load.sum(axis=1) / load[0].sum()
    is_alike = np.all(option == option[0]) and np.all(bucket == bucket[0])
    if not is_alike or not np.allclose(load, scale[:, None] * load[0], rtol=SAME_LOAD, atol=0.0):
        return None
    pair_option = np.searchsorted(options, option[0])
    matrix = np.full((len(options), int(bucket[0].max()) + 1), np.inf)
    matrix[pair_option, bucket[0]] = load[0]
    whole = np.zeros(fleet.n_periods)
    whole[active] = scale
    return Need(
        options=options,
        pair_option=pair_option,
        pair_bucket=bucket[0],
        load=matrix,
        scale=whole,
        pairs=table,
        active=active,
    )
