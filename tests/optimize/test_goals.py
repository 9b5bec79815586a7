"""Objectives other than the cost: against enumeration, and what must always be so."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.domain.energy import Energy, Site
from planner.domain.plan import PlanStatus
from planner.domain.problem import Goal, Measure
from planner.errors import InputError, SolverLiedError
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.optimize.prune import prune

EXACT = SolverSettings(relative_gap=0.0)
FREE = Assignment.fractional()
SITES = Energy(sites={("p", "r"): Site(pue=1.2, carbon_g_per_kwh=(300.0,))})
GOALS = (
    ({Measure.POWER: 1.0},),
    ({Measure.GPUS: 1.0},),
    ({Measure.GPUS: 1.0}, {Measure.POWER: 1.0}),
    ({Measure.COST: 1.0}, {Measure.POWER: 1.0}),
    ({Measure.POWER: 1.0}, {Measure.GPUS: 1.0}, {Measure.COST: 1.0}),
    ({Measure.COST: 1.0, Measure.POWER: 8.0},),
    ({Measure.GPUS: 2.0, Measure.POWER: 3.0, Measure.COST: 0.5},),
)


def random_request(make, rng, stages):
    """One bucket, up to 4 offers with one option each: a fleet serves it if its replicas' rates add up to the rate."""
    options = []
    for index in range(int(rng.integers(1, 5))):
        count = int(rng.choice([1, 1, 2, 4]))
        offered = make.offer(f"O{index}", price=float(rng.integers(1, 12)) / 2 * count, gpus_per_instance=count)
        size = int(rng.choice([size for size in (1, 2, 4) if size <= count]))
        watts = 100.0 * int(rng.integers(1, 8)) * size
        drawn = {"power_w": watts, "idle_power_w": watts / 5, "busy_power_w": watts}
        options.append(make.option(offered, [float(rng.integers(1, 9))], gpus=size, **drawn))
    limits = ()
    if rng.random() < 0.4:
        limits += (make.limit("budget", "usd_per_hour", float(rng.integers(5, 30))),)
    return make.problem(
        make.demand([float(rng.integers(1, 20))]), options, limits=limits, goal=Goal(stages=stages), energy=SITES
    )


