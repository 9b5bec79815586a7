"""Utilisation caps of single options: in the search, in the independent check, and with every other family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_fleets import random_case

from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan

EXACT = SolverSettings(relative_gap=0.0)
FREE = Assignment.fractional()
NOT_THE_SAME = frozenset({"energy", "jobs", "disaggregation", "goals"})
"""Where the true load matters beside the share of a replica that may be used."""


def capped(problem, caps):
    options = tuple(replace(option, utilization_cap=cap) for option, cap in zip(problem.options, caps, strict=True))
    return replace(problem, options=options)


def slower(problem, caps):
    """Return the problem with throughputs times the caps, which asks for the same replicas."""
    options = tuple(
        replace(
            option,
            throughput_rps=option.throughput_rps * cap,
            scenario_rps={name: rates * cap for name, rates in option.scenario_rps.items()},
        )
        for option, cap in zip(problem.options, caps, strict=True)
    )
    return replace(problem, options=options)


@pytest.mark.parametrize("seed", range(40))
def test_a_cap_is_worth_as_much_as_a_lower_throughput_with_every_other_family(seed):
    case = random_case(np.random.default_rng(seed), without=NOT_THE_SAME)
    caps = np.random.default_rng(seed).choice([0.5, 0.75, 1.0, 1.5], len(case.problem.options)).tolist()
    one = solve(capped(case.problem, caps), settings=EXACT, assignment=case.assignment)
    two = solve(slower(case.problem, caps), settings=EXACT, assignment=case.assignment)
    assert one.status == two.status
    if one.cost_usd_per_hour is None:
        return
    total = [plan.cost_usd_per_hour + (plan.change_usd_per_hour or 0.0) for plan in (one, two)]
    assert total[0] == pytest.approx(total[1], rel=1e-6)
    assert sum(item.rate_rps for item in one.unserved) == pytest.approx(sum(item.rate_rps for item in two.unserved))


@pytest.mark.parametrize("seed", range(100, 112))
def test_a_smaller_cap_never_costs_less_and_a_cap_of_one_changes_nothing(seed):
    problem = random_case(np.random.default_rng(seed), without=frozenset({"shedding", "goals", "changes"})).problem
    n = len(problem.options)
    plans = [solve(capped(problem, [cap] * n), settings=EXACT, assignment=FREE) for cap in (2.0, 1.0, 0.6)]
    costs = [np.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour for plan in plans]
    assert costs == sorted(costs)
    plain = solve(problem, settings=EXACT, assignment=FREE)
    assert replace(plain, solver=plans[1].solver) == plans[1]


@pytest.mark.parametrize("seed", range(200, 210))
def test_energy_and_utilisation_are_those_of_the_true_load(seed):
    """The check counts loads from the routes and throughputs alone, so a plan with caps passes it only if so."""
    problem = random_case(np.random.default_rng(seed), without=frozenset({"shedding", "jobs"})).problem
    caps = np.random.default_rng(seed).choice([0.5, 1.25], len(problem.options)).tolist()
    plan = solve(capped(problem, caps), settings=EXACT, assignment=FREE)
    if plan.cost_usd_per_hour is not None and not plan.schedule:
        assert all(item.utilization <= 1.25 + 1e-9 for item in plan.allocation)


@pytest.mark.parametrize("seed", range(300, 310))
def test_work_beside_requests_keeps_the_cap(seed):
    rng = np.random.default_rng(seed)
    problem = random_case(
        rng, without=frozenset({"shedding", "goals", "energy", "changes", "disaggregation", "scenarios"})
    ).problem
    if not problem.jobs:
        from random_fleets import add_jobs

        problem = add_jobs(problem, rng)
    names = {job.name for job in problem.jobs}
    half = [1.0 if option.service in names else 0.5 for option in problem.options]
    plans = [solve(capped(problem, caps), settings=EXACT, assignment=FREE) for caps in ([1.0] * len(half), half)]
    costs = [np.inf if plan.cost_usd_per_hour is None else plan.cost_usd_per_hour for plan in plans]
    assert costs == sorted(costs)
    for item in plans[1].allocation:
        if item.service not in names and not plans[1].schedule:
            assert item.utilization + item.work_utilization <= 0.5 + 1e-6


def test_an_option_may_be_no_fuller_than_its_cap(make):
    problem = make.problem(make.demand([10.0]), [make.option(make.offer("A", 1.0), [5.0], utilization_cap=0.5)])
    plan = solve(problem, settings=EXACT, assignment=FREE)
    assert plan.allocation[0].replicas == 4
    assert plan.allocation[0].utilization == pytest.approx(0.5)
    assert plan.binding == ("capacity A",)
    tighter = replace(problem, options=(replace(problem.options[0], utilization_cap=0.49),))
    with pytest.raises(SolverLiedError, match="may be used"):
        verify_plan(tighter, plan)
    fuller = replace(problem, options=(replace(problem.options[0], utilization_cap=1.25),))
    assert solve(fuller, settings=EXACT, assignment=FREE).allocation[0].replicas == 2


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cap_that_is_none_is_refused(make, cap):
    problem = make.problem(make.demand([1.0]), [make.option(make.offer("A", 1.0), [5.0], utilization_cap=cap)])
    with pytest.raises(InputError, match="utilisation cap"):
        solve(problem, settings=EXACT, assignment=FREE)


def test_a_faster_gpu_that_may_be_less_full_does_not_push_out_a_slower_one(make):
    """Pruning compares what may be used, not what is possible."""
    offers = [make.offer("fast", 1.0), make.offer("slow", 1.1)]
    options = [
        make.option(offers[0], [10.0], utilization_cap=0.2),
        make.option(offers[1], [8.0], utilization_cap=1.0),
    ]
    plan = solve(make.problem(make.demand([8.0]), options), settings=EXACT, assignment=FREE)
    assert [(item.offer, item.replicas) for item in plan.allocation] == [("slow", 1)]
