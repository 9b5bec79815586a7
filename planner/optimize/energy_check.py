"""Part of the independent check of a plan: electricity and emissions, from its replicas, routes and the problem alone.

Nothing here knows of the programme's rows or of how the plan's own figures came about: loads are added up bucket by
bucket from the routing weights, in every period.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.problem import EnergyBudget, Measure
from planner.errors import SolverLiedError
from planner.optimize.job_check import work_loads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from planner.domain.energy import Energy
    from planner.domain.plan import PeriodRoute, Plan, Route
    from planner.domain.problem import FleetProblem, ServingOption

TOLERANCE = 1e-6
"""Relative: what solvers accept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What one option's replicas draw, emit and pay for in one period; None = not known."""

    option: ServingOption
    watts: float | None
    kg_per_hour: float | None
    usd_per_hour: float


def check_energy(problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption]) -> None:
    """Return if the plan draws, emits and pays for what it says.

    Raises
    ------
    SolverLiedError: naming what does not hold.
    """
    if problem.energy is None or not plan.allocation:
        if plan.mean_power_w is not None or plan.energy_usd_per_hour is not None:
            _fail("it states a mean power, and nothing is known of its sites' electricity")
        return
    draws = _draws(problem, plan, by_key, problem.energy)
    n_periods = len(draws)
    for item in plan.allocation:
        mine = [period[item.service, item.option] for period in draws if (item.service, item.option) in period]
        _same(f"the mean power of {item.option}", _mean(mine, "watts", n_periods), item.mean_power_w)
        _same(f"what {item.option} emits", _mean(mine, "kg_per_hour", n_periods), item.carbon_kg_per_hour)
    for number, (period, drawn) in enumerate(zip(plan.schedule, draws, strict=False)):
        _same(f"the mean power of period {number}", _mean(drawn.values(), "watts", 1), period.mean_power_w)
        _same(f"what period {number} emits", _emitted(drawn.values(), 1), period.carbon_kg_per_hour)
    every = [draw for period in draws for draw in period.values()]
    unknown_w = sum(draw.watts or 0.0 for draw in every if draw.kg_per_hour is None) / n_periods
    _same("its mean power", _mean(every, "watts", n_periods), plan.mean_power_w)
    _same("what it emits", _emitted(every, n_periods), plan.carbon_kg_per_hour)
    _same("the power of which the emissions are not known", unknown_w, plan.carbon_unknown_w)
    cost = sum(draw.usd_per_hour for draw in every) / n_periods if problem.energy.is_priced else None
    _same("what its electricity and emissions cost", cost, plan.energy_usd_per_hour)
    for rule in problem.rules:
        if isinstance(rule, EnergyBudget):
            inside = [draw for draw in every if rule.scope.covers(draw.option.offer)]
            _check_budget(rule, inside, n_periods)


def _check_budget(rule: EnergyBudget, draws: Iterable[Draw], n_periods: int) -> None:
    name, unit = ("kg_per_hour", 1.0) if rule.measure is Measure.CARBON else ("watts", 1000.0)
    used = _mean(draws, name, n_periods)
    if used is None or used / unit > rule.bound * (1 + 5 * TOLERANCE):
        _fail(f"the budget {rule.name} is {rule.bound:g}, and it uses {used!r}")


def _draws(
    problem: FleetProblem, plan: Plan, by_key: Mapping[tuple[str, str], ServingOption], energy: Energy
) -> list[dict[tuple[str, str], Draw]]:
    """Return what every option draws, period by period; a steady state is one period."""
    index = {
        (demand.service, bucket.row, bucket.column): position
        for demand in problem.demands
        for position, bucket in enumerate(demand.buckets)
    }
    rows: list[tuple[Iterable[tuple[str, str, int]], Sequence[Route | PeriodRoute]]] = [
        (((item.service, item.option, item.replicas) for item in part.allocation), part.routing)
        for part in plan.schedule or (plan,)
    ]
    found = []
    work = work_loads(problem, plan, by_key)
    for period, (running, routing) in enumerate(rows):
        loads: dict[tuple[str, str], float] = defaultdict(float)
        for (at_period, *place), load in work.items():
            if at_period == period:
                loads[place[0], place[1]] += load
        for route in routing:
            at = index[route.service, route.row, route.column]
            for key, weight in route.shares.items():
                option = by_key[route.service, key]
                loads[route.service, key] += route.rate_rps * weight / float(option.throughput_rps[at])
        found.append(
            {
                (service, key): _draw(by_key[service, key], replicas, loads[service, key], energy, period)
                for service, key, replicas in running
            }
        )
    return found


def _draw(option: ServingOption, replicas: int, load: float, energy: Energy, period: int) -> Draw:
    site = energy.site(option.offer)
    if site is None or option.idle_power_w is None or option.busy_power_w is None:
        return Draw(option=option, watts=None, kg_per_hour=None, usd_per_hour=0.0)
    kw = site.pue * (option.idle_power_w * (replicas - load) + option.busy_power_w * load) / 1000
    intensity = site.carbon_in(period)
    emitted = None if intensity is None else kw * intensity / 1000
    return Draw(
        option=option,
        watts=kw * 1000,
        kg_per_hour=emitted,
        usd_per_hour=kw * site.usd_per_kwh + (emitted or 0.0) * energy.carbon_usd_per_kg,
    )


def _mean(draws: Iterable[Draw], name: str, n_periods: int) -> float | None:
    values = [getattr(draw, name) for draw in draws]
    return None if None in values else sum(values) / n_periods


def _emitted(draws: Iterable[Draw], n_periods: int) -> float | None:
    """Return the mean emissions where they are known; None if they are nowhere."""
    known = [draw for draw in draws if draw.kg_per_hour is not None]
    return _mean(known, "kg_per_hour", n_periods) if known else None


def _same(what: str, counted: float | None, stated: float | None) -> None:
    is_same = (counted is None) == (stated is None)
    if not is_same or abs((counted or 0.0) - (stated or 0.0)) > TOLERANCE * max(abs(counted or 0.0), TOLERANCE):
        _fail(f"{what} is {counted!r}, and it says {stated!r}")


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")
