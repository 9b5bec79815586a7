"""Objectives one after the other: what an earlier one reached is kept while a later one is minimised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def define_kept_goals(
    builder: MilpBuilder, columns: IntArray, coefficients: Sequence[FloatArray], most: Sequence[float]
) -> IntArray:
    """For every objective k reached so far:  sum_i a[k, i] v[i] <= (1 + within) V[k].

    columns : v, all variables that objectives count.
    coefficients : a, one row per objective, each of the shape of `columns`.
    most : the right sides.
    """
    n_goals = len(coefficients)
    return builder.add_rows(
        "goal",
        rows=np.repeat(np.arange(n_goals), len(columns)),
        columns=np.tile(columns, n_goals),
        values=np.concatenate([np.zeros(0), *coefficients]),
        upper=np.array(most, dtype=np.float64),
    )