def totals(problem, counts):
    rented = [
        -(-n // (int(o.offer.gpus_per_instance) // o.gpus_per_replica))
        for o, n in zip(problem.options, counts, strict=True)
    ]
    pairs = list(zip(problem.options, counts, rented, strict=True))
    return {
        Measure.COST: sum(float(o.offer.price_usd_per_hour) * m for o, _, m in pairs),
        Measure.POWER: sum(float(o.power_w) * n for o, n, _ in pairs) / 1000,
        Measure.GPUS: sum(float(o.offer.gpus_per_instance) * m for o, _, m in pairs),
    }


def brute_force(problem):
    """Return the values of the stages, the cost after them, of the best fleet; None if there is none."""
    rate = problem.demands[0].buckets[0].rate_rps
    upper = [int(np.ceil(rate / option.throughput_rps[0])) for option in problem.options]
    best = None
    for counts in itertools.product(*(range(bound + 1) for bound in upper)):
        if sum(n * o.throughput_rps[0] for n, o in zip(counts, problem.options, strict=True)) < rate:
            continue
        measured = totals(problem, counts)
        if any(measured[Measure.COST] > limit.bound for limit in problem.limits):
            continue
        key = [
            round(sum(weight * measured[measure] for measure, weight in stage.items()), 9)
            for stage in problem.goal.stages
        ]
        key.append(measured[Measure.COST])
        best = key if best is None or key < best else best
    return best


@pytest.mark.parametrize("stages", GOALS, ids=str)
def test_equals_the_enumeration(make, stages):
    rng = np.random.default_rng(len(str(stages)))
    n_found = 0
    for _ in range(25):
        problem = random_request(make, rng, stages)
        plan = solve(problem, settings=EXACT, assignment=FREE)
        verify_plan(problem, plan)
        expected = brute_force(problem)
        if expected is None:
            assert plan.status is PlanStatus.INFEASIBLE
            continue
        n_found += 1
        assert plan.status is PlanStatus.OPTIMAL
        values = [item.value for item in plan.objectives[: len(stages)]]
        assert values == pytest.approx(expected[:-1], rel=1e-6)
        is_cost_free = not any(Measure.COST in stage for stage in stages)
        if is_cost_free:
            assert plan.cost_usd_per_hour == pytest.approx(expected[-1], rel=1e-6)
        assert [item.bound for item in plan.objectives] == pytest.approx(
            [item.value for item in plan.objectives], rel=1e-5, abs=1e-5
        )
    assert n_found >= 10


def two_cards(make, **given_fields):
    """Fast and hungry for less money, or slow and frugal."""
    hungry = make.option(make.offer("hungry", 1.0), [10.0], power_w=1000.0)
    frugal = make.option(make.offer("frugal", 1.0), [5.0], power_w=100.0)
    return make.problem(make.demand([20.0]), [hungry, frugal], **given_fields)


def used(plan):
    return {row.gpu: row.replicas for row in plan.allocation}


def test_what_is_wanted_decides(make):
    cases = (
        (None, {"hungry": 2}),
        (Goal(stages=({Measure.POWER: 1.0},)), {"frugal": 4}),
        (Goal(stages=({Measure.GPUS: 1.0},)), {"hungry": 2}),
        (Goal(stages=({Measure.COST: 1.0, Measure.POWER: 0.5},)), {"hungry": 2}),
        (Goal(stages=({Measure.COST: 1.0, Measure.POWER: 5.0},)), {"frugal": 4}),
        (Goal(stages=({Measure.COST: 1.0}, {Measure.POWER: 1.0}), within=0.5), {"hungry": 1, "frugal": 2}),
    )
    for goal, expected in cases:
        plan = solve(two_cards(make, goal=goal), settings=EXACT, assignment=FREE)
        assert used(plan) == expected, goal


def test_a_cost_cap_is_kept(make):
    limits = (make.limit("cost cap", "usd_per_hour", 3.0),)
    goal = Goal(stages=({Measure.POWER: 1.0},))
    plan = solve(two_cards(make, goal=goal, limits=limits), settings=EXACT, assignment=FREE)
    assert used(plan) == {"hungry": 1, "frugal": 2}
    assert "cost cap" in plan.binding


def test_pruning_keeps_what_draws_less_power(make):
    offered = make.offer("A", 1.0)
    options = [make.option(offered, [x], power_w=watts) for x, watts in ((10.0, 900.0), (9.0, 100.0))]
    problem = make.problem(make.demand([9.0]), options)
    assert len(prune(problem).options) == 1
    frugal = replace(problem, goal=Goal(stages=({Measure.POWER: 1.0},)))
    assert len(prune(frugal).options) == 2
    assert solve(frugal, settings=EXACT, assignment=FREE).power_w == 100.0


def test_what_cannot_be_counted_is_refused(make):
    goal = Goal(stages=({Measure.POWER: 1.0},))
    unknown = make.problem(make.demand([1.0]), [make.option(make.offer(), [1.0])], goal=goal)
    with pytest.raises(InputError, match="power, and that of default on A is not known"):
        solve(unknown, settings=EXACT, assignment=FREE)
    with pytest.raises(InputError, match="not above zero"):
        solve(two_cards(make, goal=Goal(stages=({Measure.POWER: 0.0},))), settings=EXACT, assignment=FREE)


def test_the_check_refuses_wrong_values(make):
    problem = two_cards(make, goal=Goal(stages=({Measure.POWER: 1.0},)))
    plan = solve(problem, settings=EXACT, assignment=FREE)
    first, *rest = plan.objectives
    for wrong in (replace(first, value=first.value / 2), replace(first, bound=first.value * 2)):
        with pytest.raises(SolverLiedError):
            verify_plan(problem, replace(plan, objectives=(wrong, *rest)))
    with pytest.raises(SolverLiedError, match="does not have"):
        verify_plan(replace(problem, goal=None), plan)


@given(seed=st.integers(0, 10_000))
def test_no_objective_beats_the_plan_made_for_it(make, seed):
    rng = np.random.default_rng(seed)
    problem = random_request(make, rng, ({Measure.POWER: 1.0},))
    plans = {
        measure: solve(replace(problem, goal=Goal(stages=({measure: 1.0},))), settings=EXACT, assignment=FREE)
        for measure in Measure
    }
    if any(plan.cost_usd_per_hour is None for plan in plans.values()):
        assert all(plan.cost_usd_per_hour is None for plan in plans.values())
        return
    measured = {
        measure: {
            Measure.COST: plan.cost_usd_per_hour,
            Measure.POWER: plan.power_w,
            Measure.GPUS: sum(rental.instances * rental.gpus_per_instance for rental in plan.rentals),
            Measure.ENERGY: plan.mean_power_w,
            Measure.CARBON: plan.carbon_kg_per_hour,
        }
        for measure, plan in plans.items()
    }
    for measure, other in itertools.product(Measure, Measure):
        assert measured[measure][measure] <= measured[other][measure] * (1 + 1e-6) + 1e-6
