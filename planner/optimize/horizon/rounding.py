"""A whole plan soon after the relaxation: what it has in full is kept, and the rest is topped up period by period.

The relaxation's instances are rounded down and lose every run that is shorter than a lease; its replicas shrink with
them. That keeps limits, leases and packing. What demand then misses is added a replica at a time: each time the one
that mends most of the missed cuts for its price, where a replica that still fits into a rented instance costs next to
nothing and another instance is kept for its lease. What turns out not to be needed is taken off again. Periods follow
each other, so that what one of them starts is there for the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.workers import solve_all
from planner.optimize.horizon.state import WHOLE
from planner.optimize.periods import keeps_leases
from planner.optimize.rows.limits import all_limits, limit_coefficients
from planner.optimize.rows.packing import packing_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.decompose.budget import Budget
    from planner.optimize.horizon.cuts import Cuts
    from planner.optimize.horizon.needs import Loaded
    from planner.optimize.milp import FloatArray, IntArray

ROUNDS = 12
"""Of looking for cuts that the plan misses, and topping up."""
LOWERED = 100
"""Rounds at most of leaving out instances that limits do not allow."""
SERVED = 1e-9
"""Relative to its side: a cut is kept if it is missed by no more."""
FITTING = 0.05
"""Of its price: what a replica counts that fits into an instance that is rented anyway."""
PADDING = 1e-6
"""Relative: demand counts this much more here, as prices of cuts are cleaned of their smallest parts."""
IDLE = 0.25
"""Of the price of the rest of a new instance: what counts beside the replica for which it is rented."""
LIMIT_TOLERANCE = 1e-9
"""Relative to a limit's bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """The limits of every period, as coefficients of its replicas and instances."""

    per_replica: FloatArray
    """Shape (limits, options of a period)."""
    per_instance: FloatArray
    """Shape (limits, pools of a period)."""
    most: FloatArray

    @classmethod
    def of(cls, fleet: FleetArrays, n_options: int, n_pools: int) -> _Limits:
        limits = all_limits(fleet)
        pairs = [limit_coefficients(limit, fleet) for limit in limits]
        bounds = np.array([limit.bound for limit in limits], dtype=np.float64)
        return cls(
            per_replica=np.array([replica[:n_options] for replica, _ in pairs]).reshape(-1, n_options),
            per_instance=np.array([instance[:n_pools] for _, instance in pairs]).reshape(-1, n_pools),
            most=bounds + LIMIT_TOLERANCE * np.maximum(np.abs(bounds), 1.0),
        )


