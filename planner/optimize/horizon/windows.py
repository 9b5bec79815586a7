"""A few periods solved anew with everything else held still: whole replicas and instances, demand as cuts.

What the state breaks inside the window is mended there. A solution that misses a cut that was not active, or not known
yet, is looked at again with that cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.decompose.budget import Budget
    from planner.optimize.horizon.cuts import Cuts
    from planner.optimize.horizon.master import Master
    from planner.optimize.horizon.state import State
    from planner.optimize.milp import FloatArray, IntArray, Milp

PADDING = 5e-6
"""Relative: demand counts this much more after the first try, as solvers overfill replicas by 1e-6."""
MOST_PADDING = 5e-3
"""Relative: what a try misses of a service's demand, mostly less than this, counts on top in the tries after it."""
OVERFULL = 1e-9
"""Replicas loaded above 1 by more than this do not serve the demand."""
TRIES = 6
"""Of one window, each with the cuts that the one before missed."""
NODE_LIMIT = 20
WINDOW_TIME_S = 30.0
"""Of one try, so that none holds up the rest. They take 0.1 to 2 s, without presolve half of what they do with it."""
PER_PERIOD = 4
"""Cuts of a service that come into a period when a solution misses them."""
NEAR = 0.03
"""Options whose replicas cost this much of their price more than they are worth are left out of windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What came of a window."""

    periods: IntArray
    after: IntArray
    """Periods in which there may have to be more instances."""
    values: FloatArray
    """Of the master's columns; starts are for the caller to follow up."""
    cuts: Sequence[Cuts]
    """With those that were found on the way."""
    known: tuple[int, ...]
    """How many cuts of each service there were before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """The entries of a programme by column, so that a window need not look at all of them."""

    row: IntArray
    """Row of every entry, in the programme's order."""
    order: IntArray
    """Entries by column."""
    starts: IntArray
    """Where each column's begin in `order`, shape (columns + 1,)."""

    @classmethod
    def of(cls, milp: Milp) -> Entries:
        """Return the entries of `milp`."""
        counts = np.bincount(milp.columns, minlength=milp.n_columns)
        return cls(
            row=milp.row_of_entry,
            order=np.argsort(milp.columns, kind="stable"),
            starts=np.concatenate([[0], np.cumsum(counts)]),
        )

    def of_columns(self, columns: IntArray) -> IntArray:
        """Return the entries of `columns`."""
        return np.asarray(self.order[_ranges(self.starts[columns], self.starts[columns + 1])], dtype=np.int64)


