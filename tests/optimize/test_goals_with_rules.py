"""Objectives and shedding together with limits on variety, minima and caps on shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.domain.energy import Energy, Site
from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    ChangeCost,
    Facet,
    Goal,
    Horizon,
    Measure,
    Minimum,
    Resource,
    Running,
    Scope,
    ShareCap,
    Shedding,
    VarietyLimit,
)
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.pareto import pareto_front

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
        for settings in (SCIP, CBC):
            other = solve(problem, settings=settings, assignment=FREE)
            assert plan.status is other.status
            left, left_other = (sum(item.rate_rps for item in each.unserved) for each in (plan, other))
            assert left == pytest.approx(left_other, abs=1e-4)
            assert plan.cost_usd_per_hour == pytest.approx(other.cost_usd_per_hour, abs=1e-6)
        n_shed += bool(plan.unserved)
    assert n_shed >= 3


def two_cards(make, **given):
    """20 req/s, then as many or more: fast and hungry, or slow and frugal, for 1 USD/h each."""
    hungry = make.option(make.offer("hungry", 1.0), [10.0], power_w=1000.0)
    frugal = make.option(make.offer("frugal", 1.0), [5.0], power_w=100.0)
    return make.problem(make.demand([20.0]), [hungry, frugal], **given)


def used(plan):
    return {row.gpu: row.replicas for row in plan.allocation}


def test_the_cost_that_is_minimised_with_others_has_the_changes_in_it(make):
    """Two hungry replicas run; to replace one by two frugal ones saves 0.8 kW and costs 1 USD/h and the change."""
    now = Running(service="default", offer="hungry", option="hungry", gpus_per_replica=1, replicas=2)
    for start_usd, expected in ((0.1, {"frugal": 4}), (1.0, {"hungry": 2})):
        change = ChangeCost(running=(now,), instances={"hungry": 2}, start_usd=start_usd, horizon_hours=1.0)
        goal = Goal(stages=({Measure.COST: 1.0, Measure.POWER: 2.0},))
        problem = two_cards(make, goal=goal, change=change)
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        assert used(plan) == expected
        total = plan.cost_usd_per_hour + plan.change_usd_per_hour
        assert plan.objectives[0].value == pytest.approx(total + 2 * plan.power_w / 1000)
        wrong = replace(plan.objectives[0], value=plan.objectives[0].value - plan.change_usd_per_hour - 0.01)
        with pytest.raises(SolverLiedError, match="it comes to"):
            verify_plan(problem, replace(plan, objectives=(wrong, *plan.objectives[1:])))


def test_objectives_over_periods_are_means(make):
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 0.5)}, start_up_s=1800.0)
    power = two_cards(make, goal=Goal(stages=({Measure.POWER: 1.0},)), horizon=horizon)
    plan = solve(power, settings=EXACT, assignment=FREE)
    verify_plan(power, plan)
    assert [item.value for item in plan.objectives] == pytest.approx([(0.4 + 0.2) / 2, (4 + 2 + 0.5 * 2) / 2])
    few = replace(power, goal=Goal(stages=({Measure.GPUS: 1.0}, {Measure.POWER: 1.0})))
    plan = solve(few, settings=EXACT, assignment=FREE)
    verify_plan(few, plan)
    assert [item.value for item in plan.objectives] == pytest.approx(
        [(2 + 1 + 0.5) / 2, (2 + 1) / 2, (2 + 1 + 0.5) / 2]
    )
    with pytest.raises(SolverLiedError, match="it comes to"):
        verify_plan(few, replace(plan, objectives=(replace(plan.objectives[0], value=1.5), *plan.objectives[1:])))


def test_a_front_is_of_steady_states(make):
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 0.5)})
    with pytest.raises(InputError, match="steady states"):
        pareto_front(
            two_cards(make, horizon=horizon),
            (Measure.COST, Measure.POWER),
            n_points=3,
            settings=EXACT,
            assignment=FREE,
        )


def test_what_stops_since_nobody_offers_it_is_in_the_cost_that_is_stated(make):
    gone = Running(service="default", offer="gone", option="gone", gpus_per_replica=1, replicas=2)
    change = ChangeCost(running=(gone,), instances={"gone": 2}, stop_usd=1.0, horizon_hours=1.0)
    problem = two_cards(make, goal=Goal(stages=({Measure.COST: 1.0, Measure.POWER: 1.0},)), change=change)
    plan = solve(problem, settings=EXACT, assignment=FREE)
    verify_plan(problem, plan)
    assert plan.change_usd_per_hour == 2.0
    assert plan.objectives[0].value == pytest.approx(plan.cost_usd_per_hour + 2.0 + plan.power_w / 1000)
    assert plan.objectives[0].bound == pytest.approx(plan.objectives[0].value)
