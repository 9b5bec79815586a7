"""A search begins with the fleet that runs today, where the request names one (`--current`).

Demand, prices and limits may have changed since. What still serves and is still allowed stays; what is missing comes
beside it, from the linear relaxation with today's replicas held, rounded up. That is a fleet at once, which a search
has only to better, and which a search that is stopped early falls back on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverLiedError
from planner.optimize.alike import merged
from planner.optimize.backends import solve_milp
from planner.optimize.routing import balanced_shares
from planner.optimize.rows.packing import instances_needed
from planner.optimize.settings import SolverSettings
from planner.optimize.verify import PLAN_TOLERANCE, verify

if TYPE_CHECKING:
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.model import FleetModel

WARM_START_FRACTION = 0.25
"""Of the time limit: what finding the first fleet may take, so that most is left for bettering it."""


def warm_start(model: FleetModel, milp: Milp, settings: SolverSettings) -> Milp:
    """Return `milp` with today's fleet, and what it lacks, for its start; as it is where there is none.

    Replicas and instances are given, and the rest too where the fleet keeps every row: shares, and what follows.
    """
    fleet = model.fleet
    if not fleet.today.any() or fleet.is_sliced:
        return milp
    limit_s = settings.time_limit_s * WARM_START_FRACTION
    replicas = _with_what_is_missing(model, milp, np.minimum(fleet.today, milp.col_upper[model.n]), limit_s=limit_s)
    if replicas is None:
        return milp
    values = np.zeros(milp.n_columns)
    values[model.n], values[model.m] = replicas, instances_needed(fleet, replicas)
    shares = balanced_shares(fleet, replicas, np.zeros(len(model.x)))
    if shares is not None:
        values[model.x] = shares
        whole = model.with_followers(values, milp)
        try:
            return replace(milp, start=verify(milp, whole).values)
        except SolverLiedError:  # rows that nothing of this fleet was made for; the solver may still complete it
            pass
    start = np.full(milp.n_columns, np.nan)
    start[model.n], start[model.m] = values[model.n], values[model.m]
    return replace(milp, start=start)


def _with_what_is_missing(model: FleetModel, milp: Milp, held: FloatArray, *, limit_s: float) -> IntArray | None:
    """Return the replicas `held` and those that the demand needs beside them; None if the limits do not allow it."""
    lower = milp.col_lower.copy()
    lower[model.n] = held
    relaxed = replace(milp, col_lower=lower, is_integer=np.zeros(milp.n_columns, dtype=np.bool_))
    by_class = merged(model, relaxed)
    small = relaxed if by_class is None else by_class.milp
    raw = solve_milp(small, SolverSettings(solver="highs", time_limit_s=limit_s))
    if raw.values is None:
        return None
    columns = model.n if by_class is None else by_class.n
    return np.ceil(raw.values[columns] - PLAN_TOLERANCE).astype(np.int64)
