"""A first plan at once: the relaxation rounded up, with scarce options held to whole numbers before.

Rounding everything up takes more of what is scarce than there is. Options in limits that this exceeds are held to at
most their rounded-down replicas, the relaxation is solved again, and what it then uses is rounded up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.decompose.neighbours import option_use
from planner.optimize.decompose.relaxation import Relaxation, relax
from planner.optimize.decompose.state import state_of

if TYPE_CHECKING:
    from planner.optimize.decompose.budget import Budget
    from planner.optimize.decompose.parts import Cut
    from planner.optimize.decompose.state import State

TRIES = 3
ROUNDS = 2
_WHOLE = 1e-7
"""A replica count this close to a whole number is one."""


def from_today(cut: Cut, prices: Relaxation, budget: Budget) -> State | None:
    """Return the fleet that runs today, with what it lacks beside it; None if there is none or the limits forbid it."""
    today = cut.fleet.today
    if not today.any():
        return None
    lower = cut.milp.col_lower.copy()
    lower[cut.merged.n] = np.minimum(today, cut.milp.col_upper[cut.merged.n])
    held = replace(cut, milp=replace(cut.milp, col_lower=lower))
    classes = cut.merged.classes
    runs = np.bincount(cut.merged.option_class, weights=today, minlength=len(classes.options)) > 0
    found = relax(held, budget, live=prices.live | runs[classes.pair_option], rounds=ROUNDS)
    if not isinstance(found, Relaxation) or found.short:
        return None
    return state_of(cut, np.ceil(found.replicas - _WHOLE))


def rounded(cut: Cut, prices: Relaxation, budget: Budget) -> State | None:
    """Return a plan that keeps all limits, or None if rounding finds none."""
    use = option_use(cut)
    upper = cut.milp.col_upper.copy()
    held = np.zeros(len(cut.fleet.options), dtype=np.bool_)
    found = prices
    for _ in range(TRIES):
        state = state_of(cut, np.ceil(found.replicas - _WHOLE))
        if state.is_feasible:
            return state
        scarce = np.zeros_like(held)
        scarce[use.option[state.excess[use.row] > 0]] = True
        held |= scarce
        upper[cut.merged.n[held]] = np.floor(found.replicas[held] + _WHOLE)
        again = relax(replace(cut, milp=replace(cut.milp, col_upper=upper)), budget, live=found.live, rounds=ROUNDS)
        if not isinstance(again, Relaxation) or again.short:
            return None
        found = again
    return None
