"""The linear relaxation over all periods by cuts: a true bound, and prices.

A programme over hundreds of periods is slow to solve anew, so that cuts are found in a few periods first, which stand
for the others; then all periods begin with the cuts that bind in those that they are like, and GLOP goes on from the
last basis when more come in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_linear
from planner.optimize.backends.mathopt import BASIC
from planner.optimize.decompose.relaxation import lower_bound
from planner.optimize.horizon.cuts import Cuts
from planner.optimize.horizon.master import relaxation, sampled
from planner.optimize.horizon.needs import clean_prices
from planner.optimize.milp import Basis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.optimize.decompose.budget import Budget
    from planner.optimize.horizon.master import Master
    from planner.optimize.horizon.needs import Need
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.termination import Termination

logger = logging.getLogger(__name__)

SAMPLE = 24
"""Periods in which cuts are looked for first."""
ROUNDS = 40
PER_PERIOD = 3
"""Cuts of a service that come into a period in one round."""
PROBED = 24
"""Periods of a service in which a round looks for new cuts."""
FULL = 1e-4
"""Replicas loaded above 1 by no more than this give no cut here."""
STALLED = 5e-4
"""Relative rise of the bound below which another round is not worth its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """The linear relaxation as far as its cuts go."""

    values: FloatArray
    """Of the master's columns."""
    reduced: FloatArray
    """Reduced costs of the master's columns."""
    bound: float


def first_cuts(needs: Sequence[Need], price: FloatArray) -> list[Cuts]:
    """Return the cuts to begin with: at list prices, and at equal ones.

    price : of a replica of every option of a period.
    """
    found = []
    for need in needs:
        cuts = Cuts(need)
        for prices in (price[need.options], np.ones(len(need.options))):
            cuts.add(clean_prices(prices))
        cuts.active[:] = need.scale > 0
        found.append(cuts)
    return found


def bound_of(master: Master, cuts: Sequence[Cuts], budget: Budget) -> float:
    """Return the bound that the cuts prove as they stand; 0 where there is no time for it."""
    milp = relaxation(master, cuts)
    raw = budget.heard(solve_linear(milp, budget.settings()))
    return 0.0 if raw.row_duals is None else max(lower_bound(milp, raw.row_duals), 0.0)


def relax(master: Master, cuts: Sequence[Cuts], budget: Budget) -> Relaxed | Termination:
    """Return the linear relaxation over all periods, or why there is none in time."""
    if len(master.periods) > 2 * SAMPLE:
        sample, like = _representatives(np.array([each.need.scale for each in cuts]).T, SAMPLE)
        small = sampled(master, sample)
        found = _by_cuts(small, cuts, budget)
        if not isinstance(found, Relaxed):
            return found
        for each in cuts:
            each.rest(found.values[small.n][:, each.need.options], sample)
            each.spread(sample, like)
    return _by_cuts(master, cuts, budget)


def _by_cuts(master: Master, cuts: Sequence[Cuts], budget: Budget) -> Relaxed | Termination:
    best: Relaxed | None = None
    status: dict[tuple[int, int, int], int] = {}
    basis: Basis | None = None
    n_own = master.milp.n_rows
    for number in range(ROUNDS):
        milp = relaxation(master, cuts)
        keys = list(_keys(master, cuts))
        if basis is not None:
            rows = np.array([status.get(key, BASIC) for key in keys], dtype=np.int64)
            basis = Basis(columns=basis.columns, rows=np.concatenate([basis.rows[:n_own], rows]))
        raw = budget.heard(solve_linear(replace(milp, basis=basis), budget.settings()))
        if raw.values is None or raw.row_duals is None or raw.basis is None:
            return best or raw.termination
        basis = raw.basis
        status = dict(zip(keys, basis.rows[n_own:].tolist(), strict=True))
        before = -np.inf if best is None else best.bound
        best = _relaxed(milp, raw.values, raw.row_duals, before)
        worst = _look_for_cuts(master, cuts, raw.values, number)
        logger.info(
            "%.1f s: relaxation of %d periods, bound %.6g, %d cuts, load %.4f",
            budget.seconds,
            len(master.periods),
            best.bound,
            len(keys),
            worst,
        )
        missed = sum(
            each.activate(raw.values[master.n][:, each.need.options], master.periods, most=PER_PERIOD) for each in cuts
        )
        if not missed or (worst < 1.01 and best.bound - before <= STALLED * abs(best.bound)):
            break
    return best if best is not None else raw.termination


def _relaxed(milp: Milp, values: FloatArray, duals: FloatArray, before: float) -> Relaxed:
    reduced = milp.cost - np.bincount(
        milp.columns, weights=milp.values * duals[milp.row_of_entry], minlength=milp.n_columns
    )
    return Relaxed(values=values, reduced=reduced, bound=max(before, lower_bound(milp, duals)))


def _keys(master: Master, cuts: Sequence[Cuts]) -> Iterator[tuple[int, int, int]]:
    """Yield service, cut and period of the rows of `relaxation`, in their order."""
    for service, each in enumerate(cuts):
        for cut, at in np.argwhere(each.active[:, master.periods]).tolist():
            yield service, cut, at


def _look_for_cuts(master: Master, cuts: Sequence[Cuts], values: FloatArray, number: int) -> float:
    """Add the cuts that some of the periods miss by most; return the largest load of replicas found."""
    worst = 0.0
    for each in cuts:
        asked = np.flatnonzero(each.need.scale[master.periods] > 0)
        stride = max(1, -(-len(asked) // PROBED))
        for at in asked[number % stride :: stride].tolist():
            replicas = np.maximum(values[master.n[at]][each.need.options], 0.0) / each.need.scale[master.periods[at]]
            loaded = each.need.most_loaded(replicas)
            worst = max(worst, loaded.load)
            if loaded.load > 1 + FULL:
                each.add(loaded.prices)
    return worst


def _representatives(scales: FloatArray, count: int) -> tuple[IntArray, IntArray]:
    """Return periods that differ most in what they ask, and for every period the position of the one it is like.

    The busiest one first, then always the one that is farthest from all of them.

    scales : shape (periods, services).
    """
    whole = scales / np.maximum(scales.mean(axis=0), 1e-300)
    chosen = [int(np.argmax(whole.sum(axis=1)))]
    distance = np.full(len(whole), np.inf)
    like = np.zeros(len(whole), dtype=np.int64)
    while True:
        apart = np.abs(whole - whole[chosen[-1]]).sum(axis=1)
        nearer = apart < distance
        like[nearer] = len(chosen) - 1
        distance = np.minimum(distance, apart)
        farthest = int(np.argmax(distance))
        if len(chosen) == count or distance[farthest] <= 0:
            break
        chosen.append(farthest)
    order = np.argsort(chosen)
    rank = np.argsort(order)
    return np.array(chosen, dtype=np.int64)[order], rank[like]
