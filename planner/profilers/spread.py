"""How latencies spread around their mean at an operating point: profiles/latency_spread.csv, or the queueing model."""

from __future__ import annotations

import csv
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from planner.files.bundled import bundled
from planner.profilers.steady import tail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.profilers.efficiency import EstimatorParams
    from planner.profilers.operating import Points
    from planner.profilers.roofline import Array
    from planner.profilers.steady import Replica

LEVELS: Mapping[str, float] = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

QUEUEING_KINDS = frozenset({"request_rate"})
"""Loads whose percentiles come from the queueing model; those of the others are fixed multiples of the mean."""


@cache
def load_spread() -> Mapping[tuple[str, str, str], float]:
    """Return the bundled table, (load kind, metric, statistic) -> multiple of the mean."""
    text = bundled("profiles", "latency_spread.csv").read_text(encoding="utf-8")
    return {
        (row["load_kind"], row["metric"], row["statistic"]): float(row["multiple"])
        for row in csv.DictReader(text.splitlines())
    }


def percentiles(
    kind: str, replica: Replica, points: Points, params: EstimatorParams
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return mean and percentiles of TTFT and TPOT by statistic, in seconds, arrays of shape (cases,)."""
    del params
    ttft, tpot = {"mean": points.ttft_s}, {"mean": points.tpot_s}
    table = load_spread()
    for name, level in LEVELS.items():
        if kind in QUEUEING_KINDS and points.load is not None:
            late = tail(replica, points.load, level)
            ttft[name], tpot[name] = late.ttft_s, np.maximum(late.tpot_s, points.tpot_s)
            continue
        ttft[name] = points.ttft_s * table[kind, "ttft", name]
        tpot[name] = points.tpot_s * table[kind, "tpot", name]
    return ttft, tpot
