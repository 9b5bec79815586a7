"""What it costs to leave the fleet that runs today."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import IntArray, MilpBuilder


def define_changes(builder: MilpBuilder, fleet: FleetArrays, n: IntArray, *, weight: float) -> IntArray:
    """For every option j:  n[j] - now[j] = up[j] - down[j],  up, down >= 0;  cost (A sum up + B sum down) / H.

    now is what runs today, A and B the price of a replica started and stopped, H the hours that the plan will hold.

    n : columns of replicas, shape (options,).
    weight : how much of their price is part of the objective.

    Returns the columns of up and down, shape (2 x options,); empty where nothing is said of today's fleet.
    """
    if fleet.change is None:
        return np.zeros(0, dtype=np.int64)
    size = len(n)
    rates = change_rates(fleet)
    up = builder.add_columns("start", size, cost=rates[0] * weight)
    down = builder.add_columns("stop", size, upper=fleet.running, cost=rates[1] * weight)
    options = np.arange(size)
    now = fleet.running.astype(np.float64)
    builder.add_rows(
        "change",
        rows=np.concatenate([options, options, options]),
        columns=np.concatenate([n, up, down]),
        values=np.concatenate([np.ones(size), -np.ones(size), np.ones(size)]),
        lower=now,
        upper=now,
    )
    return np.concatenate([up, down])


def change_rates(fleet: FleetArrays) -> tuple[float, float]:
    """Return what a replica started and a replica stopped cost in USD/h; 0 where nothing is said of today's fleet."""
    change = fleet.change
    if change is None:
        return 0.0, 0.0
    return change.start_usd / change.horizon_hours, change.stop_usd / change.horizon_hours


def change_usd_per_hour(fleet: FleetArrays, replicas: IntArray) -> float:
    """Return what it costs to get to `replicas` (shape (options,)) in USD/h, options that are still offered alone."""
    start, stop = change_rates(fleet)
    difference = replicas - fleet.running
    return float(start * np.maximum(difference, 0).sum() + stop * np.maximum(-difference, 0).sum())
