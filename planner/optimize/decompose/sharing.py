"""The shared rows dealt out: services take their whole replicas block by block, and prices follow what is left.

Alone at the relaxation's prices, services round as suits them, and together take more of what is scarce than there is.
So a part of them keeps what it took, the linear relaxation of the others is solved again in what is left, and they
choose anew at its prices: half of the services first, then half of the rest, the largest last, since a replica more or
less matters least to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.parts import rows_of
from planner.optimize.decompose.relaxation import Relaxation, relax
from planner.optimize.decompose.state import State, option_scores, state_of
from planner.optimize.decompose.workers import solve_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.optimize.decompose.neighbours import Neighbourhood
    from planner.optimize.decompose.parts import Cut
    from planner.optimize.milp import FloatArray


ROUNDS = 4
"""Of pricing per block."""


def share_out(near: Neighbourhood, wanted: Sequence[FloatArray | None], *, gap: float) -> State | None:
    """Return a state that keeps all limits, or None if the services' choices do not fit together.

    Parameters
    ----------
    wanted : what each service takes at the relaxation's prices, if that is known.
    """
    cut = near.cut
    size = [float(near.prices.bucket_price[part.buckets].sum()) for part in cut.parts]
    waiting = sorted(range(len(size)), key=lambda index: (size[index], index))
    placed = np.zeros(len(cut.fleet.options))
    choices: dict[int, FloatArray] = {index: item for index, item in enumerate(wanted) if item is not None}
    while waiting:
        block = [index for index in waiting[: (len(waiting) + 1) // 2] if index in choices]
        taken = _place(cut, placed, block, choices)
        if block and not taken:
            return None
        waiting = [index for index in waiting if index not in taken]
        if waiting:
            choices = _choices(near, placed, waiting, gap=gap)
            if not choices or near.budget.stopped_by is not None:
                return None
    return state_of(cut, placed)


def _place(cut: Cut, placed: FloatArray, block: Sequence[int], choices: dict[int, FloatArray]) -> set[int]:
    """Add to `placed` what fits of the choices of `block`, and return whose."""
    taken: set[int] = set()
    for index in block:
        options = cut.parts[index].options
        placed[options] = choices[index]
        if state_of(cut, placed).is_feasible:
            taken.add(index)
        else:
            placed[options] = 0.0
    return taken


def _choices(near: Neighbourhood, placed: FloatArray, waiting: Sequence[int], *, gap: float) -> dict[int, FloatArray]:
    """Return what the next half of the waiting services takes at the prices of what is left."""
    left = _without(near.cut, placed, waiting)
    prices = relax(left, near.budget, live=near.prices.live, rounds=ROUNDS)
    if not isinstance(prices, Relaxation):
        return {}
    block = list(waiting[: (len(waiting) + 1) // 2])
    scores = tuple(
        option_scores(part, prices) if index in set(block) else np.zeros(len(part.options))
        for index, part in enumerate(near.cut.parts)
    )
    there = replace(near, prices=prices, scores=scores)
    state = state_of(near.cut, placed)
    is_last = len(waiting) == 1

    def work(index: int) -> FloatArray | None:
        replicas = there.solve(state, [index], gap=gap, tolls=None if is_last else -prices.shared_duals)
        return None if replicas is None else replicas[near.cut.parts[index].options]

    answers = solve_all(work, block, near.budget)
    return {index: answer for index, answer in zip(block, answers, strict=True) if answer is not None}


def _without(cut: Cut, placed: FloatArray, waiting: Sequence[int]) -> Cut:
    """Return the model of the waiting services: what is placed moves to the sides of the shared rows."""
    milp = cut.milp
    used = cut.shared.activity(placed, np.zeros(len(cut.instance_cost)))
    row_lower, row_upper, col_upper = milp.row_lower.copy(), milp.row_upper.copy(), milp.col_upper.copy()
    shared = np.concatenate([rows_of(milp, "packing"), rows_of(milp, "limit")])
    row_upper[shared] -= used
    coverage = rows_of(milp, "coverage")
    for index in set(range(len(cut.parts))) - set(waiting):
        part = cut.parts[index]
        row_lower[coverage[part.buckets]] = row_upper[coverage[part.buckets]] = 0.0
        col_upper[cut.merged.n[part.options]] = 0.0
    return replace(
        cut,
        milp=replace(milp, row_lower=row_lower, row_upper=row_upper, col_upper=col_upper),
        shared=replace(cut.shared, upper=cut.shared.upper - used),
    )
