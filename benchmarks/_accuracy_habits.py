"""What is left out where an engine's rows are all of one GPU or model: its habits are learnt from its other runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.planning import calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from _accuracy_fit import Row

    from planner.profilers.efficiency import EstimatorParams

HABITS = ("request_overhead_s", "turnover_wait", "burst_share")
"""How an engine and a published run let requests in: nothing of a GPU or a model."""


def parallelism(row: Row) -> str:
    """Return the number of GPUs that share a layer of the row's replica."""
    return str(row.measurement.question.config.tensor_parallel)


def learn_habits(rows: Sequence[Row], recipe: Sequence[str], params: EstimatorParams, before: np.ndarray) -> np.ndarray:
    """Return the estimates, shape (rows, 3), of one engine's era that nothing is known of without these rows.

    Its step times stay those of `params`. Its habits, as far as they are in the recipe, are fitted to those of the rows
    that have another degree of tensor parallelism; where there are none, the estimates stay those of `before`.
    """
    found = before.copy()
    habits = [(name, rows[0].era) for name in recipe if name in HABITS]
    for left_out in sorted({parallelism(row) for row in rows}):
        others = [row.measurement for row in rows if parallelism(row) != left_out]
        inside = [index for index, row in enumerate(rows) if parallelism(row) == left_out]
        if others and habits:
            fitted = calibration.fit(others, habits, params)
            found[inside] = calibration.estimates([rows[i].measurement.question for i in inside], fitted.params)
    return found
