"""The regret table of a plan that survives scenarios: which fleet costs and leaves unserved what, whatever comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.problem import EnergyBudget, InstanceLoss, ReplicaLoss, ShareCap, Survival
from planner.domain.robustness import (
    PLAIN,
    PLANNED,
    ROBUST,
    FleetOutcomes,
    FleetReplicas,
    Outcome,
    Robustness,
    ScenarioCase,
)
from planner.errors import SolverError
from planner.optimize.backends import solve_milp
from planner.optimize.milp import MilpBuilder
from planner.optimize.naming import option_keys
from planner.optimize.scenarios import in_scenario, scenarios_of, without_scenarios
from planner.optimize.settings import Clock, SolverSettings
from planner.optimize.solving import solve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, Scenario, ServingOption
    from planner.domain.workload import Demand
    from planner.optimize.settings import Assignment

NOTHING_RPS = 1e-6
"""Relative to the demand: less than this unserved is a solver's noise."""
LP_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What is planned, or a scenario, as a problem of its own."""

    name: str
    problem: FleetProblem
    scenario: Scenario | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A fleet that is compared."""

    name: str
    cost_usd_per_hour: float
    replicas: tuple[tuple[int, ...], ...]
    """By period, of each option of the problem; one period for a steady state."""


def robustness(
    problem: FleetProblem, plan: Plan, *, settings: SolverSettings, assignment: Assignment
) -> Robustness | None:
    """Return what `plan` pays for the scenarios of `problem`, and its regret table; None where there are none.

    The plain fleet and each scenario's own are searched for, all together within one time limit; where it comes first
    they are left out.
    """
    scenarios = scenarios_of(problem)
    if not scenarios or plan.cost_usd_per_hour is None:
        return None
    clock = Clock(settings)
    planned = _Case(name=PLANNED, problem=without_scenarios(problem))
    plain = _candidate(PLAIN, planned, clock, assignment)
    robust = _as_candidate(ROBUST, plan, problem)
    compared = [robust] if plain is None else [plain, robust]
    touched = [each for each in scenarios if _touches(each, problem, compared)]
    cases = [planned, *(_Case(name=s.name, problem=_alone(problem, s), scenario=s) for s in touched)]
    own = {case.name: _candidate(case.name, case, clock, assignment) for case in cases[1:]}
    least = {name: found.cost_usd_per_hour for name, found in {PLANNED: plain, **own}.items() if found is not None}
    known = [*compared, *(found for found in own.values() if found is not None)]
    return Robustness(
        price_usd_per_hour=None if plain is None else plan.cost_usd_per_hour - plain.cost_usd_per_hour,
        scenarios=tuple(_view(case, least.get(case.name)) for case in cases),
        fleets=tuple(_outcomes(candidate, cases, least) for candidate in known),
        unaffected=tuple(each.name for each in scenarios if each not in touched),
    )


def unsurvived(found: Robustness) -> tuple[str, ...]:
    """Return the scenarios that the plain fleet does not serve whole: those hold the plan's cost up."""
    plain = next((row for row in found.fleets if row.fleet == PLAIN), None)
    return () if plain is None else tuple(item.scenario for item in plain.outcomes if item.unserved_rps > 0)


ON_PLANNED_ROUTING = (ShareCap, Survival, InstanceLoss, ReplicaLoss, EnergyBudget)
"""Rules that hold for what is planned alone: the plan need not keep them in a scenario."""


def _alone(problem: FleetProblem, scenario: Scenario) -> FleetProblem:
    """Return what the best fleet for `scenario` alone must keep there: no more than the plan does."""
    then = in_scenario(problem, scenario)
    return replace(then, rules=tuple(rule for rule in then.rules if not isinstance(rule, ON_PLANNED_ROUTING)))


def _touches(scenario: Scenario, problem: FleetProblem, compared: Sequence[_Candidate]) -> bool:
    """Return whether a scenario changes demand, or the speed of anything that one of the fleets has."""
    if scenario.demands != problem.demands:
        return True
    used = {index for fleet in compared for now in fleet.replicas for index, count in enumerate(now) if count}
    return any(scenario.name in problem.options[index].scenario_rps for index in used)


def _candidate(name: str, case: _Case, clock: Clock, assignment: Assignment) -> _Candidate | None:
    """Return the best fleet for one case alone; None if the time is over."""
    if clock.is_over:
        return None
    plan = solve(case.problem, settings=clock.settings(), assignment=assignment)
    return None if plan.cost_usd_per_hour is None else _as_candidate(name, plan, case.problem)


def _as_candidate(name: str, plan: Plan, problem: FleetProblem) -> _Candidate:
    keys = [(o.service, key) for o, key in zip(problem.options, option_keys(problem.options), strict=True)]
    periods = [period.allocation for period in plan.schedule] if plan.schedule else [plan.allocation]
    counts = [{(item.service, item.option): item.replicas for item in allocation} for allocation in periods]
    return _Candidate(
        name=name,
        cost_usd_per_hour=plan.cost_usd_per_hour or 0.0,
        replicas=tuple(tuple(now.get(key, 0) for key in keys) for now in counts),
    )


