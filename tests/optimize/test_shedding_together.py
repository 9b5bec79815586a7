"""Shedding over periods and together with shares, losses, objectives and changes: known answers, checks that fire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.domain.plan import PlanStatus
from planner.domain.problem import (
    ChangeCost,
    Facet,
    Goal,
    Horizon,
    Measure,
    Minimum,
    ReplicaLoss,
    Resource,
    Running,
    ShareCap,
    Shedding,
    Survival,
)
from planner.errors import SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)
HOUR_S = 3600.0


def plan_of(problem):
    plan = solve(problem, settings=EXACT, assignment=Assignment.fractional())
    verify_plan(problem, plan)
    return plan


def two(make, *rules, rate=4.0, budget=None, **given):
    """A for 1 USD/h at provider p and B for 2 USD/h at q, 1 req/s each."""
    options = [
        make.option(make.offer("A", 1.0, provider="p"), [1.0], power_w=500.0),
        make.option(make.offer("B", 2.0, provider="q"), [1.0], power_w=100.0),
    ]
    limits = () if budget is None else (make.limit("budget", "usd_per_hour", budget),)
    return make.problem(make.demand([rate]), options, rules=rules, limits=limits, shed=Shedding(priority={}), **given)


def left(plan):
    return sum(item.rate_rps for item in plan.unserved)


def rented(plan):
    return {item.offer: item.instances for item in plan.rentals}


def test_only_the_periods_that_do_not_fit_shed(make):
    horizon = Horizon(step_s=HOUR_S, factors={"default": (0.5, 1.0, 0.0)})
    plan = plan_of(two(make, budget=3.0, horizon=horizon))
    assert [sum(item.rate_rps for item in period.unserved) for period in plan.schedule] == pytest.approx([0, 1, 0])
    assert [period.rate_rps for period in plan.schedule] == pytest.approx([2, 3, 0])
    [item] = plan.unserved
    assert (item.rate_rps, item.fraction) == (pytest.approx(1 / 3), pytest.approx(1 / 6))
    assert plan.rate_rps == pytest.approx(5 / 3)
    assert "0.3333 of 2 req/s are not served" in plan.warnings[0].message


def test_start_up_can_make_a_period_shed(make):
    """What starts for the peak is rented the hour before, when the budget holds no more than one."""
    horizon = Horizon(step_s=HOUR_S, factors={"default": (0.25, 0.5)}, start_up_s=HOUR_S)
    assert left(plan_of(two(make, budget=2.0, horizon=horizon))) == pytest.approx(0.0)
    plan = plan_of(two(make, budget=1.0, horizon=horizon))
    assert [sum(item.rate_rps for item in period.unserved) for period in plan.schedule] == pytest.approx([0, 1])


def test_what_is_left_after_a_loss_serves_what_the_fleet_serves(make):
    plan = plan_of(two(make, Survival(name="survive provider", facet=Facet.PROVIDER), budget=6.0))
    assert (left(plan), rented(plan)) == (pytest.approx(2.0), {"A": 2, "B": 2})
    half = Survival(name="survive provider", facet=Facet.PROVIDER, bound=0.5)
    assert rented(plan_of(two(make, half, budget=6.0))) == {"A": 2, "B": 2}
    assert left(plan_of(two(make, half, budget=6.0))) == pytest.approx(0.0)
    spare = ReplicaLoss(name="1 spare replica", count=1, service="default")
    assert left(plan_of(two(make, spare, budget=3.0))) == pytest.approx(2.0)


def test_a_cap_on_shares_is_of_what_is_served(make):
    plan = plan_of(two(make, ShareCap(name="share", facet=Facet.PROVIDER, bound=0.5), budget=6.0))
    assert (left(plan), rented(plan)) == (pytest.approx(0.0), {"A": 2, "B": 2})
    plan = plan_of(two(make, ShareCap(name="share", facet=Facet.PROVIDER, bound=0.5), budget=5.0))
    assert (left(plan), rented(plan)) == (pytest.approx(2.0), {"A": 1, "B": 1})
    more = ShareCap(name="share", facet=Facet.OFFER, bound=0.6)
    assert left(plan_of(two(make, more, budget=4.0))) == pytest.approx(4 - 1 / 0.4, abs=1e-4)


def test_objectives_are_those_of_what_is_served(make):
    few = (make.limit("few", "instances", 3),)
    least_power = replace(two(make, goal=Goal(stages=({Measure.POWER: 1.0},))), limits=few)
    plan = plan_of(least_power)
    assert (left(plan), rented(plan)) == (pytest.approx(1.0), {"B": 3})
    assert [item.value for item in plan.objectives] == pytest.approx([0.3, 6.0])
    assert rented(plan_of(replace(least_power, goal=None))) == {"A": 3}


def test_changes_count_while_demand_is_shed(make):
    now = Running(service="default", offer="B", option="B", gpus_per_replica=1, replicas=3)
    dear = ChangeCost(running=(now,), instances={"B": 3}, start_usd=5.0, horizon_hours=1.0)
    few = (make.limit("few", "instances", 3),)
    plan = plan_of(replace(two(make, change=dear), limits=few))
    assert (left(plan), rented(plan), plan.change_usd_per_hour) == (pytest.approx(1.0), {"B": 3}, 0.0)
    cheap = replace(dear, start_usd=0.5)
    assert rented(plan_of(replace(two(make, change=cheap), limits=few))) == {"A": 3}


def test_a_minimum_beyond_the_budget_is_no_matter_of_shedding(make):
    problem = two(make, Minimum(name="minimum", resource=Resource.GPUS, bound=5.0), budget=3.0)
    assert plan_of(problem).status is PlanStatus.INFEASIBLE
    assert {item.requirement for item in find_conflicts(problem, settings=EXACT)} >= {"budget <= 3.00 USD/h"}


def test_a_schedule_that_hides_what_it_sheds_is_caught(make):
    problem = two(make, budget=3.0, horizon=Horizon(step_s=HOUR_S, factors={"default": (0.5, 1.0)}))
    plan = plan_of(problem)
    peak = replace(plan.schedule[1], unserved=())
    with pytest.raises(SolverLiedError, match=r"period 1: .*served"):
        verify_plan(problem, replace(plan, schedule=(plan.schedule[0], peak)))
    with pytest.raises(SolverLiedError, match="its periods leave"):
        verify_plan(problem, replace(plan, unserved=()))
    with pytest.raises(SolverLiedError, match="does not allow"):
        verify_plan(replace(problem, shed=None), plan)


def test_a_loss_that_what_is_served_does_not_survive_is_caught(make):
    plan = plan_of(two(make, budget=3.0))
    with pytest.raises(SolverLiedError, match="without p"):
        verify_plan(two(make, Survival(name="survive", facet=Facet.PROVIDER), budget=3.0), plan)
