"""Limits on variety, minima, shares and losses over periods: known answers, checks that fire, conflicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.domain.hardware import Market
from planner.domain.plan import PlanStatus
from planner.domain.problem import Facet, Horizon, Minimum, Resource, Scope, ShareCap, Survival, VarietyLimit
from planner.errors import SolverLiedError
from planner.optimize import Assignment, SolverSettings, find_conflicts, price_of_limits, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)
HOUR_S = 3600.0


def day(make, *rules, factors=(1.0, 3.0), **given):
    """Two req/s and then six, one replica of A (1 USD/h) or of B (2 USD/h) for each."""
    options = [
        make.option(make.offer("A", 1.0, provider="p"), [1.0]),
        make.option(make.offer("B", 2.0, provider="q"), [1.0]),
    ]
    horizon = Horizon(step_s=HOUR_S, factors={"default": factors}, **given)
    return make.problem(make.demand([2.0]), options, rules=rules, horizon=horizon)


def plan_of(problem):
    plan = solve(problem, settings=EXACT, assignment=Assignment.fractional())
    verify_plan(problem, plan)
    return plan


def rented(plan):
    return [{item.offer: item.instances for item in period.rentals} for period in plan.schedule]


def test_a_minimum_is_kept_in_every_period(make):
    rule = Minimum(name="minimum A", resource=Resource.INSTANCES, bound=4.0, scope=Scope(gpu="A"))
    plan = plan_of(day(make, rule))
    assert rented(plan) == [{"A": 4}, {"A": 6}]
    assert "minimum A >= 4 instances" in plan.binding
    assert price_of_limits(day(make, rule), plan, EXACT) == {"minimum A >= 4 instances": pytest.approx(1.0)}


def test_a_minimum_of_what_nothing_runs_on(make):
    rule = Minimum(name="minimum q", resource=Resource.GPUS, bound=1.0, scope=Scope(provider="q"))
    plan = plan_of(day(make, rule, factors=(0.0, 1.0)))
    assert rented(plan) == [{"B": 1}, {"A": 1, "B": 1}]
    assert plan.cost_usd_per_hour == pytest.approx((2 + 3) / 2)


def test_minima_keep_leases_too(make):
    rule = Minimum(name="minimum A", resource=Resource.INSTANCES, bound=1.0, scope=Scope(gpu="A"))
    plan = plan_of(day(make, rule, factors=(0.0, 1.0, 0.0), minimum_lease_s=2 * HOUR_S, start_up_s=HOUR_S))
    assert [period.get("A", 0) for period in rented(plan)] == [1, 2, 1]  # the older one goes


def test_a_share_is_kept_in_every_period_not_on_average(make):
    plan = plan_of(day(make, ShareCap(name="share of one provider", facet=Facet.PROVIDER, bound=0.5)))
    assert rented(plan) == [{"A": 1, "B": 1}, {"A": 3, "B": 3}]


def test_a_loss_is_survived_whenever_it_comes(make):
    plan = plan_of(day(make, Survival(name="survive provider", facet=Facet.PROVIDER)))
    assert rented(plan) == [{"A": 2, "B": 2}, {"A": 6, "B": 6}]


def test_variety_counts_the_whole_schedule(make):
    """Each period alone would use one type, the small one at night; together they would be two."""
    problem = day(make, VarietyLimit(name="GPU types", facet=Facet.GPU, bound=1), factors=(0.5, 3.0))
    small = make.option(make.offer("S", 0.5), [1.0])
    scarce = replace(small, offer=replace(small.offer, available=1))
    problem = replace(problem, options=(*problem.options, scarce))
    assert rented(plan_of(problem)) == [{"A": 1}, {"A": 6}]
    assert rented(plan_of(replace(problem, rules=()))) == [{"S": 1}, {"A": 5, "S": 1}]


def test_commitments_count_for_minima_and_shares(make):
    problem = day(make, ShareCap(name="share", facet=Facet.OFFER, bound=0.5))
    reserved = make.option(make.offer("A1y", 0.5, gpu="A", market=Market.RESERVED_1Y), [1.0])
    plan = plan_of(replace(problem, options=(problem.options[0], reserved)))
    assert rented(plan) == [{"A": 1, "A1y": 3}, {"A": 3, "A1y": 3}]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Minimum(name="minimum", resource=Resource.INSTANCES, bound=3.0), "period 0: .*minimum is 3"),
        (ShareCap(name="share", facet=Facet.PROVIDER, bound=0.5), "period 0: .*share is 0.5"),
        (Survival(name="survive", facet=Facet.PROVIDER), "period 0: .*without p"),
        (VarietyLimit(name="GPU types", facet=Facet.GPU, bound=0), "at most 0 GPU types"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_schedule_that_breaks_a_rule_is_caught(make, rule, message):
    plan = plan_of(day(make))
    with pytest.raises(SolverLiedError, match=message):
        verify_plan(day(make, rule), plan)


def test_a_rule_in_the_way_of_a_schedule_is_named(make):
    few = (make.limit("quota", "gpus", 8),)
    problem = replace(day(make, Survival(name="survive provider", facet=Facet.PROVIDER)), limits=few)
    assert plan_of(problem).status is PlanStatus.INFEASIBLE
    found = {item.requirement: item.relaxed for item in find_conflicts(problem, settings=EXACT)}
    assert found == {"quota <= 8 GPUs": 12.0, "survive provider": pytest.approx(0.666)}
    both = replace(day(make, Minimum(name="minimum", resource=Resource.GPUS, bound=9.0), start_up_s=60.0), limits=few)
    assert {item.requirement for item in find_conflicts(both, settings=EXACT)} == {
        "quota <= 8 GPUs",
        "minimum >= 9 GPUs",
    }
