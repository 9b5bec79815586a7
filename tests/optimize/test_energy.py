"""Electricity and emissions of a plan: against arithmetic by hand, and against lies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.domain.energy import Energy, Site
from planner.domain.problem import Horizon
from planner.errors import SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)
FREE = Assignment.fractional()


def two_regions(make, *, energy=None, rate=15.0, horizon=None, **given):
    """The same card in a dirty region for 1 USD/h and in a clean one for 1.10; 10 req/s each, 100 W idle, 500 busy."""
    options = [
        make.option(make.offer(name, price, region=name), [10.0], power_w=600.0, idle_power_w=100.0, busy_power_w=500.0)
        for name, price in (("coal", 1.0), ("hydro", 1.1))
    ]
    sites = {
        ("p", "coal"): Site(pue=1.5, carbon_g_per_kwh=(800.0,)),
        ("p", "hydro"): Site(pue=1.1, carbon_g_per_kwh=(20.0,)),
    }
    return make.problem(make.demand([rate]), options, energy=energy or Energy(sites=sites), horizon=horizon, **given)


def test_mean_power_and_emissions_by_hand(make):
    plan = solve(two_regions(make), settings=EXACT, assignment=FREE)
    watts = 1.5 * (100 * 2 + 400 * 1.5)
    assert plan.mean_power_w == pytest.approx(watts)
    assert plan.carbon_kg_per_hour == pytest.approx(watts / 1000 * 0.8)
    assert (plan.carbon_unknown_w, plan.energy_usd_per_hour) == (0.0, None)
    assert plan.power_w == 1200.0
    (row,) = plan.allocation
    assert (row.mean_power_w, row.carbon_kg_per_hour) == (plan.mean_power_w, plan.carbon_kg_per_hour)


def test_headroom_and_utilization_cap_draw_nothing(make):
    problem = two_regions(make, headroom_fraction=0.3, utilization_cap=0.8)
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert plan.allocation[0].replicas == 3
    assert plan.mean_power_w == pytest.approx(1.5 * (100 * 3 + 400 * 1.5))


def test_what_is_not_known_is_not_zero(make):
    no_sites = two_regions(make, energy=Energy(sites={}))
    assert solve(no_sites, settings=EXACT, assignment=FREE).mean_power_w is None
    dark = two_regions(make, energy=Energy(sites={("p", "coal"): Site(pue=1.5)}))
    plan = solve(dark, settings=EXACT, assignment=FREE)
    assert plan.carbon_kg_per_hour is None
    assert plan.carbon_unknown_w == plan.mean_power_w == pytest.approx(1200.0)
    plain = replace(two_regions(make), energy=None)
    assert solve(plain, settings=EXACT, assignment=FREE).mean_power_w is None


def test_intensities_by_period_are_those_of_the_period(make):
    sites = {("p", "coal"): Site(carbon_g_per_kwh=(100.0, 900.0)), ("p", "hydro"): Site(carbon_g_per_kwh=(20.0,))}
    horizon = Horizon(step_s=3600.0, factors={"default": (1.0, 0.5)})
    plan = solve(two_regions(make, energy=Energy(sites=sites), horizon=horizon), settings=EXACT, assignment=FREE)
    first, second = (100 * 2 + 400 * 1.5), (100 + 400 * 0.75)
    assert [period.mean_power_w for period in plan.schedule] == pytest.approx([first, second])
    assert [period.carbon_kg_per_hour for period in plan.schedule] == pytest.approx([first * 1e-4, second * 9e-4])
    assert plan.mean_power_w == pytest.approx((first + second) / 2)
    assert plan.carbon_kg_per_hour == pytest.approx((first * 1e-4 + second * 9e-4) / 2)


@pytest.mark.parametrize("field", ["mean_power_w", "carbon_kg_per_hour", "carbon_unknown_w", "energy_usd_per_hour"])
def test_a_plan_that_lies_about_energy_is_caught(make, field):
    problem = two_regions(make)
    plan = solve(problem, settings=EXACT, assignment=FREE)
    with pytest.raises(SolverLiedError):
        verify_plan(problem, replace(plan, **{field: (getattr(plan, field) or 0.0) + 0.1}))
    if field in {"mean_power_w", "carbon_kg_per_hour"}:
        row = replace(plan.allocation[0], **{field: 1.0})
        with pytest.raises(SolverLiedError):
            verify_plan(problem, replace(plan, allocation=(row,)))
    with pytest.raises(SolverLiedError):
        verify_plan(replace(problem, energy=None), plan)
