"""Searches that begin with the fleet that runs today: never dearer than it, with the same optimum every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.plan import PlanStatus
from planner.domain.problem import ChangeCost, Facet, Running, VarietyLimit
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize import search as search_module
from planner.optimize.alike import merged
from planner.optimize.arrays import fleet_arrays
from planner.optimize.decompose import driver
from planner.optimize.decompose.budget import Budget
from planner.optimize.decompose.parts import cut
from planner.optimize.decompose.relaxation import relax
from planner.optimize.decompose.rounding import from_today
from planner.optimize.model import build_model
from planner.optimize.prune import prune
from planner.optimize.search import search
from planner.optimize.termination import Termination
from planner.optimize.verify import verify
from planner.optimize.warm_start import warm_start

EXACT = SolverSettings(relative_gap=1e-6, time_limit_s=30)
FRACTIONAL = Assignment.fractional()


def made_up(make, seed, *, demand_factor=1.0, **given):
    """Two services on three offers, the cheapest of which is scarce."""
    rng = np.random.default_rng(seed)
    offers = [
        make.offer(
            f"g{index}", round(float(rng.uniform(0.8, 1.2)) * (index + 1), 2), available=3 if not index else None
        )
        for index in range(3)
    ]
    demands = tuple(
        make.demand(rng.uniform(0.5, 6.0, 3) * demand_factor, service=service) for service in ("chat", "code")
    )
    options = [
        make.option(offered, rng.uniform(0.7, 1.5, 3) * (index + 1), service=service)
        for service in ("chat", "code")
        for index, offered in enumerate(offers)
    ]
    return make.problem(demands, options, **given)


def running(plan):
    """Return the fleet of `plan` as the one that runs today."""
    rows = tuple(
        Running(
            service=row.service,
            offer=row.offer,
            option=row.option,
            gpus_per_replica=row.gpus_per_replica,
            replicas=row.replicas,
        )
        for row in plan.allocation
    )
    return ChangeCost(running=rows, instances={rental.offer: rental.instances for rental in plan.rentals})


def today_and_later(make, seed, *, factor=1.0, **given):
    """Return a problem with the optimal plan for other demand as the fleet that runs today, and that plan."""
    plan = solve(made_up(make, seed), settings=EXACT, assignment=FRACTIONAL)
    return replace(made_up(make, seed, demand_factor=factor, **given), change=running(plan)), plan


def started(problem):
    model = build_model(fleet_arrays(prune(problem), FRACTIONAL))
    milp = model.freeze()
    return model, milp, warm_start(model, milp, EXACT).start


@given(seed=st.integers(0, 10_000), factor=st.sampled_from([0.6, 1.0, 1.5]))
def test_the_start_is_a_solution_that_keeps_todays_replicas(make, seed, factor):
    problem, _ = today_and_later(make, seed, factor=factor)
    model, milp, start = started(problem)
    verify(milp, start)
    assert np.all(start[model.n] >= np.minimum(model.fleet.today, milp.col_upper[model.n]))


@given(seed=st.integers(0, 10_000))
def test_todays_fleet_is_its_own_start_where_nothing_changed(make, seed):
    problem, plan = today_and_later(make, seed)
    model, milp, start = started(problem)
    assert np.array_equal(start[model.n], model.fleet.today)
    assert float(milp.cost @ start) == pytest.approx(plan.cost_usd_per_hour)


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([0.6, 1.0, 1.5]))
def test_the_optimum_is_the_same_with_and_without(make, seed, factor):
    problem, _ = today_and_later(make, seed, factor=factor)
    warm = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    cold = solve(replace(problem, change=None), settings=EXACT, assignment=FRACTIONAL)
    assert warm.cost_usd_per_hour == pytest.approx(cold.cost_usd_per_hour, rel=1e-5)
    again = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    assert replace(warm, solver=None) == replace(again, solver=None)


def test_limits_that_todays_fleet_breaks_leave_the_search_as_it_is(make):
    problem, plan = today_and_later(make, 1)
    tight = replace(problem, limits=(make.limit("budget", "usd_per_hour", plan.cost_usd_per_hour * 0.5),))
    assert started(tight)[2] is None
    assert solve(tight, settings=EXACT, assignment=FRACTIONAL).status is PlanStatus.INFEASIBLE


def test_rows_with_variables_of_their_own_get_replicas_and_instances_alone(make):
    problem, plan = today_and_later(make, 2)
    variety = VarietyLimit(name="offers", facet=Facet.OFFER, bound=2)
    model, _, start = started(replace(problem, rules=(variety,)))
    assert np.all(np.isfinite(start[model.n]))
    assert np.all(np.isfinite(start[model.m]))
    found = solve(replace(problem, rules=(variety,)), settings=EXACT, assignment=FRACTIONAL)
    verify_plan(replace(problem, rules=(variety,)), found)
    assert found.cost_usd_per_hour >= plan.cost_usd_per_hour * (1 - 1e-9)


def test_a_search_that_finds_nothing_answers_with_todays_fleet(make, monkeypatch):
    problem, plan = today_and_later(make, 3)
    fleet = fleet_arrays(prune(problem), FRACTIONAL)
    run = search_module.run

    def stopped(milp, settings):
        return replace(run(milp, settings), values=None, objective=None, bound=None, termination=Termination.TIME_LIMIT)

    monkeypatch.setattr(search_module, "run", stopped)
    found = search(fleet, EXACT)
    assert found.termination is Termination.TIME_LIMIT
    assert found.fleet.cost_usd_per_hour == pytest.approx(plan.cost_usd_per_hour)
    assert search(replace(fleet, today=np.zeros(len(fleet.options), dtype=int)), EXACT).fleet is None


@pytest.mark.parametrize("seed", range(3))
def test_a_search_in_parts_improves_todays_fleet_instead_of_sharing_anew(make, monkeypatch, seed):
    problem, plan = today_and_later(make, seed)
    model = build_model(fleet_arrays(prune(problem), FRACTIONAL))
    pieces = cut(merged(model, model.freeze()))
    budget = Budget(EXACT)
    state = from_today(pieces, relax(pieces, budget), budget)
    assert state.is_feasible
    assert state.cost == pytest.approx(plan.cost_usd_per_hour)

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(search_module, "DECOMPOSED_FROM_PAIRS", 0)
    monkeypatch.setattr(driver, "NEAR", 1.0)
    monkeypatch.setattr(driver, "rounded", refuse)
    found = solve(problem, settings=EXACT, assignment=FRACTIONAL)
    verify_plan(problem, found)
    assert found.cost_usd_per_hour <= plan.cost_usd_per_hour * (1 + 1e-9)
    with pytest.raises(AssertionError):
        solve(replace(problem, change=None), settings=EXACT, assignment=FRACTIONAL)
