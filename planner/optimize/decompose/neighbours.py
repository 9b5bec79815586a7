"""Repair and improvement: a few services at a time solved anew in what all others leave of the shared rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.decompose.programmes import Group, grouped
from planner.optimize.decompose.state import state_of
from planner.optimize.decompose.workers import WORKERS, solve_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.decompose.budget import Budget
    from planner.optimize.decompose.parts import Cut
    from planner.optimize.decompose.relaxation import Relaxation
    from planner.optimize.decompose.state import State
    from planner.optimize.milp import FloatArray

PENALTY = 20.0
"""Times the dearest way round it: what exceeding a limit costs while it is being repaired."""
OPTIONS_KEPT = 40
"""Options per service, those that cost least extra first; those in use come on top."""
NODE_LIMIT = 60
GROUP_TIME_S = 20.0
LARGEST_REPAIR = 4
"""Services that are repaired together where single ones cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """What all small searches need."""

    cut: Cut
    prices: Relaxation
    scores: tuple[FloatArray, ...]
    """`option_scores` of every service."""
    budget: Budget

    def solve(
        self,
        state: State,
        members: Sequence[int],
        *,
        gap: float,
        repair_fraction: FloatArray | None = None,
        tolls: FloatArray | None = None,
    ) -> FloatArray | None:
        """Return the whole fleet's replicas with the services `members` solved anew, or None.

        Parameters
        ----------
        repair_fraction : which part of each exceeded row these services are to give back; None: the rows as they are.
        tolls : prices of the shared rows' units, >= 0, on top of what instances cost; None: real prices alone.
        """
        shared = self.cut.shared
        size = len(shared.upper)
        upper, slack = shared.upper.copy(), np.zeros(size)
        if repair_fraction is not None:
            over = state.excess > 0
            slack[over] = (state.excess * repair_fraction)[over]
            upper[over] = (shared.upper + state.excess * (1 - repair_fraction))[over]
            tolls = -self.prices.shared_duals
        group = Group(
            parts=[self.cut.parts[index] for index in members],
            is_free=self._free(state, members),
            upper=upper,
            slack_upper=slack,
            slack_cost=self._penalties() if repair_fraction is not None else np.zeros(size),
            tolls=np.zeros(size) if tolls is None else tolls,
        )
        programme = grouped(self.cut, self.prices, group, state.replicas, state.instances)
        settings = replace(
            self.budget.settings(),
            relative_gap=gap,
            node_limit=NODE_LIMIT,
            time_limit_s=min(self.budget.left_s, GROUP_TIME_S),
        )
        raw = self.budget.heard(solve_milp(programme.milp, settings))
        if raw.values is None or raw.termination.is_failure:
            return None
        replicas = state.replicas.copy()
        for index in members:
            replicas[self.cut.parts[index].options] = 0.0
        replicas[programme.options] = np.round(raw.values[programme.n])
        return replicas

    def _free(self, state: State, members: Sequence[int]) -> np.ndarray:
        """Return which options the members may use: the most promising and those in use."""
        free = np.zeros(len(self.cut.fleet.options), dtype=np.bool_)
        for index in members:
            part, score = self.cut.parts[index], self.scores[index]
            kept = np.argsort(score, kind="stable")[:OPTIONS_KEPT]
            free[part.options[kept]] = True
            free[part.options[state.replicas[part.options] > 0]] = True
        return free

    def _penalties(self) -> FloatArray:
        shared = self.cut.shared
        use = option_use(self.cut)
        per_unit = self.prices.replica_price[use.option] / use.amount
        penalty = np.zeros(len(shared.upper))
        np.maximum.at(penalty, use.row, per_unit)
        return np.asarray(PENALTY * penalty, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionUse:
    """How much of each limit one replica of each option uses, instances counted by the part that it fills."""

    row: np.ndarray
    option: np.ndarray
    amount: FloatArray


def option_use(cut: Cut) -> OptionUse:
    """Return the use of limits by option, entry by entry."""
    shared, fleet = cut.shared, cut.fleet
    gpus = np.array([offer.gpus_per_instance for offer in fleet.offers])[fleet.option_offer]
    part = fleet.option_gpus / gpus
    of_n = shared.is_limit[shared.n_row]
    by_pool = np.argsort(fleet.option_pool, kind="stable")
    starts = np.searchsorted(fleet.option_pool[by_pool], np.arange(len(cut.instance_cost) + 1))
    rows, options, amounts = [shared.n_row[of_n]], [shared.n_option[of_n]], [shared.n_value[of_n]]
    for entry in np.flatnonzero(shared.is_limit[shared.m_row]).tolist():
        pool = int(shared.m_pool[entry])
        members = by_pool[starts[pool] : starts[pool + 1]]
        rows.append(np.full(len(members), shared.m_row[entry]))
        options.append(members)
        amounts.append(shared.m_value[entry] * part[members])
    amount = np.concatenate(amounts)
    used = amount > 0
    return OptionUse(row=np.concatenate(rows)[used], option=np.concatenate(options)[used], amount=amount[used])


def service_use(cut: Cut, replicas: FloatArray) -> FloatArray:
    """Return each service's use of each shared row, shape (services, rows); only limits count."""
    use = option_use(cut)
    service = np.zeros(len(cut.fleet.options), dtype=np.int64)
    for index, part in enumerate(cut.parts):
        service[part.options] = index
    n_rows = len(cut.shared.upper)
    flat = np.bincount(
        service[use.option] * n_rows + use.row,
        weights=use.amount * replicas[use.option],
        minlength=len(cut.parts) * n_rows,
    )
    return np.asarray(flat.reshape(len(cut.parts), n_rows), dtype=np.float64)


def repair(near: Neighbourhood, state: State, *, gap: float) -> State:
    """Return a state that exceeds fewer limits, none if that was found in time.

    First every service in turn, the largest first since one replica matters least to them, gives back its part of
    what is exceeded; then in full; then small groups together.
    """
    size = [float(near.prices.bucket_price[part.buckets].sum()) for part in near.cut.parts]
    order = sorted(range(len(size)), key=lambda index: (-size[index], index))
    state = _give_back(near, state, order, gap=gap, in_full=False)
    state = _give_back(near, state, order, gap=gap, in_full=True)
    for start in range(0, len(order), LARGEST_REPAIR):
        if state.is_feasible or near.budget.stopped_by is not None:
            break
        use = service_use(near.cut, state.replicas)[:, state.excess > 0].sum(axis=1)
        ranked = sorted(order, key=lambda index: (-use[index], index))
        members = sorted(ranked[start : start + LARGEST_REPAIR])
        state = _less_excess(near, state, members, gap=gap, fraction=np.ones(len(state.excess)))
    return state


def _give_back(near: Neighbourhood, state: State, order: Sequence[int], *, gap: float, in_full: bool) -> State:
    for position, index in enumerate(order):
        if state.is_feasible or near.budget.stopped_by is not None:
            break
        use = service_use(near.cut, state.replicas)
        if not np.any(use[index][state.excess > 0] > 0):
            continue
        left = use[list(order[position:])].sum(axis=0)
        fraction = np.divide(use[index], left, out=np.ones(len(left)), where=left > 0)
        state = _less_excess(
            near, state, [index], gap=gap, fraction=np.ones(len(left)) if in_full else np.minimum(fraction, 1.0)
        )
    return state


def _less_excess(
    near: Neighbourhood, state: State, members: Sequence[int], *, gap: float, fraction: FloatArray
) -> State:
    replicas = near.solve(state, members, gap=gap, repair_fraction=fraction)
    if replicas is None:
        return state
    scale = np.maximum(np.abs(near.cut.shared.upper), 1.0)
    changed = state_of(near.cut, replicas)
    return changed if (changed.excess / scale).sum() < (state.excess / scale).sum() else state


def improve(near: Neighbourhood, state: State, groups: Sequence[Sequence[int]], *, gap: float, enough: float) -> State:
    """Return a cheaper state that keeps all limits: each group solved anew in turn, until the cost is `enough`.

    Groups are solved two at a time from the same state; the second one's answer counts if it still fits.
    """
    for start in range(0, len(groups), WORKERS):
        if near.budget.stopped_by is not None or state.cost <= enough:
            break
        batch = groups[start : start + WORKERS]
        answers = solve_all(partial(near.solve, state, gap=gap), batch, near.budget)
        for members, answer in zip(batch, answers, strict=True):
            if answer is None:
                continue
            replicas = state.replicas.copy()
            for index in members:
                options = near.cut.parts[index].options
                replicas[options] = answer[options]
            changed = state_of(near.cut, replicas)
            if changed.is_feasible and changed.cost < state.cost:
                state = changed
    return state
