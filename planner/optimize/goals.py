"""Objectives other than the cost: least power, GPUs, energy or carbon, weighted sums of them, and one after the other.

    for k = 1, 2, ...:   V[k] = min  sum_m w[k, m] (measure m)    with  (objective i) <= (1 + within) V[i],  i < k

The cost comes last where the request does not place it, so that nothing is rented for nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.plan import ObjectiveValue
from planner.domain.problem import MEASURE_UNITS, Measure
from planner.errors import InputError, SolverError
from planner.optimize.energy import ENERGY_MEASURES, measure_coefficients, price_coefficients
from planner.optimize.model import Objective, build_model, pool_prices
from planner.optimize.problem_check import offer_gpus
from planner.optimize.rollout import unavoidable_change
from planner.optimize.rows.changes import change_rates
from planner.optimize.rows.goals import define_kept_goals
from planner.optimize.search import STRICT_MARGIN, SearchResult, run, settle
from planner.optimize.termination import Termination
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from planner.domain.problem import FleetProblem, Goal
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.backends import RawSolution
    from planner.optimize.milp import FloatArray, IntArray
    from planner.optimize.model import FleetModel
    from planner.optimize.partial import Partial
    from planner.optimize.search import Fleet
    from planner.optimize.settings import SolverSettings

MARGINS = (0.0, STRICT_MARGIN, 10 * STRICT_MARGIN)
"""As in `planner.optimize.search`: how much larger loads are planned where a solver's tolerance overfills replicas."""
SAME_VALUE = 1e-9
"""Relative: objectives this close are equal."""
SAME_SHARES = 1e-6
"""Relative: the same of objectives that depend on shares, which solvers have only so exactly."""
WATTS_PER_KW = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalResult:
    """How a search for several objectives ended."""

    result: SearchResult
    """Its bound is that of no price: another fleet may cost less and reach less of the objectives."""
    reached: tuple[ObjectiveValue, ...]
    kept: tuple[tuple[Objective, float], ...]
    """Every objective with the most that it may be in fleets that are as good."""
    fleet: FleetArrays
    """What was asked, with the part of it that is served where that is not all."""


def stages_of(goal: Goal) -> tuple[Mapping[Measure, float], ...]:
    """Return the objectives one after the other, the cost last where the goal does not place it."""
    has_cost = any(stage.get(Measure.COST, 0.0) > 0 for stage in goal.stages)
    return goal.stages if has_cost else (*goal.stages, {Measure.COST: 1.0})


def stage_name(stage: Mapping[Measure, float]) -> str:
    """Return an objective in words: "power", or "1 cost + 0.05 power".

    Examples
    --------
    >>> stage_name({Measure.POWER: 1.0}), stage_name({Measure.COST: 1.0, Measure.GPUS: 0.5})
    ('power', '1 cost + 0.5 gpus')
    """
    if len(stage) == 1:
        return str(next(iter(stage)))
    return " + ".join(f"{weight:g} {measure}" for measure, weight in stage.items())


def stage_unit(stage: Mapping[Measure, float]) -> str:
    """Return the unit of an objective; a weighted sum has none."""
    return MEASURE_UNITS[next(iter(stage))] if len(stage) == 1 else ""


def check_goal(problem: FleetProblem) -> None:
    """Return if the goal can be counted.

    Raises
    ------
    InputError: if a weight is no weight, or if a number is missing that a measure counts.
    """
    goal = problem.goal
    if goal is None:
        return
    if not goal.stages or not all(stage and all(weight > 0 for weight in stage.values()) for stage in goal.stages):
        raise InputError("An objective has no measure, or a weight that is not above zero.")
    if any(Measure.POWER in stage for stage in goal.stages):
        for option in problem.options:
            if option.power_w is None:
                raise InputError(
                    f"The objective counts power, and that of {option.service} on {option.offer.name} is not known.",
                    hint="Give power_w, or leave this GPU out.",
                )