class Rounding:
    """Whole replicas and instances of all periods, made from a relaxation's."""

    def __init__(
        self,
        fleet: FleetArrays,
        cuts: Sequence[Cuts],
        price: FloatArray,
        *,
        replicas: FloatArray,
        instances: FloatArray,
        committed: FloatArray,
    ) -> None:
        """Round down.

        price : of a replica of every option of a period.
        replicas, instances : the relaxation's, shapes (periods, options of a period) and (periods, pools of a period).
        committed : whole instances of every pool that is committed, shape (pools of a period,).
        """
        horizon = fleet.horizon
        self._cuts = cuts
        self._price = price
        self._lease = 1 if horizon is None else horizon.lease_periods
        self._lead = 0 if horizon is None else horizon.lead_periods
        self._start = 0.0 if horizon is None else horizon.start_up_s / horizon.step_s
        n_options, n_pools = replicas.shape[1], instances.shape[1]
        self._pool = fleet.option_pool[:n_options]
        self._committed = fleet.pool_is_committed[:n_pools]
        self._gpus = fleet.option_gpus[:n_options].astype(np.float64)
        self._instance_price = np.array(
            [float(fleet.offers[offer].price_usd_per_hour) for offer in fleet.pool_offer[:n_pools]]
        )
        self._limits = _Limits.of(fleet, n_options, n_pools)
        rows = [row for row in packing_rows(fleet) if row.pool < n_pools]
        self._packed = np.zeros((len(rows), n_options))
        """GPUs of a replica in every packing row."""
        for index, row in enumerate(rows):
            self._packed[index, row.members] = self._gpus[row.members]
        self._row_pool = np.array([row.pool for row in rows], dtype=np.int64)
        self._usable = np.array([row.usable_gpus for row in rows], dtype=np.float64)
        whole = np.floor(instances + WHOLE)
        self.instances: FloatArray = np.where(self._committed, committed, _without_short_runs(whole, self._lease))
        self._lower_to_limits()
        part = np.minimum(1.0, self.instances / np.maximum(instances, WHOLE))
        self.replicas: FloatArray = np.floor(np.maximum(replicas, 0.0) * part[:, self._pool] + WHOLE)

    def run(self, budget: Budget) -> bool:
        """Top up until every service is served exactly; return whether that worked out."""
        checked = np.full(self.replicas.shape, -1.0)  # what replicas were when their service was last looked at
        for _ in range(ROUNDS):
            if not self.top_up():
                return False
            pending = [
                (service, int(at))
                for service, each in enumerate(self._cuts)
                for at in each.need.active
                if np.any(checked[at, each.need.options] != self.replicas[at, each.need.options])
            ]
            if not pending:
                return True
            checked = self.replicas.copy()
            loads = solve_all(self._loaded, pending, budget)
            for (service, at), loaded in zip(pending, loads, strict=True):
                if loaded is None:
                    return False
                if loaded.load > 1 + SERVED:
                    self._cuts[service].add(loaded.prices)
                    if self._serves(service, at):
                        return False
        return False

    def _loaded(self, item: tuple[int, int]) -> Loaded:
        need, at = self._cuts[item[0]].need, item[1]
        return need.most_loaded(self.replicas[at, need.options] / need.scale[at])

    def top_up(self) -> bool:
        """Add replicas wherever a cut is missed, and take off what nothing needs; return whether nothing is missed."""
        for at in range(len(self.replicas)):
            for service, each in enumerate(self._cuts):
                if each.need.scale[at] <= 0 or self._serves(service, at):
                    continue
                held = self.replicas[at].copy()
                if not self._fill(service, at):
                    return False
                self._drop(service, at, held)
        return True

    def _sides(self, service: int, at: int) -> FloatArray:
        """Return the cuts' prices, each by its side, so that 1 is what is asked, shape (cuts, options)."""
        each = self._cuts[service]
        asks = each.required > 0
        side = each.required[asks] * each.need.scale[at] * (1 + PADDING)
        return np.asarray(each.prices[asks] / side[:, None])

    def _serves(self, service: int, at: int) -> bool:
        mine = self.replicas[at, self._cuts[service].need.options]
        return bool(np.all(self._sides(service, at) @ mine >= 1 - SERVED))

    def _fill(self, service: int, at: int) -> bool:
        """Add replicas of one service in one period until no cut is missed; return whether that worked out."""
        sides, options = self._sides(service, at), self._cuts[service].need.options
        pools = self._pool[options]
        while True:
            missing = 1 - sides @ self.replicas[at, options]
            open_cuts = missing > SERVED
            if not np.any(open_cuts):
                return True
            gain = np.minimum(sides[open_cuts], missing[open_cuts, None]).sum(axis=0)
            more = self._more_instances(at, options)
            replica, instance = self._price[options], self._instance_price[pools] * more * (1 + self._start)
            cost = np.where(more > 0, replica + IDLE * np.maximum(instance - replica, 0.0), FITTING * replica)
            with np.errstate(divide="ignore", invalid="ignore"):
                worth = np.where((gain > 0) & ~((more > 0) & self._committed[pools]), gain / np.maximum(cost, WHOLE), 0)
            for best in np.argsort(-worth, kind="stable").tolist():
                if worth[best] <= 0:
                    return False
                if self._add(at, int(options[best]), more[best]):
                    break
            else:
                return False

    def _more_instances(self, at: int, options: IntArray) -> FloatArray:
        """Return how many more instances one more replica of each option takes, shape (options,)."""
        taken = self._packed @ self.replicas[at]
        after = taken[:, None] + self._packed[:, options]
        needed = np.ceil(after / self._usable[:, None] - WHOLE) - self.instances[at, self._row_pool][:, None]
        return np.asarray(np.where(self._packed[:, options] > 0, needed, 0.0).max(axis=0, initial=0.0))

    def _add(self, at: int, option: int, more: float) -> bool:
        """Add a replica, and instances that are kept for a lease; return whether limits allow it."""
        pool = self._pool[option]
        n_periods = len(self.instances)
        span = (at + np.arange(self._lease)) % n_periods
        before = self.instances[span, pool].copy()
        if more > 0:
            self.instances[span, pool] = np.maximum(before, self.instances[at, pool] + more)
        self.replicas[at, option] += 1
        if self._is_within((at + np.arange(-self._lead, self._lease + 1)) % n_periods, option):
            return True
        self.instances[span, pool] = before
        self.replicas[at, option] -= 1
        return False

    def _is_within(self, periods: IntArray, option: int) -> bool:
        """Return whether limits on the option's pool hold in `periods`, with what is starting up."""
        on = (self._limits.per_instance[:, self._pool[option]] > 0) | (self._limits.per_replica[:, option] > 0)
        if not np.any(on):
            return True
        used = (
            self._rented(periods) @ self._limits.per_instance[on].T
            + self.replicas[periods] @ self._limits.per_replica[on].T
        )
        return bool(np.all(used <= self._limits.most[on]))

    def _rented(self, periods: IntArray) -> FloatArray:
        """Return the instances that run or start up in `periods`, shape (periods, pools of a period)."""
        rented = self.instances[periods]
        for k in range(1, self._lead + 1):
            later = self.instances[(periods + k) % len(self.instances)]
            just_before = self.instances[(periods + k - 1) % len(self.instances)]
            rented = rented + np.where(self._committed, 0.0, np.maximum(later - just_before, 0.0))
        return rented

    def _lower_to_limits(self) -> None:
        """Leave out instances, of the pools with most of them, until no limit on them is broken."""
        n_periods = len(self.instances)
        for _ in range(LOWERED):
            used = self._rented(np.arange(n_periods)) @ self._limits.per_instance.T
            broken = np.argwhere(used > self._limits.most)
            if not len(broken):
                return
            for at, limit in broken.tolist():
                span = (at + np.arange(self._lead + 1)) % n_periods
                may_go = (self._limits.per_instance[limit] > 0) & ~self._committed
                most = np.where(may_go, self.instances[span].max(axis=0), 0.0)
                pool = int(np.argmax(most))
                self.instances[span, pool] = np.minimum(self.instances[span, pool], max(most[pool] - 1.0, 0.0))
            lowered = _without_short_runs(self.instances, self._lease)
            self.instances = np.where(self._committed, self.instances, lowered)

    def _drop(self, service: int, at: int, held: FloatArray) -> None:
        """Take off, dearest first, the replicas that were added to `held` and that no cut needs now."""
        sides, options = self._sides(service, at), self._cuts[service].need.options
        for index in np.argsort(-self._price[options], kind="stable").tolist():
            option = int(options[index])
            while self.replicas[at, option] > held[option]:
                self.replicas[at, option] -= 1
                if np.any(sides @ self.replicas[at, options] < 1 - SERVED):
                    self.replicas[at, option] += 1
                    break


def _without_short_runs(instances: FloatArray, lease: int) -> FloatArray:
    """Return instances at or below `instances` (periods, pools) of which all that start run for `lease` periods.

    Where some do not, the k-th instance of the pool runs in all periods that have k, without runs that are too short.

    Examples
    --------
    >>> _without_short_runs(np.array([[1.0], [3.0], [1.0], [1.0]]), 2).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    kept = np.min([np.roll(instances, -k, axis=0) for k in range(lease)], axis=0)
    longest = np.max([np.roll(kept, k, axis=0) for k in range(lease)], axis=0)
    return np.asarray(np.where(keeps_leases(instances, lease), instances, longest))
