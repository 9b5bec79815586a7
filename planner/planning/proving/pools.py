"""How full the replicas of each kind may be: learned from what each pool's own requests see, more or less loaded.

A plan is replayed at several loads. Of every pool the largest load is sought at which its own requests keep their
service's objectives: a pool of one slow replica needs far more headroom than one of eight. That load is what a replica
of that kind may be filled to, as far as this replay shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.domain.plan import Plan
    from planner.domain.slo import Slo
    from planner.planning.replay import Replay
    from planner.simulate.records import RequestRecords

LOADS = (0.25, 0.35, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 2.8)
"""Multiples of the load that is to be proven; between two of them the knee is interpolated."""
START = LOADS.index(1.0)
FEW = 30
"""Requests; a pool that serves fewer says nothing."""

PoolMargins = dict[tuple[str, str], float]
"""By service and option: how far within its objectives a pool is; below 0 it misses."""


def pool_margins(plan: Plan, replay: Replay) -> PoolMargins:
    """Return how far each pool's own requests are within their objectives; pools with too few requests are left out."""
    records = replay.simulation.records
    counted = records.select(records.arrival_s >= replay.counts_from_s)
    ends = np.cumsum([item.replicas for item in plan.allocation])
    pool = np.searchsorted(ends, counted.replica, side="right")
    found: PoolMargins = {}
    for index, item in enumerate(plan.allocation):
        mine = (pool == index) & (counted.replica >= 0)
        if int(mine.sum()) >= FEW:
            own = counted.select(mine)
            parts = replay.objectives[item.service].masks(own)
            found[item.service, item.option] = min(_margin(own.select(mask), part.slos) for part, mask in parts)
    return found


def _margin(records: RequestRecords, slos: Sequence[Slo]) -> float:
    """Return the least margin of all objectives: 1 = nobody is late, 0 = as many as may be, at most."""
    margins = [math.inf]
    for slo in slos:
        values = records.values(slo.metric)
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        if slo.percentile is None:
            margins.append((slo.bound_s - float(np.mean(values))) / slo.bound_s)
        else:
            asked = slo.percentile / 100.0
            margins.append((float(np.mean(values <= slo.bound_s)) - asked) / (1.0 - asked))
    return min(margins)


def pool_knees(margins_at: Callable[[float], PoolMargins]) -> dict[tuple[str, str], float]:
    """Return by pool the largest load, as a multiple of what it has, at which it keeps its objectives.

    Loads are tried outwards from 1 until every pool has both kept and missed them, or the grid ends.
    """
    at = {START: margins_at(LOADS[START])}
    pools = list(at[START])
    for step in (-1, 1):
        index = START
        # Downwards until nobody misses, upwards until nobody keeps.
        while any(step * at[index].get(pool, -step) >= 0 for pool in pools) and 0 <= index + step < len(LOADS):
            index += step
            at[index] = margins_at(LOADS[index])
    return {pool: _crossing([(LOADS[i], at[i][pool]) for i in sorted(at) if pool in at[i]]) for pool in pools}


def _crossing(points: list[tuple[float, float]]) -> float:
    """Return the load at which the margin falls below 0; an end of the grid where it never does, or always is.

    Examples
    --------
    >>> _crossing([(1.0, 0.5), (2.0, -0.5)])
    1.5
    >>> _crossing([(0.5, -1.0), (1.0, -3.0)]), _crossing([(1.0, 1.0), (2.0, 1.0)])
    (0.5, 2.0)
    """
    below = next((i for i, (_, margin) in enumerate(points) if margin < 0), None)
    if below is None:
        return points[-1][0]
    if below == 0:
        return points[0][0]
    (low, held), (high, missed) = points[below - 1], points[below]
    return low + (high - low) * held / (held - missed) if math.isfinite(held) else low
