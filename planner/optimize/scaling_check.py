"""Part of the independent check of a plan: services that its fleet does not serve, and what all of it comes to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planner.domain.problem import Resource, Scope
from planner.domain.scaling import ScalingWay
from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem
    from planner.domain.scaling import FleetWithout

TOLERANCE = 1e-6
"""Relative, for money."""


def check_given_back(problem: FleetProblem, plan: Plan) -> None:
    """Return if the plan gives back services of which `problem`, that of its fleet, has none, and for less in all.

    Raises
    ------
    SolverLiedError: naming what does not hold.
    """
    names = [choice.service for choice in plan.given_back]
    served = {demand.service for demand in problem.demands} | {item.service for item in plan.allocation}
    if len(set(names)) != len(names) or served & set(names):
        _fail(f"it gives back {names}, and its fleet serves {sorted(served)}")
    for choice in plan.given_back:
        if not choice.way.is_met or choice.way.way is ScalingWay.ALWAYS_ON:
            _fail(f"{choice.service} is given back in a way that does not hold its objectives")
        if choice.way.is_barred:
            _fail(f"{choice.service} is given back to {choice.way.offer}, which is only compared")
    if plan.cost_usd_per_hour is None or not (names or plan.fleets_without):
        return
    _check_totals(plan, tuple(sorted(names)))
    for limit in problem.limits:
        if limit.resource is Resource.USD_PER_HOUR and limit.scope == Scope():
            _check_money("what a budget leaves to the fleet", limit.beside, plan.given_back_usd_per_hour)


def _check_totals(plan: Plan, names: tuple[str, ...]) -> None:
    """The plan is one of those compared, comes to what is said there, and those that may be had came to no less."""
    rows = {row.given_back: row for row in plan.fleets_without}
    if len(rows) != len(plan.fleets_without) or () not in rows or names not in rows:
        _fail(f"what it compares is not all always on and {names}, each once")
    mine, first = rows[names], rows[()]
    fleet = (plan.cost_usd_per_hour or 0.0) + (plan.change_usd_per_hour or 0.0)
    ways = [choice.way for choice in plan.given_back]
    kept = [choice.ways[0] for choice in plan.scale_to_zero if not choice.is_applied]
    _check_money("its fleet", mine.fleet_usd_per_hour, fleet)
    _check_money("what it gives back", mine.given_back_usd_per_hour, sum(way.cost_usd_per_hour for way in ways))
    _check_money("what misses", mine.missed_usd_per_hour, sum(way.missed_usd_per_hour for way in ways))
    _check_money("what was learnt", mine.learnt_usd_per_hour, sum(way.learnt_usd_per_hour or 0.0 for way in ways))
    _check_money(
        "what misses on the fleet", mine.fleet_missed_usd_per_hour, sum(way.missed_usd_per_hour for way in kept)
    )
    is_missed = bool(first.reason)  # a fleet that misses in its replay may be left for a dearer one that holds
    if names and not is_missed and not _total(mine) < _total(first):
        _fail(f"it gives back {names}, which costs {_total(mine)!r} USD/h in all, and always on {_total(first)!r}")
    for row in rows.values():
        if not row.reason and _total(row) < _total(mine) * (1 - TOLERANCE):
            _fail(f"giving back {row.given_back} comes to {_total(row)!r} USD/h in all, without a reason against it")


def _check_money(what: str, stated: float | None, found: float) -> None:
    if stated is None or abs(stated - found) > TOLERANCE * max(found, 1.0):
        _fail(f"{what} costs {found!r} USD/h, and it says {stated!r}")


def _total(row: FleetWithout) -> float:
    return math.inf if row.total_usd_per_hour is None else row.total_usd_per_hour


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Plan again.")
