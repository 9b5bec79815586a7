"""Availability, quotas, budgets and power: everything that says "at most"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import Limit, Resource, Scope
from planner.optimize.problem_check import offer_gpus

if TYPE_CHECKING:
    from planner.domain.hardware import Offer
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def availability_limits(offers: tuple[Offer, ...]) -> tuple[Limit, ...]:
    """Return what offers say of themselves (`Offer.available`) as limits, one per listing that says anything."""
    stated = {offer.listing: offer.available for offer in offers if offer.available is not None}
    return tuple(
        Limit(name=f"available {name}", resource=Resource.INSTANCES, bound=float(available), scope=Scope(offer=name))
        for name, available in stated.items()
    )


def all_limits(fleet: FleetArrays) -> tuple[Limit, ...]:
    """Return the request's limits and the offers' own, in the order of the rows of `define_limits`."""
    return (*fleet.limits, *availability_limits(fleet.offers))


def instance_usage(resource: Resource, offer: Offer) -> float:
    """Return how much of `resource` one rented instance counts for; 0 for watts, which running replicas count for."""
    if resource is Resource.INSTANCES:
        return 1.0
    if resource is Resource.GPUS:
        return float(offer_gpus(offer))
    if resource is Resource.VCPUS:
        return float(offer.vcpus or 0.0)
    if resource is Resource.USD_PER_HOUR:
        return float(offer.price_usd_per_hour)
    return 0.0


def limit_coefficients(limit: Limit, fleet: FleetArrays) -> tuple[FloatArray, FloatArray]:
    """Return the coefficients of n (shape (options,)) and m (shape (pools,)) in the row of `limit`."""
    per_replica = np.zeros(len(fleet.options))
    if limit.resource is Resource.WATTS:
        per_replica = limit.factor * np.array(
            [float(option.power_w or 0.0) if limit.scope.covers(option.offer) else 0.0 for option in fleet.options]
        )
    per_offer = np.array(
        [instance_usage(limit.resource, offer) if limit.scope.covers(offer) else 0.0 for offer in fleet.offers]
    )
    return per_replica, per_offer[fleet.pool_offer] if len(fleet.pool_offer) else np.zeros(0)


def define_limits(
    builder: MilpBuilder,
    fleet: FleetArrays,
    n: IntArray,
    m: IntArray,
    *,
    up: IntArray | None = None,
    slack: IntArray | None = None,
) -> IntArray:
    """For every limit l:  sum_{p in scope} u[l, p] m[p] + sum_{j in scope} P[l, j] n[j] <= bound[l] (+ s[l]).

    u is 1 for instances, G for GPUs, the vCPUs or the price of an instance; P is the peak power of a replica, times
    the factor of the limit, where it counts watts, else 0. One family for availability, quotas, budgets and power, so
    that whatever limits a plan is reported, relaxed and priced in the same way.

    With a horizon there is one such row for every period t, in which an instance that is started for a later period
    counts as soon as it is rented:  m[p,t] + sum_{k=1..ceil(start-up / step)} up[p,t+k]  in the place of m[p].

    n : columns of replicas, shape (options,).
    m : columns of instances, shape (pools,).
    up : columns of starts, shape (pools,), -1 where there is none; None where starts do not matter.
    slack : columns s, shape (limits,), each >= 0: an elastic copy of the model, in which limits can be exceeded.
    """
    limits = all_limits(fleet)
    n_periods = fleet.n_periods
    option_period, pool_period = fleet.option_period, fleet.pool_period
    rows: list[IntArray] = []
    columns: list[IntArray] = []
    values: list[FloatArray] = []
    for index, limit in enumerate(limits):
        per_replica, per_instance = limit_coefficients(limit, fleet)
        parts = [(n, per_replica, option_period), (m, per_instance, pool_period)]
        if up is not None and fleet.horizon is not None:
            started = np.flatnonzero(up >= 0)
            parts += [
                (up[started], per_instance[started], (pool_period[started] - k) % n_periods)
                for k in range(1, fleet.horizon.lead_periods + 1)
            ]
        if slack is not None:
            parts.append((np.repeat(slack[index], n_periods), -np.ones(n_periods), np.arange(n_periods)))
        for ids, coefficients, period in parts:
            rows.append(index * n_periods + period)
            columns.append(ids)
            values.append(coefficients)
    return builder.add_rows(
        "limit",
        rows=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
        columns=np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64),
        values=np.concatenate(values) if values else np.zeros(0),
        upper=np.repeat([limit.bound for limit in limits], n_periods),
        label=lambda index: limits[index // n_periods].name,
    )


def limit_usage(limit: Limit, fleet: FleetArrays, replicas: IntArray, instances: IntArray) -> FloatArray:
    """Return how much of a limit every period uses, shape (periods,).

    replicas : n, shape (options,).
    instances : rented at any time of the period (`planner.optimize.periods.rented`), shape (pools,).
    """
    per_replica, per_instance = limit_coefficients(limit, fleet)
    by_replicas = (per_replica * replicas).reshape(fleet.n_periods, -1).sum(axis=1)
    return np.asarray(
        by_replicas + (per_instance * instances).reshape(fleet.n_periods, -1).sum(axis=1), dtype=np.float64
    )
