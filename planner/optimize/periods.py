"""What follows from instances per period: starts, what is rented and what that costs; and one period alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.jobs import WorkArrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.energy import EnergyArrays
    from planner.optimize.milp import FloatArray, IntArray


def starts(fleet: FleetArrays, instances: IntArray) -> IntArray:
    """Return max(0, m[p,t] - m[p,t-1]), shape (pools,): what is started for each period, the last before the first.

    Zero where capacity is committed, or there is one steady state.
    """
    by_period = instances.reshape(fleet.n_periods, -1)
    rises = np.maximum(by_period - np.roll(by_period, 1, axis=0), 0)
    return np.where(fleet.pool_is_committed, 0, rises.ravel())


def rented(fleet: FleetArrays, instances: IntArray) -> IntArray:
    """Return the instances that are rented at any time of each period, shape (pools,): those starting up as well.

    rented[p,t] = m[p,t] + sum_{k=1..ceil(start-up / step)} up[p,t+k]
    """
    if fleet.horizon is None or not fleet.horizon.lead_periods:
        return instances
    up = starts(fleet, instances).reshape(fleet.n_periods, -1)
    ahead = sum(np.roll(up, -k, axis=0) for k in range(1, fleet.horizon.lead_periods + 1))
    return np.asarray(instances + np.asarray(ahead).ravel(), dtype=np.int64)


def instance_periods(fleet: FleetArrays, instances: IntArray) -> FloatArray:
    """Return how many periods' price each pool is paid for, shape (pools,): m + start-up / step x up."""
    if fleet.horizon is None or not fleet.horizon.start_up_s:
        return instances.astype(np.float64)
    share = fleet.horizon.start_up_s / fleet.horizon.step_s
    return np.asarray(instances + share * starts(fleet, instances), dtype=np.float64)


def without_spare(fleet: FleetArrays, instances: IntArray, needed: IntArray) -> IntArray:
    """Return `instances` without those that nothing needs, shape (pools,).

    Committed instances are the same number in all periods. Where starting has a price or a lease, fewer instances in
    one period can mean more starts in the next; then only what no period needs is left out.

    needed : what the replicas need, shape (pools,).
    """
    most = np.tile(needed.reshape(fleet.n_periods, -1).max(axis=0), fleet.n_periods)
    horizon = fleet.horizon
    is_free = horizon is None or (not horizon.start_up_s and horizon.lease_periods == 1)
    return np.where(fleet.pool_is_committed | (not is_free), np.minimum(instances, most), np.minimum(instances, needed))


def kept_long_enough(fleet: FleetArrays, instances: IntArray) -> IntArray:
    """Return instances at or above `instances` (shape (pools,)) that keep every lease and commitment, and few more."""
    if fleet.horizon is None or fleet.n_periods == 1:
        return instances
    found = instances.reshape(fleet.n_periods, -1)
    kept = np.where(
        fleet.pool_is_committed[: found.shape[1]], found.max(axis=0), _kept(found, fleet.horizon.lease_periods)
    )
    return np.asarray(kept.ravel(), dtype=np.int64)


def keeps_leases(instances: FloatArray | IntArray, lease: int) -> NDArray[np.bool_]:
    """Return for which pools everything started in the last `lease` periods is still there in every period.

    Instances of a pool are alike, and the oldest go first.

    instances : shape (periods, pools); the last period is before the first.

    Examples
    --------
    >>> keeps_leases(np.array([[3, 3], [9, 9], [5, 6]]), 2)
    array([False,  True])
    """
    up = np.maximum(instances - np.roll(instances, 1, axis=0), 0)
    started = np.sum([np.roll(up, k, axis=0) for k in range(lease)], axis=0)
    return np.asarray(np.all(started <= instances, axis=0))


def _kept(instances: IntArray, lease: int) -> IntArray:
    """Return instances (periods, pools) that do not fall below what was started in the last `lease` periods.

    From period to period, twice around, so that the first ones know what the last ones start.
    """
    n_periods = len(instances)
    if lease >= n_periods:
        return np.broadcast_to(instances.max(axis=0), instances.shape)
    found = instances.copy()
    for t in (*range(n_periods), *range(n_periods)):
        before = found[t - np.arange(1, lease + 1)]
        started = np.maximum(before[:-1] - before[1:], 0).sum(axis=0)
        found[t] = np.maximum(found[t], np.minimum(started, before[0]))
    return found


def period_of(fleet: FleetArrays, period: int) -> FleetArrays:
    """Return the arrays of one period alone, as a steady state, without the jobs: those belong to no one period."""
    n_options, n_pools = len(fleet.options) // fleet.n_periods, len(fleet.pool_offer) // fleet.n_periods
    options, pools = slice_of(period, n_options), slice_of(period, n_pools)
    buckets = np.flatnonzero(fleet.bucket_period == period)
    first = int(buckets[0]) if len(buckets) else 0
    pairs = pairs_of(fleet, period)
    return replace(
        fleet,
        options=fleet.options[options],
        buckets=fleet.buckets[first : first + len(buckets)],
        pair_bucket=fleet.pair_bucket[pairs] - first,
        pair_option=fleet.pair_option[pairs] - period * n_options,
        pair_load=fleet.pair_load[pairs],
        pair_transfer=fleet.pair_transfer[pairs],
        option_offer=fleet.option_offer[options],
        option_link=fleet.option_link[options],
        option_gpus=fleet.option_gpus[options],
        option_pool=fleet.option_pool[options] - period * n_pools,
        pool_offer=fleet.pool_offer[pools],
        replicas_upper=fleet.replicas_upper[options],
        running=fleet.running[options],
        egress_gb=None if fleet.egress_gb is None else fleet.egress_gb[pairs],
        energy=None if fleet.energy is None else _energy_of(fleet.energy, options, pairs),
        horizon=None,
        bucket_period=np.zeros(0, dtype=np.int64),
        jobs=(),
        work=WorkArrays(),
        served=None if fleet.served is None else fleet.served[first : first + len(buckets)],
    )


def _energy_of(energy: EnergyArrays, options: slice, pairs: slice) -> EnergyArrays:
    """Return the coefficients of one period alone."""
    return replace(
        energy,
        idle_kw=energy.idle_kw[options],
        pair_kw=energy.pair_kw[pairs],
        kg_per_kwh=energy.kg_per_kwh[options],
        usd_per_kwh=energy.usd_per_kwh[options],
    )


def pairs_of(fleet: FleetArrays, period: int) -> slice:
    """Return where the eligible pairs of a period stand; they are ordered by period."""
    n_options = len(fleet.options) // fleet.n_periods
    low, high = np.searchsorted(fleet.pair_option // max(n_options, 1), [period, period + 1])
    return slice(int(low), int(high))


def slice_of(period: int, size: int) -> slice:
    """Return where the members of a period stand in an array of `size` per period."""
    return slice(period * size, (period + 1) * size)
