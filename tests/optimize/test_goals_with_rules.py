"""Objectives and shedding together with limits on variety, minima and caps on shares."""

from __future__ import annotations

import numpy as np
import pytest

from planner.domain.energy import Energy, Site
from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    ChangeCost,
    Facet,
    Goal,
    Measure,
    Minimum,
    Resource,
    Scope,
    ShareCap,
    Shedding,
    VarietyLimit,
)
from planner.errors import InputError, SolverUnavailableError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)
CBC = SolverSettings(relative_gap=0.0, solver="cbc")
SCIP = SolverSettings(relative_gap=0.0, solver="scip")
FREE = Assignment.fractional()
SITES = Energy(
    sites={(f"p{index}", "r"): Site(pue=1 + index / 10, carbon_g_per_kwh=(100.0 + 300 * index,)) for index in range(3)}
)


def random_request(make, rng, **wishes):
    watts = 100.0 * rng.integers(1, 10, 4)
    options = [
        make.option(
            make.offer(
                f"O{index}", price=float(rng.integers(2, 12)) / 2, gpu=f"G{index % 2}", provider=f"p{index % 3}"
            ),
            rng.integers(1, 7, 2),
            power_w=watts[index],
            idle_power_w=watts[index] / 4,
            busy_power_w=watts[index],
        )
        for index in range(4)
    ]
    rules = []
    if rng.random() < 0.5:
        rules.append(VarietyLimit(name="gpu types", facet=Facet.GPU, bound=1))
    if rng.random() < 0.5:
        minimum = Minimum(name="minimum", resource=Resource.INSTANCES, bound=2, scope=Scope(offer="O1"))
        rules.append(minimum)
    if rng.random() < 0.5 and "shed" not in wishes:
        rules.append(ShareCap(name="share", facet=Facet.PROVIDER, bound=0.6))
    limits = (make.limit("budget", "usd_per_hour", float(rng.integers(8, 16 if "shed" in wishes else 30))),)
    return make.problem(
        make.demand(rng.integers(1, 9, 2) * (4 if "shed" in wishes else 1)),
        options,
        rules=tuple(rules),
        limits=limits,
        energy=SITES,
        **wishes,
    )


@pytest.mark.parametrize("measure", Measure)
def test_goals_keep_rules(make, measure):
    rng = np.random.default_rng(11)
    n_found = 0
    for _ in range(15):
        problem = random_request(make, rng, goal=Goal(stages=({measure: 1.0},)))
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        other = solve(problem, settings=CBC, assignment=FREE)
        assert plan.status is other.status
        if plan.status is PlanStatus.OPTIMAL:
            n_found += 1
            assert plan.objectives[0].value == pytest.approx(other.objectives[0].value, rel=1e-6)
            assert plan.cost_usd_per_hour == pytest.approx(other.cost_usd_per_hour, rel=1e-6)
    assert n_found >= 5


def test_shedding_keeps_rules(make):
    rng = np.random.default_rng(12)
    n_shed = 0
    for _ in range(20):
        problem = random_request(make, rng, shed=Shedding(priority={}))
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        other = solve(problem, settings=SCIP, assignment=FREE)
        assert plan.status is other.status
        left, left_other = (sum(item.rate_rps for item in each.unserved) for each in (plan, other))
        assert left == pytest.approx(left_other, abs=1e-4)
        n_shed += bool(plan.unserved)
        if plan.unserved:
            with pytest.raises(SolverUnavailableError, match="too few digits"):
                solve(problem, settings=CBC, assignment=FREE)
    assert n_shed >= 3


def test_what_is_not_defined_together_is_refused(make):
    problem = make.melange_example(shed=Shedding(priority={}), rules=(ShareCap(name="s", facet=Facet.GPU, bound=0.5),))
    with pytest.raises(InputError, match="caps on shares"):
        solve(problem, settings=EXACT, assignment=FREE)
    change = ChangeCost(running=(), instances={}, start_usd=1.0)
    for wish in ({"shed": Shedding(priority={})}, {"goal": Goal(stages=({Measure.GPUS: 1.0},))}):
        with pytest.raises(InputError, match=r"price of changes|Changes have a price"):
            solve(make.melange_example(change=change, **wish), settings=EXACT, assignment=FREE)