def _ranges(low: IntArray, high: IntArray) -> IntArray:
    """Return low[0], ..., high[0] - 1, low[1], ..., high[1] - 1, and so on."""
    counts = high - low
    before = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) + np.repeat(low - before, counts), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """What all windows need."""

    master: Master
    entries: Entries
    """Of the master's programme."""
    cuts: Sequence[Cuts]
    usable: np.ndarray
    """Which of the master's columns may be more than the state has, shape (columns,)."""
    budget: Budget
    gap: float

    def solve(self, state: State, periods: IntArray, *, margin: int, tries: int | None) -> Solved | None:
        """Return new values for the columns of `periods`, the others as they are; None if nothing came of it.

        Works on cuts of its own, so that windows that are solved at once do not depend on who is first.

        margin : periods after the window in which what is started in it may have to be kept.
        tries : after so many the values are returned although they miss some demand; None: they never are.
        """
        mine = self.apart()
        values = mine.values_of(state, periods, margin, tries)
        if values is None:
            return None
        after = _after(periods, margin, len(self.master.periods))
        return Solved(periods=periods, after=after, values=values, cuts=mine.cuts, known=self.n_cuts)

    @property
    def n_cuts(self) -> tuple[int, ...]:
        """How many cuts of each service are known."""
        return tuple(len(each.prices) for each in self.cuts)

    def apart(self) -> Neighbourhood:
        """Return the same with cuts of its own."""
        return replace(self, cuts=[each.copy() for each in self.cuts])

    def take_over(self, cuts: Sequence[Cuts], *, known: tuple[int, ...], periods: IntArray) -> None:
        """Take in what a copy has found since it had `known` cuts, and what it has activated in `periods`."""
        for mine, theirs, size in zip(self.cuts, cuts, known, strict=True):
            mine.take_over(theirs, known=size, periods=periods)

    def values_of(self, state: State, periods: IntArray, margin: int, tries: int | None) -> FloatArray | None:
        """Return new values of the window's columns, the cuts that were missed on the way being active then."""
        free = self._free_columns(state, periods, margin)
        values = None
        padding = np.zeros(len(self.cuts))
        for _ in range(TRIES if tries is None else tries):
            milp, columns = self._programme(state, free, periods, margin, padding)
            raw = self._run(milp)
            if raw is None:
                break
            values = state.values.copy()
            values[columns] = raw
            missed = self._missed(values, periods)
            if not np.any(missed):
                return values
            padding = np.maximum(padding, np.minimum(missed + PADDING, MOST_PADDING))
        return None if tries is None else values

    def _run(self, milp: Milp) -> FloatArray | None:
        settings = self.budget.at_most(WINDOW_TIME_S).settings()
        limited = replace(settings, relative_gap=self.gap, node_limit=NODE_LIMIT, presolve=False)
        raw = self.budget.heard(solve_milp(milp, limited))
        return None if raw.values is None else np.where(milp.is_integer, np.round(raw.values), raw.values)

    def _free_columns(self, state: State, periods: IntArray, margin: int) -> IntArray:
        """Return the window's columns, with instances of the periods after it, and the starts that follow."""
        master, n_periods = self.master, len(self.master.periods)
        own = np.concatenate([each[periods].ravel() for each in (master.n, master.m, master.up)])
        own = own[own >= 0]
        own = own[self.usable[own] | (state.values[own] > 0)]
        more = master.m[_after(periods, margin, n_periods)].ravel()
        later = master.up[_after(periods, margin + 1, n_periods)].ravel()
        found = np.unique(np.concatenate([own, more, later[later >= 0]]))
        kept: IntArray = found[master.column_period[found] >= 0]
        return kept

    def _programme(
        self, state: State, free: IntArray, periods: IntArray, margin: int, padding: FloatArray
    ) -> tuple[Milp, IntArray]:
        """Return the rows that touch free columns, everything else moved to their sides, and the periods' cuts.

        padding : by what part more each service's demand counts, shape (services,).
        """
        whole, period = self.master.milp, self.master.column_period
        position = np.full(whole.n_columns, -1, dtype=np.int64)
        position[free] = np.arange(len(free))
        rows = np.unique(self.entries.row[self.entries.of_columns(free)])
        entries = _ranges(whole.row_starts[rows], whole.row_starts[rows + 1])
        row = np.searchsorted(rows, self.entries.row[entries])
        columns, values = whole.columns[entries], whole.values[entries]
        is_free = position[columns] >= 0
        held = np.bincount(
            row[~is_free], weights=values[~is_free] * state.values[columns[~is_free]], minlength=len(rows)
        )
        # What is broken inside the window is to be mended there; what is broken with periods outside cannot be.
        is_outside = (period[columns] >= 0) & ~np.isin(period[columns], periods)
        beyond = np.zeros(len(rows))
        beyond[row[is_outside]] = state.excess[rows[row[is_outside]]]
        # Instances after the window may be more, where a lease that begins in it goes on; whole if they are already.
        lower, is_integer = whole.col_lower[free], whole.is_integer[free]
        after = position[self.master.m[_after(periods, margin, len(self.master.periods))].ravel()]
        after = after[after >= 0]
        lower[after] = state.values[free[after]]
        is_integer[after] &= lower[after] % 1 == 0
        builder = MilpBuilder()
        builder.add_columns(
            "free", len(free), lower=lower, upper=np.maximum(whole.col_upper[free], lower), cost=whole.cost[free]
        )
        builder.add_rows(
            "held",
            rows=row[is_free],
            columns=position[columns[is_free]],
            values=values[is_free],
            lower=whole.row_lower[rows] - held - beyond,
            upper=whole.row_upper[rows] - held + beyond,
        )
        for each, more in zip(self.cuts, padding.tolist(), strict=True):
            self._add_cuts(builder, each, position, periods, more)
        return replace(builder.freeze(), is_integer=is_integer, start=state.values[free]), free

    def _add_cuts(
        self, builder: MilpBuilder, each: Cuts, position: IntArray, periods: IntArray, padding: float
    ) -> None:
        cut, at = np.nonzero(each.active[:, periods])
        columns = position[self.master.n[periods[at]][:, each.need.options]]
        known = columns >= 0
        builder.add_rows(
            "cut",
            rows=np.broadcast_to(np.arange(len(cut))[:, None], columns.shape)[known],
            columns=columns[known],
            values=each.prices[cut][known],
            lower=each.need.scale[periods[at]] * each.required[cut] * (1 + padding),
        )

    def _missed(self, values: FloatArray, periods: IntArray) -> FloatArray:
        """Return what part of each service's demand the replicas miss at most in a period; cuts that say so are active.

        Shape (services,).
        """
        found = np.zeros(len(self.cuts))
        for service, each in enumerate(self.cuts):
            replicas = values[self.master.n[periods]][:, each.need.options]
            if each.activate(replicas, periods, most=PER_PERIOD):
                found[service] = -each.room(replicas, periods).min()
                continue
            for at in np.flatnonzero(each.need.scale[periods] > 0).tolist():
                loaded = each.need.most_loaded(replicas[at] / each.need.scale[periods[at]])
                if loaded.load > 1 + OVERFULL:
                    each.add(loaded.prices)
                    each.active[-1, periods[at]] = True
                    found[service] = max(found[service], loaded.load - 1)
        return found


def _after(periods: IntArray, margin: int, n_periods: int) -> IntArray:
    """Return the `margin` periods after a window, as far as they are not in it."""
    found = (periods[-1] + 1 + np.arange(margin)) % n_periods
    return np.setdiff1d(found, periods)


def usable_columns(master: Master, reduced: FloatArray, price: FloatArray) -> np.ndarray:
    """Return which columns windows may use: all but replicas that the relaxation's prices speak against.

    reduced : the relaxation's reduced costs, of the master's columns.
    price : of a replica of every option of a period, per period.
    """
    usable = np.ones(master.milp.n_columns, dtype=np.bool_)
    usable[master.n] = reduced[master.n] <= NEAR * price
    return usable


def split(n_periods: int, length: int, shift: int) -> list[IntArray]:
    """Return the periods in windows of about `length`, the first of which begins at `shift`.

    Examples
    --------
    >>> [window.tolist() for window in split(6, 2, 1)]
    [[1, 2], [3, 4], [5, 0]]
    """
    count = max(1, round(n_periods / length))
    edges = np.linspace(0, n_periods, count + 1).round().astype(np.int64)
    return [(np.arange(low, high) + shift) % n_periods for low, high in pairwise(edges)]