def stage_objective(stage: Mapping[Measure, float], fleet: FleetArrays) -> Objective:
    """Return the coefficients of an objective; over a horizon each measure is the mean over the periods."""
    per_replica, per_instance = np.zeros(len(fleet.options)), np.zeros(len(fleet.pool_offer))
    per_pair = np.zeros(len(fleet.pair_bucket))
    for measure, weight in stage.items():
        each_period = weight / fleet.n_periods
        if measure is Measure.COST:
            per_instance = per_instance + each_period * pool_prices(fleet)
            price = price_coefficients(fleet)
            if price is not None:
                per_replica, per_pair = per_replica + weight * price[0], per_pair + weight * price[1]
        elif measure in ENERGY_MEASURES:
            each = measure_coefficients(measure, fleet)
            per_replica, per_pair = per_replica + weight * each[0], per_pair + weight * each[1]
        elif measure is Measure.GPUS:
            per_instance = per_instance + each_period * np.array(
                [offer_gpus(fleet.offers[offer]) for offer in fleet.pool_offer.tolist()], dtype=np.float64
            )
        else:
            watts = np.array([float(option.power_w or 0.0) for option in fleet.options])
            per_replica = per_replica + each_period * watts / WATTS_PER_KW
    return Objective(
        per_replica=per_replica,
        per_instance=per_instance,
        per_pair=per_pair if np.any(per_pair) else None,
        per_change=stage.get(Measure.COST, 0.0),
    )


def objective_value(objective: Objective, fleet: FleetArrays, found: Fleet) -> float:
    """Return what a fleet comes to."""
    value = objective.without_shares(fleet, found.replicas, found.instances)
    return value if objective.per_pair is None else value + float(objective.per_pair @ found.shares)


def search_goal(
    fleet: FleetArrays, goal: Goal, settings: SolverSettings, *, partial: Partial | None = None
) -> GoalResult:
    """Return the fleet that is best in one objective after the other, verified, with the bound of each.

    Parameters
    ----------
    partial : what may stay unserved; None = nothing.

    Raises
    ------
    SolverError: if the solver fails or its answer does not satisfy the model.
    """
    deadline = time.monotonic() + settings.time_limit_s
    for margin in MARGINS:
        left = replace(settings, time_limit_s=max(deadline - time.monotonic(), 0.0))
        found = _stages(fleet, goal, left, margin, partial)
        if found is not None:
            return found
    raise SolverError(
        "The solver's fleets do not hold the demand, even with its tolerance allowed for.",
        hint="Try another solver with --solver.",
    )


def _stages(
    fleet: FleetArrays, goal: Goal, settings: SolverSettings, margin: float, partial: Partial | None
) -> GoalResult | None:
    """Return the result of all programmes; None if a fleet does not hold the demand exactly."""
    deadline = time.monotonic() + settings.time_limit_s
    padded = fleet.with_margin(margin)
    stages = stages_of(goal)
    objectives = [stage_objective(stage, fleet) for stage in stages]
    kept: list[tuple[Objective, float]] = []
    reached: list[ObjectiveValue] = []
    best: Fleet | None = None
    ended, seconds, part = Termination.OPTIMAL, 0.0, fleet
    raw: RawSolution | None = None
    for stage, objective in zip(stages, objectives, strict=True):
        left = replace(settings, time_limit_s=max(deadline - time.monotonic(), 0.0))
        raw, found, asked = _one(padded, fleet, objective, kept, left, partial=partial)
        seconds += raw.seconds
        ended = raw.termination if ended is Termination.OPTIMAL else ended
        if raw.values is None:
            break
        if found is None:
            return None
        best, part = found, asked
        value = objective_value(objective, fleet, best)
        kept.append((objective, _at_most(objective, value * (1 + goal.within))))
        bound = None if raw.bound is None else min(max(raw.bound, 0.0), value)
        reached.append(ObjectiveValue(minimise=stage_name(stage), value=value, bound=bound, unit=stage_unit(stage)))
    if raw is None:
        return None
    if best is not None:
        # What an earlier objective may be missed by was for the later ones to use, not for ties.
        kept = [(objective, _at_most(objective, objective_value(objective, fleet, best))) for objective, _ in kept]
        reached = values_reached(reached, kept, fleet, best)
    result = SearchResult(
        fleet=best,
        bound_usd_per_hour=None,
        termination=ended,
        seconds=seconds,
        solver=raw.solver,
        version=raw.version,
    )
    return GoalResult(result=result, reached=tuple(reached), kept=tuple(kept), fleet=part)


def _at_most(objective: Objective, value: float) -> float:
    """Return what an objective may be later: shares are exact to what solvers accept only."""
    return value + (SAME_VALUE * max(value, 1.0) if objective.per_pair is None else SAME_SHARES * value)


