"""Capacity that is rented in any case: contracts, and machines that are already paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import Minimum, Resource
from planner.optimize.milp import always
from planner.optimize.problem_check import offer_gpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def minimum_coefficients(rule: Minimum, fleet: FleetArrays) -> FloatArray:
    """Return what one instance of each pool counts towards `rule`, shape (pools,)."""
    each = np.array(
        [
            (offer_gpus(offer) if rule.resource is Resource.GPUS else 1) if rule.scope.covers(offer) else 0
            for offer in fleet.offers
        ],
        dtype=np.float64,
    )
    return each[fleet.pool_offer] if len(fleet.pool_offer) else np.zeros(0)


def instances_for_minimums(fleet: FleetArrays) -> FloatArray:
    """Return the instances of each pool with which it alone would fulfil every minimum on it, shape (pools,).

    No plan needs more than these, or than what its replicas need: one fewer still fulfils everything.
    """
    most = np.zeros(len(fleet.pool_offer))
    for rule in fleet.rules:
        if isinstance(rule, Minimum):
            each = minimum_coefficients(rule, fleet)
            needed = np.divide(rule.bound, each, out=np.zeros(len(each)), where=each > 0)
            most = np.maximum(most, np.ceil(needed - 1e-9))
    return most


def define_minimums(
    builder: MilpBuilder, fleet: FleetArrays, m: IntArray, *, slack: dict[int, int] | None = None
) -> None:
    """For every minimum l and every period t:  sum_{p in scope} u[l, p] m[p, t] >= bound[l] (- s).

    u is 1 for instances and G for GPUs. What is rented is paid for, whether it runs anything or not.

    m : columns of instances, shape (pools,).
    slack : columns s by the rule's position: an elastic copy of the model.
    """
    slack = slack or {}
    for position, rule in enumerate(fleet.rules):
        if not isinstance(rule, Minimum):
            continue
        extra = np.full(fleet.n_periods if position in slack else 0, slack.get(position, 0))
        builder.add_rows(
            "minimum",
            rows=np.concatenate([fleet.pool_period, np.arange(len(extra))]),
            columns=np.concatenate([m, extra]),
            values=np.concatenate([minimum_coefficients(rule, fleet), np.ones(len(extra))]),
            lower=np.full(fleet.n_periods, float(rule.bound)),
            label=always(rule.name),
        )


def counted(rule: Minimum, fleet: FleetArrays, instances: IntArray) -> FloatArray:
    """Return what counts towards `rule` in every period, shape (periods,)."""
    each = minimum_coefficients(rule, fleet)
    return np.asarray((each * instances).reshape(fleet.n_periods, -1).sum(axis=1), dtype=np.float64)


def is_counted(fleet: FleetArrays) -> NDArray[np.bool_]:
    """Return whether a minimum counts a pool's instances, shape (pools,)."""
    found = np.zeros(len(fleet.pool_offer), dtype=np.bool_)
    for rule in fleet.rules:
        if isinstance(rule, Minimum) and rule.bound > 0:
            found |= minimum_coefficients(rule, fleet) > 0
    return found


def kept_instances(fleet: FleetArrays, instances: IntArray, needed: IntArray) -> IntArray:
    """Return `instances` without those that neither replicas nor minimums need, dearest first, shape (pools,).

    needed : what the replicas need, shape (pools,).
    """
    kept = np.minimum(instances, needed)
    minimums = [rule for rule in fleet.rules if isinstance(rule, Minimum)]
    if not minimums:
        return kept
    counts = [(minimum_coefficients(rule, fleet), rule.bound) for rule in minimums]
    kept = instances.copy()
    prices = [float(fleet.offers[offer].price_usd_per_hour) for offer in fleet.pool_offer.tolist()]
    for pool in sorted(range(len(kept)), key=lambda p: (-prices[p], p)):
        spare = [np.floor((each @ kept - bound) / each[pool] + 1e-9) for each, bound in counts if each[pool] > 0]
        drop = min([*spare, float(kept[pool] - needed[pool])])
        kept[pool] -= max(int(drop), 0)
    return kept
