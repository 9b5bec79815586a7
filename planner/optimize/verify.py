"""Never trust a solver: every solution is checked against our own arrays before anybody reads it.

Tolerances are relative to what a row adds up (sum of |A v|, at least 1). Integers must be integers exactly, since they
are rounded here. Shares are polished after the search (`planner.optimize.routing`), so the finished plan holds 1e-9;
what comes straight from a branch-and-bound holds the solvers' own 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from planner.optimize.milp import FloatArray, Milp

SEARCH_TOLERANCE = 2e-6
"""For solutions of a branch-and-bound: solvers accept 1e-6 per row, and 8 printed digits cost CBC a little more."""
PLAN_TOLERANCE = 1e-9
"""For finished plans."""
INTEGRALITY_TOLERANCE = 1e-5
"""How far from an integer a solver's integer may lie; HiGHS accepts 1e-6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A solution that satisfies the programme."""

    values: FloatArray
    """Integers are exact."""
    cost: float
    """Recomputed from the values."""


def rounded_integers(milp: Milp, values: FloatArray) -> FloatArray:
    """Return `values` with the integer variables rounded to the nearest integer, never cut off.

    Raises
    ------
    SolverLiedError: if one of them is not within 1e-5 of an integer.
    """
    rounded = np.where(milp.is_integer, np.round(values), values)
    off = np.abs(rounded - values)
    worst = int(np.argmax(off)) if len(off) else 0
    if len(off) and not off[worst] <= INTEGRALITY_TOLERANCE:
        raise SolverLiedError(
            f"The solver returned {values[worst]!r} for {milp.column_name(worst)}, which must be an integer.",
            hint="Try another solver with --solver.",
        )
    return np.asarray(rounded + 0.0, dtype=np.float64)


def verify(
    milp: Milp,
    values: FloatArray,
    *,
    stated_objective: float | None = None,
    bound: float | None = None,
    tolerance: float = SEARCH_TOLERANCE,
) -> Verified:
    """Return the solution with integers made exact, its cost recomputed.

    Raises
    ------
    SolverLiedError: if a value is not finite or not integer where it must be, if a row or bound does not hold, if the
        stated objective is not what the values cost, or if the stated bound lies above the cost.
    """
    if values.shape != (milp.n_columns,) or not np.all(np.isfinite(values)):
        raise SolverLiedError(
            "The solver returned values that are missing or not finite.", hint="Try another solver with --solver."
        )
    exact = rounded_integers(milp, values)
    _check_bounds(milp, exact, tolerance)
    _check_rows(milp, exact, tolerance)
    cost = float(milp.cost @ exact)
    scale = max(float(np.abs(milp.cost) @ np.abs(exact)), 1.0)
    if stated_objective is not None and abs(cost - stated_objective) > max(tolerance, 1e-6) * 10 * scale:
        raise SolverLiedError(
            f"The solver states a cost of {stated_objective!r}, and its solution costs {cost!r}.",
            hint="Try another solver with --solver.",
        )
    if bound is not None and bound > cost + max(tolerance, 1e-6) * 10 * scale:
        raise SolverLiedError(
            f"The solver claims that no plan costs less than {bound!r}, and its own costs {cost!r}.",
            hint="Try another solver with --solver.",
        )
    return Verified(values=exact, cost=cost)


def _check_bounds(milp: Milp, values: FloatArray, tolerance: float) -> None:
    worst = _worst_miss(values, milp.col_lower, milp.col_upper, tolerance * np.maximum(np.abs(values), 1.0))
    if worst is not None:
        raise SolverLiedError(
            f"The solver returned {values[worst]!r} for {milp.column_name(worst)}, which must lie in "
            f"[{milp.col_lower[worst]:g}, {milp.col_upper[worst]:g}].",
            hint="Try another solver with --solver.",
        )


def _check_rows(milp: Milp, values: FloatArray, tolerance: float) -> None:
    activity = milp.activity(values)
    allowed = tolerance * np.maximum(milp.row_scale(values), 1.0)
    worst = _worst_miss(activity, milp.row_lower, milp.row_upper, allowed)
    if worst is not None:
        raise SolverLiedError(
            f"The solver's solution breaks {milp.row_name(worst)}: {activity[worst]!r} is not in "
            f"[{milp.row_lower[worst]:g}, {milp.row_upper[worst]:g}].",
            hint="Try another solver with --solver.",
        )


def _worst_miss(values: FloatArray, lower: FloatArray, upper: FloatArray, allowed: FloatArray) -> int | None:
    """Return where `values` lie farthest outside [lower, upper], beyond what is allowed; None if nowhere."""
    missed = np.maximum(lower - values, values - upper) - allowed
    worst = int(np.argmax(missed)) if len(missed) else 0
    return worst if len(missed) and missed[worst] > 0 else None