def values_reached(
    reached: Sequence[ObjectiveValue], kept: Sequence[tuple[Objective, float]], fleet: FleetArrays, found: Fleet
) -> list[ObjectiveValue]:
    """Return `reached` with what `found` comes to; what the noise of an earlier objective buys is under no bound."""
    values = [objective_value(objective, fleet, found) for objective, _ in kept]
    return [
        replace(item, value=value, bound=None if item.bound is None else min(item.bound, value))
        for item, value in zip(reached, values, strict=True)
    ]


def with_what_is_gone(problem: FleetProblem, reached: Sequence[ObjectiveValue]) -> tuple[ObjectiveValue, ...]:
    """Return `reached` with the price of stopping what nobody offers any more: no programme has it, every plan pays."""
    if problem.goal is None:
        return tuple(reached)
    gone = unavoidable_change(problem)
    parts = (stage.get(Measure.COST, 0.0) * gone for stage in stages_of(problem.goal))
    return tuple(
        replace(item, value=item.value + part, bound=None if item.bound is None else item.bound + part)
        for item, part in zip(reached, parts, strict=False)
    )


def _one(
    padded: FleetArrays,
    fleet: FleetArrays,
    objective: Objective,
    kept: list[tuple[Objective, float]],
    settings: SolverSettings,
    *,
    partial: Partial | None,
) -> tuple[RawSolution, Fleet | None, FleetArrays]:
    """Return a solver's answer to one programme, the fleet in it if that holds the demand exactly, and that demand."""
    scale = _scale(objective)
    aim = _scaled(objective, scale)
    model = build_model(padded, aim) if partial is None else partial.model(padded, aim)
    if kept:
        rows = [_coefficients(_scaled(item, _scale(item)), model) for item, _ in kept]
        define_kept_goals(model.builder, _counted(model), rows, [most * _scale(item) for item, most in kept])
    milp = model.freeze()
    raw = run(milp, settings)
    answer = replace(raw, bound=None if raw.bound is None else raw.bound / scale)
    if raw.values is None:
        return answer, None, fleet
    verified = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound)
    if partial is not None:
        part, served = partial.settled(model, verified, aim=objective, kept=kept)
        return answer, served, part
    found = settle(
        fleet,
        replicas=verified.values[model.n].round().astype(np.int64),
        instances=verified.values[model.m].round().astype(np.int64),
        assigned=verified.values[model.x] / fleet.units_per_bucket,
        aim=objective,
        kept=kept,
    )
    return answer, found, fleet


def _scale(objective: Objective) -> float:
    """Return a factor that brings an objective's coefficients near 1: solvers' tolerances are absolute."""
    if objective.per_pair is None:
        return 1.0
    largest = max(float(part.max(initial=0.0)) for part in (objective.per_replica, objective.per_pair))
    return 1.0 / largest if largest > 0 else 1.0


def _scaled(objective: Objective, factor: float) -> Objective:
    """Return `factor` times an objective."""
    per_pair = None if objective.per_pair is None else objective.per_pair * factor
    return replace(
        objective,
        per_replica=objective.per_replica * factor,
        per_instance=objective.per_instance * factor,
        per_pair=per_pair,
        per_change=objective.per_change * factor,
    )


def _counted(model: FleetModel) -> IntArray:
    """Return the columns that objectives count: replicas, instances, shares, changes and starts."""
    return np.concatenate([model.n, model.m, model.x, model.changes, _starts(model)])


def _starts(model: FleetModel) -> IntArray:
    return np.zeros(0, dtype=np.int64) if model.up is None else model.up[model.up >= 0]


def _coefficients(objective: Objective, model: FleetModel) -> FloatArray:
    """Return an objective's coefficients of the columns of `_counted`."""
    fleet = model.fleet
    per_pair = np.zeros(len(fleet.pair_bucket)) if objective.per_pair is None else objective.per_pair
    changes = objective.per_change * np.repeat(change_rates(fleet), len(model.changes) // 2)
    starts = np.zeros(0)
    if model.up is not None and fleet.horizon is not None:
        starts = objective.per_instance[model.up >= 0] * fleet.horizon.start_up_s / fleet.horizon.step_s
    return np.concatenate(
        [objective.per_replica, objective.per_instance, per_pair / fleet.units_per_bucket, changes, starts]
    )


def goal_gap(reached: Sequence[ObjectiveValue]) -> float | None:
    """Return the largest (value - bound) / value of the objectives; None where one has no bound."""
    gaps = []
    for item in reached:
        if item.bound is None:
            return None
        gaps.append(0.0 if item.value <= 0 else max(0.0, (item.value - item.bound) / item.value))
    return max(gaps, default=None)
