"""Nothing is believed: tampered solutions and plans are caught, each in the check that is meant for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.arrays import fleet_arrays
from planner.optimize.model import build_model
from planner.optimize.search import run
from planner.optimize.verify import rounded_integers, verify


@pytest.fixture(scope="module")
def solved(make):
    model = build_model(fleet_arrays(make.melange_example(), Assignment.fractional()))
    milp = model.freeze()
    raw = run(milp, SolverSettings())
    return model, milp, raw


def test_an_honest_solution_passes(solved):
    _, milp, raw = solved
    assert verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound).cost == pytest.approx(4.68)


def test_tampered_solutions_are_caught(solved):
    model, milp, raw = solved

    def changed(column, value):
        values = raw.values.copy()
        values[column] = value
        return values

    fewer = raw.values[model.n[0]] - 1
    cases = {
        "breaks coverage": changed(model.x[np.argmax(raw.values[model.x])], 0.4),
        "must lie in": changed(model.n[0], 1e6),
        "breaks": changed(model.n[0], fewer),
        "must be an integer": changed(model.n[0], 0.5),
        "not finite": changed(model.x[0], np.nan),
        "missing or not finite": raw.values[:-1],
    }
    for words, values in cases.items():
        with pytest.raises(SolverLiedError, match=words):
            verify(milp, values)


def test_stated_numbers_are_checked(solved):
    _, milp, raw = solved
    with pytest.raises(SolverLiedError, match="states a cost"):
        verify(milp, raw.values, stated_objective=4.5)
    with pytest.raises(SolverLiedError, match="claims that no plan costs less"):
        verify(milp, raw.values, bound=4.9)


def test_integers_are_rounded_never_cut_off(solved):
    model, milp, raw = solved
    values = raw.values.copy()
    values[model.n] = raw.values[model.n] - 1e-7
    assert rounded_integers(milp, values)[model.n].tolist() == raw.values[model.n].round().tolist()


@pytest.fixture(scope="module")
def planned(make):
    problem = make.melange_example(limits=(make.limit("budget", "usd_per_hour", 5.0),))
    return problem, solve(problem, settings=SolverSettings(), assignment=Assignment.fractional())


def test_an_honest_plan_passes(planned):
    verify_plan(*planned)


def test_tampered_plans_are_caught(make, planned):
    problem, plan = planned
    first, second = plan.allocation
    route = next(route for route in plan.routing if len(route.weights) == 2)
    others = tuple(each for each in plan.routing if each is not route)
    shifted = {key: weight + 0.1 * (-1 if key == "A10G" else 1) for key, weight in route.weights.items()}
    cases = {
        "do not sum to 1": replace(plan, routing=(*others, replace(route, weights={"A10G": 0.9}))),
        "missing": replace(plan, routing=others),
        "has a load of": replace(plan, routing=(*others, replace(route, weights=shifted))),
        "not in the plan": replace(plan, allocation=(first,)),
        "does not have": replace(plan, allocation=(first, replace(second, option="H100"))),
        "not utilised by": replace(plan, allocation=(first, replace(second, utilization=0.5))),
        "are rented": replace(plan, rentals=plan.rentals[:1]),
        "its rentals cost": replace(plan, cost_usd_per_hour=4.0, bound_usd_per_hour=4.0),
        "its allocations cost": replace(plan, allocation=(first, replace(second, cost_usd_per_hour=9.0))),
        "req/s, and says": replace(plan, rate_rps=plan.rate_rps + 1),
        "nothing costs less": replace(plan, bound_usd_per_hour=4.7),
    }
    for words, tampered in cases.items():
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(problem, tampered)
    with pytest.raises(SolverLiedError, match="the limit budget"):
        verify_plan(replace(problem, limits=(make.limit("budget", "usd_per_hour", 4.0),)), plan)
    scarce = tuple(replace(each, offer=replace(each.offer, available=0)) for each in problem.options)
    with pytest.raises(SolverLiedError, match="available"):
        verify_plan(replace(problem, options=scarce), plan)
