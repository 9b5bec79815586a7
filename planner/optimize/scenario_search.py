"""Many scenarios at once: only those that the fleet of the round before does not survive get rows.

    round 0: no scenario;   round k: the fleet for the scenarios so far;   those that it misses join them

Every round's programme is a relaxation of the whole one, so its bound holds, and the first fleet that misses nothing is
as good as the whole programme's (column-and-constraint generation over a finite set of scenarios; Zeng and Zhao,
Operations Research Letters 41, 2013). Of twenty GPU types that may each be slow a fleet has two or three.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.rows.scenarios import define_scenarios
from planner.optimize.settings import Clock, SolverSettings
from planner.optimize.termination import Termination

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.optimize.arrays import FleetArrays, ScenarioArrays
    from planner.optimize.milp import IntArray
    from planner.optimize.search import SearchResult

    Search = Callable[[FleetArrays, SolverSettings], SearchResult]

ROUNDS_FROM_PAIRS = 2_000
"""Eligible pairs of all scenarios together from which rounds pay; below, the whole programme is solved at once."""
SHARE_OF_TIME = 0.8
"""Of the time limit, for the rounds; what is left is for all scenarios at once, should the rounds not end."""
ROUGH_GAP = 0.01
"""Until the scenarios that matter are known, nearly the cheapest fleet tells them as well as the cheapest one."""
NOTHING_MISSED = 1e-6
"""Part of a bucket: what solvers accept."""


def is_large(fleet: FleetArrays) -> bool:
    """Return whether the scenarios of `fleet` are so many that rounds pay."""
    n_pairs = sum(len(scenario.pair_load) for scenario in fleet.scenarios)
    return len(fleet.scenarios) > 1 and n_pairs >= ROUNDS_FROM_PAIRS


def search_in_rounds(fleet: FleetArrays, settings: SolverSettings, search: Search) -> SearchResult:
    """Return what `search` finds for all scenarios of `fleet`, which it is given a few at a time.

    Where a limit stops the rounds, all scenarios at once are searched in the time that is left, over the options that
    the rounds' fleets have, and over all options if these are not enough; the bound is the rounds'.
    """
    clock = Clock(settings)
    rounds = Clock(replace(settings, time_limit_s=SHARE_OF_TIME * settings.time_limit_s))
    active: tuple[ScenarioArrays, ...] = ()
    used = np.zeros(len(fleet.options), dtype=np.bool_)
    gap = max(settings.relative_gap, ROUGH_GAP)
    seconds, bound = 0.0, None
    while True:
        found = search(replace(fleet, scenarios=active), replace(rounds.settings(), relative_gap=gap))
        seconds, bound = seconds + found.seconds, _highest(bound, found.bound_usd_per_hour)
        if found.fleet is None:
            if not found.termination.is_limit:
                return replace(found, seconds=seconds)  # no fleet for a few of them: none for all
            break
        missed = [each for each in fleet.scenarios if is_missed(fleet, each, found.fleet.replicas)]
        is_last = found.termination.is_limit or rounds.is_over or gap <= settings.relative_gap
        if not missed and is_last:
            return replace(found, bound_usd_per_hour=bound, seconds=seconds)
        used |= found.fleet.replicas > 0
        if found.termination.is_limit or rounds.is_over:
            break
        if missed and all(each in active for each in missed):
            used[:] = False
            break  # the search calls survived what this check does not: another round would be the same one
        gap = gap if missed else settings.relative_gap
        active = tuple(each for each in fleet.scenarios if each in active or each in missed)
    if used.any():
        few = replace(fleet, replicas_upper=np.where(used, fleet.replicas_upper, 0.0))
        found = search(few, clock.settings())
        seconds += found.seconds
        if found.fleet is not None:
            return replace(found, bound_usd_per_hour=bound, seconds=seconds, termination=Termination.TIME_LIMIT)
    whole = search(fleet, clock.settings())
    bound = _highest(bound, whole.bound_usd_per_hour)
    return replace(whole, bound_usd_per_hour=bound, seconds=seconds + whole.seconds)


def _highest(*bounds: float | None) -> float | None:
    return max((each for each in bounds if each is not None), default=None)


def is_missed(fleet: FleetArrays, scenario: ScenarioArrays, replicas: IntArray) -> bool:
    """Return whether these replicas cannot serve what `scenario` asks for: the least miss e of its rows is not zero."""
    builder = MilpBuilder()
    n = builder.add_columns("n", len(replicas), lower=replicas, upper=replicas)
    miss = builder.add_columns("missed", 1, cost=1.0)
    slack = {scenario.position: int(miss[0])}
    define_scenarios(builder, replace(fleet, scenarios=(scenario,)), n, slack=slack)
    raw = solve_milp(builder.freeze(), SolverSettings())
    return raw.values is None or float(np.max(raw.values[miss])) > NOTHING_MISSED
