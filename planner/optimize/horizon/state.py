"""Where the search stands: whole replicas and instances of all periods, what that costs, and what it still breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.rows.packing import instances_needed

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.horizon.master import Master
    from planner.optimize.milp import FloatArray, IntArray

EXCESS_TOLERANCE = 1e-7
"""Relative to what a row adds up: what is beyond its side by more breaks it."""
WHOLE = 1e-6
"""A replica count this close above a whole number is that number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Values of the master's columns."""

    values: FloatArray
    cost: float
    excess: FloatArray
    """By how much each of the master's rows is broken, >= 0."""

    @property
    def is_feasible(self) -> bool:
        """Whether it breaks nothing."""
        return not np.any(self.excess > 0)

    def is_better_than(self, other: State) -> bool:
        """Return whether this state breaks less than `other`, or nothing more for less money."""
        mine, others = float(self.excess.sum()), float(other.excess.sum())
        return (mine, self.cost) < (others, other.cost)


def state_of(master: Master, replicas: FloatArray, instances: FloatArray) -> State:
    """Return the state with these replicas and instances, shaped as the master's n and m; starts follow."""
    values = np.zeros(master.milp.n_columns)
    values[master.n] = replicas
    values[master.m] = instances
    started = master.up >= 0
    values[master.up[started]] = np.maximum(instances - np.roll(instances, 1, axis=0), 0.0)[started]
    milp = master.milp
    activity = milp.activity(values)
    beyond = np.maximum(np.maximum(milp.row_lower - activity, activity - milp.row_upper), 0.0)
    allowed = EXCESS_TOLERANCE * np.maximum(milp.row_scale(values), 1.0)
    return State(values=values, cost=float(milp.cost @ values), excess=np.where(beyond > allowed, beyond, 0.0))


def fewest_instances(fleet: FleetArrays, replicas: FloatArray) -> IntArray:
    """Return the fewest instances of each pool and period that hold `replicas` (periods, options), as one table."""
    needed = instances_needed(fleet, replicas.ravel().astype(np.int64))
    return needed.reshape(fleet.n_periods, -1)
