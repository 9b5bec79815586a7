"""A fleet that serves a part of the demand: its programme, and with replicas fixed the exact part that it serves.

With u[b] the unserved share of a bucket and V[k] the least unserved rate of priority k, which later programmes keep,

    sum_j x[b,j] + u[b] = 1,     sum_{b of priority k} lam[b] u[b] <= V[k]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverError
from planner.optimize.backends import solve_milp
from planner.optimize.model import Objective, build_model
from planner.optimize.routing import LP_TIME_LIMIT_S, LP_TOLERANCE
from planner.optimize.rows.shedding import define_shed_limits
from planner.optimize.search import settle
from planner.optimize.settings import SolverSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.model import FleetModel
    from planner.optimize.search import Fleet
    from planner.optimize.verify import Verified

DUST = 1e-10
"""Shares of a bucket, served or not, below this are rounding noise and become 0."""
MARGINS = (0.0, 1e-8, 1e-6)
"""Shares of the demand that are given up, one after the other, where replicas would be overfull by rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """What is known so far of the part of the demand that stays unserved."""

    fleet: FleetArrays
    """With all demand."""
    levels: tuple[IntArray, ...]
    """Buckets of each priority, most important first."""
    least_rps: tuple[float, ...] = ()
    """V of the priorities settled so far."""

    @property
    def rates_rps(self) -> FloatArray:
        """Rate of every bucket, shape (buckets,)."""
        return np.array([bucket.rate_rps for _, bucket in self.fleet.buckets], dtype=np.float64)

    def level_weights(self, level: int) -> FloatArray:
        """Return the rates of one priority's buckets, 0 elsewhere, shape (buckets,)."""
        weights = np.zeros(len(self.fleet.buckets))
        weights[self.levels[level]] = self.rates_rps[self.levels[level]]
        return weights

    def model(self, fleet: FleetArrays, objective: Objective, unserved_cost: FloatArray | None = None) -> FleetModel:
        """Return the model of `fleet` in which demand may stay unserved, as little as known so far."""
        cost = np.zeros(len(fleet.buckets)) if unserved_cost is None else unserved_cost
        model = build_model(fleet, objective, unserved_cost=cost)
        if model.u is not None and self.least_rps:
            define_shed_limits(
                model.builder, model.u, self.rates_rps, self.levels[: len(self.least_rps)], self.least_rps
            )
        return model

    def exact_unserved(self, verified: Verified, *, aim: Objective | None = None) -> FloatArray:
        """Return u, shape (buckets,), that the replicas of a solution leave unserved at least.

        A linear programme for every priority, the most important one first, and one for what shares should have
        little of.

        Raises
        ------
        SolverError: if one of them has no solution.
        """
        known = replace(self, least_rps=())
        values = np.ones(len(self.fleet.buckets))
        for level in range(len(self.levels)):
            values = _shares_alone(known.model(self.fleet, nothing(self.fleet), self.level_weights(level)), verified)
            mine = self.levels[level]
            known = replace(known, least_rps=(*known.least_rps, float(self.rates_rps[mine] @ values[mine])))
        if aim is None or aim.per_pair is None:
            return values
        by_shares = replace(nothing(self.fleet), per_pair=aim.per_pair)
        return _shares_alone(known.model(self.fleet, by_shares), verified)

    def settled(
        self,
        model: FleetModel,
        verified: Verified,
        *,
        aim: Objective | None = None,
        kept: Sequence[tuple[Objective, float]] = (),
    ) -> tuple[FleetArrays, Fleet]:
        """Return the arrays with what a solution serves, and its fleet with exact shares.

        Raises
        ------
        SolverError: if its replicas do not hold what they claim to serve.
        """
        unserved = self.exact_unserved(verified, aim=aim)
        for margin in MARGINS:
            served = (1 - unserved) * (1 - margin)
            served = np.where(served < DUST, 0.0, np.where(served > 1 - DUST, 1.0, served))
            part = replace(self.fleet, served=served)
            found = settle(
                part,
                replicas=verified.values[model.n].round().astype(np.int64),
                instances=verified.values[model.m].round().astype(np.int64),
                assigned=np.zeros(len(part.pair_bucket)),
                aim=aim,
                kept=kept,
            )
            if found is not None:
                return part, found
        raise SolverError(
            "The solver's fleet does not hold the demand that it claims to serve.",
            hint="Try another solver with --solver.",
        )


def nothing(fleet: FleetArrays) -> Objective:
    """Return the objective that counts nothing."""
    return Objective(per_replica=np.zeros(len(fleet.options)), per_instance=np.zeros(len(fleet.pool_offer)))


def _shares_alone(model: FleetModel, verified: Verified) -> FloatArray:
    """Return u of the model with whatever is no share fixed as in a solution of it."""
    milp = model.freeze()
    fixed = milp.is_integer.copy()
    fixed[model.changes] = True
    if model.up is not None:
        fixed[model.up[model.up >= 0]] = True
    raw = solve_milp(
        _fixed(milp, fixed, verified.values),
        SolverSettings(solver="highs", time_limit_s=LP_TIME_LIMIT_S, feasibility_tolerance=LP_TOLERANCE),
    )
    if raw.values is None or model.u is None:
        raise SolverError(
            f"The linear programme of unserved demand ended with {raw.termination.value!r}.",
            hint="Try another solver with --solver.",
        )
    return np.asarray(np.clip(raw.values[model.u], 0.0, 1.0), dtype=np.float64)


def _fixed(milp: Milp, fixed: np.ndarray, values: FloatArray) -> Milp:
    """Return the linear programme in the columns that are not `fixed`; rows without any of these ask for nothing."""
    is_free = np.bincount(milp.row_of_entry, weights=~fixed[milp.columns], minlength=milp.n_rows) > 0
    return replace(
        milp,
        is_integer=np.zeros(milp.n_columns, dtype=np.bool_),
        col_lower=np.where(fixed, values, milp.col_lower),
        col_upper=np.where(fixed, values, milp.col_upper),
        row_lower=np.where(is_free, milp.row_lower, -np.inf),
        row_upper=np.where(is_free, milp.row_upper, np.inf),
    )
