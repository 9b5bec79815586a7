"""Where the search stands: whole replicas, the instances that they need, what that costs and what it exceeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.decompose.parts import Cut, Part
    from planner.optimize.decompose.relaxation import Relaxation
    from planner.optimize.milp import FloatArray

EXCESS_TOLERANCE = 1e-9
"""Relative to the side of a row: what is above it by more is exceeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A choice of replicas for every service."""

    replicas: FloatArray
    """n, whole, shape (options,)."""
    instances: FloatArray
    """m, the fewest that hold them, shape (pools,)."""
    cost: float
    excess: FloatArray
    """By how much each shared row is exceeded, >= 0."""

    @property
    def is_feasible(self) -> bool:
        """Whether all limits are kept."""
        return not np.any(self.excess > 0)


def state_of(cut: Cut, replicas: FloatArray) -> State:
    """Return the state with these replicas."""
    instances = needed_instances(cut, replicas)
    over = cut.shared.activity(replicas, instances) - cut.shared.upper
    allowed = EXCESS_TOLERANCE * np.maximum(np.abs(np.where(np.isfinite(cut.shared.upper), cut.shared.upper, 0.0)), 1.0)
    return State(
        replicas=replicas,
        instances=instances,
        cost=float(cut.instance_cost @ instances),
        excess=np.where(cut.shared.is_limit & (over > allowed), over, 0.0),
    )


def needed_instances(cut: Cut, replicas: FloatArray) -> FloatArray:
    """Return the fewest instances per pool that the packing rows allow, shape (pools,)."""
    shared = cut.shared
    size = len(shared.upper)
    gpus = np.bincount(shared.n_row, weights=shared.n_value * replicas[shared.n_option], minlength=size)
    packing = ~shared.is_limit[shared.m_row]
    per_row = np.ceil(gpus[shared.m_row[packing]] / -shared.m_value[packing] - EXCESS_TOLERANCE)
    instances = np.zeros(len(cut.instance_cost))
    np.maximum.at(instances, shared.m_pool[packing], per_row)
    return instances


def option_scores(part: Part, prices: Relaxation) -> FloatArray:
    """Return what the first replica of each option costs more than it can save, at the prices; shape (options,).

    w[j] - max {sum_b u[b] x[b] : sum_b load[b, j] x[b] <= 1, 0 <= x <= 1}: every plan of the service that uses j
    costs at least the service's relaxation and this.
    """
    classes = part.classes
    worth = prices.bucket_price[part.buckets][classes.pair_bucket]
    order = np.lexsort((-worth / classes.pair_load, classes.pair_option))
    option, load, value = classes.pair_option[order], classes.pair_load[order], worth[order]
    starts = np.searchsorted(option, np.arange(len(classes.options)))
    before = np.cumsum(load) - load
    before -= before[np.minimum(starts, len(load) - 1)][option]
    fits = np.clip((1.0 - before) / load, 0.0, 1.0)
    saved = np.bincount(option, weights=value * fits, minlength=len(classes.options))
    return np.maximum(prices.replica_price[part.options] - saved[part.option_class], 0.0)
