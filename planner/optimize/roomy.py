"""The fleet within a price on which adapters have most room: what is cheapest has none to spare for whole adapters.

For a price C,

    maximise  sum_j price[j] room[j]
    subject to the programme (`model`),  sum_b load[b, j] x[b, j] + room[j] <= n[j],  its cost <= C

with copies of adapters in parts, and every adapter of a group as busy as their mean: where adapters live is then found
by `homes`. A low C has no solution or little room, a high one is dear: `planner.optimize.adapters` tries several.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.hardware import replica_price
from planner.errors import SolverLiedError
from planner.optimize.adapter_bound import with_price
from planner.optimize.model import build_model
from planner.optimize.rows.packing import instances_needed
from planner.optimize.search import SearchResult, exact_cost, run, settle
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.settings import SolverSettings

DUST = 1e-6
"""Of a replica."""
ROOM_GAP = 0.1
"""Relative to the room: close enough."""


def roomiest(fleet: FleetArrays, most_usd_per_hour: float, settings: SolverSettings) -> SearchResult:
    """Return the fleet of at most this cost with most room for adapters, if one is found; without a bound."""
    alike = replace(fleet, group_residents=fleet.group_adapters.astype(np.float64))
    model = build_model(alike)
    holds = np.array([option.slots is not None for option in fleet.options], dtype=np.bool_)
    price = np.array([float(replica_price(option.offer, option.gpus_per_replica)) for option in fleet.options])
    n_options = len(fleet.options)
    own, mine = np.arange(n_options), holds[fleet.pair_option]
    room = model.builder.add_columns("room", n_options, upper=np.where(holds, np.inf, 0.0))
    model.builder.add_rows(
        "room",
        rows=np.concatenate([fleet.pair_option[mine], own, own]),
        columns=np.concatenate([model.x[mine], room, model.n]),
        values=np.concatenate([fleet.pair_load[mine], np.ones(n_options), -np.ones(n_options)]),
        upper=np.zeros(n_options),
    )
    milp = model.freeze()
    milp = with_price(milp, milp.cost, most_usd_per_hour)
    worth, is_integer = np.zeros(milp.n_columns), np.zeros(milp.n_columns, dtype=np.bool_)
    worth[room] = -price
    is_integer[np.concatenate([model.m, model.n[~holds]])] = True
    milp = replace(milp, cost=worth, is_integer=is_integer)
    raw = run(milp, replace(settings, relative_gap=ROOM_GAP))
    found = SearchResult(
        fleet=None,
        bound_usd_per_hour=None,
        termination=raw.termination,
        seconds=raw.seconds,
        solver=raw.solver,
        version=raw.version,
    )
    if raw.values is None:
        return found
    try:
        values = verify(milp, raw.values).values
    except SolverLiedError:  # by more than a plan may be wrong: another price will do
        return found
    instances = values[model.m].round().astype(np.int64)
    # Shares of services without adapters are exact where there are replicas enough for all.
    enough = np.ceil(values[model.n] - DUST).astype(np.int64)
    chosen = settle(fleet, replicas=enough, instances=instances, assigned=values[model.x])
    if chosen is None:
        return found
    replicas = _whole_replicas(fleet, values[model.n], instances, holds)
    kept = replace(chosen, replicas=replicas, instances=instances, cost_usd_per_hour=exact_cost(fleet, instances))
    return replace(found, fleet=kept)


def _whole_replicas(
    fleet: FleetArrays, replicas: FloatArray, instances: IntArray, holds: NDArray[np.bool_]
) -> IntArray:
    """Return replicas in whole numbers near to these, as many as the instances hold, the largest parts first."""
    whole = np.floor(replicas + DUST).astype(np.int64)
    whole[~holds] = np.ceil(replicas[~holds] - DUST).astype(np.int64)
    for option in np.argsort(whole - replicas, kind="stable").tolist():
        if not holds[option] or replicas[option] <= DUST:
            continue
        more = whole.copy()
        more[option] += 1
        if np.all(instances_needed(fleet, more) <= instances):
            whole = more
    return whole
