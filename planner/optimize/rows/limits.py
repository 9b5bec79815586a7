"""Availability, quotas, budgets and power: everything that says "at most"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import Limit, Resource, Scope
from planner.optimize.arrays import offer_gpus

if TYPE_CHECKING:
    from planner.domain.hardware import Offer
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def availability_limits(offers: tuple[Offer, ...]) -> tuple[Limit, ...]:
    """Return what offers say of themselves (`Offer.available`) as limits, one per offer that says anything."""
    return tuple(
        Limit(
            name=f"available {offer.name}",
            resource=Resource.INSTANCES,
            bound=float(offer.available),
            scope=Scope(offer=offer.name),
        )
        for offer in offers
        if offer.available is not None
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
        per_replica = np.array(
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
    slack: IntArray | None = None,
) -> IntArray:
    """For every limit l:  sum_{p in scope} u[l, p] m[p] + sum_{j in scope} P[l, j] n[j] <= bound[l] (+ s[l]).

    u is 1 for instances, G for GPUs, the vCPUs or the price of an instance; P is the peak power of a replica where the
    limit counts watts, else 0. One family for availability, quotas, budgets and power, so that whatever limits a plan
    is reported, relaxed and priced in the same way.

    n : columns of replicas, shape (options,).
    m : columns of instances, shape (pools,).
    slack : columns s, shape (limits,), each >= 0: an elastic copy of the model, in which limits can be exceeded.
    """
    limits = all_limits(fleet)
    rows: list[IntArray] = []
    columns: list[IntArray] = []
    values: list[FloatArray] = []
    for index, limit in enumerate(limits):
        per_replica, per_instance = limit_coefficients(limit, fleet)
        parts = [(n, per_replica), (m, per_instance)]
        if slack is not None:
            parts.append((slack[index : index + 1], np.array([-1.0])))
        for ids, coefficients in parts:
            rows.append(np.full(len(ids), index))
            columns.append(ids)
            values.append(coefficients)
    return builder.add_rows(
        "limit",
        rows=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
        columns=np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64),
        values=np.concatenate(values) if values else np.zeros(0),
        upper=np.array([limit.bound for limit in limits]),
        label=lambda index: limits[index].name,
    )