def _view(case: _Case, least: float | None) -> ScenarioCase:
    demands = case.problem.demands if case.scenario is None else case.scenario.demands
    return ScenarioCase(
        name=case.name,
        description="" if case.scenario is None else case.scenario.description,
        rate_rps=sum(
            demand.total_rate_rps * float(np.mean(_factors(case.problem, demand.service))) for demand in demands
        ),
        least_usd_per_hour=least,
        probability=None if case.scenario is None else case.scenario.probability,
    )


def _outcomes(candidate: _Candidate, cases: Sequence[_Case], least: dict[str, float]) -> FleetOutcomes:
    keys = option_keys(cases[0].problem.options)
    options = cases[0].problem.options
    outcomes = tuple(_outcome(candidate, case, least.get(case.name)) for case in cases)
    return FleetOutcomes(
        fleet=candidate.name,
        cost_usd_per_hour=candidate.cost_usd_per_hour,
        replicas=tuple(
            FleetReplicas(
                service=option.service,
                option=key,
                replicas=count,
                period=None if cases[0].problem.horizon is None else period,
            )
            for period, now in enumerate(candidate.replicas)
            for option, key, count in zip(options, keys, now, strict=True)
            if count
        ),
        outcomes=outcomes,
        expected_unserved_rps=_expected(cases, outcomes),
    )


def _expected(cases: Sequence[_Case], outcomes: Sequence[Outcome]) -> float | None:
    """Return the unserved req/s by the scenarios' probabilities; what is left of 1 is what is planned."""
    chances = [case.scenario.probability if case.scenario else None for case in cases]
    if not any(chance is not None for chance in chances):
        return None
    stated = [chance or 0.0 for chance in chances]
    stated[0] = max(0.0, 1 - sum(stated))
    return sum(chance * item.unserved_rps for chance, item in zip(stated, outcomes, strict=True))


def _outcome(candidate: _Candidate, case: _Case, least: float | None) -> Outcome:
    demands = case.problem.demands if case.scenario is None else case.scenario.demands
    left = sum(
        unserved_rps(
            demand,
            case.problem.options,
            candidate.replicas,
            factors=_factors(case.problem, demand.service),
            utilization_cap=case.problem.utilization_cap,
        )
        for demand in demands
    )
    return Outcome(
        scenario=case.name,
        unserved_rps=left,
        regret_usd_per_hour=None if least is None else candidate.cost_usd_per_hour - least,
    )


def _factors(problem: FleetProblem, service: str) -> tuple[float, ...]:
    """Return what a service's demand is multiplied by in each period; 1 in a steady state."""
    return (1.0,) if problem.horizon is None else problem.horizon.factors[service]


def unserved_rps(
    demand: Demand,
    options: Sequence[ServingOption],
    replicas: Sequence[Sequence[int]],
    *,
    factors: Sequence[float] = (1.0,),
    utilization_cap: float = 1.0,
) -> float:
    """Return the least req/s that these replicas leave unserved, all requests alike and without headroom.

        maximise  sum_{b,j} lam[b] x[b,j]   with   sum_j x[b,j] <= 1,   sum_b lam[b] / (U X[j,b]) x[b,j] <= n[j]

    in every period; the mean over the periods.

    Parameters
    ----------
    replicas : by period, of each of `options`.
    factors : by period, what the demand is multiplied by.
    """
    n_buckets = len(demand.buckets)
    mine = [index for index, option in enumerate(options) if option.service == demand.service]
    bare = np.array([bucket.rate_rps for bucket in demand.buckets])
    rates = np.concatenate([bare * factor for factor in factors])
    speed = np.array([options[index].usable_rps for index in mine]).reshape(len(mine), n_buckets)
    counts = np.array([[float(now[index]) for index in mine] for now in replicas]).reshape(len(factors), len(mine))
    period, option, bucket = np.nonzero(
        (counts > 0)[:, :, None] & (speed > 0)[None, :, :] & (np.array(factors) > 0)[:, None, None]
    )
    if not len(period):
        return float(rates.sum()) / len(factors)
    row = period * n_buckets + bucket
    builder = MilpBuilder()
    x = builder.add_columns("x", len(row), upper=1.0, cost=-rates[row])
    builder.add_rows("whole", rows=row, columns=x, values=1.0, upper=np.ones(len(rates)))
    builder.add_rows(
        "capacity",
        rows=period * len(mine) + option,
        columns=x,
        values=rates[row] / (speed[option, bucket] * utilization_cap),
        upper=counts.ravel(),
    )
    raw = solve_milp(builder.freeze(), SolverSettings(feasibility_tolerance=LP_TOLERANCE))
    if raw.values is None:
        raise SolverError(f"What a fleet leaves unserved could not be computed: {raw.termination.value!r}.")
    left = float(rates.sum() - rates[row] @ raw.values[x])
    return 0.0 if left <= NOTHING_RPS * float(rates.sum()) else left / len(factors)
