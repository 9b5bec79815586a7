"""What requests for adapters are judged by: percentiles' bounds, adapter by adapter, and means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.slo import Metric
from planner.errors import InputError
from planner.simulate.statistics import next_mean, next_share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from planner.domain.adapters import Adapter
    from planner.domain.slo import Slo
    from planner.simulate.functions.records import FunctionRecords
    from planner.simulate.steps import Floats

CONFIDENCE = 0.8
"""With which a way has to hold on as many requests more than it was tried on, to be chosen.

The choice of the shortest time that does costs some of it: benchmarks/keep_alive_safety.py.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Bounds of each adapter by metric, arrays of shape (adapters,); inf = none."""

    bounds_s: Mapping[Metric, Floats]
    """Tightest of its percentiles; where no adapter has one, of the means, so that requests can miss at all."""
    target_fraction: float
    """Part of all requests that has to be within its own `bounds_s`; 0 = there are only means."""
    mean_bounds_s: Mapping[Metric, Floats]

    def is_attained(self, records: FunctionRecords, *, output_tokens: float) -> NDArray[np.bool_]:
        """Return whether each request is within its adapter's bounds."""
        within = np.ones(len(records), dtype=np.bool_)
        for metric, bounds in self.bounds_s.items():
            within &= values_s(records, metric, output_tokens) <= bounds[records.function]
        return within

    def attainment_of_each(self, records: FunctionRecords, *, output_tokens: float) -> Floats:
        """Return the part of each adapter's requests that is within its bounds; NaN without requests."""
        n = len(next(iter(self.bounds_s.values())))
        met = np.bincount(records.function, weights=self.is_attained(records, output_tokens=output_tokens), minlength=n)
        counts = np.bincount(records.function, minlength=n)
        found: Floats = np.divide(met, counts, out=np.full(n, np.nan), where=counts > 0)
        return found

    def excess(self, records: FunctionRecords, *, output_tokens: float, confidence: float | None = None) -> float:
        """Return by how much means are beyond their bounds, as a part of these; 0 if none is.

        Each request counts by its value over its adapter's bound: where all have the same one, that is the mean.

        confidence : with which as many requests to come would be within that; None = the means themselves.
        """
        most = 1.0
        for metric, bounds in self.mean_bounds_s.items():
            mine = bounds[records.function]
            ratios = (values_s(records, metric, output_tokens) / mine)[np.isfinite(mine)]
            if len(ratios):
                most = max(most, float(ratios.mean()) if confidence is None else next_mean(ratios, confidence))
        return most - 1.0

    def shortfall(self, records: FunctionRecords, *, output_tokens: float) -> float:
        """Return what is missing of the objectives; 0 if they hold."""
        attained = float(self.is_attained(records, output_tokens=output_tokens).mean())
        return max(0.0, self.target_fraction - attained) + self.excess(records, output_tokens=output_tokens)

    def holds_safely(self, records: FunctionRecords, *, output_tokens: float) -> bool:
        """Return whether the objectives would hold on as many requests more, each with probability `CONFIDENCE`."""
        within = self.is_attained(records, output_tokens=output_tokens).astype(np.float64)
        excess = self.excess(records, output_tokens=output_tokens, confidence=CONFIDENCE)
        asked = next_share(within, self.target_fraction, CONFIDENCE) if self.target_fraction else 0.0
        return float(within.mean()) >= asked and excess == 0.0


def values_s(records: FunctionRecords, metric: Metric, output_tokens: Floats | float) -> Floats:
    """Return what a metric is for each request; an answer of one token has a TPOT of what comes after it: nothing.

    output_tokens : of each answer, or of all.
    """
    if metric is Metric.TTFT:
        return records.ttft_s
    if metric is Metric.E2E:
        return records.e2e_s
    later = np.maximum(1.0, np.asarray(output_tokens, dtype=np.float64) - 1.0)
    return np.asarray((records.e2e_s - records.ttft_s) / later, dtype=np.float64)


def objectives_of(adapters: Sequence[Adapter], slos: Sequence[Slo]) -> Objectives:
    """Return what `adapters` are judged by: their own objectives, or `slos`.

    Raises
    ------
    InputError: if an adapter has none.
    """
    percentiles, means = ({metric: np.full(len(adapters), np.inf) for metric in Metric} for _ in range(2))
    levels = []
    for index, adapter in enumerate(adapters):
        own = adapter.slos or tuple(slos)
        if not own:
            raise InputError(f"Adapter {adapter.name!r} has no objective.", hint="Give e.g. 'ttft p99 <= 2s'.")
        for slo in own:
            bounds = means if slo.percentile is None else percentiles
            bounds[slo.metric][index] = min(bounds[slo.metric][index], slo.bound_s)
            levels += [] if slo.percentile is None else [slo.percentile / 100.0]
    return Objectives(
        bounds_s=percentiles if levels else means,
        target_fraction=max(levels, default=0.0),
        mean_bounds_s=means,
    )


def steering_bounds_s(objectives: Objectives, *, first_s: float, later_s: float) -> tuple[Floats, Floats]:
    """Return the bounds on each adapter's TTFT and TPOT that batches are sized and ordered by, shape (adapters,).

    A mean is steered by like a percentile, and what an E2E leaves for its first token like a TTFT.

    Parameters
    ----------
    first_s : time to a first token, alone.
    later_s : from there to the last one.
    """
    tight = {metric: np.minimum(objectives.bounds_s[metric], objectives.mean_bounds_s[metric]) for metric in Metric}
    ttft_s = np.minimum(tight[Metric.TTFT], np.maximum(first_s, tight[Metric.E2E] - later_s))
    return ttft_s, tight[Metric.TPOT]
