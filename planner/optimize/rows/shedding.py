"""Where demand may be shed: what is left unserved of a priority stays at its least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


def define_shed_limits(
    builder: MilpBuilder, u: IntArray, rates_rps: FloatArray, levels: Sequence[IntArray], least_rps: Sequence[float]
) -> IntArray:
    """For every priority k settled so far:  sum_{b of priority k} lam[b] u[b] <= V[k].

    u : columns of unserved shares, shape (buckets,).
    rates_rps : lam, shape (buckets,).
    levels : buckets of each priority.
    least_rps : V, the least unserved rate of each priority, those before it kept.
    """
    rows = [np.full(len(level), index) for index, level in enumerate(levels)]
    members = np.concatenate([np.zeros(0, dtype=np.int64), *levels])
    return builder.add_rows(
        "shed",
        rows=np.concatenate([np.zeros(0, dtype=np.int64), *rows]),
        columns=u[members],
        values=rates_rps[members],
        upper=np.array(least_rps, dtype=np.float64),
        label=lambda index: f"unserved of priority {index + 1}",
    )
