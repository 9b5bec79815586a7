"""How latencies spread around their mean at an operating point: profiles/latency_spread.csv, or the queueing model."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from planner.files.bundled import bundled
from planner.profilers.steady import tail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.profilers.operating import Points
    from planner.profilers.roofline import Array
    from planner.profilers.steady import Replica

LEVELS: Mapping[str, float] = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

QUEUEING_KINDS = frozenset({"request_rate"})
"""Loads whose percentiles come from the queueing model; those of the others are fixed multiples of the mean."""


SMALL_BATCH, LARGE_BATCH = 8.0, 64.0
"""Running sequences up to which, and from which on, the table's two columns hold; between them by the logarithm."""


@dataclass(frozen=True, slots=True)
class Multiple:
    """A statistic over the mean, in small and in large batches."""

    small: float
    large: float

    def at(self, batch: Array) -> Array:
        """Return the multiple at so many running sequences."""
        share = np.log(np.maximum(batch, SMALL_BATCH) / SMALL_BATCH) / np.log(LARGE_BATCH / SMALL_BATCH)
        multiple: Array = self.small + (self.large - self.small) * np.minimum(share, 1.0)
        return multiple


@cache
def load_spread() -> Mapping[tuple[str, str, str], Multiple]:
    """Return the bundled table, (load kind, metric, statistic) -> multiple of the mean."""
    text = bundled("profiles", "latency_spread.csv").read_text(encoding="utf-8")
    return {
        (row["load_kind"], row["metric"], row["statistic"]): Multiple(
            float(row["multiple_small"]), float(row["multiple"])
        )
        for row in csv.DictReader(text.splitlines())
    }


def percentiles(kind: str, replica: Replica, points: Points) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return mean and percentiles of TTFT and TPOT by statistic, in seconds, arrays of shape (cases,)."""
    ttft, tpot = {"mean": points.ttft_s}, {"mean": points.tpot_s}
    table = load_spread()
    for name, level in LEVELS.items():
        if kind in QUEUEING_KINDS and points.load is not None:
            late = tail(replica, points.load, level)
            ttft[name], tpot[name] = late.ttft_s, late.tpot_s
        else:
            ttft[name] = points.ttft_s * table[kind, "ttft", name].at(points.batch)
            tpot[name] = points.tpot_s * table[kind, "tpot", name].at(points.batch)
    return ttft, tpot
